//! Calls that wait: many values asked for, a window of them at a time.

use kv_fabric::Fabric;
use kv_proto::layout::Locator;

use super::engine::{Ask, Done, Engine};
use super::item::{Memory, Want};
use crate::clock::boot_ns;
use crate::memory::BufferOn;
use crate::{DatasetId, GlobalLocator, ReadError};

/// Values of one call that are under way at once.
const WINDOW: usize = 1024;

/// One value that a call asks for, by key or by place; `Err` if it cannot be there.
pub(crate) type Wish<'k> = Result<(Option<&'k [u8]>, Option<Locator>), ReadError>;

/// What a key wishes for.
pub(crate) fn by_key(key: &[u8]) -> Wish<'_> {
    Ok((Some(key), None))
}

/// What a locator wishes for, if it can be of this dataset and, where one is given, of this key.
pub(crate) fn by_place<'k>(id: DatasetId, at: &GlobalLocator, key: Option<&'k [u8]>) -> Wish<'k> {
    let other_key = |key: &[u8]| key.len() != usize::from(at.locator.key_len_bytes);
    if at.dataset != id || at.locator.segment == 0 || key.is_some_and(other_key) {
        return Err(ReadError::Stale);
    }
    Ok((key, Some(at.locator)))
}

/// The place in `buffer` at `offset`.
pub(crate) fn place_in<F: Fabric>(buffer: &BufferOn<F>, offset: usize) -> Want {
    Want::Place {
        offset: buffer.base().saturating_add(offset),
        room: buffer.len().saturating_sub(offset),
    }
}

/// An engine in use by a call. If that unwinds, nothing is in flight after it: the memory that it borrowed goes.
struct InUse<'e, F: Fabric> {
    engine: &'e mut Engine<F>,
    over: bool,
}

impl<F: Fabric> Drop for InUse<'_, F> {
    fn drop(&mut self) {
        if !self.over {
            self.engine.abort();
        }
    }
}

impl<F: Fabric> Engine<F> {
    /// Uses the engine; it is as new if that unwinds.
    pub(crate) fn using<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let mut used = InUse {
            engine: self,
            over: false,
        };
        let result = work(used.engine);
        used.over = true;
        result
    }

    /// Reads `count` values and hands over each as it is done. All of them are done when it returns.
    fn read<'k>(
        &mut self,
        count: usize,
        want: Want,
        memory: impl Fn() -> Memory<F>,
        wish: impl Fn(usize) -> Wish<'k>,
        mut take: impl FnMut(usize, Result<Done<F>, ReadError>),
    ) {
        self.using(|engine| {
            let (mut next, mut under_way) = (0, 0);
            while next < count || under_way > 0 {
                let now = boot_ns();
                while next < count && under_way < WINDOW {
                    match wish(next) {
                        Ok((key, at)) => {
                            let ask = Ask {
                                user: next as u64,
                                ticket: false,
                                key,
                                at,
                                want,
                                memory: memory(),
                            };
                            engine.submit(ask, now);
                            under_way += 1;
                        }
                        Err(error) => take(next, Err(error)),
                    }
                    next += 1;
                }
                engine.run();
                while let Some(done) = engine.take_done() {
                    under_way -= 1;
                    take(done.user as usize, Ok(done));
                }
            }
        });
    }

    /// Reads one value.
    pub(crate) fn read_one(&mut self, wish: Wish<'_>, want: Want) -> Result<Done<F>, ReadError> {
        self.read_to(wish, want, || Memory::None)
    }

    /// Reads one value into the caller's memory at `offset`; its length.
    pub(crate) fn read_into(
        &mut self,
        wish: Wish<'_>,
        buffer: &mut BufferOn<F>,
        offset: usize,
    ) -> Result<usize, ReadError> {
        if let Ok((key, Some(at))) = &wish
            && let Some(len) = self.using(|engine| engine.fast_into(*key, at, buffer, offset))
        {
            return Ok(len);
        }
        let memory = || Memory::Borrowed(buffer.region().clone());
        let done = self.read_to(wish, place_in(buffer, offset), memory)?;
        Ok(done.result?.value_len_bytes as usize)
    }

    fn read_to(
        &mut self,
        wish: Wish<'_>,
        want: Want,
        memory: impl Fn() -> Memory<F>,
    ) -> Result<Done<F>, ReadError> {
        let mut result = Err(ReadError::Closed);
        let take = |_, done: Result<Done<F>, _>| result = done.and_then(|done| done.result.map(|_| done));
        self.read(1, want, memory, |_| wish, take);
        result
    }

    /// Reads many values; results in the order asked.
    pub(crate) fn read_many<'k, T>(
        &mut self,
        count: usize,
        want: Want,
        wish: impl Fn(usize) -> Wish<'k>,
        what: impl Fn(Done<F>) -> T,
    ) -> Vec<Result<T, ReadError>> {
        let mut results: Vec<_> = (0..count).map(|_| Err(ReadError::Closed)).collect();
        let take = |index: usize, done: Result<Done<F>, _>| {
            if let Some(place) = results.get_mut(index) {
                *place = done.and_then(|done| done.result.map(|_| what(done)));
            }
        };
        self.read(count, want, || Memory::None, wish, take);
        results
    }
}
