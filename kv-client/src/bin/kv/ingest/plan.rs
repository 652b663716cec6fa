//! What is to be done with each item, given what the dataset holds: the decision that makes a second run cheap and safe.

use crate::source::Sources;
use crate::stop::Stop;
use crate::store::{Store, StoreError};

/// What to do with one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The dataset has no such key: store it.
    Store,
    /// It has a value of the same length: fetch and compare, store if it differs.
    Compare,
    /// It has a value of another length: store it in its place.
    Replace,
    /// It has a value that is left as it is.
    Keep,
    /// It has another value, and replacing was forbidden.
    Refuse,
}

/// What may be done with keys that are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// A value of the same length is taken to be the same.
    pub(crate) trust_length: bool,
    /// A value that differs is replaced.
    pub(crate) overwrite: bool,
}

/// What to do with an item of `len_bytes` whose key has a value of `present` bytes, or none.
pub(crate) fn step(len_bytes: u64, present: Option<u64>, rules: Rules) -> Step {
    match present {
        None => Step::Store,
        Some(present) if present != len_bytes => {
            if rules.overwrite {
                Step::Replace
            } else {
                Step::Refuse
            }
        }
        Some(_) if rules.trust_length => Step::Keep,
        Some(_) => Step::Compare,
    }
}

/// One step for each item, from one listing of the dataset; not to be carried out if asked to stop meanwhile.
pub(crate) fn plan(
    store: &impl Store,
    sources: &Sources,
    rules: Rules,
    stop: &Stop,
) -> Result<Vec<Step>, StoreError> {
    let items = &sources.items;
    let mut by_key: Vec<u32> = (0..items.len() as u32).collect();
    by_key.sort_unstable_by(|one, two| items[*one as usize].key.cmp(&items[*two as usize].key));
    let mut steps = vec![Step::Store; items.len()];
    store.list(&mut |key, present, _| {
        if let Ok(place) = by_key.binary_search_by(|index| items[*index as usize].key.as_slice().cmp(key)) {
            let index = by_key[place] as usize;
            steps[index] = step(items[index].len_bytes, Some(present), rules);
        }
        stop.going_on()
    })?;
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Item;
    use crate::store::fake::Fake;

    const DEFAULT: Rules = Rules {
        trust_length: false,
        overwrite: true,
    };

    #[test]
    fn equal_length_is_compared_unless_it_is_trusted() {
        assert_eq!(step(5, None, DEFAULT), Step::Store);
        assert_eq!(step(5, Some(5), DEFAULT), Step::Compare);
        assert_eq!(step(5, Some(6), DEFAULT), Step::Replace);
        let trusting = Rules {
            trust_length: true,
            ..DEFAULT
        };
        assert_eq!(step(5, Some(5), trusting), Step::Keep);
        assert_eq!(step(5, Some(4), trusting), Step::Replace);
        let careful = Rules {
            overwrite: false,
            ..DEFAULT
        };
        assert_eq!(step(5, Some(4), careful), Step::Refuse);
        assert_eq!(step(5, Some(5), careful), Step::Compare);
        assert_eq!(step(0, Some(0), DEFAULT), Step::Compare);
    }

    #[test]
    fn the_listing_finds_items_in_any_order() {
        let store = Fake::of(&[(b"b", b"12"), (b"d", b"1234"), (b"other", b"x")]);
        let item = |key: &str, len_bytes| Item {
            key: key.into(),
            input: 0,
            offset: 0,
            len_bytes,
        };
        let items = vec![item("d", 4), item("a", 1), item("c", 3), item("b", 3)];
        let sources = Sources {
            items,
            ..Sources::default()
        };
        let steps = plan(&store, &sources, DEFAULT, &Stop::default()).unwrap();
        assert_eq!(steps, [Step::Compare, Step::Store, Step::Store, Step::Replace]);
        assert_eq!(store.state().listed, 3);
    }

    #[test]
    fn a_listing_ends_when_it_is_asked_to() {
        let store = Fake::of(&[(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]);
        let stop = Stop::default();
        stop.interrupt();
        plan(&store, &Sources::default(), DEFAULT, &stop).unwrap();
        assert_eq!(store.state().listed, 1);
    }
}
