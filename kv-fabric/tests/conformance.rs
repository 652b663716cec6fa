//! What the seam promises, kept by each of its answers: the same cases run on all of them.
//!
//! Over a device: `VKV_TEST_ADDR=address cargo test -p kv-fabric --test conformance verbs -- --ignored --test-threads 1`,
//! with the address of that device; a missing one is a failure.
//! A failure over `sim` prints a seed; `VKV_SIM_SEED=seed` repeats it.

#[path = "conformance/control.rs"]
mod control;
#[path = "conformance/data.rs"]
mod data;
#[path = "conformance/rig.rs"]
mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use kv_fabric::local::Local;
use kv_fabric::sim::{ReplayHint, Sim, SimFaults, SimOptions, seed_from_env};
use kv_fabric::verbs::Verbs;

use rig::Rig;

fn local() -> Rig {
    let folder = tempfile::tempdir().expect("a folder");
    Rig {
        server: Arc::new(Local::new().expect("local")),
        client: Arc::new(Local::new().expect("local")),
        address: folder
            .path()
            .join("socket")
            .to_str()
            .expect("a path of text")
            .to_owned(),
        _keep: Box::new(folder),
    }
}

fn verbs() -> Rig {
    // A port of its own for each case: the one before may not be free yet.
    static PORT: AtomicU16 = AtomicU16::new(17_500);
    let host =
        std::env::var("VKV_TEST_ADDR").expect("VKV_TEST_ADDR names no address: run inside soft-roce-ci/run");
    let address = format!("{host}:{}", PORT.fetch_add(1, Ordering::Relaxed));
    Rig {
        server: Arc::new(Verbs::for_listener(&address).expect("a device")),
        client: Arc::new(Verbs::for_peer(&address).expect("a device")),
        address,
        _keep: Box::new(()),
    }
}

fn sim_of(faults: SimFaults) -> Rig {
    let seed = seed_from_env(std::process::id().into()).expect("a seed");
    let network = Sim::new(SimOptions { seed, faults });
    Rig {
        server: Arc::new(network.clone()),
        client: Arc::new(network),
        address: "server:0".to_owned(),
        _keep: Box::new(ReplayHint(seed)),
    }
}

fn sim() -> Rig {
    sim_of(SimFaults::default())
}

/// Whatever is late, torn in time or out of order, the promises are kept.
fn sim_with_faults() -> Rig {
    sim_of(SimFaults {
        read_delay: 0.5,
        read_delay_max: Duration::from_millis(5),
        torn_read: 0.5,
        torn_pause_max: Duration::from_millis(1),
        reorder: 0.5,
        frame_delay: 0.3,
        frame_delay_max: Duration::from_millis(5),
        ..SimFaults::default()
    })
}

/// Every case, as a test of its own, over each fabric.
macro_rules! conformance {
    ($($file:ident: $($case:ident)+;)+) => {
        conformance!(@over local []; $($file: $($case)+;)+);
        conformance!(@over sim []; $($file: $($case)+;)+);
        conformance!(@over sim_with_faults []; $($file: $($case)+;)+);
        conformance!(
            @over verbs [#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]];
            $($file: $($case)+;)+
        );
    };
    (@over $make:ident $attributes:tt; $($file:ident: $($case:ident)+;)+) => {
        mod $make {
            $(mod $file {
                $(conformance!(@test $attributes $make $file $case);)+
            })+
        }
    };
    (@test [$($attribute:tt)*] $make:ident $file:ident $case:ident) => {
        #[test]
        $($attribute)*
        fn $case() {
            crate::$file::$case(&crate::$make());
        }
    };
}

conformance! {
    control:
        frames_arrive_in_order
        longest_frame_passes
        longer_frame_ends_the_connection
        private_data_arrives
        reject_tells_why
        connect_to_nothing_fails
        connect_keeps_its_deadline
        accept_after_the_client_left_is_harmless
        address_in_use_is_told
        writes_arrive_before_later_frames
        staging_is_its_own_connections
        write_past_staging_is_refused
        write_to_readable_memory_is_refused
        staging_is_granted_once
        staging_outlives_its_connection
        leaving_client_is_noticed
        destroyed_connection_ends_at_the_client
        frames_before_an_end_are_returned
        vanished_endpoint_is_noticed
        silent_client_loses_only_its_connection
        frames_to_a_silent_server_are_bounded
        descriptors_are_quiet_when_idle
        accepting_wakes_the_endpoint
        no_wakeup_is_lost
        many_connections_stay_apart
        write_holds_its_source;
    data:
        reads_scatter_the_right_bytes
        sparse_signals_cover_what_came_before
        completions_come_after_their_bytes
        room_is_kept
        counters_are_exact
        malformed_posts_are_refused
        longest_read_passes
        changes_are_seen
        reads_need_no_server
        many_registrations_and_connections
        unknown_rkey_is_refused
        another_domains_rkey_is_refused
        read_past_the_end_is_refused
        dropped_registration_is_refused
        registration_holds_its_memory
        destroyed_connection_reads_no_more
        vanished_endpoint_ends_reads
        leaving_reader_is_noticed
        read_holds_its_memory
        wait_keeps_its_deadline
        callers_memory_can_be_registered
        memory_of_another_fabric_serves_or_is_refused
        odd_memory_is_refused;
}
