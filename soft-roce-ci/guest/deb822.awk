# Reads apt's deb822 .sources files; prints "URI|SIGNED-BY" of each enabled stanza that is a Debian archive
# with the component main. A Signed-By that holds the key itself, over several lines, is left out: apt then
# uses its trusted keys.
function flush(   i, n, uris) {
    if (types ~ /(^| )deb( |$)/ && enabled !~ /^(no|false|0|off|without|disable)$/ && components ~ /(^| )main( |$)/) {
        n = split(uri, uris, / +/)
        for (i = 1; i <= n; i++)
            if (uris[i] ~ /\/debian\/?$/ || uris[i] ~ /^mirror/ && suites ~ /(^| )(oldoldstable|oldstable|stable|testing|unstable|bullseye|bookworm|trixie|forky|sid)( |$)/)
                if (!(uris[i] in seen)) {
                    seen[uris[i]] = 1
                    print uris[i] "|" (signed ~ /^\// ? signed : "")
                }
    }
    types = uri = components = suites = signed = enabled = field = ""
}
FNR == 1 { flush() }
/^#/ { next }
/^[ \t]*$/ { flush(); next }
/^[ \t]/ {
    line = $0
    gsub(/^[ \t]+|[ \t]+$/, "", line)
    add(field, line)
    next
}
{
    field = tolower($0)
    sub(/:.*/, "", field)
    line = $0
    sub(/^[^:]*:[ \t]*/, "", line)
    gsub(/[ \t]+/, " ", line)
    sub(/ $/, "", line)
    add(field, line)
}
function add(name, text) {
    if (name == "types") types = types " " text
    else if (name == "uris") { uri = uri (uri == "" ? "" : " ") text }
    else if (name == "components") components = components " " text
    else if (name == "suites") suites = suites " " text
    else if (name == "enabled") enabled = tolower(text)
    else if (name == "signed-by") signed = signed (signed == "" ? "" : " ") text
}
END { flush() }
