//! What an answer costs to compute where nobody measured that: about what the answers of its model cost.

use crate::sync::atomic::{AtomicU32, Ordering};

/// Weight of a measured cost in the mean: the last few dozen decide, and one that took long is soon forgotten.
const SMOOTHING: f32 = 1.0 / 16.0;
/// What an answer of a model is taken to cost of which nothing is known: a small one's.
const UNKNOWN: f32 = 0.01;
/// A day, the most that an entry records, so that one wrong clock does not make everything infinitely dear.
const MOST: f32 = 86_400.0;

/// The smoothed mean of costs in seconds, as the bits of a float; 0: none was measured.
#[derive(Debug, Default)]
pub(crate) struct MeanCost(AtomicU32);

impl MeanCost {
    /// Another answer took so long. Two writers at once may count as one.
    pub(crate) fn learn(&self, seconds: f32) {
        let (before, seconds) = (self.0.load(Ordering::Relaxed), seconds.min(MOST));
        let mean = f32::from_bits(before);
        let mean = if before == 0 { seconds } else { mean + (seconds - mean) * SMOOTHING };
        // Where all cost the same, writers share the line.
        if mean.to_bits() != before {
            self.0.store(mean.to_bits(), Ordering::Relaxed);
        }
    }

    /// In seconds.
    pub(crate) fn estimate(&self) -> f32 {
        match self.0.load(Ordering::Relaxed) {
            0 => UNKNOWN,
            bits => f32::from_bits(bits),
        }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_first_and_follows_the_last_few_dozen() {
        let mean = MeanCost::default();
        assert_eq!(mean.estimate(), UNKNOWN);
        mean.learn(2.0);
        assert_eq!(mean.estimate(), 2.0);
        (0..100).for_each(|_| mean.learn(0.5));
        assert!((mean.estimate() - 0.5).abs() < 0.01, "{}", mean.estimate());
        mean.learn(50.0);
        assert!(mean.estimate() < 4.0, "one that took long counts once: {}", mean.estimate());
    }

    #[test]
    fn an_endless_cost_leaves_a_mean_that_others_can_change() {
        let mean = MeanCost::default();
        mean.learn(f32::INFINITY);
        assert_eq!(mean.estimate(), MOST);
        (0..1_000).for_each(|_| mean.learn(0.5));
        assert!((mean.estimate() - 0.5).abs() < 0.01, "{}", mean.estimate());
    }
}
