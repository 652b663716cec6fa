//! Listing keys, page by page.

use std::collections::VecDeque;
use std::sync::Arc;

use kv_proto::control::{Answer, Request};

use crate::opening::Core;
use crate::read::arrive::global;
use crate::{ClientError, Entry};

/// Entries asked for at once; a frame holds fewer.
const PAGE_ENTRIES: u16 = 1024;

/// The keys of a dataset, in no order that means anything. Keys that are stored or deleted meanwhile may or may not
/// be among them.
pub struct List {
    core: Arc<Core>,
    page: VecDeque<Entry>,
    cursor: u64,
    done: bool,
}

impl List {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            page: VecDeque::new(),
            cursor: 0,
            done: false,
        }
    }

    fn fetch(&mut self) -> Result<(), ClientError> {
        let asked = self.cursor;
        let request = |dataset| Request::List {
            dataset,
            cursor: asked,
            limit: PAGE_ENTRIES,
        };
        match self.core.ask(|| "list keys".to_owned(), request, false)? {
            Answer::List {
                entries,
                cursor,
                done,
            } => {
                let id = self.core.id();
                self.page = entries
                    .into_iter()
                    .map(|entry| Entry {
                        key: entry.key.0,
                        value_len_bytes: entry.value_len_bytes,
                        locator: global(id, entry.locator),
                    })
                    .collect();
                // A cursor that does not go forward would be asked for without end.
                self.done = done != 0 || cursor <= asked;
                self.cursor = cursor;
                Ok(())
            }
            other => self.core.strange(&other),
        }
    }
}

impl Iterator for List {
    type Item = Result<Entry, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.is_empty() && !self.done {
            if let Err(error) = self.fetch() {
                self.done = true;
                return Some(Err(error));
            }
        }
        self.page.pop_front().map(Ok)
    }
}
