//! What only `local` has: paths, descriptors that only read, memory that comes back, wild packets.

#[path = "local/common.rs"]
mod common;
#[path = "local/hostile.rs"]
mod hostile;
#[path = "local/memory.rs"]
mod memory;
#[path = "local/paths.rs"]
mod paths;
#[path = "local/process.rs"]
mod process;
