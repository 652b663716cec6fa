//! Which segment is compacted next, and whether any. Pure.

/// Dead share from which a segment is compacted where memory or disk are short.
pub(crate) const PRESSED_SHARE: f64 = 1.0 / 16.0;
/// Small segments that may lie about; past that the oldest is merged into the active one.
const SMALL_SEGMENTS_MAX: usize = 16;
/// A segment is small up to this part of a segment's length.
const SMALL_FRACTION: u64 = 16;

/// A sealed segment that may be compacted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) number: u32,
    /// Bytes of its records, live or not.
    pub(crate) record_bytes: u64,
    pub(crate) live_bytes: u64,
    pub(crate) tombstone_bytes: u64,
    /// Whether a segment is gone since its tombstones were judged, so that some may not be wanted any more.
    pub(crate) unjudged: bool,
    /// Nothing in it is wanted any more.
    pub(crate) drained: bool,
    /// A later segment tells, durably, of the operations that it tells of.
    pub(crate) followed: bool,
}

impl Candidate {
    fn share_without(&self, wanted_bytes: u64) -> f64 {
        if self.record_bytes == 0 {
            return 1.0;
        }
        1.0 - wanted_bytes.min(self.record_bytes) as f64 / self.record_bytes as f64
    }

    /// Share of what is surely dead.
    pub(crate) fn dead_share(&self) -> f64 {
        self.share_without(self.live_bytes + self.tombstone_bytes)
    }

    /// Share that is dead if no tombstone that may be judged is wanted.
    fn hoped_share(&self) -> f64 {
        if self.unjudged {
            self.share_without(self.live_bytes)
        } else {
            self.dead_share()
        }
    }

    /// Most bytes that compacting it writes.
    fn moved_bytes(&self) -> u64 {
        self.live_bytes + self.tombstone_bytes
    }
}

/// What counts besides the segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Dead share from which a segment is compacted.
    pub(crate) threshold: f64,
    /// Bytes that may be written before anything is freed.
    pub(crate) room_bytes: u64,
    /// Memory or disk are short.
    pub(crate) pressed: bool,
    /// Longest segment, bytes.
    pub(crate) segment_bytes: u64,
}

impl Rules {
    /// Dead share from which it pays to compact.
    pub(crate) fn limit(&self) -> f64 {
        if self.pressed {
            self.threshold.min(PRESSED_SHARE)
        } else {
            self.threshold
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Free it: nothing in it is wanted.
    Retire(u32),
    /// See which of its tombstones are wanted: without the others it is worth compacting.
    Judge(u32),
    /// Copy out of it what is wanted.
    Drain(u32),
    /// Seal the active segment, so that this one may be freed.
    SealAndRetire(u32),
}

/// The segment to take next.
pub(crate) fn choose(candidates: &[Candidate], rules: &Rules) -> Option<Choice> {
    if let Some(free) = candidates.iter().find(|it| it.drained && it.followed) {
        return Some(Choice::Retire(free.number));
    }
    let open = || candidates.iter().filter(|it| !it.drained);
    let fits = |it: &&Candidate| it.moved_bytes() <= rules.room_bytes;
    let best = open()
        .filter(fits)
        .filter(|it| it.hoped_share() >= rules.limit())
        .max_by(|a, b| {
            let by_share = a.hoped_share().total_cmp(&b.hoped_share());
            by_share.then(b.number.cmp(&a.number))
        });
    if let Some(best) = best {
        return Some(if best.dead_share() >= rules.limit() {
            Choice::Drain(best.number)
        } else {
            Choice::Judge(best.number)
        });
    }
    if let Some(drained) = candidates.iter().find(|it| it.drained)
        && rules.pressed
    {
        return Some(Choice::SealAndRetire(drained.number));
    }
    let small = || open().filter(|it| it.record_bytes <= rules.segment_bytes / SMALL_FRACTION);
    if small().count() > SMALL_SEGMENTS_MAX {
        return small()
            .filter(fits)
            .min_by_key(|it| it.number)
            .map(|it| Choice::Drain(it.number));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        threshold: 0.5,
        room_bytes: 1000,
        pressed: false,
        segment_bytes: 1000,
    };

    fn segment(number: u32, live_bytes: u64) -> Candidate {
        Candidate {
            number,
            record_bytes: 1000,
            live_bytes,
            followed: true,
            ..Candidate::default()
        }
    }

    #[test]
    fn the_deadest_past_the_threshold_is_next_and_the_oldest_of_equals() {
        let all = [segment(1, 501), segment(2, 300), segment(3, 100), segment(4, 100)];
        assert_eq!(choose(&all, &RULES), Some(Choice::Drain(3)));
        assert_eq!(choose(&all[..2], &RULES), Some(Choice::Drain(2)));
        assert_eq!(choose(&all[..1], &RULES), None);
        let pressed = Rules {
            pressed: true,
            ..RULES
        };
        assert_eq!(choose(&all[..1], &pressed), Some(Choice::Drain(1)));
        assert_eq!(choose(&[segment(1, 990)], &pressed), None);
    }

    #[test]
    fn a_victim_fits_what_is_free() {
        let all = [segment(1, 400), segment(2, 300)];
        let tight = Rules {
            room_bytes: 350,
            ..RULES
        };
        assert_eq!(choose(&all, &tight), Some(Choice::Drain(2)));
        assert_eq!(choose(&all[..1], &tight), None);
        assert_eq!(
            choose(
                &[segment(1, 0)],
                &Rules {
                    room_bytes: 0,
                    ..RULES
                }
            ),
            Some(Choice::Drain(1))
        );
    }

    #[test]
    fn what_is_drained_is_freed_once_a_later_segment_follows() {
        let mut drained = segment(1, 0);
        drained.drained = true;
        assert_eq!(choose(&[drained], &RULES), Some(Choice::Retire(1)));
        drained.followed = false;
        assert_eq!(choose(&[drained], &RULES), None);
        let pressed = Rules {
            pressed: true,
            ..RULES
        };
        assert_eq!(choose(&[drained], &pressed), Some(Choice::SealAndRetire(1)));
        assert_eq!(
            choose(&[drained, segment(2, 0)], &pressed),
            Some(Choice::Drain(2))
        );
    }

    #[test]
    fn tombstones_count_until_some_may_be_unwanted() {
        let mut segment = segment(1, 100);
        segment.tombstone_bytes = 800;
        assert_eq!(choose(&[segment], &RULES), None);
        segment.unjudged = true;
        assert_eq!(choose(&[segment], &RULES), Some(Choice::Judge(1)));
        segment.live_bytes = 0;
        segment.tombstone_bytes = 400;
        assert_eq!(choose(&[segment], &RULES), Some(Choice::Drain(1)));
    }

    #[test]
    fn many_small_segments_are_merged_and_few_are_left() {
        let mut all: Vec<Candidate> = (1..=SMALL_SEGMENTS_MAX as u32)
            .map(|number| Candidate {
                record_bytes: 10,
                ..segment(number, 10)
            })
            .collect();
        assert_eq!(choose(&all, &RULES), None);
        all.push(Candidate {
            record_bytes: 10,
            ..segment(99, 10)
        });
        assert_eq!(choose(&all, &RULES), Some(Choice::Drain(1)));
    }

    #[test]
    fn tombstones_take_room_when_they_are_copied() {
        let mut segment = segment(1, 100);
        segment.tombstone_bytes = 300;
        let tight = Rules {
            room_bytes: 399,
            ..RULES
        };
        assert_eq!(choose(&[segment], &tight), None);
        assert_eq!(choose(&[segment], &RULES), Some(Choice::Drain(1)));
    }

    #[test]
    fn small_is_a_sixteenth_and_what_is_merged_fits() {
        let of = |record_bytes| {
            (1..=SMALL_SEGMENTS_MAX as u32 + 1).map(move |number| Candidate {
                record_bytes,
                ..segment(number, record_bytes)
            })
        };
        let small = RULES.segment_bytes / SMALL_FRACTION;
        let all: Vec<Candidate> = of(small).collect();
        assert_eq!(choose(&all, &RULES), Some(Choice::Drain(1)));
        let longer: Vec<Candidate> = of(small + 1).collect();
        assert_eq!(choose(&longer, &RULES), None);
        let tight = Rules {
            room_bytes: small - 1,
            ..RULES
        };
        assert_eq!(choose(&all, &tight), None);
    }
}
