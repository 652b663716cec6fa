//! Memory for the next extent, made by a thread of its own: mapping and registering 64 MiB takes long, and the log
//! must not wait for it.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::super::Dataset;
use super::super::index::Readable;
use crate::error::StorageError;

type Made = Result<Readable, StorageError>;

enum State {
    Making(JoinHandle<Made>),
    Ready(Readable),
}

/// At most one extent that is not used yet.
#[derive(Default)]
pub(crate) struct Spare {
    held: Option<(u64, State)>,
}

impl Spare {
    /// Begins to make an extent of `len` bytes, unless there is one.
    pub(crate) fn prepare(&mut self, dataset: &Arc<Dataset>, len: u64) {
        if self.held.is_some() {
            return;
        }
        let dataset = Arc::clone(dataset);
        let thread = std::thread::Builder::new()
            .name("kv-extent".to_owned())
            .spawn(move || Readable::new(&dataset.place(), len as usize));
        match thread {
            Ok(thread) => self.held = Some((len, State::Making(thread))),
            Err(error) => {
                tracing::warn!(%error, "no thread to prepare the next extent; the log makes it itself")
            }
        }
    }

    /// Keeps an extent that was taken and not used.
    pub(crate) fn keep(&mut self, len: u64, extent: Readable) {
        self.held = Some((len, State::Ready(extent)));
    }

    /// An extent of `len` bytes: the one prepared, or a new one, where it is `urgent` of the memory that is kept.
    pub(crate) fn take(&mut self, dataset: &Dataset, len: u64, urgent: bool) -> Made {
        match self.held.take() {
            Some((held, State::Ready(extent))) if held == len => return Ok(extent),
            Some((held, State::Making(thread))) if held == len => {
                // What failed ahead of time may work now.
                if let Ok(Ok(extent)) = thread.join() {
                    return Ok(extent);
                }
            }
            // Of another length: its memory goes back before more is taken.
            Some((_, State::Making(thread))) => drop(thread.join()),
            Some((_, State::Ready(extent))) => drop(extent),
            None => {}
        }
        if urgent {
            Readable::reserved(&dataset.place(), len as usize)
        } else {
            Readable::new(&dataset.place(), len as usize)
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some((_, State::Making(thread))) = self.held.take() {
            drop(thread.join());
        }
    }
}
