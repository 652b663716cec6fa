//! What only `sim` has: each fault happens, happens as named, and happens again from its seed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_fabric::sim::{ReplayHint, Sim, SimFaults, SimInjected, SimOptions};
use kv_fabric::stop::{Stop, StopAt, Stoppable};
use kv_fabric::{
    ConnectionId, ControlConnection, ControlEvent, ControlOptions, DataConnection, Domain, Endpoint,
    EndpointEvent, Fabric, FabricError, Memory, MemoryKind, Read, ReadCompletion, ReadStatus, Region,
    RemoteRef, Scatter, sim,
};

const PATIENCE: Duration = Duration::from_secs(20);
const ADDRESS: &str = "server";
const OPTIONS: ControlOptions = ControlOptions {
    receives: 64,
    frame_bytes: 256,
};
const LEN: usize = 64 * 1024;

fn patience() -> Instant {
    Instant::now() + PATIENCE
}

/// A network, its endpoint, and how to repeat a failure on it.
struct World {
    net: Sim,
    endpoint: Box<dyn Endpoint>,
    domain: Arc<dyn Domain>,
    _hint: ReplayHint,
}

impl World {
    fn new(default_seed: u64) -> Self {
        let seed = sim::seed_from_env(default_seed).expect("a seed");
        Self::of_seed(seed)
    }

    fn of_seed(seed: u64) -> Self {
        let net = Sim::new(SimOptions {
            seed,
            faults: SimFaults::default(),
        });
        let endpoint = net.listen(ADDRESS).expect("listen");
        let domain = net.domain().expect("domain");
        Self {
            net,
            endpoint,
            domain,
            _hint: ReplayHint(seed),
        }
    }

    fn find<T>(&mut self, pick: impl Fn(EndpointEvent) -> Option<T>) -> T {
        let deadline = patience();
        loop {
            let mut events = Vec::new();
            self.endpoint.poll(&mut events).expect("poll");
            if let Some(found) = events.into_iter().find_map(&pick) {
                return found;
            }
            assert!(Instant::now() < deadline, "it does not happen");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The frames that come next, at least one.
    fn frames(&mut self, id: ConnectionId) -> VecDeque<Vec<u8>> {
        let deadline = patience();
        let mut events = Vec::new();
        while events.is_empty() {
            assert!(Instant::now() < deadline, "no frame comes");
            self.endpoint.poll(&mut events).expect("poll");
        }
        let frame = |event| match event {
            EndpointEvent::Frame(of, frame) if of == id => Some(frame),
            EndpointEvent::Established(_) => None,
            other => panic!("{other:?} instead of a frame"),
        };
        events.into_iter().filter_map(frame).collect()
    }

    fn data(&mut self) -> (Box<dyn DataConnection>, ConnectionId) {
        std::thread::scope(|scope| {
            let net = self.net.clone();
            let client = scope.spawn(move || net.connect_data(ADDRESS, b"", 64, patience()));
            let request = self.find(|event| match event {
                EndpointEvent::Request { request, .. } => Some(request),
                _ => None,
            });
            let id = self.endpoint.accept_data(request, &*self.domain).expect("accept");
            (client.join().expect("no panic").expect("connect"), id)
        })
    }

    fn control(&mut self) -> (Box<dyn ControlConnection>, ConnectionId) {
        std::thread::scope(|scope| {
            let net = self.net.clone();
            let client = scope.spawn(move || net.connect_control(ADDRESS, b"", OPTIONS, patience()));
            let request = self.find(|event| match event {
                EndpointEvent::Request { request, .. } => Some(request),
                _ => None,
            });
            let id = self.endpoint.accept_control(request, OPTIONS).expect("accept");
            (client.join().expect("no panic").expect("connect"), id)
        })
    }
}

fn served(fill: u8) -> Arc<Memory> {
    let memory = Memory::new(LEN, MemoryKind::Private).expect("memory");
    memory.write(0, &[fill; LEN]);
    Arc::new(memory)
}

/// Posts `count` READs of all of `from`, each to its own part of the region.
fn post(
    data: &mut Box<dyn DataConnection>,
    from: RemoteRef,
    region: &Region,
    count: usize,
) -> Result<(), FabricError> {
    let reads: Vec<_> = (0..count)
        .map(|i| Read {
            number: i as u64,
            from,
            to: [Scatter::new(0, i * LEN, LEN), Scatter::default()],
            signaled: true,
        })
        .collect();
    data.post(&reads, &[region])
}

fn completions(data: &mut Box<dyn DataConnection>, count: usize) -> Vec<ReadCompletion> {
    let mut done = Vec::new();
    while done.len() < count {
        assert!(data.wait(patience()).expect("wait"), "only {done:?} of {count}");
        data.poll(&mut done).expect("poll");
    }
    done
}

fn bytes(region: &Region, index: usize) -> Vec<u8> {
    let mut out = vec![0; LEN];
    region.memory().read(index * LEN, &mut out);
    out
}

/// A writer who fills the memory with one byte after the other is seen in the middle of it.
fn torn(world: &mut World, data: &mut Box<dyn DataConnection>) -> usize {
    let memory = served(0);
    let registration = world.domain.register(Arc::clone(&memory)).expect("register");
    let region = world.net.allocate(LEN).expect("allocate");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for fill in (0..=255_u8).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                memory.write(0, &[fill; LEN]);
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let deadline = patience();
        let mut torn = 0;
        while torn < 10 && Instant::now() < deadline {
            post(data, registration.remote(), &region, 1).expect("post");
            assert_eq!(completions(data, 1)[0].status, ReadStatus::Success);
            let bytes = bytes(&region, 0);
            torn += usize::from(bytes.iter().any(|&byte| byte != bytes[0]));
        }
        stop.store(true, Ordering::Relaxed);
        torn
    })
}

#[test]
fn torn_reads_mix_what_was_there_at_different_moments() {
    let mut world = World::new(11);
    let (mut data, _) = world.data();
    world.net.set_faults(SimFaults {
        torn_read: 1.0,
        torn_pause_max: Duration::from_millis(1),
        ..SimFaults::default()
    });
    let torn = torn(&mut world, &mut data);
    assert_eq!(torn, 10, "in {PATIENCE:?}");
    assert_eq!(world.net.injected().torn_reads, data.counters().reads);
}

#[test]
fn delayed_reads_see_what_is_there_when_they_are_carried_out() {
    let mut world = World::new(12);
    let (mut data, _) = world.data();
    world.net.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_millis(400),
        ..SimFaults::default()
    });
    let memory = served(1);
    let registration = world.domain.register(Arc::clone(&memory)).expect("register");
    let region = world.net.allocate(16 * LEN).expect("allocate");
    let start = Instant::now();
    post(&mut data, registration.remote(), &region, 16).expect("post");
    // Once the first is carried out, which is soon, the others are still to come.
    while (0..16).all(|i| bytes(&region, i)[0] == 0) {
        assert!(start.elapsed() < PATIENCE, "none is carried out");
    }
    memory.write(0, &[2; LEN]);
    let done = completions(&mut data, 16);
    assert!(
        done.iter().all(|done| done.status == ReadStatus::Success),
        "{done:?}"
    );
    let numbers: Vec<_> = done.iter().map(|done| done.number).collect();
    assert_eq!(
        numbers,
        (0..16).collect::<Vec<_>>(),
        "they end in the order posted"
    );
    let seen: Vec<_> = (0..16).map(|i| bytes(&region, i)[0]).collect();
    assert!(
        seen.contains(&1) && seen.contains(&2),
        "{seen:?}: all at one moment"
    );
    assert_eq!(world.net.injected().read_delays, 16);
}

#[test]
fn destroying_a_connection_fences_reads_in_flight() {
    let mut world = World::new(13);
    let (mut data, id) = world.data();
    world.net.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_millis(300),
        torn_read: 0.5,
        torn_pause_max: Duration::from_millis(100),
        ..SimFaults::default()
    });
    let memory = served(1);
    let registration = world.domain.register(Arc::clone(&memory)).expect("register");
    let region = world.net.allocate(32 * LEN).expect("allocate");
    post(&mut data, registration.remote(), &region, 32).expect("post");
    std::thread::sleep(Duration::from_millis(100));
    world.endpoint.destroy(id).expect("destroy");
    // Its memory is somebody else's from now on.
    memory.write(0, &[66; LEN]);
    let done = completions(&mut data, 32);
    std::thread::sleep(Duration::from_millis(350));
    let succeeded = done
        .iter()
        .take_while(|done| done.status == ReadStatus::Success)
        .count();
    assert!(succeeded < 32, "none was in flight");
    assert_eq!(done[succeeded].status, ReadStatus::PeerGone);
    assert!(
        done[succeeded + 1..]
            .iter()
            .all(|done| done.status == ReadStatus::Flushed),
        "{done:?}"
    );
    for i in 0..32 {
        assert!(
            !bytes(&region, i).contains(&66),
            "READ {i} was carried out after the fence"
        );
    }
    assert!(matches!(
        post(&mut data, registration.remote(), &region, 1),
        Err(FabricError::Closed(_))
    ));
}

#[test]
fn dropping_a_registration_ends_reads_in_flight() {
    let mut world = World::new(14);
    let (mut data, id) = world.data();
    world.net.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_millis(300),
        ..SimFaults::default()
    });
    let memory = served(1);
    let registration = world.domain.register(Arc::clone(&memory)).expect("register");
    let region = world.net.allocate(16 * LEN).expect("allocate");
    post(&mut data, registration.remote(), &region, 16).expect("post");
    drop(registration);
    memory.write(0, &[66; LEN]);
    let done = completions(&mut data, 16);
    let first = done
        .iter()
        .position(|done| done.status != ReadStatus::Success)
        .expect("a failure");
    assert_eq!(done[first].status, ReadStatus::RemoteAccess);
    assert!(
        done[first + 1..]
            .iter()
            .all(|done| done.status == ReadStatus::Flushed),
        "{done:?}"
    );
    for i in 0..16 {
        assert!(
            !bytes(&region, i).contains(&66),
            "READ {i} was carried out after the end"
        );
    }
    world.find(|event| matches!(event, EndpointEvent::Closed(of, _) if of == id).then_some(()));
}

/// The client lets go of everything while READs are planned: they are not carried out into memory that is gone.
#[test]
fn dropping_the_client_ends_reads_in_flight() {
    let mut world = World::new(15);
    let (mut data, id) = world.data();
    world.net.set_faults(SimFaults {
        read_delay: 1.0,
        read_delay_max: Duration::from_millis(100),
        ..SimFaults::default()
    });
    let memory = served(9);
    let registration = world.domain.register(memory).expect("register");
    let region = world.net.allocate(32 * LEN).expect("allocate");
    post(&mut data, registration.remote(), &region, 32).expect("post");
    drop(data);
    let seen: Vec<_> = (0..32).map(|i| bytes(&region, i)).collect();
    std::thread::sleep(Duration::from_millis(150));
    for (i, seen) in seen.iter().enumerate() {
        assert!(
            bytes(&region, i) == *seen,
            "READ {i} was carried out after its connection was dropped"
        );
    }
    world.find(|event| matches!(event, EndpointEvent::Closed(of, _) if of == id).then_some(()));
}

#[test]
fn read_errors_end_the_connection_in_order() {
    let mut world = World::new(16);
    let (mut data, id) = world.data();
    let registration = world.domain.register(served(1)).expect("register");
    let region = world.net.allocate(16 * LEN).expect("allocate");
    post(&mut data, registration.remote(), &region, 16).expect("post");
    assert!(
        completions(&mut data, 16)
            .iter()
            .all(|done| done.status == ReadStatus::Success)
    );
    world.net.set_faults(SimFaults {
        read_error: 0.2,
        read_delay: 0.5,
        read_delay_max: Duration::from_millis(2),
        ..SimFaults::default()
    });
    let done = loop {
        post(&mut data, registration.remote(), &region, 16).expect("post");
        let done = completions(&mut data, 16);
        if done.iter().any(|done| done.status != ReadStatus::Success) {
            break done;
        }
    };
    let first = done
        .iter()
        .position(|done| done.status != ReadStatus::Success)
        .expect("a failure");
    assert_eq!(done[first].status, ReadStatus::PeerGone);
    assert!(
        done[first + 1..]
            .iter()
            .all(|done| done.status == ReadStatus::Flushed),
        "{done:?}"
    );
    assert!(world.net.injected().read_errors > 0);
    assert!(matches!(
        post(&mut data, registration.remote(), &region, 1),
        Err(FabricError::Closed(_))
    ));
    world.find(|event| matches!(event, EndpointEvent::Closed(of, _) if of == id).then_some(()));
}

#[test]
fn disconnects_are_seen_at_both_ends() {
    let mut world = World::new(17);
    let (mut control, control_id) = world.control();
    let (mut data, data_id) = world.data();
    world.net.set_faults(SimFaults {
        disconnect: 1.0,
        ..SimFaults::default()
    });
    let registration = world.domain.register(served(1)).expect("register");
    let region = world.net.allocate(LEN).expect("allocate");
    let refused = post(&mut data, registration.remote(), &region, 1);
    assert!(matches!(refused, Err(FabricError::Closed(_))));
    world.find(|event| matches!(event, EndpointEvent::Closed(of, _) if of == data_id).then_some(()));
    assert!(matches!(control.send(b"x"), Err(FabricError::Closed(_))));
    world.find(|event| matches!(event, EndpointEvent::Closed(of, _) if of == control_id).then_some(()));
    assert!(matches!(
        control.poll(&mut Vec::new()),
        Err(FabricError::Closed(_))
    ));
    assert_eq!(world.net.injected().disconnects, 2);
}

#[test]
fn lost_requests_time_out_and_are_never_heard_of() {
    let mut world = World::new(18);
    world.net.set_faults(SimFaults {
        lost_request: 1.0,
        ..SimFaults::default()
    });
    let start = Instant::now();
    let deadline = start + Duration::from_millis(50);
    let result = world.net.connect_control(ADDRESS, b"", OPTIONS, deadline);
    assert!(matches!(result, Err(FabricError::Timeout { .. })));
    assert!(start.elapsed() >= Duration::from_millis(50));
    let mut events = Vec::new();
    world.endpoint.poll(&mut events).expect("poll");
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(world.net.injected().lost_requests, 1);
    world.net.set_faults(SimFaults::default());
    world.control();
}

#[test]
fn delayed_frames_and_writes_keep_their_order() {
    let mut world = World::new(19);
    let (mut control, id) = world.control();
    let (remote, staging) = world.endpoint.grant_staging(id, 64).expect("staging");
    world.net.set_faults(SimFaults {
        frame_delay: 0.5,
        frame_delay_max: Duration::from_millis(20),
        ..SimFaults::default()
    });
    let source = world.net.allocate(64).expect("allocate");
    let start = Instant::now();
    for i in 0..60_u8 {
        source.memory().write(usize::from(i), &[i + 1]);
        let to = remote.offset(i.into());
        control.write(i.into(), &source, i.into(), 1, to).expect("write");
        control.send(&[i]).expect("send");
        world.endpoint.send(id, &[i]).expect("send");
    }
    let mut frames = VecDeque::new();
    for i in 0..60_u8 {
        let frame = loop {
            if let Some(frame) = frames.pop_front() {
                break frame;
            }
            frames = world.frames(id);
        };
        assert_eq!(frame, [i]);
        let mut seen = [0];
        staging.read(i.into(), &mut seen);
        assert_eq!(seen, [i + 1], "a frame overtook the WRITE before it");
    }
    let mut events = Vec::new();
    while events.len() < 120 {
        assert!(start.elapsed() < PATIENCE);
        control.poll(&mut events).expect("poll");
    }
    let frames: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ControlEvent::Frame(frame) => Some(frame[0]),
            ControlEvent::Written(_) => None,
        })
        .collect();
    assert_eq!(frames, (0..60).collect::<Vec<_>>());
    assert!(
        world.net.injected().frame_delays > 40,
        "{:?}",
        world.net.injected()
    );
    assert!(start.elapsed() > Duration::from_millis(5), "none was late");
}

/// One thread, one seed: the same faults hit the same operations.
fn run(seed: u64) -> (SimInjected, Vec<ReadCompletion>, usize) {
    let mut world = World::of_seed(seed);
    let (mut data, _) = world.data();
    let (mut control, _) = world.control();
    world.net.set_faults(SimFaults {
        read_delay: 0.2,
        read_delay_max: Duration::from_micros(200),
        torn_read: 0.2,
        torn_pause_max: Duration::from_micros(50),
        reorder: 0.3,
        read_error: 0.02,
        disconnect: 0.01,
        frame_delay: 0.2,
        frame_delay_max: Duration::from_micros(100),
        ..SimFaults::default()
    });
    let registration = world.domain.register(served(1)).expect("register");
    let region = world.net.allocate(8 * LEN).expect("allocate");
    let mut all = Vec::new();
    while post(&mut data, registration.remote(), &region, 8).is_ok() {
        all.extend(completions(&mut data, 8));
    }
    let sent = (0..500).take_while(|_| control.send(b"x").is_ok()).count();
    (world.net.injected(), all, sent)
}

#[test]
fn a_seed_repeats_its_faults() {
    let first = run(21);
    assert_eq!(run(21), first);
    assert!((22..30).any(|seed| run(seed) != first), "all seeds are alike");
}

/// Posts 16 READs that are carried out within `late`, and lets go of their memory at once; what they end as.
fn reads_of_memory_that_goes(net: &Sim, destroy: bool, late: Duration) -> Vec<ReadCompletion> {
    let mut endpoint = net.listen(ADDRESS).expect("listen");
    let domain = net.domain().expect("domain");
    let mut events = Vec::new();
    let (mut data, id) = std::thread::scope(|scope| {
        let client = scope.spawn(|| net.connect_data(ADDRESS, b"", 64, patience()));
        let id = loop {
            endpoint.poll(&mut events).expect("poll");
            let request = events.drain(..).find_map(|event| match event {
                EndpointEvent::Request { request, .. } => Some(request),
                _ => None,
            });
            if let Some(request) = request {
                break endpoint.accept_data(request, &*domain).expect("accept");
            }
        };
        (client.join().expect("no panic").expect("connect"), id)
    });
    let registration = domain.register(served(1)).expect("register");
    let region = net.allocate(16 * LEN).expect("allocate");
    data.delay_next(late);
    post(&mut data, registration.remote(), &region, 16).expect("post");
    if destroy {
        endpoint.destroy(id).expect("destroy");
    }
    drop(registration);
    completions(&mut data, 16)
}

const GOES: Duration = Duration::from_millis(200);

#[test]
fn without_a_fence_late_reads_reach_memory_that_was_given_up_and_are_counted() {
    let net = Sim::unfenced(SimOptions::default());
    let done = reads_of_memory_that_goes(&net, true, GOES);
    assert!(
        done.iter().all(|done| done.status == ReadStatus::Success),
        "{done:?}"
    );
    let injected = net.injected();
    assert!(
        injected.reads_of_reused > 0 && injected.reads_of_reused <= 16,
        "{injected:?}"
    );
    assert!(
        injected.reads_unfenced >= injected.reads_of_reused,
        "{injected:?}"
    );
    assert_eq!((injected.reads_fenced, injected.reads_refused), (0, 0));
}

#[test]
fn a_fence_refuses_late_reads_and_counts_them() {
    let net = Sim::new(SimOptions::default());
    let done = reads_of_memory_that_goes(&net, true, GOES);
    let failed = done
        .iter()
        .filter(|done| done.status != ReadStatus::Success)
        .count();
    let injected = net.injected();
    assert!(failed > 0);
    assert!(injected.reads_fenced > 0, "{injected:?}");
    assert_eq!(
        (injected.reads_of_reused, injected.reads_refused),
        (0, 0),
        "{injected:?}"
    );
}

#[test]
fn memory_that_goes_before_its_readers_is_refused_and_counted() {
    let net = Sim::new(SimOptions::default());
    let done = reads_of_memory_that_goes(&net, false, GOES);
    assert!(
        done.iter().any(|done| done.status == ReadStatus::RemoteAccess),
        "{done:?}"
    );
    let injected = net.injected();
    assert!(
        injected.reads_refused > 0 && injected.reads_fenced == 0,
        "{injected:?}"
    );
}

#[test]
fn reads_of_pieces_that_were_reused_since_are_counted() {
    let mut world = World::new(31);
    let (mut data, _) = world.data();
    let memory = served(1);
    let registration = world.domain.register(Arc::clone(&memory)).expect("register");
    let region = world.net.allocate(16 * LEN).expect("allocate");
    let count = |world: &World| world.net.injected().reads_of_reused;
    // Posted before, carried out after: whatever lies there by then.
    data.delay_next(Duration::from_secs(1));
    post(&mut data, registration.remote(), &region, 4).expect("post");
    registration.reused(0, LEN);
    memory.write(0, &[9; LEN]);
    completions(&mut data, 4);
    let late = count(&world);
    assert!(late > 0, "all four were carried out at once");
    // Posted after, and the memory is in use again.
    post(&mut data, registration.remote(), &region, 4).expect("post");
    completions(&mut data, 4);
    assert_eq!(count(&world), late);
    // Posted after, while nobody uses it.
    registration.reused(0, LEN);
    post(&mut data, registration.remote(), &region, 4).expect("post");
    completions(&mut data, 4);
    assert_eq!(count(&world), late + 4);
}

#[test]
fn a_late_completion_is_told_long_after_its_bytes_are_there() {
    let mut world = World::new(32);
    let (mut data, _) = world.data();
    world.net.set_faults(SimFaults {
        late_completion: 1.0,
        late_completion_max: Duration::from_secs(2),
        ..SimFaults::default()
    });
    let memory = served(1);
    let registration = world.domain.register(Arc::clone(&memory)).expect("register");
    let region = world.net.allocate(16 * LEN).expect("allocate");
    post(&mut data, registration.remote(), &region, 16).expect("post");
    // Carried out when posted: what is written now is not read any more.
    memory.write(0, &[2; LEN]);
    assert!((0..16).all(|i| bytes(&region, i)[0] == 1));
    let mut told = Vec::new();
    data.poll(&mut told).expect("poll");
    assert!(told.len() < 16, "all were told at once");
    completions(&mut data, 16 - told.len());
    assert!((0..16).all(|i| bytes(&region, i)[0] == 1));
    assert_eq!(world.net.injected().late_completions, 16);
}

#[test]
fn a_stopped_process_goes_on_where_it_was_while_its_reads_are_carried_out() {
    const SPAN: Duration = Duration::from_millis(80);
    let mut world = World::new(33);
    let net = Arc::new(world.net.clone());
    let process = Stoppable::new(net.clone());
    let mut data = std::thread::scope(|scope| {
        let client = scope.spawn(|| process.connect_data(ADDRESS, b"", 64, patience()));
        let request = world.find(|event| match event {
            EndpointEvent::Request { request, .. } => Some(request),
            _ => None,
        });
        let domain = &world.domain;
        world.endpoint.accept_data(request, &**domain).expect("accept");
        client.join().expect("no panic").expect("connect")
    });
    let registration = world.domain.register(served(7)).expect("register");
    let region = net.allocate(LEN).expect("allocate");
    let read = |number| Read {
        number,
        from: registration.remote(),
        to: [Scatter::new(0, 0, LEN), Scatter::default()],
        signaled: true,
    };
    let mut done = Vec::new();
    for (number, at) in (0..).zip([StopAt::Post, StopAt::Posted, StopAt::Polled]) {
        let (span, late) = (SPAN, Duration::ZERO);
        process.stops().arm(Stop { at, span, late });
        let begun = Instant::now();
        data.post(&[read(number)], &[&region]).expect("post");
        assert_eq!(
            at != StopAt::Polled,
            process.stops().counters().stops == number + 1
        );
        assert!(data.wait(patience()).expect("wait"));
        data.poll(&mut done).expect("poll");
        assert!(begun.elapsed() >= SPAN, "it was not stopped at {at:?}");
        assert_eq!(process.stops().counters().stops, number + 1);
    }
    assert!(done.iter().map(|done| done.status).eq([ReadStatus::Success; 3]));
    assert_eq!(process.stops().counters().reads_failed, 0);
}
