//! The server, as a process and in this one.
//!
//! One program holds all of these tests, for it is linked once. Over a device: `VKV_TEST_DEVICE=rxe0 VKV_TEST_ADDR=host cargo test -p kv-server --test server verbs --
//! --ignored --test-threads 1`.

mod budget;
mod check;
mod common;
mod control;
mod process;
mod seam;
mod undestroyed;
