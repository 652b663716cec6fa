//! Access keys: who may do what, from a file that can be reloaded.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use kv_proto::auth::Role;
use kv_proto::layout::{KEY_NAME_MAX_BYTES, dataset_name_is_valid};

/// Length of a secret, bytes.
pub const SECRET_BYTES: usize = 32;
/// Keys that one file may hold.
pub const KEYS_MAX: usize = 65_536;

/// What one key may do.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name, told in HELLO.
    pub name: String,
    /// Its secret, never told.
    pub secret: [u8; SECRET_BYTES],
    /// What it may do.
    pub role: Role,
    /// Datasets that it may name; `*` stands for all.
    pub datasets: Vec<String>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {:?}, {:?})", self.name, self.role, self.datasets)
    }
}

impl Key {
    /// Whether it may name this dataset.
    #[must_use]
    pub fn allows(&self, dataset: &[u8]) -> bool {
        self.datasets
            .iter()
            .any(|name| name == "*" || name.as_bytes() == dataset)
    }
}

/// All keys of a server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys {
    by_name: Arc<HashMap<Vec<u8>, Arc<Key>>>,
}

/// A file of keys that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("key file {path}: {what}")]
pub struct KeysError {
    /// The file.
    pub path: String,
    /// What is wrong with it, and where.
    pub what: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    secret: String,
    role: String,
    datasets: Vec<String>,
}

impl Keys {
    /// These keys.
    ///
    /// # Errors
    /// A text that names the entry that is wrong.
    pub fn new(keys: Vec<Key>) -> Result<Self, String> {
        if keys.is_empty() {
            return Err(
                "it has no [[key]] entry; make one with `kv-server keygen --name NAME --role admin`"
                    .to_owned(),
            );
        }
        if keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys, more than {KEYS_MAX}", keys.len()));
        }
        let mut by_name = HashMap::with_capacity(keys.len());
        for (index, key) in keys.into_iter().enumerate() {
            check(&key).map_err(|what| format!("entry {} ({:?}): {what}", index + 1, key.name))?;
            let name = key.name.clone();
            if by_name.insert(name.clone().into_bytes(), Arc::new(key)).is_some() {
                return Err(format!("entry {}: the name {name:?} is there twice", index + 1));
            }
        }
        Ok(Self {
            by_name: Arc::new(by_name),
        })
    }

    /// The keys in a file.
    ///
    /// # Errors
    /// [`KeysError`] with the file and the line or entry that is wrong.
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        let error = |what: String| KeysError {
            path: path.display().to_string(),
            what,
        };
        let text = std::fs::read_to_string(path).map_err(|source| {
            error(format!(
                "cannot read it: {source} (`kv-server keygen --out FILE` makes one, for the user who runs it)"
            ))
        })?;
        warn_if_readable(path);
        Self::parse(&text).map_err(error)
    }

    /// The keys in the text of a file.
    ///
    /// # Errors
    /// A text that names the line or entry that is wrong, and never shows a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The parser's own rendering quotes the line, which may hold a secret; only where and what is said.
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
            format!("line {line}: {}", error.message())
        })?;
        let keys = file
            .key
            .into_iter()
            .enumerate()
            .map(|(index, entry)| {
                let name = entry.name.clone();
                key_of(entry).map_err(|what| format!("entry {} ({name:?}): {what}", index + 1))
            })
            .collect::<Result<_, _>>()?;
        Self::new(keys)
    }

    /// The key of this name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Key>> {
        self.by_name.get(name)
    }
}

fn warn_if_readable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(
            path = %path.display(),
            "other users may read the key file; remedy: chmod 600"
        );
    }
}

fn check(key: &Key) -> Result<(), String> {
    if key.name.is_empty() || key.name.len() > KEY_NAME_MAX_BYTES {
        return Err(format!("a name has 1 to {KEY_NAME_MAX_BYTES} bytes"));
    }
    for dataset in &key.datasets {
        if dataset != "*" && !dataset_name_is_valid(dataset.as_bytes()) {
            return Err(format!(
                "dataset {dataset:?}: a dataset's name is 1 to 64 of a-z 0-9 . _ -, or \"*\" for all"
            ));
        }
    }
    Ok(())
}

fn key_of(entry: Entry) -> Result<Key, String> {
    let role = parse_role(&entry.role)?;
    let secret = parse_hex(&entry.secret)
        .ok_or_else(|| format!("the secret must be {} hexadecimal digits", 2 * SECRET_BYTES))?;
    Ok(Key {
        name: entry.name,
        secret,
        role,
        datasets: entry.datasets,
    })
}

/// The role of this name.
///
/// # Errors
/// A text with the names there are.
pub fn parse_role(name: &str) -> Result<Role, String> {
    match name {
        "read" => Ok(Role::Read),
        "write" => Ok(Role::Write),
        "admin" => Ok(Role::Admin),
        other => Err(format!("role {other:?}: there are read, write and admin")),
    }
}

/// Name of a role.
#[must_use]
pub const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Read => "read",
        Role::Write => "write",
        Role::Admin => "admin",
    }
}

fn parse_hex(text: &str) -> Option<[u8; SECRET_BYTES]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * SECRET_BYTES {
        return None;
    }
    let mut bytes = [0; SECRET_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

/// The entry of a key file for a key.
#[must_use]
pub fn entry_text(key: &Key) -> String {
    let secret: String = key.secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let datasets: Vec<_> = key.datasets.iter().map(|name| quoted(name)).collect();
    format!(
        "[[key]]\nname = {}\nsecret = \"{secret}\"\nrole = \"{}\"\ndatasets = [{}]\n",
        quoted(&key.name),
        role_name(key.role),
        datasets.join(", "),
    )
}

/// A new key with a random secret.
///
/// # Errors
/// A text that says what is wrong with the name or a dataset, or that there is no randomness.
pub fn generate(name: &str, role: Role, datasets: Vec<String>) -> Result<Key, String> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(|error| format!("getrandom: {error}"))?;
    let key = Key {
        name: name.to_owned(),
        secret,
        role,
        datasets,
    };
    check(&key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    fn text(name: &str, secret: &str, role: &str, datasets: &str) -> String {
        format!(
            "[[key]]\nname = \"{name}\"\nsecret = \"{secret}\"\nrole = \"{role}\"\ndatasets = [{datasets}]\n"
        )
    }

    #[test]
    fn a_generated_entry_is_read_back() {
        let datasets = vec!["a.b".to_owned(), "*".to_owned()];
        let key = generate("quo\"te", Role::Write, datasets).unwrap();
        let keys = Keys::parse(&entry_text(&key)).unwrap();
        assert_eq!(**keys.get(b"quo\"te").unwrap(), key);
        assert!(keys.get(b"other").is_none());
    }

    #[test]
    fn a_key_allows_what_it_lists() {
        let keys = Keys::parse(&text("k", SECRET, "read", "\"cats\"")).unwrap();
        let key = keys.get(b"k").unwrap();
        assert!(key.allows(b"cats") && !key.allows(b"cat") && !key.allows(b"*"));
        assert_eq!(key.secret[1], 0x11);
        assert_eq!(key.secret[31], 0xff);
    }

    #[test]
    fn each_error_names_its_place_and_no_secret() {
        let good = text("k", SECRET, "read", "\"*\"");
        for (file, expected) in [
            (String::new(), "it has no [[key]] entry"),
            (good.clone() + &good, "entry 2: the name \"k\" is there twice"),
            (
                text("k", SECRET, "root", "\"*\""),
                "entry 1 (\"k\"): role \"root\"",
            ),
            (
                text("", SECRET, "read", "\"*\""),
                "entry 1 (\"\"): a name has 1 to 64 bytes",
            ),
            (
                text("k", SECRET, "read", "\"A\""),
                "entry 1 (\"k\"): dataset \"A\"",
            ),
            (
                text("k", &SECRET[1..], "read", ""),
                "entry 1 (\"k\"): the secret must be 64",
            ),
            (good.clone() + "[[key]]\nnome = 1\n", "line 7:"),
            (good.clone() + "secret", "line 6:"),
        ] {
            let error = Keys::parse(&file).unwrap_err();
            assert!(error.contains(expected), "{error:?} should contain {expected:?}");
            assert!(!error.contains(&SECRET[1..]), "{error:?} shows a secret");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Keys::load(Path::new("/nonexistent/keys.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("key file /nonexistent/keys.toml: cannot read it"),
            "{error}"
        );
    }
}
