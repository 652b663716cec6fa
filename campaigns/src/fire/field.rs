//! One dataset under fire: what its writers have begun and been answered, and what a reader may therefore get.
//!
//! Each key has one writer, so its versions have one order. A reader notes the newest version that was answered, or
//! got by any reader, before its call began; afterwards it notes the newest that was begun. What it got must lie
//! between: nothing older than a completed operation, and no older than what another had before.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kv_client::ReadError;
use kv_proto::hash::WEAK_PREFIX;

use super::values::Version;

/// Three keys in a row have all but the last byte in common.
pub(super) const COLLIDING: u32 = 3;
/// Of so many such threes one collides (see [`kv_proto::hash::weaken`]); the others are found as keys usually are.
const THREES: u32 = 4;

/// The keys of every dataset.
pub(super) fn keys(count: u32) -> Vec<Vec<u8>> {
    let letter = |key| b'a' + (key % COLLIDING) as u8;
    (0..count)
        .map(|key| {
            let three = key / COLLIDING;
            let prefix = if three.is_multiple_of(THREES) {
                WEAK_PREFIX
            } else {
                b""
            };
            [prefix, format!("{three:06}").as_bytes(), &[letter(key)]].concat()
        })
        .collect()
}

#[derive(Debug, Default)]
struct Key {
    begun: AtomicU32,
    answered: AtomicU32,
    seen: AtomicU32,
}

/// One dataset.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) generation: u64,
    pub(super) name: String,
    keys: Vec<Key>,
    /// Set before it is dropped.
    dropping: AtomicBool,
}

impl Field {
    pub(super) fn new(generation: u64, keys: u32) -> Self {
        Self {
            generation,
            name: format!("fire-{generation}"),
            keys: (0..keys).map(|_| Key::default()).collect(),
            dropping: AtomicBool::new(false),
        }
    }

    pub(super) fn keys(&self) -> u32 {
        self.keys.len() as u32
    }

    pub(super) fn version(&self, key: u32, number: u32) -> Version {
        Version {
            generation: self.generation,
            key,
            number,
        }
    }

    /// Begins the next version of a key; its writer alone may.
    pub(super) fn begin(&self, key: u32) -> Version {
        let number = self.keys[key as usize].begun.load(Ordering::SeqCst) + 1;
        self.keys[key as usize].begun.store(number, Ordering::SeqCst);
        self.version(key, number)
    }

    /// A version was answered.
    pub(super) fn answered(&self, version: Version) {
        self.keys[version.key as usize]
            .answered
            .store(version.number, Ordering::SeqCst);
    }

    pub(super) fn set_dropping(&self) {
        self.dropping.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_dropping(&self) -> bool {
        self.dropping.load(Ordering::SeqCst)
    }

    /// The oldest version that a call that begins now may get.
    pub(super) fn oldest(&self, key: u32) -> u32 {
        let key = &self.keys[key as usize];
        let seen = key.seen.load(Ordering::SeqCst);
        seen.max(key.answered.load(Ordering::SeqCst))
    }

    /// The newest version that a call that has ended may have got.
    pub(super) fn newest(&self, key: u32) -> u32 {
        self.keys[key as usize].begun.load(Ordering::SeqCst)
    }

    /// Judges what a lookup of `key` gave that began when `oldest` was the oldest it may give. What is wrong, in words.
    pub(super) fn judge(
        &self,
        key: u32,
        oldest: u32,
        got: &Result<Vec<u8>, ReadError>,
    ) -> Result<(), String> {
        let newest = self.newest(key);
        let between = format_args!("{oldest} to {newest} are possible").to_string();
        let number = match got {
            Ok(value) => {
                let version = self.judge_value(key, value)?;
                if version.number < oldest || version.number > newest {
                    return Err(format!("{version:?}: {between}"));
                }
                version.number
            }
            Err(ReadError::NotFound) => (oldest..=newest)
                .find(|number| self.version(key, *number).is_delete())
                .ok_or_else(|| {
                    format!(
                        "key {key} of {} was not found and never deleted: {between}",
                        self.name
                    )
                })?,
            Err(error) => return Err(format!("key {key} of {}: {error}", self.name)),
        };
        self.keys[key as usize].seen.fetch_max(number, Ordering::SeqCst);
        Ok(())
    }

    /// Judges the bytes of a value of `key`, whatever its version.
    pub(super) fn judge_value(&self, key: u32, value: &[u8]) -> Result<Version, String> {
        let version = Version::tell(value).map_err(|why| format!("key {key} of {}: {why}", self.name))?;
        if version.generation != self.generation || version.key != key || version.is_delete() {
            return Err(format!("key {key} of {} gave {version:?}", self.name));
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_an_answer_or_newer_than_a_beginning_is_wrong() {
        let field = Field::new(1, 2);
        let mut versions = (1..).map(|number| field.version(0, number));
        let put = |version: &Version| !version.is_delete();
        let first = versions.find(put).unwrap();
        while field.begin(0) != first {}
        field.answered(first);
        let oldest = field.oldest(0);
        assert_eq!(field.judge(0, oldest, &Ok(first.value())), Ok(()));
        assert!(field.judge(0, oldest, &Err(ReadError::NotFound)).is_err());
        assert!(field.judge(1, 0, &Ok(first.value())).is_err());
        assert_eq!(field.judge(1, 0, &Err(ReadError::NotFound)), Ok(()));
        assert!(field.judge(0, oldest, &Err(ReadError::Stale)).is_err());
        let second = versions.find(put).unwrap();
        assert!(field.judge(0, oldest, &Ok(second.value())).is_err(), "not begun");
        while field.begin(0) != second {}
        assert_eq!(field.judge(0, oldest, &Ok(first.value())), Ok(()));
        assert_eq!(field.judge(0, oldest, &Ok(second.value())), Ok(()));
        // Somebody has it, though it was not answered: the first must not come again.
        assert!(field.judge(0, field.oldest(0), &Ok(first.value())).is_err());
        let deleted = loop {
            let version = field.begin(0);
            if version.is_delete() {
                break version;
            }
        };
        assert_eq!(field.judge(0, oldest, &Err(ReadError::NotFound)), Ok(()));
        field.answered(deleted);
        assert!(field.judge(0, field.oldest(0), &Ok(second.value())).is_err());
    }
}
