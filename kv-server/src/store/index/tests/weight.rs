//! What a key costs in memory, at every size.

use super::*;

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
                .flat_map(|replaced: &Replaced<_>| &replaced.retired)
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
