//! The index against a map, under readers that know kv-proto's rules and nothing else. The seed is printed;
//! `VKV_SEED=<seed>` replays the writer's part.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kv_fabric::RemoteRef;
use kv_proto::bucket::{IndexRefusal, candidates, judge_bucket, judge_directory_entry};
use kv_proto::hash::{candidate_buckets, directory_index};
use kv_proto::layout::{BUCKET_SLOTS, Bucket, DirectoryEntry, GROUP_BUCKETS};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::store::tests::support::seed;

const KEYS: u64 = 120_000;
const READERS: usize = 2;
/// Batches in which the table grows, then those in which most keys that may go are deleted, then those in which it
/// grows again.
const BATCHES: [u64; 3] = [12_000, 14_000, 3000];

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

fn hash_of(key: u64) -> KeyHash {
    KeyHash::of(&[9; 16], &key.to_le_bytes())
}

/// The locator of a key's version.
fn locator_of(key: u64, version: u32) -> Locator {
    Locator {
        segment: key as u32 + 1,
        offset_units: version,
        value_len_bytes: 0,
        key_len_bytes: 8,
        tag: hash_of(key).tag(),
    }
}

/// Keys that are never deleted once they are there.
const fn stays(key: u64) -> bool {
    key.is_multiple_of(16)
}

/// What a server tells: where the directory lies, and the number of the latest retirement.
#[derive(Clone, Copy)]
struct Told {
    number: u64,
    directory: RemoteRef,
    version: u64,
    depth: u8,
}

fn told(number: u64, index: &Index) -> Told {
    Told {
        number,
        directory: index.directory().remote(),
        version: index.directory().version,
        depth: index.directory().depth,
    }
}

/// Odd versions of a key are there, even ones are not; what is done lies between what readers may see.
struct World {
    network: Network,
    told: Mutex<Told>,
    begun: Vec<AtomicU32>,
    done: Vec<AtomicU32>,
    acknowledged: [AtomicU64; READERS],
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    found: u64,
    absent: u64,
    torn: u64,
    stale: u64,
    refreshed: u64,
}

struct Reader<'w> {
    world: &'w World,
    told: Told,
    entries: Vec<DirectoryEntry>,
    seen: Seen,
}

impl Reader<'_> {
    /// Learns what the server tells, READs the directory, and acknowledges.
    fn refresh(&mut self, reader: usize) {
        loop {
            self.seen.refreshed += 1;
            self.told = *self.world.told.lock().unwrap();
            self.entries = vec![DirectoryEntry::new_zeroed(); 1 << self.told.depth];
            let network = &self.world.network;
            if network.read(self.told.directory, self.entries.as_mut_bytes()) {
                self.world.acknowledged[reader].store(self.told.number, Ordering::SeqCst);
                return;
            }
        }
    }

    fn lookup(&self, key: u64) -> Result<Option<Locator>, IndexRefusal> {
        let hash = hash_of(key);
        let Told { version, depth, .. } = self.told;
        let at = directory_index(hash.slot, depth);
        let entry = self.entries[at as usize];
        judge_directory_entry(&SCOPE, version, depth, at, &entry)?;
        let mut found = None;
        for index in candidate_buckets(hash.slot) {
            let mut bucket = Bucket::new_zeroed();
            let from = RemoteRef {
                address: entry.address + u64::from(index) * size_of::<Bucket>() as u64,
                rkey: entry.rkey,
            };
            assert!(
                self.world.network.read(from, bucket.as_mut_bytes()),
                "blocks stay registered"
            );
            judge_bucket(&SCOPE, &entry, index, &bucket, hash)?;
            found = candidates(&bucket, hash, 8).next().or(found);
        }
        Ok(found)
    }

    fn run(mut self, reader: usize, mut random: Random) -> Seen {
        self.refresh(reader);
        while !self.world.stop.load(Ordering::Relaxed) {
            let key = random.below(KEYS);
            let least = self.world.done[key as usize].load(Ordering::SeqCst);
            let looked = self.lookup(key);
            let most = self.world.begun[key as usize].load(Ordering::SeqCst);
            match looked {
                Ok(Some(locator)) => {
                    let version = locator.offset_units;
                    assert_eq!(locator, locator_of(key, version), "another key's");
                    assert!((least..=most).contains(&version), "{version} of {least}..={most}");
                    self.seen.found += 1;
                }
                Ok(None) => {
                    let was_there = least % 2 == 1 && (stays(key) || most == least);
                    assert!(!was_there, "key {key} was there: {least}..={most}");
                    self.seen.absent += 1;
                }
                Err(IndexRefusal::Torn) => {
                    self.seen.torn += 1;
                    self.refresh(reader);
                }
                Err(IndexRefusal::Stale) => {
                    self.seen.stale += 1;
                    self.refresh(reader);
                }
            }
        }
        self.world.acknowledged[reader].store(u64::MAX, Ordering::SeqCst);
        self.seen
    }
}

/// What the writer did besides storing.
#[derive(Debug, Default)]
struct Done {
    rewrites: u64,
    splits: u64,
    joins: u64,
    doublings: u64,
    halvings: u64,
    released: u64,
    forgotten: u64,
}

struct Writer<'w> {
    world: &'w World,
    index: Index,
    map: HashMap<u64, u32>,
    retired: VecDeque<(u64, Retired)>,
    number: u64,
    done: Done,
}

impl Writer<'_> {
    fn note(&mut self, replaced: Vec<Replaced>, place: &Place<'_>) {
        self.announce(replaced);
        let all = self.world.acknowledged.iter();
        let acknowledged = all.map(|number| number.load(Ordering::SeqCst)).min().unwrap_or(0);
        while self
            .retired
            .front()
            .is_some_and(|(number, _)| *number <= acknowledged)
        {
            let (_, retired) = self.retired.pop_front().unwrap();
            self.index.give_back(retired);
            self.done.released += 1;
        }
        let (groups, mut replaced) = (self.index.groups.len(), Vec::new());
        self.index.tidy(place, &mut replaced);
        self.done.joins += (groups - self.index.groups.len()) as u64;
        self.announce(replaced);
    }

    fn announce(&mut self, replaced: Vec<Replaced>) {
        let mut told = told(self.number, &self.index);
        for replaced in replaced {
            told.number += 1;
            let number = told.number;
            self.retired
                .extend(replaced.retired.into_iter().map(|retired| (number, retired)));
        }
        self.number = told.number;
        let before = std::mem::replace(&mut *self.world.told.lock().unwrap(), told);
        self.done.doublings += u64::from(told.depth > before.depth);
        self.done.halvings += u64::from(told.depth < before.depth);
    }

    /// Changes a few keys as a group of the log does: slots first, then all of them, or none.
    fn batch(&mut self, random: &mut Random, shrinks: bool, place: &Place<'_>) {
        let most = if shrinks { 60 } else { 30 };
        let mut keys: Vec<u64> = (0..1 + random.below(most)).map(|_| random.below(KEYS)).collect();
        keys.sort_unstable();
        keys.dedup();
        if shrinks {
            // Some are new all the same: slots are promised while groups are joined.
            keys.retain(|key| self.map.contains_key(key) || random.below(16) == 0);
        }
        let mut replaced = Vec::new();
        let groups = self.index.groups.len();
        for key in keys.iter().filter(|key| !self.map.contains_key(key)) {
            self.index.reserve(hash_of(*key), place, &mut replaced).unwrap();
        }
        let splits = (self.index.groups.len() - groups) as u64;
        self.done.splits += splits;
        self.done.rewrites += replaced.len() as u64 - splits;
        self.note(replaced, place);
        if random.below(20) == 0 {
            self.done.forgotten += 1;
            self.index.forget_promises();
            return;
        }
        let mut joined = Vec::new();
        let groups = self.index.groups.len();
        for key in keys {
            let is_key = |locator: &Locator| u64::from(locator.segment) == key + 1;
            let (begun, done) = (&self.world.begun[key as usize], &self.world.done[key as usize]);
            let old = self.map.get(&key).copied();
            let version = done.load(Ordering::SeqCst);
            let delete = old.is_some() && !stays(key) && (shrinks || random.below(3) == 0);
            let next = if delete || old.is_none() {
                version + 1
            } else {
                version + 2
            };
            begun.store(next, Ordering::SeqCst);
            let named = if delete {
                self.map.remove(&key);
                let named = self.index.remove(hash_of(key), is_key).unwrap();
                self.index.join_around(hash_of(key), place, &mut joined);
                named
            } else {
                self.map.insert(key, next);
                self.index
                    .put(hash_of(key), locator_of(key, next), is_key)
                    .unwrap()
            };
            assert_eq!(named, old.map(|old| locator_of(key, old)));
            done.store(next, Ordering::SeqCst);
        }
        self.index.forget_promises();
        self.done.joins += (groups - self.index.groups.len()) as u64;
        self.note(joined, place);
    }

    /// What the writer's own tables say is what the buckets hold.
    fn check(&self) {
        assert_eq!(self.index.keys(), self.map.len() as u64);
        for (key, version) in &self.map {
            let is_key = |locator: &Locator| u64::from(locator.segment) == key + 1;
            let found = self.index.find(hash_of(*key), is_key).unwrap();
            assert_eq!(found, Some(locator_of(*key, *version)));
        }
        let mut taken = 0;
        for group in &self.index.groups {
            let mut in_group = 0;
            for bucket in 0..GROUP_BUCKETS {
                let slots = self.index.blocks.read(group.block, bucket).slots;
                let used = slots.iter().filter(|slot| slot.locator.segment != 0).count();
                assert_eq!(group.counts.used(bucket), used);
                assert_eq!(
                    group.counts.room(bucket),
                    BUCKET_SLOTS - used,
                    "a promise is left"
                );
                in_group += used;
            }
            assert_eq!(usize::from(group.taken), in_group);
            taken += in_group;
        }
        for (depth, groups) in (0..).zip(self.index.of_depth) {
            let counted = self.index.groups.iter().filter(|group| group.depth == depth);
            assert_eq!(counted.count(), groups as usize, "groups of depth {depth}");
        }
        for (at, group) in (0..).zip(&self.index.groups) {
            let spread = self.index.directory.depth - group.depth;
            let first = (group.prefix as usize) << spread;
            assert!(
                self.index.entries[first..first + (1 << spread)]
                    .iter()
                    .all(|entry| *entry == at)
            );
        }
        assert_eq!(taken, self.map.len());
    }
}

#[test]
fn the_index_is_a_map_to_every_reader() {
    let seed = seed();
    let network = Network::default();
    let domain = network.domain();
    let budget = Budget::new(256 * MIB);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let index = Index::build(SCOPE, &[], &place).unwrap();
    let zeroes = || (0..KEYS).map(|_| AtomicU32::new(0)).collect();
    let world = World {
        network,
        told: Mutex::new(told(0, &index)),
        begun: zeroes(),
        done: zeroes(),
        acknowledged: Default::default(),
        stop: AtomicBool::new(false),
    };
    let (done, seen) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let reader = Reader {
                    world: &world,
                    told: *world.told.lock().unwrap(),
                    entries: Vec::new(),
                    seen: Seen::default(),
                };
                scope.spawn(move || reader.run(number, Random(seed ^ (number as u64 + 1))))
            })
            .collect();
        let mut writer = Writer {
            world: &world,
            index,
            map: HashMap::new(),
            retired: VecDeque::new(),
            number: 0,
            done: Done::default(),
        };
        let mut random = Random(seed);
        for (phase, batches) in BATCHES.into_iter().enumerate() {
            for _ in 0..batches {
                writer.batch(&mut random, phase == 1, &place);
            }
            println!(
                "{} keys in {} groups",
                writer.map.len(),
                writer.index.groups.len()
            );
        }
        world.stop.store(true, Ordering::Relaxed);
        let seen: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        writer.check();
        // Every reader is gone; what comes back is tidied, which retires more, a limited number of times.
        for _ in 0..100 {
            writer.note(Vec::new(), &place);
        }
        assert!(writer.retired.is_empty(), "every reader is gone");
        (writer.done, seen)
    });
    println!("{done:?}");
    let counts = [
        done.rewrites,
        done.splits,
        done.joins,
        done.doublings,
        done.halvings,
        done.released,
        done.forgotten,
    ];
    assert!(counts.iter().all(|count| *count > 0), "{done:?}");
    for seen in seen {
        println!("{seen:?}");
        assert!(seen.found > 0 && seen.absent > 0, "{seen:?}");
        // Else it did not read through a change; torn ones need luck on few processors.
        assert!(seen.stale > 0 && seen.refreshed > 1, "{seen:?}");
    }
    assert_eq!(budget.used_bytes(), 0);
}
