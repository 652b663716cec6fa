//! What a client knows of a dataset without asking: its segment table and the directory of its index.
//!
//! - The control thread alone changes it, in the order of the server's answers; pieces of the directory that were READ
//!   are installed by whoever read them, and discarded if a change arrived since the READ was posted.
//! - Readers hold a [`View`], which never changes. What a change takes away is gone from every later view, so a reader
//!   that began after the change cannot follow it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_fabric::RemoteRef;
use kv_proto::bucket::IndexScope;
use kv_proto::control::{Answer, DatasetChange, DirectoryRef, RemoteAddress, SegmentRow, change_flag};
use kv_proto::layout::{DirectoryEntry, EXTENT_BYTES, Locator, SEGMENT_MAX_BYTES, segment_state};

/// Directory entries that are fetched and forgotten together.
pub(crate) const PAGE_ENTRIES: u32 = 1024;

/// One row of the segment table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) segment: u32,
    pub(crate) identity: u64,
    pub(crate) state: u8,
    /// Bytes from its start on that may be read; none without an image.
    readable_bytes: u64,
    extents: Vec<RemoteRef>,
}

/// Why a place in a segment cannot be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The row or the extent is not known: renew.
    Unknown,
    /// The segment's image is asked for with LOAD.
    Loading,
    /// There is no image.
    None,
}

impl Row {
    fn from_wire(row: &SegmentRow) -> Self {
        let in_extents = (row.extents.len() as u64 * EXTENT_BYTES).min(SEGMENT_MAX_BYTES);
        Self {
            segment: row.segment,
            identity: row.identity,
            state: row.state,
            readable_bytes: match row.state {
                segment_state::ACTIVE => in_extents,
                segment_state::SEALED => in_extents.min(u64::from(row.length_units) * 64),
                _ => 0,
            },
            extents: row.extents.iter().map(remote_ref).collect(),
        }
    }

    /// Whether bytes up to `end` of the segment may be read; there are some.
    #[inline]
    pub(crate) fn check(&self, end: u64) -> Result<(), NoPlace> {
        if end <= self.readable_bytes {
            Ok(())
        } else {
            Err(self.why_not())
        }
    }

    #[cold]
    fn why_not(&self) -> NoPlace {
        match self.state {
            segment_state::ACTIVE | segment_state::SEALED | segment_state::RETIRED => NoPlace::Unknown,
            segment_state::LOADING => NoPlace::Loading,
            _ => NoPlace::None,
        }
    }

    /// Where byte `at` of the segment lies, and how many bytes follow it there.
    #[inline]
    pub(crate) fn place(&self, at: u64) -> Option<(RemoteRef, u64)> {
        let extent = usize::try_from(at / EXTENT_BYTES).ok()?;
        let within = at % EXTENT_BYTES;
        Some((self.extents.get(extent)?.offset(within), EXTENT_BYTES - within))
    }
}

fn remote_ref(at: &RemoteAddress) -> RemoteRef {
    RemoteRef {
        address: at.address,
        rkey: at.rkey,
    }
}

/// A directory, as far as it was fetched.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    pub(crate) at: RemoteRef,
    pub(crate) version: u64,
    pub(crate) depth: u8,
    pages: Vec<Option<Arc<[DirectoryEntry]>>>,
}

impl Directory {
    fn unread(directory: &DirectoryRef) -> Self {
        let entries = 1_u32 << directory.depth;
        Self {
            at: remote_ref(&directory.at),
            version: directory.version,
            depth: directory.depth,
            pages: vec![None; entries.div_ceil(PAGE_ENTRIES) as usize],
        }
    }

    pub(crate) fn entries(&self) -> u32 {
        1 << self.depth
    }

    #[inline]
    pub(crate) fn entry(&self, index: u32) -> Option<&DirectoryEntry> {
        let page = self.pages.get((index / PAGE_ENTRIES) as usize)?.as_ref()?;
        page.get((index % PAGE_ENTRIES) as usize)
    }

    /// Numbers of the pages that are not there.
    #[cfg(test)]
    pub(crate) fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        let absent = self.pages.iter().enumerate().filter(|(_, page)| page.is_none());
        absent.map(|(index, _)| index as u32)
    }

    fn forget(&mut self, first: u32, count: u32) {
        let end = u64::from(first) + u64::from(count);
        let pages = first / PAGE_ENTRIES..=(end.saturating_sub(1) / u64::from(PAGE_ENTRIES)) as u32;
        for page in pages.take(self.pages.len()) {
            if let Some(page) = self.pages.get_mut(page as usize) {
                *page = None;
            }
        }
    }
}

/// What is known of a dataset at one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Session that it is of; 0 where the dataset is not open.
    pub(crate) generation: u64,
    pub(crate) dataset: [u8; 16],
    pub(crate) hash_key: [u8; 16],
    pub(crate) scope: IndexScope,
    pub(crate) directory: Arc<Directory>,
    /// By number.
    rows: Arc<Vec<Row>>,
    /// Next page of the segment table to ask for; `None` once all of it is there.
    pub(crate) table_next: Option<u32>,
    pub(crate) dropped: bool,
    /// Changes so far: what was read before the latest is discarded.
    pub(crate) changes: u64,
}

impl View {
    fn closed() -> Self {
        let nowhere = DirectoryRef {
            at: RemoteAddress { address: 0, rkey: 0 },
            version: 0,
            depth: 0,
        };
        Self {
            generation: 0,
            dataset: [0; 16],
            hash_key: [0; 16],
            scope: IndexScope {
                dataset: [0; 16],
                epoch: 0,
            },
            directory: Arc::new(Directory::unread(&nowhere)),
            rows: Arc::default(),
            table_next: None,
            dropped: false,
            changes: 0,
        }
    }

    #[inline]
    pub(crate) fn row(&self, segment: u32) -> Option<&Row> {
        let index = self.rows.binary_search_by_key(&segment, |row| row.segment).ok()?;
        self.rows.get(index)
    }

    /// The row that `locator` needs, if the whole record may be read now.
    #[inline]
    pub(crate) fn row_for(&self, locator: &Locator) -> Result<&Row, NoPlace> {
        let row = self.row(locator.segment).ok_or(NoPlace::Unknown)?;
        row.check(locator.offset_bytes() + locator.wire_len_bytes())?;
        Ok(row)
    }

    fn put_row(rows: &mut Vec<Row>, row: &SegmentRow) {
        let found = rows.binary_search_by_key(&row.segment, |known| known.segment);
        let retired = row.state == segment_state::RETIRED;
        match found {
            Ok(index) if retired => drop(rows.remove(index)),
            Ok(index) => {
                if let Some(known) = rows.get_mut(index) {
                    *known = Row::from_wire(row);
                }
            }
            Err(_) if retired => {}
            Err(index) => rows.insert(index, Row::from_wire(row)),
        }
    }
}

/// A dataset as its readers and the control thread share it.
#[derive(Debug)]
pub(crate) struct DatasetState {
    view: Mutex<Arc<View>>,
    version: AtomicU64,
}

impl DatasetState {
    pub(crate) fn new() -> Self {
        Self {
            view: Mutex::new(Arc::new(View::closed())),
            version: AtomicU64::new(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<View>> {
        // A view is replaced whole, so one that a panic left behind is as good as any.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the latest view.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// The latest view and its number.
    pub(crate) fn view(&self) -> (u64, Arc<View>) {
        let view = self.lock();
        (self.version(), Arc::clone(&view))
    }

    fn change(&self, edit: impl FnOnce(&mut View)) {
        let mut current = self.lock();
        let mut next = View::clone(&current);
        edit(&mut next);
        *current = Arc::new(next);
        // Inside the lock, so that number and view agree; pairs with the load in `version`.
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// The session is over: nothing that was known of the dataset may be used any more.
    pub(crate) fn close(&self) {
        self.change(|view| {
            let changes = view.changes + 1;
            *view = View {
                changes,
                ..View::closed()
            };
        });
    }

    /// Takes an answer that says something of the dataset; `first` is what a TABLE asked for.
    pub(crate) fn answered(&self, generation: u64, epoch: u64, first: Option<u32>, answer: &Answer) {
        match answer {
            Answer::Open {
                dataset,
                hash_key,
                directory,
                ..
            } => self.change(|view| {
                *view = View {
                    generation,
                    dataset: *dataset,
                    hash_key: *hash_key,
                    scope: IndexScope {
                        dataset: *dataset,
                        epoch,
                    },
                    directory: Arc::new(Directory::unread(directory)),
                    rows: Arc::default(),
                    table_next: Some(0),
                    dropped: false,
                    changes: view.changes + 1,
                };
            }),
            Answer::Table { rows, next } => self.change(|view| {
                // The table was begun again meanwhile: what lies before this page is not there.
                if view.table_next.is_none() || view.table_next != first {
                    return;
                }
                let known = Arc::make_mut(&mut view.rows);
                rows.iter().for_each(|row| View::put_row(known, row));
                // Pages that do not go forward would be asked for without end.
                let forward = view.table_next.is_some_and(|asked| *next > asked);
                view.table_next = forward.then_some(*next);
            }),
            Answer::Load { row } => self.change(|view| View::put_row(Arc::make_mut(&mut view.rows), row)),
            _ => {}
        }
    }

    /// Takes what RENEW's answer says of the dataset.
    pub(crate) fn renewed(&self, change: &DatasetChange) {
        self.change(|view| {
            view.changes += 1;
            view.dropped |= change.flags & change_flag::DROPPED != 0;
            if change.flags & change_flag::TABLE != 0 {
                view.rows = Arc::default();
                view.table_next = Some(0);
            }
            let known = Arc::make_mut(&mut view.rows);
            change.rows.iter().for_each(|row| View::put_row(known, row));
            let directory = &change.directory;
            let moved = view.directory.version != directory.version
                || view.directory.depth != directory.depth
                || view.directory.at != remote_ref(&directory.at);
            if moved || change.flags & change_flag::DIRECTORY != 0 {
                view.directory = Arc::new(Directory::unread(directory));
            } else if !change.ranges.is_empty() {
                let known = Arc::make_mut(&mut view.directory);
                change
                    .ranges
                    .iter()
                    .for_each(|range| known.forget(range.first, range.count));
            }
        });
    }

    /// Installs pages of the directory that were read when there had been `changes` changes; whether they still count.
    pub(crate) fn install(&self, changes: u64, pages: Vec<(u32, Arc<[DirectoryEntry]>)>) -> bool {
        let mut counts = false;
        self.change(|view| {
            if view.changes == changes {
                counts = true;
                let known = &mut Arc::make_mut(&mut view.directory).pages;
                for (page, entries) in pages {
                    if let Some(slot) = known.get_mut(page as usize) {
                        *slot = Some(entries);
                    }
                }
            }
        });
        counts
    }

    /// Forgets everything but the name and the hash key: all of it is fetched again.
    pub(crate) fn refresh(&self) {
        self.change(|view| {
            view.changes += 1;
            view.rows = Arc::default();
            view.table_next = Some(0);
            let directory = Arc::make_mut(&mut view.directory);
            directory.pages.iter_mut().for_each(|page| *page = None);
        });
    }

    /// Forgets the directory entry `index`, if the view is still the one that `changes` changes led to.
    pub(crate) fn forget_entry(&self, changes: u64, index: u32) {
        self.change(|view| {
            if view.changes == changes {
                Arc::make_mut(&mut view.directory).forget(index, 1);
            }
        });
    }
}

#[cfg(test)]
impl Clone for DatasetState {
    /// The state as it is now, on its own from here on.
    fn clone(&self) -> Self {
        let (version, view) = self.view();
        Self {
            view: Mutex::new(view),
            version: AtomicU64::new(version),
        }
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
