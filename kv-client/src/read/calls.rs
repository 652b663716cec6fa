//! Calls that wait: many values asked for, a window of them at a time.

use kv_fabric::Region;
use kv_proto::layout::Locator;

use super::engine::{Ask, Done, Engine};
use super::item::{Found, Memory, Want};
use super::runs;
use super::short::Call;
use super::slots::Value;
use crate::clock::boot_ns;
use crate::memory::Buffer;
use crate::{DatasetId, GlobalLocator, ReadError};

/// Values of one call that are under way at once.
pub(super) const WINDOW: usize = 1024;

/// One value that a call asks for, by key or by place; `Err` if it cannot be there.
pub(crate) type Wish<'k> = Result<(Option<&'k [u8]>, Option<&'k Locator>), ReadError>;

/// The values that a call asks for, by their number.
pub(crate) trait Wishes {
    /// One of them.
    fn wish(&self, index: usize) -> Wish<'_>;

    /// Its key, where the caller gave one.
    fn key(&self, index: usize) -> Option<&[u8]>;

    /// Whether the value behind it may lie right behind `at`, which is its place.
    #[inline]
    fn leads(&self, _index: usize, _at: &Locator) -> bool {
        false
    }
}

/// Values by their keys.
pub(crate) struct ByKey<'k, K>(pub(crate) &'k [K]);

impl<K: AsRef<[u8]>> Wishes for ByKey<'_, K> {
    #[inline]
    fn wish(&self, index: usize) -> Wish<'_> {
        by_key(self.0[index].as_ref())
    }

    #[inline]
    fn key(&self, index: usize) -> Option<&[u8]> {
        Some(self.0[index].as_ref())
    }
}

/// Values by their places, and their keys as far as those are given.
pub(crate) struct ByPlace<'k, K> {
    pub(crate) id: DatasetId,
    pub(crate) at: &'k [GlobalLocator],
    /// One by one, or none.
    pub(crate) keys: &'k [K],
}

impl<K: AsRef<[u8]>> Wishes for ByPlace<'_, K> {
    #[inline]
    fn wish(&self, index: usize) -> Wish<'_> {
        by_place(self.id, &self.at[index], self.key(index))
    }

    #[inline]
    fn key(&self, index: usize) -> Option<&[u8]> {
        self.keys.get(index).map(AsRef::as_ref)
    }

    #[inline]
    fn leads(&self, index: usize, at: &Locator) -> bool {
        let behind = self.at.get(index + 1);
        behind.is_some_and(|behind| runs::follows(at, &behind.locator))
    }
}

/// One value.
struct One<'k>(Wish<'k>);

impl Wishes for One<'_> {
    #[inline]
    fn wish(&self, _: usize) -> Wish<'_> {
        self.0
    }

    #[inline]
    fn key(&self, _: usize) -> Option<&[u8]> {
        self.0.ok().and_then(|(key, _)| key)
    }
}

/// A value that a call asked for, as it was wanted.
pub(crate) struct Got {
    pub(crate) found: Found,
    pub(crate) value: Value,
}

/// What a key wishes for.
pub(crate) fn by_key(key: &[u8]) -> Wish<'_> {
    Ok((Some(key), None))
}

/// What a locator wishes for, if it can be of this dataset and, where one is given, of this key.
#[inline]
pub(crate) fn by_place<'k>(id: DatasetId, at: &'k GlobalLocator, key: Option<&'k [u8]>) -> Wish<'k> {
    let other_key = |key: &[u8]| key.len() != usize::from(at.locator.key_len_bytes);
    if at.dataset != id || at.locator.segment == 0 || key.is_some_and(other_key) {
        return Err(ReadError::Stale);
    }
    Ok((key, Some(&at.locator)))
}

/// The place in `buffer` at `offset`.
pub(crate) fn place_in(buffer: &Buffer, offset: usize) -> Want {
    Want::Place {
        offset: buffer.base().saturating_add(offset),
        room: buffer.len().saturating_sub(offset),
    }
}

/// An engine in use by a call. If that unwinds, nothing is in flight after it: the memory that it borrowed goes.
struct InUse<'e> {
    engine: &'e mut Engine,
    over: bool,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.engine.abort();
        }
    }
}

impl Engine {
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

    /// Reads `count` values and hands over each as it is done. All of them are done when it returns. What wants a
    /// place has it in `region`.
    fn read(
        &mut self,
        count: usize,
        want: Want,
        region: Option<&Region>,
        wishes: impl Wishes,
        take: impl FnMut(usize, Result<Got, ReadError>),
    ) {
        self.using(|engine| {
            let mut call = Call {
                count,
                want,
                region,
                wishes,
                take,
                next: 0,
                run_to: usize::MAX,
                left: std::mem::take(&mut engine.left),
            };
            // What is left has had the time since then.
            let mut now = engine.short(&mut call, boot_ns());
            let Call {
                wishes,
                mut take,
                left,
                ..
            } = call;
            let (mut asked, mut under_way) = (left.iter(), 0);
            loop {
                while under_way < WINDOW
                    && let Some(&(index, trouble)) = asked.next()
                {
                    match wishes.wish(index) {
                        Ok((key, at)) => {
                            let ask = Ask {
                                user: index as u64,
                                ticket: false,
                                key,
                                at: at.copied(),
                                want,
                                trouble,
                                memory: region
                                    .map_or(Memory::None, |region| Memory::Borrowed(region.clone())),
                            };
                            engine.submit(ask, now);
                            under_way += 1;
                        }
                        Err(error) => take(index, Err(error)),
                    }
                }
                if under_way == 0 {
                    break;
                }
                engine.run();
                while let Some(Done {
                    user, result, value, ..
                }) = engine.take_done()
                {
                    under_way -= 1;
                    take(user as usize, result.map(|found| Got { found, value }));
                }
                now = boot_ns();
            }
            engine.left = left;
            engine.left.clear();
        });
    }

    /// Reads one value.
    pub(crate) fn read_one(&mut self, wish: Wish<'_>, want: Want) -> Result<Got, ReadError> {
        self.read_to(wish, want, None)
    }

    /// Reads one value into the caller's memory at `offset`; its length.
    pub(crate) fn read_into(
        &mut self,
        wish: Wish<'_>,
        buffer: &mut Buffer,
        offset: usize,
    ) -> Result<usize, ReadError> {
        if !self.takes(buffer) {
            return Err(ReadError::OtherSession);
        }
        let got = self.read_to(wish, place_in(buffer, offset), Some(buffer.region()))?;
        Ok(got.found.value_len_bytes as usize)
    }

    fn read_to(&mut self, wish: Wish<'_>, want: Want, region: Option<&Region>) -> Result<Got, ReadError> {
        let mut result = Err(ReadError::Closed);
        let take = |_, got| result = got;
        self.read(1, want, region, One(wish), take);
        result
    }

    /// Reads many values; results in the order asked.
    pub(crate) fn read_many<T>(
        &mut self,
        count: usize,
        want: Want,
        wishes: impl Wishes,
        what: impl Fn(Got) -> T,
    ) -> Vec<Result<T, ReadError>> {
        let mut results = Vec::with_capacity(count);
        let take = |index: usize, got: Result<Got, _>| {
            // Nearly always they come in order.
            if index == results.len() {
                results.push(got.map(&what));
            } else {
                place(&mut results, index, got.map(&what));
            }
        };
        self.read(count, want, None, wishes, take);
        results.resize_with(count, || Err(ReadError::Closed));
        results
    }
}

/// Puts a result where it belongs, which is not the end of what is there.
#[cold]
fn place<T>(results: &mut Vec<Result<T, ReadError>>, index: usize, result: Result<T, ReadError>) {
    let len = results.len().max(index + 1);
    results.resize_with(len, || Err(ReadError::Closed));
    results[index] = result;
}
