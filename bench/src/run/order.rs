//! Which values are asked for, one after the other.

use super::definition::Order;

/// `gets` numbers below `count` in `order`, from `seed`; an epoch goes on in the next one.
pub(crate) fn order(order: Order, count: usize, gets: usize, seed: u64) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    match order {
        Order::Uniform => (0..gets).map(|_| random.u32(..count as u32)).collect(),
        Order::Epoch => {
            let mut epoch: Vec<u32> = (0..count as u32).collect();
            let mut all = Vec::with_capacity(gets);
            while all.len() < gets {
                random.shuffle(&mut epoch);
                all.extend(epoch.iter().take(gets - all.len()));
            }
            all
        }
        Order::Zipf(exponent) => {
            let shares = zipf(count, exponent);
            // Which value has which rank is drawn from the seed's neighbour, so that it is the same in every block.
            let mut ranked: Vec<u32> = (0..count as u32).collect();
            fastrand::Rng::with_seed(1).shuffle(&mut ranked);
            let draw = |_| {
                let share = random.f64();
                ranked[shares.partition_point(|up_to| *up_to <= share).min(count - 1)]
            };
            (0..gets).map(draw).collect()
        }
    }
}

/// Share of all requests that the ranks up to each have.
fn zipf(count: usize, exponent: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let mut shares: Vec<f64> = (1..=count)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[u32], count: usize) -> Vec<usize> {
        let mut counts = vec![0; count];
        all.iter().for_each(|&index| counts[index as usize] += 1);
        counts
    }

    #[test]
    fn an_epoch_has_all_once_and_each_its_own_order() {
        let all = order(Order::Epoch, 100, 250, 7);
        assert_eq!(counts(&all[..100], 100), vec![1; 100]);
        assert_eq!(counts(&all[100..200], 100), vec![1; 100]);
        assert!(counts(&all[200..], 100).iter().all(|&count| count <= 1));
        assert_ne!(all[..100], all[100..200]);
        assert_eq!(all, order(Order::Epoch, 100, 250, 7));
        assert_ne!(all, order(Order::Epoch, 100, 250, 8));
    }

    #[test]
    fn uniform_is_flat_and_zipf_is_as_steep_as_it_says() {
        let flat = counts(&order(Order::Uniform, 50, 100_000, 3), 50);
        assert!(
            flat.iter().all(|&count| (1800..2200).contains(&count)),
            "{flat:?}"
        );
        let mut steep = counts(&order(Order::Zipf(1.0), 1000, 200_000, 3), 1000);
        let other = counts(&order(Order::Zipf(1.0), 1000, 200_000, 4), 1000);
        let most = |counts: &[usize]| (0..1000).max_by_key(|&index| counts[index]);
        assert_eq!(
            most(&steep),
            most(&other),
            "the most wanted is the same in every block"
        );
        steep.sort_unstable_by(|a, b| b.cmp(a));
        // The harmonic number of 1000 is 7.485: the first has 1 / 7.485 of all, the tenth a tenth of that.
        let share = |rank: usize| steep[rank - 1] as f64 / 200_000.0;
        assert!((share(1) - 0.1336).abs() < 0.005, "{}", share(1));
        assert!((share(10) - 0.01336).abs() < 0.002, "{}", share(10));
    }
}
