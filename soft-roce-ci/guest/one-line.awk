# Reads apt's one-line .list files; prints "URI|SIGNED-BY" of each entry that is a Debian archive with the
# component main.
{ sub(/#.*/, "") }
$1 != "deb" { next }
{
    signed = ""
    line = $0
    sub(/^[ \t]*deb[ \t]+/, "", line)
    if (line ~ /^\[/) {
        options = line
        sub(/\].*/, "", options)
        sub(/^[^]]*\][ \t]*/, "", line)
        if (match(options, /signed-by=[^ \t]+/)) signed = substr(options, RSTART + 10, RLENGTH - 10)
        if (signed !~ /^\//) signed = ""
    }
    n = split(line, word, /[ \t]+/)
    main = 0
    for (i = 3; i <= n; i++) if (word[i] == "main") main = 1
    known = word[2] ~ /^(oldoldstable|oldstable|stable|testing|unstable|bullseye|bookworm|trixie|forky|sid)$/
    if (main && (word[1] ~ /\/debian\/?$/ || word[1] ~ /^mirror/ && known) && !(word[1] in seen)) {
        seen[word[1]] = 1
        print word[1] "|" signed
    }
}
