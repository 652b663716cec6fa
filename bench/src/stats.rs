//! Medians and what they are worth.

/// Median of `samples`, which are sorted by this; `None` of none.
pub(crate) fn median(samples: &mut [f64]) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() {
        0 => None,
        len if len % 2 == 1 => Some(samples[middle]),
        _ => Some(f64::midpoint(samples[middle - 1], samples[middle])),
    }
}

/// A median with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Interval {
    /// Median.
    pub(crate) median: f64,
    /// Lower end.
    pub(crate) low: f64,
    /// Upper end.
    pub(crate) high: f64,
}

/// Median of `samples` with the distribution-free 95 % interval between two of them (order statistics: the number of
/// samples below the true median is binomial with p = 1/2). Fewer than 6 samples have no such interval: then it spans
/// all of them.
pub(crate) fn interval(samples: &mut [f64]) -> Option<Interval> {
    let median = median(samples)?;
    let n = samples.len();
    // P(fewer than `k + 1` below the median), summed until it passes 2.5 %.
    let mut probability = 0.5_f64.powi(n as i32);
    let mut cumulative = probability;
    let mut k = 0;
    while k + 1 < n.div_ceil(2) {
        probability *= (n - k) as f64 / (k + 1) as f64;
        if cumulative + probability > 0.025 {
            break;
        }
        cumulative += probability;
        k += 1;
    }
    // With `cumulative` <= 2.5 % for fewer than k + 1 below, the (k+1)-th from each end bounds the interval.
    Some(Interval {
        median,
        low: samples[k],
        high: samples[n - 1 - k],
    })
}

#[cfg(test)]
mod tests {
    use super::{interval, median};

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn the_interval_is_the_one_in_the_tables() {
        // Published tables give ranks 2 and 9 for 10 samples (97.9 %), 6 and 15 for 20 (95.9 %).
        let mut ten: Vec<f64> = (1..=10).map(f64::from).collect();
        let ten = interval(&mut ten).unwrap();
        assert_eq!((ten.low, ten.high), (2.0, 9.0));
        let mut twenty: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        let twenty = interval(&mut twenty).unwrap();
        assert_eq!((twenty.low, twenty.high), (6.0, 15.0));
        let five = interval(&mut [1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((five.low, five.high), (1.0, 5.0));
    }
}
