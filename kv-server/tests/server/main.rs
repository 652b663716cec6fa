//! The server, as a process and in this one.
//!
//! One program holds all of these tests: the server is generic over the fabric, and is compiled once for each program
//! that uses it. Over a device: `VKV_TEST_DEVICE=rxe0 VKV_TEST_ADDR=host cargo test -p kv-server --test server verbs --
//! --ignored --test-threads 1`.

mod budget;
mod check;
mod common;
mod control;
mod process;
mod seam;
mod undestroyed;
