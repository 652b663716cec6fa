//! Access keys, and the file that holds them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kv_proto::layout::KEY_NAME_MAX_BYTES;

use crate::ClientError;

/// Longest key file, bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// A name and the secret behind it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// Its name, as the server's key file has it.
    pub name: String,
    secret: [u8; 32],
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKey({})", self.name)
    }
}

#[derive(serde::Deserialize)]
struct KeyFile {
    #[serde(default)]
    key: Vec<KeyEntry>,
}

#[derive(serde::Deserialize)]
struct KeyEntry {
    name: String,
    secret: String,
}

impl AccessKey {
    /// The key `name` with this secret.
    #[must_use]
    pub fn new(name: &str, secret: [u8; 32]) -> Self {
        Self {
            name: name.to_owned(),
            secret,
        }
    }

    /// The key `name` of the key file `path`; its first key where no name is given.
    ///
    /// The file is TOML: `[[key]]` tables with `name` and `secret` (64 hexadecimal digits). A file that other users can
    /// read is used, with a warning; it may be a pipe.
    ///
    /// # Errors
    /// [`ClientError::KeyFile`] if it cannot be read, is no key file, or has no such key.
    pub fn load(path: &Path, name: Option<&str>) -> Result<Self, ClientError> {
        let wrong = |why: String| ClientError::KeyFile {
            path: path.to_owned(),
            why,
        };
        let unreadable = |error: std::io::Error| wrong(error.to_string());
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        // A pipe has no length, and is of whoever made it.
        if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "the key file can be read by other users: chmod 600 it");
        }
        let mut text = String::new();
        let read = file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text);
        if read.map_err(unreadable)? as u64 > FILE_MAX_BYTES {
            return Err(wrong(format!(
                "it is longer than {FILE_MAX_BYTES} bytes, which no key file is"
            )));
        }
        Self::parse(&text, name).map_err(wrong)
    }

    fn parse(text: &str, name: Option<&str>) -> Result<Self, String> {
        // The parser's own message would quote the line, which may hold a secret.
        let file: KeyFile = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start].lines().count().max(1));
            format!("line {line} is not what a key file holds ([[key]] with name and secret)")
        })?;
        let entry = file
            .key
            .iter()
            .find(|entry| name.is_none_or(|name| entry.name == name));
        let entry = entry.ok_or_else(|| match name {
            Some(name) => format!("it has no key named `{name}`"),
            None => "it has no [[key]]".to_owned(),
        })?;
        if !(1..=KEY_NAME_MAX_BYTES).contains(&entry.name.len()) {
            return Err(format!("the name `{}` does not have 1 to 64 bytes", entry.name));
        }
        let secret = unhex(&entry.secret).ok_or_else(|| {
            format!(
                "the secret of `{}` does not have 64 hexadecimal digits",
                entry.name
            )
        })?;
        Ok(Self::new(&entry.name, secret))
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, index) in out.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(index..index + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeFF";

    #[test]
    fn the_first_key_or_the_named_one_is_taken() {
        let text = format!(
            "[[key]]\nname = \"a\"\nsecret = \"{SECRET}\"\nrole = \"admin\"\ndatasets = [\"*\"]\n\
             [[key]]\nname = \"b\"\nsecret = \"{}\"\nrole = \"read\"\ndatasets = [\"x\"]\n",
            "ab".repeat(32)
        );
        let first = AccessKey::parse(&text, None).unwrap();
        assert_eq!(first.name, "a");
        assert_eq!((first.secret[1], first.secret[31]), (0x11, 0xff));
        assert_eq!(
            AccessKey::parse(&text, Some("b")).unwrap(),
            AccessKey::new("b", [0xab; 32])
        );
        assert!(AccessKey::parse(&text, Some("c")).unwrap_err().contains("`c`"));
        assert!(!format!("{first:?}").contains("11"));
    }

    #[test]
    fn other_files_are_refused_without_telling_secrets() {
        for text in [
            String::new(),
            "key = 5".to_owned(),
            format!("[[key]]\nname = \"a\"\nsecret = \"{}\"", &SECRET[1..]),
            format!("[[key]]\nname = \"\"\nsecret = \"{SECRET}\""),
            format!("[[key]]\nname = \"a\"\nsecret = {SECRET}"),
            format!("[[key]]\nname = \"a\"\nsecret = \"+{}\"", &SECRET[1..]),
        ] {
            let error = AccessKey::parse(&text, None).unwrap_err();
            assert!(!error.contains("2233"), "{error}");
        }
        let endless = AccessKey::load(Path::new("/dev/zero"), None).unwrap_err();
        assert!(endless.to_string().contains("longer than"), "{endless}");
        let missing = AccessKey::load(Path::new("/nonexistent/keys.toml"), None).unwrap_err();
        assert!(
            missing.to_string().contains("/nonexistent/keys.toml"),
            "{missing}"
        );
    }
}
