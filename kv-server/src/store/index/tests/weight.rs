//! What a key costs in memory, at every size.

use super::model::Random;
use super::*;
use crate::store::limits::DIRECTORY_DEPTH_MIN;
use kv_proto::layout::GROUP_BYTES;

/// Most memory of an index for each key, past so many.
const BYTES_PER_KEY_MAX: f64 = 48.0;
const KEYS_MIN: u64 = 100_000;

/// The least and the most of a figure, and where they were.
struct Extremes {
    least: (f64, u64),
    most: (f64, u64),
}

impl Extremes {
    fn new() -> Self {
        Self {
            least: (f64::MAX, 0),
            most: (0.0, 0),
        }
    }

    fn add(&mut self, bytes: u64, keys: u64) {
        let per_key = bytes as f64 / keys as f64;
        if per_key < self.least.0 {
            self.least = (per_key, keys);
        }
        if per_key > self.most.0 {
            self.most = (per_key, keys);
        }
    }

    fn check(&self, what: &str) {
        println!(
            "{what}: {:.1} bytes a key at {} keys to {:.1} at {}",
            self.least.0, self.least.1, self.most.0, self.most.1
        );
        assert!(self.most.0 <= BYTES_PER_KEY_MAX, "{what}: {:?}", self.most);
    }
}

/// Adds keys one by one up to `keys_max`; every session acknowledges once in a growth of 2 %.
fn grow_and_weigh(keys_max: u64) {
    let domain = Network::default().domain();
    let budget = Budget::new(u64::MAX);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut index = Index::build(SCOPE, &[], &place).unwrap();
    let (mut before, mut after) = (Extremes::new(), Extremes::new());
    let (mut replaced, mut next) = (Vec::new(), 1000);
    let (mut splits, mut rewrites) = (0_u64, 0_u64);
    for key in 0..keys_max {
        let groups = index.groups.len();
        replaced.extend(add(&mut index, entry(key), &place).unwrap());
        splits += (index.groups.len() - groups) as u64;
        if key + 1 == next {
            let directories: u64 = replaced
                .iter()
                .flat_map(|replaced: &Replaced| &replaced.retired)
                .map(Retired::bytes)
                .sum();
            assert!(
                index.bytes() + directories >= budget.used_bytes(),
                "all that is charged counts"
            );
            let counts = next >= KEYS_MIN;
            if counts {
                before.add(index.bytes() + directories, next);
            }
            rewrites += replaced.len() as u64;
            give_back(&mut index, std::mem::take(&mut replaced));
            if counts {
                after.add(index.bytes(), next);
            }
            next += next / 50;
        }
    }
    rewrites -= splits;
    println!(
        "{} groups, {splits} splits, {rewrites} rewrites",
        index.groups.len()
    );
    before.check("grown, with what was retired");
    after.check("grown");
}

#[test]
fn a_key_costs_little_at_every_size_of_a_table_that_grows() {
    grow_and_weigh(3_000_000);
}

/// Keys that come and go, in random order.
struct Churn<'a> {
    index: Index,
    place: &'a Place<'a>,
    keys: Vec<u64>,
    next: u64,
    random: Random,
    /// What no session has acknowledged yet.
    replaced: Vec<Replaced>,
    splits: u64,
    joins: u64,
}

impl<'a> Churn<'a> {
    fn new(keys: u64, place: &'a Place<'a>) -> Self {
        let mut churn = Self {
            index: Index::build(SCOPE, &[], place).unwrap(),
            place,
            keys: Vec::new(),
            next: 0,
            random: Random(keys),
            replaced: Vec::new(),
            splits: 0,
            joins: 0,
        };
        for added in 0..keys {
            churn.add().unwrap();
            if added % (keys / 50) == 0 {
                churn.acknowledge();
            }
        }
        churn.acknowledge();
        churn
    }

    fn add(&mut self) -> Result<(), StorageError> {
        let groups = self.index.groups.len();
        let (hash, locator) = entry(self.next);
        let reserved = self.index.reserve(hash, self.place, &mut self.replaced);
        self.splits += (self.index.groups.len() - groups) as u64;
        reserved?;
        assert_eq!(self.index.put(hash, locator, |_| false).unwrap(), None);
        self.keys.push(self.next);
        self.next += 1;
        Ok(())
    }

    fn remove_one(&mut self) {
        let groups = self.index.groups.len();
        let at = self.random.below(self.keys.len() as u64) as usize;
        let (hash, locator) = entry(self.keys.swap_remove(at));
        let removed = self.index.remove(hash, |found| *found == locator).unwrap();
        assert_eq!(removed, Some(locator));
        self.index.join_around(hash, self.place, &mut self.replaced);
        self.joins += (groups - self.index.groups.len()) as u64;
    }

    /// Memory of the index, what was retired included, bytes.
    fn bytes(&self) -> u64 {
        let retired = self.replaced.iter().flat_map(|replaced| &replaced.retired);
        self.index.bytes() + retired.map(Retired::bytes).sum::<u64>()
    }

    /// Every session acknowledges.
    fn acknowledge(&mut self) {
        give_back(&mut self.index, std::mem::take(&mut self.replaced));
        let groups = self.index.groups.len();
        self.index.tidy(self.place, &mut self.replaced);
        self.joins += (groups - self.index.groups.len()) as u64;
    }

    /// Acknowledges until nothing is left to be joined.
    fn settle(&mut self) {
        self.acknowledge();
        while !self.replaced.is_empty() {
            self.acknowledge();
        }
    }

    fn check(&self) {
        assert_eq!(self.index.keys(), self.keys.len() as u64);
        for key in &self.keys {
            let (hash, locator) = entry(*key);
            assert_eq!(
                self.index.find(hash, |found| *found == locator).unwrap(),
                Some(locator)
            );
        }
    }
}

/// New keys take the place of old ones; every session acknowledges once in 2 % of them.
fn churn_and_weigh(keys: u64, turnovers: u64) {
    let domain = Network::default().domain();
    let budget = Budget::new(u64::MAX);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut churn = Churn::new(keys, &place);
    let (grown, splits) = (churn.index.groups.len(), churn.splits);
    let (mut before, mut after) = (Extremes::new(), Extremes::new());
    for step in 1..=turnovers * keys {
        churn.remove_one();
        churn.add().unwrap();
        if step % (keys / 50) == 0 {
            assert!(churn.bytes() >= budget.used_bytes(), "all that is charged counts");
            before.add(churn.bytes(), keys);
            churn.acknowledge();
            after.add(churn.bytes(), keys);
        }
    }
    let (splits, joins) = (churn.splits - splits, churn.joins);
    println!(
        "{keys} keys: {grown} groups grown, {} after {turnovers} turnovers, {splits} splits, {joins} joins",
        churn.index.groups.len()
    );
    before.check("turned over, with what was retired");
    after.check("turned over");
    assert!(splits > 0 && joins > 0);
    // A group is not joined only to be split again.
    assert!(splits < turnovers * keys / 2000, "{splits} splits");
    churn.check();
}

#[test]
fn a_key_costs_no_more_when_all_were_replaced_many_times() {
    churn_and_weigh(110_000, 50);
}

#[test]
#[ignore = "takes minutes: run with --ignored"]
fn by_hand_a_key_costs_no_more_when_all_were_replaced_many_times_at_many_sizes() {
    for keys in [200_000, 230_000, 260_000, 300_000, 340_000, 390_000, 1_000_000] {
        churn_and_weigh(keys, 100);
    }
}

#[test]
fn an_index_shrinks_when_most_keys_are_deleted() {
    const KEYS: u64 = 300_000;
    let domain = Network::default().domain();
    let budget = Budget::new(u64::MAX);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut churn = Churn::new(KEYS, &place);
    let (depth, used) = (churn.index.directory().depth, budget.used_bytes());
    for removed in 1..=KEYS * 9 / 10 {
        churn.remove_one();
        if removed % (KEYS / 50) == 0 {
            churn.acknowledge();
        }
    }
    churn.settle();
    churn.check();
    let per_key = churn.bytes() as f64 / churn.keys.len() as f64;
    println!(
        "{per_key:.1} bytes a key of {} in {} groups, depth {depth} to {}, {used} to {} bytes",
        churn.keys.len(),
        churn.index.groups.len(),
        churn.index.directory().depth,
        budget.used_bytes()
    );
    assert!(per_key < 64.0, "{per_key}");
    assert!(budget.used_bytes() < used / 5);
    assert!(churn.index.directory().depth < depth);
    while !churn.keys.is_empty() {
        churn.remove_one();
    }
    churn.settle();
    assert_eq!(churn.index.groups.len(), 1);
    assert_eq!(churn.index.directory().depth, DIRECTORY_DEPTH_MIN);
}

/// Joining takes none of a budget that is used up: a free block was kept for it.
#[test]
fn an_index_shrinks_within_a_full_budget() {
    let domain = Network::default().domain();
    let budget = Budget::new(8 * MIB);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let mut churn = Churn::new(1000, &place);
    while churn.add().is_ok() {
        churn.acknowledge();
    }
    let (keys, used) = (churn.keys.len(), budget.used_bytes());
    assert!(
        keys > 100_000 && budget.free_bytes() < 3 * GROUP_BYTES as u64,
        "{keys}"
    );
    for _ in 0..keys * 9 / 10 {
        churn.remove_one();
    }
    // Nobody had acknowledged anything: one pair was joined, the others were missed.
    churn.settle();
    churn.check();
    println!(
        "{keys} keys in {used} bytes, {} in {}",
        churn.keys.len(),
        budget.used_bytes()
    );
    assert!(budget.used_bytes() < used / 4, "{}", budget.used_bytes());
    while churn.keys.len() < keys {
        churn.add().unwrap();
        churn.acknowledge();
    }
    churn.check();
}

#[test]
#[ignore = "takes about a minute and 2 GiB: run with --ignored"]
fn by_hand_a_key_costs_little_at_every_size_up_to_twelve_million() {
    grow_and_weigh(12_000_000);
    let domain = Network::default().domain();
    let budget = Budget::new(u64::MAX);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let entries = sorted(0..10_000_000);
    let started = std::time::Instant::now();
    let index = Index::build(SCOPE, &entries, &place).unwrap();
    println!("built of ten million in {:?}", started.elapsed());
    let mut built = Extremes::new();
    built.add(index.bytes(), index.keys());
    built.check("built");
}

#[test]
fn a_key_costs_little_at_every_size_of_a_table_that_was_built() {
    let domain = Network::default().domain();
    let budget = Budget::new(u64::MAX);
    let place = Place {
        domain: &domain,
        budget: &budget,
    };
    let all = sorted(0..1_000_000);
    let (mut built, mut keys) = (Extremes::new(), KEYS_MIN);
    while keys <= all.len() as u64 {
        // Those of the first keys, which are in the order of their hashes too.
        let first = |(_, locator): &&(KeyHash, Locator)| u64::from(locator.offset_units) <= keys;
        let entries: Vec<_> = all.iter().filter(first).copied().collect();
        let index = Index::build(SCOPE, &entries, &place).unwrap();
        assert!(index.bytes() >= budget.used_bytes());
        built.add(index.bytes(), keys);
        keys += keys / 50;
    }
    built.check("built");
}
