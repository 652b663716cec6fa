//! Keys as people type and read them: bytes on the command line, an escaped form where they do not print.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use kv_proto::layout::KEY_MAX_BYTES;

/// `bytes` for a person: as they are if every character prints, else in the form `$'a\nb\xff'`, which a shell
/// (bash, zsh, ksh) turns back into the very same bytes.
pub(crate) fn shown(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.starts_with("$'") && text.chars().all(prints) => text.into(),
        _ => quoted(bytes).into(),
    }
}

/// [`shown`] for a path.
pub(crate) fn shown_path(path: &Path) -> Cow<'_, str> {
    use std::os::unix::ffi::OsStrExt;
    shown(path.as_os_str().as_bytes())
}

/// Whether a terminal shows the character and nothing else happens: no control, no invisible and no direction mark.
fn prints(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                '\\' => out.push_str("\\\\"),
                '\'' => out.push_str("\\'"),
                shown if prints(shown) => out.push(shown),
                hidden => {
                    let mut utf8 = [0; 4];
                    push_hex(&mut out, hidden.encode_utf8(&mut utf8).as_bytes());
                }
            }
        }
        push_hex(&mut out, chunk.invalid());
    }
    out.push('\'');
    out
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Three octal digits: unlike \x, an octal escape cannot swallow a digit that follows.
        let _ = write!(out, "\\{byte:03o}");
    }
}

/// Bytes as lower-case hex digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

/// The bytes that hex digits stand for.
pub(crate) fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(format!(
            "{} hex digits are not a whole number of bytes (give two for each)",
            digits.len()
        ));
    }
    digits
        .chunks(2)
        .map(|pair| {
            let value = |digit: u8| char::from(digit).to_digit(16);
            match (value(pair[0]), value(pair[1])) {
                (Some(high), Some(low)) => Ok((high * 16 + low) as u8),
                _ => Err(format!("{:?} is not a hex digit", String::from_utf8_lossy(pair))),
            }
        })
        .collect()
}

/// What is wrong with a key, if anything.
pub(crate) fn judge(key: &[u8]) -> Result<(), String> {
    match key.len() {
        0 => Err("an empty key cannot be stored (a key has 1 to 1024 bytes)".into()),
        length if length > KEY_MAX_BYTES => Err(format!(
            "its key would have {length} bytes, more than {KEY_MAX_BYTES} (shorten its path)"
        )),
        _ => Ok(()),
    }
}

/// The key that an argument names: its bytes, or with `hex` what its digits stand for.
pub(crate) fn from_argument(argument: OsString, hex: bool) -> Result<Vec<u8>, String> {
    let bytes = argument.into_vec();
    let key = if hex {
        from_hex(&String::from_utf8_lossy(&bytes))?
    } else {
        bytes
    };
    judge_named(&key)?;
    Ok(key)
}

/// What is wrong with a key that somebody named, if anything.
pub(crate) fn judge_named(key: &[u8]) -> Result<(), String> {
    match key.len() {
        0 => Err("an empty key (a key has 1 to 1024 bytes)".into()),
        length if length > KEY_MAX_BYTES => Err(format!(
            "a key of {length} bytes (a key has 1 to {KEY_MAX_BYTES} bytes)"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_prints_is_shown_as_it_is() {
        assert_eq!(shown(b"a b/c.txt"), "a b/c.txt");
        assert_eq!(shown("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
    }

    #[test]
    fn what_does_not_print_is_quoted() {
        assert_eq!(shown(b"a\nb"), "$'a\\nb'");
        assert_eq!(shown(b"\x1b[2J"), "$'\\033[2J'");
        assert_eq!(shown(b"\xff1"), "$'\\3771'");
        assert_eq!(shown("\u{202e}x".as_bytes()), "$'\\342\\200\\256x'");
        assert_eq!(shown(b""), "$''");
        assert_eq!(shown(b"$'x'"), "$'$\\'x\\''");
    }

    #[test]
    fn a_shell_turns_the_quoted_form_back() {
        let odd: Vec<u8> = (1..=255).chain(*b"10$'\\n").collect();
        let script = format!("printf %s {}", shown(&odd));
        let output = Command::new("bash")
            .args(["-c", &script])
            .output()
            .expect("bash runs");
        assert_eq!(output.stdout, odd);
    }

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(from_hex(&to_hex(&[0, 255, 16])).unwrap(), [0, 255, 16]);
        assert!(from_hex("abc").unwrap_err().contains("3 hex digits"));
        assert!(from_hex("zz").unwrap_err().contains("zz"));
        assert!(from_argument("".into(), false).is_err());
        assert!(from_argument("00".repeat(1025).into(), true).is_err());
        assert_eq!(from_argument("0a".into(), true).unwrap(), b"\n");
    }

    #[test]
    fn the_longest_key_is_taken_and_the_next_is_not() {
        assert!(judge(&[b'k'; 1024]).is_ok());
        assert!(judge(&[b'k'; 1025]).unwrap_err().contains("1025"));
        assert!(judge(b"").is_err());
    }
}
