//! Every limit of the store that is not part of the protocol (**I6**).

/// Most operations that wait for the log of one dataset, parts of large values included.
pub(crate) const LOG_QUEUE_OPS_MAX: usize = 8192;
/// Most parts of large values that wait for the log of one dataset before more are taken from a client; one append
/// queues a few hundred at most.
pub(crate) const LOG_QUEUE_PARTS_MAX: usize = 1 << 16;
/// Shortest part of large values that may be asked for, bytes: a HEAD names each of them, and so does a check.
pub const PART_MIN_BYTES: u64 = 16 << 10;
/// Most operations that one sync covers.
pub(crate) const GROUP_OPS_MAX: usize = 1024;
/// Most bytes that one sync covers, unless one record is longer.
pub(crate) const GROUP_BYTES_MAX: u64 = 64 << 20;
/// Most buffers that one `pwritev` takes.
pub(crate) const WRITE_VECTORS_MAX: usize = 1024;
/// Segment numbers reserved in the superblock at a time.
pub(crate) const SEGMENT_NUMBERS_BATCH: u32 = 64;
/// Most changes of one dataset that are remembered one by one; who is further behind drops all and asks again.
pub(crate) const JOURNAL_CHANGES_MAX: usize = 4096;
/// Most operations of all clients of one dataset that are remembered; past it the client that was idle longest is
/// forgotten, but for the highest number that it had.
pub(crate) const OPERATIONS_TOTAL_MAX: usize = if cfg!(test) { 1 << 12 } else { 1 << 20 };
/// Most operations of all datasets that are remembered, about 70 bytes each; past it a dataset that has more than a share
/// of them lets go of some of its own.
pub(crate) const OPERATIONS_SERVER_MAX: usize = if cfg!(test) { 3 << 11 } else { 1 << 22 };
/// Operations that each dataset may have whatever others have.
pub(crate) const OPERATIONS_SHARE: usize = if cfg!(test) {
    2048
} else {
    OPERATIONS_SERVER_MAX / DATASETS_MAX
};
/// Most clients of one dataset of which nothing but the highest number is remembered; past it the oldest of these is not
/// known any more.
pub(crate) const FLOORS_MAX: usize = if cfg!(test) { 1 << 10 } else { 1 << 18 };
/// Blocks of the shortest arena of an index.
pub(crate) const ARENA_BLOCKS_MIN: usize = 8;
/// A new arena of an index has one in so many of the blocks that there are.
pub(crate) const ARENA_FRACTION: usize = 32;
/// Blocks of the longest arena of an index: as long as an extent.
pub(crate) const ARENA_BLOCKS_MAX: usize = 4096;
/// Free blocks of an index that are left for joining two groups: that takes one, and frees two.
pub(crate) const BLOCKS_KEPT: usize = 1;
/// Most keys of a group of an index, nine for ten slots: to this the two candidate buckets can be kept even.
pub(crate) const GROUP_KEYS_MAX: usize = 576;
/// Two groups of an index are joined at so many keys in both: low enough that the one is not split again soon.
pub(crate) const GROUP_KEYS_JOINED: usize = 528;
/// Most groups of an index that are replaced at once when blocks came back: to join what could not be joined before, and
/// to empty arenas.
pub(crate) const TIDIED_MAX: usize = 64;
/// Groups are moved to empty an arena where so many times the blocks of the next arena are free.
pub(crate) const FREE_ARENAS_MAX: usize = 4;
/// Groups by which the table of groups grows at least.
pub(crate) const GROUPS_GROWTH_MIN: usize = 16;
/// Most rounds in which the keys of a group are moved between their buckets; four are rarely needed.
pub(crate) const SPREAD_ROUNDS_MAX: usize = 16;
/// A directory with so many entries for each group is not doubled. There are one to four where nobody chooses hashes.
pub(crate) const DIRECTORY_ENTRIES_PER_GROUP_MAX: usize = 16;
/// Depth of a new index's directory: one page of entries.
pub(crate) const DIRECTORY_DEPTH_MIN: u8 = 7;
/// Longest value that holds no memory before it is there, bytes: it comes with one request.
pub(crate) const SMALL_MAX_BYTES: u64 = 128 << 10;
/// Least room for an append beside one whole part, bytes.
pub(crate) const APPEND_ROOM_MIN_BYTES: u64 = 1 << 20;
/// Length of the pieces in which files are read, bytes.
pub(crate) const READ_PIECE_BYTES: usize = 4 << 20;
/// Longest list of segments that is read, bytes: four for each.
pub(crate) const SEGMENT_LIST_MAX_BYTES: u64 = 64 << 20;
/// Most records, and most operations, that one FOOTER lists.
pub(crate) const FOOTER_ENTRIES_MAX: usize = if cfg!(test) { 32 } else { 64 << 10 };
/// Bytes of new log after which a checkpoint is taken.
pub(crate) const CHECKPOINT_EVERY_BYTES: u64 = if cfg!(test) { 128 << 10 } else { 16 << 20 };
/// Most bytes of log, but for one record and the gap before it, that no durable checkpoint covers: what a start walks.
pub(crate) const TAIL_BYTES_MAX: u64 = if cfg!(test) { 512 << 10 } else { 64 << 20 };
/// Most threads that read segments at a start, and that build the index then.
pub(crate) const START_THREADS_MAX: usize = 8;
/// Most memory in which a start finds the newest record of each key, bytes, beside the index. Where the records of a
/// dataset need more, what its segments list is read again for each range of the hashes.
pub(crate) const REBUILD_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 2 << 30 };
/// Pause after which an image is tried again that could not be loaded, ms.
pub(crate) const LOAD_PAUSE_MS: u64 = if cfg!(test) { 1 } else { 1000 };
/// Times that an image is tried before its segment counts as lost until the next start.
pub(crate) const LOAD_ATTEMPTS_MAX: u32 = 60;
/// Pages of images and index memory are charged whole.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Most bytes of values that compaction copies at a time, unless one record is longer.
pub(crate) const COPY_BATCH_BYTES: usize = 1 << 20;
/// Most records that compaction copies at a time.
pub(crate) const COPY_BATCH_RECORDS: usize = 256;
/// Most tombstones that are judged at a time: each judgement looks through the other segments.
pub(crate) const TOMBSTONES_JUDGED_MAX: usize = if cfg!(test) { 64 } else { 1 << 18 };
/// Most datasets, those that were dropped and are not released yet included: each has a thread and an index.
pub(crate) const DATASETS_MAX: usize = if cfg!(test) { 24 } else { 1024 };
/// Most faults in the memory of an index that wait to be named in the log; what is past that is counted.
pub(crate) const FAULTS_UNTOLD_MAX: usize = 64;
/// Most buckets of an index of which it is remembered that they cannot be put right.
pub(crate) const FAULTS_KNOWN_MAX: usize = 1 << 16;
/// Rest after a group of an index could not be filled anew, in times of what the attempt took: the log walks all records for
/// one, and writes wait.
pub(crate) const MEND_REST: u32 = 20;
/// Most groups of an index that one page of a listing looks at: the control thread has others to serve.
pub(crate) const LIST_GROUPS_MAX: usize = 64;
/// Most findings of one dataset that the scrubber tells of and counts.
pub(crate) const SCRUB_FINDINGS_MAX: usize = 1 << 16;
/// Most records of one dataset that a check tells of one by one as not whole; the others are counted.
pub(crate) const CHECK_FINDINGS_MAX: usize = 1 << 16;
