//! LMDB: a get and a memcpy.
//!
//! # Safety
//! The environment lies in a directory that this run made; one process after the other opens it, each once, and nobody
//! else changes its files.
#![cfg_attr(feature = "lmdb", allow(unsafe_code))]

use std::path::Path;

use super::AnyGetter;
use crate::Error;
use crate::run::values::Values;

#[cfg(not(feature = "lmdb"))]
const WITHOUT: &str = "this program was built without the feature `lmdb`";

/// Longest key that LMDB takes, as it is built here.
const KEY_MAX_BYTES: usize = 511;

/// Why it cannot be measured.
pub(crate) fn missing(values: &Values) -> Option<String> {
    #[cfg(not(feature = "lmdb"))]
    return Some(WITHOUT.to_owned());
    #[cfg(feature = "lmdb")]
    {
        let key = (0..values.count()).map(|index| values.key(index));
        let long = key.map(|key| key.len()).find(|len| *len > KEY_MAX_BYTES)?;
        Some(format!(
            "it takes keys of up to {KEY_MAX_BYTES} bytes, and there is one of {long}"
        ))
    }
}

#[cfg(not(feature = "lmdb"))]
pub(crate) fn write(_path: &Path, _values: &Values) -> Result<(), Error> {
    Err(WITHOUT.into())
}

#[cfg(not(feature = "lmdb"))]
pub(crate) fn getters(
    _path: &Path,
    _values: &Values,
    _room: usize,
    _threads: usize,
    _crc: bool,
) -> Result<Vec<AnyGetter>, Error> {
    Err(WITHOUT.into())
}

#[cfg(feature = "lmdb")]
pub(crate) use with::{getters, write};

#[cfg(feature = "lmdb")]
mod with {
    use std::sync::Arc;

    use heed::types::Bytes;
    use heed::{Database, Env, EnvFlags, EnvOpenOptions};
    use kv_proto::crc::crc32c;

    use super::{AnyGetter, Error, Path, Values};
    use crate::run::pace::Getter;
    use crate::run::sides::Slots;

    /// Values of one transaction while it is filled.
    const FILL: usize = 4096;

    fn open(path: &Path, values: &Values, flags: EnvFlags) -> Result<Env, Error> {
        let keys = values.count() as u64 * 1024;
        let room = values.places().1 * 2 + keys + (64 << 20);
        let mut options = EnvOpenOptions::new();
        options.map_size(room.next_multiple_of(1 << 20) as usize);
        // SAFETY: without these flags' syncs a crash can damage the environment, which nobody needs after this run.
        unsafe { options.flags(flags) };
        // SAFETY: nobody but this run changes the file, as the head of this file says.
        Ok(unsafe { options.open(path) }?)
    }

    /// Fills an environment, in the order of the keys, so that its pages are full.
    pub(crate) fn write(path: &Path, values: &Values) -> Result<(), Error> {
        std::fs::create_dir_all(path)?;
        let env = open(path, values, EnvFlags::NO_SYNC)?;
        let mut order: Vec<usize> = (0..values.count()).collect();
        order.sort_by_key(|&index| values.key(index));
        for some in order.chunks(FILL) {
            let mut transaction = env.write_txn()?;
            let database: Database<Bytes, Bytes> = env.create_database(&mut transaction, None)?;
            for &index in some {
                database.put(&mut transaction, &values.key(index), &values.bytes(index)?)?;
            }
            transaction.commit()?;
        }
        Ok(env.force_sync()?)
    }

    /// Gets, each call a transaction.
    struct Lmdb {
        env: Env,
        database: Database<Bytes, Bytes>,
        keys: Arc<Vec<Vec<u8>>>,
        slots: Slots,
        crc: bool,
    }

    /// Getters of one environment, which a process opens once; with `crc` they take the CRC32C of each copy.
    pub(crate) fn getters(
        path: &Path,
        values: &Values,
        room: usize,
        threads: usize,
        crc: bool,
    ) -> Result<Vec<AnyGetter>, Error> {
        let env = open(path, values, EnvFlags::READ_ONLY)?;
        let transaction = env.read_txn()?;
        let database = env
            .open_database(&transaction, None)?
            .ok_or("the environment is empty")?;
        transaction.commit()?;
        let keys: Arc<Vec<Vec<u8>>> = Arc::new((0..values.count()).map(|index| values.key(index)).collect());
        let one = |_| -> AnyGetter {
            Box::new(Lmdb {
                env: env.clone(),
                database,
                keys: Arc::clone(&keys),
                slots: Slots::new(room),
                crc,
            })
        };
        Ok((0..threads).map(one).collect())
    }

    impl Getter for Lmdb {
        fn get(&mut self, batch: &[u32]) -> Result<(), Error> {
            self.slots.clear();
            let transaction = self.env.read_txn()?;
            for &index in batch {
                let found = self.database.get(&transaction, &self.keys[index as usize])?;
                let found = found.ok_or("LMDB lost a key")?;
                let copy = self.slots.next(found.len());
                copy.copy_from_slice(found);
                if self.crc {
                    std::hint::black_box(crc32c(copy));
                }
            }
            Ok(())
        }

        fn look(&self, at: usize, judge: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
            Ok(judge(self.slots.value(at)))
        }
    }
}
