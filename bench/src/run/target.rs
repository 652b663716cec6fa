//! Whether ratios are what a definition wants them to be.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::definition::{Bound, Definition, SideName, Target};
use super::job::Block;
use super::report::{doubt, figure, over_blocks, shown, sustained, too_few};
use super::stand::Measured;
use crate::stats::{Interval, interval};

/// What became of a target at one point.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// The target.
    pub(crate) name: String,
    /// The point.
    pub(crate) point: String,
    /// The ratio, block by block; none where something was not measured.
    pub(crate) ratio: Option<Interval>,
    /// What it must hold.
    pub(crate) bound: Bound,
    /// Whether it does.
    pub(crate) outcome: Outcome,
    /// Where all of the interval lies, if there are blocks enough to have one.
    #[serde(default)]
    pub(crate) place: Place,
    /// Why it is not told.
    pub(crate) why: String,
}

/// What a ratio says of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It holds.
    Met,
    /// It does not.
    Missed,
    /// The interval is too wide, or there is none.
    Inconclusive,
}

/// Where an interval lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// On both sides of the limit, or nowhere.
    #[default]
    Across,
    /// All of it where the ratio is to be.
    Within,
    /// All of it where it is not to be.
    Beyond,
}

impl Verdict {
    /// Whether the target was missed for sure: by its median, or by all of an interval however wide.
    pub(crate) fn is_missed(&self) -> bool {
        self.outcome == Outcome::Missed || self.place == Place::Beyond
    }
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }

    fn place(self, ratio: &Interval) -> Place {
        match (self.holds(ratio.low), self.holds(ratio.high)) {
            (true, true) => Place::Within,
            (false, false) => Place::Beyond,
            _ => Place::Across,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} [{}]: ", self.name, self.point)?;
        match &self.ratio {
            Some(ratio) => write!(out, "{}", shown(ratio))?,
            None => write!(out, "no ratio")?,
        }
        match self.bound {
            Bound::AtMost(most) => write!(out, ", at most {most}")?,
            Bound::AtLeast(least) => write!(out, ", at least {least}")?,
        }
        match self.outcome {
            Outcome::Met => write!(out, ": met")?,
            Outcome::Missed => write!(out, ": MISSED")?,
            Outcome::Inconclusive => write!(out, ": inconclusive: {}", self.why)?,
        }
        let side = match (self.bound, self.place) {
            (Bound::AtMost(_), Place::Within) | (Bound::AtLeast(_), Place::Beyond) => "below",
            (Bound::AtMost(_), Place::Beyond) | (Bound::AtLeast(_), Place::Within) => "above",
            (_, Place::Across) if self.outcome == Outcome::Inconclusive => return Ok(()),
            (_, Place::Across) => return write!(out, "; the interval lies on both sides of the limit"),
        };
        write!(out, "; all of the interval is {side} the limit")
    }
}

/// What became of each target at each point of its case.
pub(crate) fn judge(definition: &Definition, measured: &[Measured]) -> Vec<Verdict> {
    let points_of = |name: &str| -> Vec<&Measured> {
        let of_case = |one: &&Measured| definition.case[one.case].name == *name;
        measured.iter().filter(of_case).collect()
    };
    let mut verdicts = Vec::new();
    for target in &definition.target {
        for (index, point) in points_of(target.case.get_ref()).into_iter().enumerate() {
            let blocks_of = |case: Option<&str>, side: SideName| {
                let one = match case {
                    None => Some(point),
                    // Points of two cases belong together one by one.
                    Some(case) => points_of(case).get(index).copied(),
                };
                let one = one?;
                let (_, blocks) = one.sides.iter().find(|(known, _)| *known == side)?;
                Some((one.point.rate, &blocks[..]))
            };
            verdicts.push(verdict(target, point.point.describe(), &blocks_of));
        }
    }
    verdicts
}

/// The rate of an open loop, and the blocks of a side, in a case; in the target's own where none is named.
type Lookup<'a, 'b> = &'b dyn Fn(Option<&str>, SideName) -> Option<(Option<f64>, &'a [Block])>;

/// Whether a side got what an open loop asked of it: if not, its latency says nothing.
fn sustains((rate, blocks): (Option<f64>, &[Block])) -> bool {
    sustained(rate, over_blocks(blocks, |block| block.gets_s).as_ref())
}

fn verdict(target: &Target, point: String, blocks_of: Lookup<'_, '_>) -> Verdict {
    let mut verdict = Verdict {
        name: target.name.clone(),
        point,
        ratio: None,
        bound: target.bound,
        outcome: Outcome::Inconclusive,
        place: Place::Across,
        why: String::new(),
    };
    let Some((rate, kv)) = blocks_of(None, SideName::Kv) else {
        return verdict;
    };
    let mut unsustained = (!sustains((rate, kv))).then_some(SideName::Kv);
    let mut sums = vec![0.0; kv.len()];
    for term in &target.over {
        let case = term.case.as_ref().map(|case| case.get_ref().as_str());
        let found = blocks_of(case, term.side);
        if found.is_some_and(|found| !sustains(found)) {
            unsustained = Some(term.side);
        }
        let figures: Option<Vec<f64>> =
            found.and_then(|(_, blocks)| blocks.iter().map(|block| figure(block, target.metric)).collect());
        let Some(figures) = figures.filter(|figures| figures.len() == sums.len()) else {
            verdict.why = format!("`{}` was not measured", term.side);
            return verdict;
        };
        for (sum, figure) in sums.iter_mut().zip(figures) {
            *sum += figure * term.times.0;
        }
    }
    let over = |(kv, sum): (&Block, &f64)| Some(figure(kv, target.metric)? / sum);
    let mut ratios: Vec<f64> = kv.iter().zip(&sums).filter_map(over).collect();
    let count = ratios.len();
    verdict.ratio = interval(&mut ratios);
    if let Some(ratio) = &verdict.ratio {
        verdict.why = match unsustained {
            Some(side) => format!("`{side}` did not sustain the load"),
            None => doubt(ratio, count),
        };
        if too_few(count).is_none() && unsustained.is_none() {
            verdict.place = target.bound.place(ratio);
        }
        let holds = target.bound.holds(ratio.median);
        verdict.outcome = match (verdict.why.as_str(), holds) {
            ("", true) => Outcome::Met,
            ("", false) => Outcome::Missed,
            _ => Outcome::Inconclusive,
        };
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(over: &str, bound: &str) -> Target {
        let text = format!(
            "title = \"t\"\nnetwork = \"local\"\n[[case]]\nname = \"c\"\nvalue_bytes = 1\n[[target]]\nname = \"t\"\n\
             case = \"c\"\nmetric = \"latency\"\n{over}\n{bound}\n"
        );
        Definition::parse(&text, "d").unwrap().target.remove(0)
    }

    fn blocks(of: impl Fn(usize) -> f64, count: usize) -> Vec<Block> {
        let block = |at| Block {
            latency_us: Some(of(at)),
            ..Block::default()
        };
        (0..count).map(block).collect()
    }

    fn judged(target: &Target, kv: &[Block], crc: &[Block], pread: &[Block]) -> Verdict {
        verdict(target, String::new(), &|_, side| match side {
            SideName::Kv => Some((None, kv)),
            SideName::Crc => Some((None, crc)),
            SideName::Pread => Some((None, pread)),
            _ => None,
        })
    }

    #[test]
    fn ratios_are_taken_block_by_block_over_sums() {
        let target = target(
            "over = [{ side = \"pread\", times = 1.03 }, { side = \"crc\", times = 0.5 }]",
            "at_most = 1.0",
        );
        // The machine's speed changes from block to block, the ratio does not: (1.03 * 10 + 0.5 * 4) = 12.3.
        let speed = |at: usize| 1.0 + at as f64;
        let verdict = judged(
            &target,
            &blocks(|at| 12.0 * speed(at), 12),
            &blocks(|at| 4.0 * speed(at), 12),
            &blocks(|at| 10.0 * speed(at), 12),
        );
        assert!((verdict.ratio.unwrap().median - 12.0 / 12.3).abs() < 1e-9);
        assert_eq!(verdict.outcome, Outcome::Met);
        let slower = judged(
            &target,
            &blocks(|_| 12.5, 12),
            &blocks(|_| 4.0, 12),
            &blocks(|_| 10.0, 12),
        );
        assert_eq!(slower.outcome, Outcome::Missed);
        assert!(slower.is_missed() && slower.to_string().contains("MISSED"));
    }

    #[test]
    fn a_load_that_was_not_sustained_decides_nothing() {
        let target = target("over = [{ side = \"pread\" }]", "at_most = 1.0");
        let got = |us: f64, gets_s: f64| -> Vec<Block> {
            let mut all = blocks(|_| us, 12);
            all.iter_mut().for_each(|block| block.gets_s = Some(gets_s));
            all
        };
        let judged = |pread: &[Block]| {
            let kv = got(10.0, 1000.0);
            verdict(&target, String::new(), &|_, side| match side {
                SideName::Kv => Some((Some(1000.0), kv.clone().leak() as &[_])),
                _ => Some((Some(1000.0), pread.to_vec().leak() as &[_])),
            })
        };
        assert_eq!(judged(&got(20.0, 1000.0)).outcome, Outcome::Met);
        let behind = judged(&got(9000.0, 500.0));
        assert_eq!(
            (behind.outcome, behind.place),
            (Outcome::Inconclusive, Place::Across)
        );
        assert!(behind.why.contains("`pread` did not sustain"), "{}", behind.why);
    }

    #[test]
    fn what_is_too_wide_too_few_or_not_there_decides_nothing() {
        let target = target("over = [{ side = \"pread\" }]", "at_least = 0.5");
        let flat = |count| blocks(|_| 10.0, count);
        let few = judged(&target, &flat(9), &[], &flat(9));
        assert_eq!(few.outcome, Outcome::Inconclusive);
        assert!(few.why.contains("fewer than 10"), "{}", few.why);
        let wide = judged(&target, &blocks(|at| 10.0 + at as f64, 12), &[], &flat(12));
        assert_eq!(wide.outcome, Outcome::Inconclusive);
        assert!(wide.why.contains("5 %"), "{}", wide.why);
        // Wide as it is, all of it may lie on one side; of few blocks not even that is told.
        let all_above = judged(&target, &blocks(|at| 10.0 + at as f64, 12), &[], &flat(12));
        assert!(
            !all_above.is_missed()
                && all_above
                    .to_string()
                    .contains("all of the interval is above the limit")
        );
        let below = |count| blocks(|at| 2.0 + at as f64 / 10.0, count);
        let all_below = judged(&target, &below(12), &[], &flat(12));
        assert_eq!(all_below.outcome, Outcome::Inconclusive);
        assert!(
            all_below.is_missed()
                && all_below
                    .to_string()
                    .contains("all of the interval is below the limit")
        );
        let few_below = judged(&target, &below(9), &[], &flat(9));
        assert!(!few_below.is_missed() && !few_below.to_string().contains("all of"));
        let none = verdict(&target, String::new(), &|_, side| {
            (side == SideName::Kv).then_some((None, &[][..]))
        });
        assert_eq!(none.outcome, Outcome::Inconclusive);
        let absent = verdict(&target, String::new(), &|_, side| {
            (side == SideName::Kv).then(|| (None, flat(12).leak() as &[_]))
        });
        assert!(absent.why.contains("`pread` was not measured"), "{}", absent.why);
    }
}
