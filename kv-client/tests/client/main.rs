//! The client as programs use it, with a server in this process, over each fabric.
//!
//! One program holds all of these tests, for it is linked once. Over a device: `VKV_TEST_DEVICE=rxe0 VKV_TEST_ADDR=host cargo test -p kv-client --test client
//! verbs -- --ignored --test-threads 1`.

mod churn;
mod compaction;
mod counts;
mod faults;
mod harness;
mod idle;
mod leases;
mod loading;
mod no_alloc;
mod puts;
mod reader;
mod reconnects;
mod refusals;
mod restarts;
mod sharing;
mod starving;
mod undestroyed;
mod values;
