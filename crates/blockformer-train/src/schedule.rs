//! The learning rate as a function of the step.

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// Down to the floor along half a cosine, as the paper trains.
    #[default]
    Cosine,
    /// Down to the floor along a line.
    Linear,
    /// The peak, to the end.
    Constant,
    /// `peak · sqrt(warmup / s)`, not below the floor (Vaswani et al. 2017).
    InverseSquareRoot,
    /// The peak, and down to the floor along a line in the last `decay_steps` (Hu et al. 2024).
    WarmupStableDecay {
        /// Steps of the decay.
        decay_steps: usize,
    },
}

/// Linear warmup to a peak, then down to a share of it, by default along a cosine as the paper trains (appendix on
/// training details).
///
/// With `s` optimizer steps done after the coming one, `floor = peak · min_ratio` and
/// `p = (s - warmup) / (total - warmup)`:
/// ```text
/// s ≤ warmup            peak · s / warmup
/// cosine                floor + (peak - floor) · (1 + cos(π · p)) / 2
/// linear                peak - (peak - floor) · p
/// constant              peak
/// inverse square root   max(peak · sqrt(max(warmup, 1) / s), floor)
/// warmup, stable, decay peak - (peak - floor) · max(s - (total - decay), 0) / decay
/// ```
/// Beyond `total` it stays as it was there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// What remains of it at the end, where the shape goes down.
    pub min_ratio: f64,
    /// Steps of warmup.
    pub warmup_steps: usize,
    /// Steps altogether.
    pub total_steps: usize,
    /// How it goes on after the warmup.
    pub shape: ScheduleShape,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        let warmup = self.warmup_steps as f64;
        let done = (step + 1) as f64;
        if done <= warmup {
            return self.peak * done / warmup;
        }
        let total = (self.total_steps as f64).max(warmup);
        let done = done.min(total).max(warmup);
        let floor = self.peak * self.min_ratio;
        let progress = if total > warmup { (done - warmup) / (total - warmup) } else { 1.0 };
        let down = |progress: f64| self.peak - (self.peak - floor) * progress;
        match self.shape {
            ScheduleShape::Cosine => {
                floor + 0.5 * (self.peak - floor) * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            ScheduleShape::Linear => down(progress),
            ScheduleShape::Constant => self.peak,
            ScheduleShape::InverseSquareRoot => (self.peak * (warmup.max(1.0) / done.max(1.0)).sqrt()).max(floor),
            ScheduleShape::WarmupStableDecay { decay_steps } => {
                let decay = decay_steps as f64;
                down(((done - (total - decay)) / decay.max(1.0)).clamp(0.0, 1.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSINE: Schedule =
        Schedule { peak: 1e-3, min_ratio: 0.1, warmup_steps: 2, total_steps: 10, shape: ScheduleShape::Cosine };

    #[test]
    fn rates_are_those_of_the_reference_run() {
        // From the reference cases: warmup over 2 steps to 1e-3, cosine to 10 % at step 10.
        let expected = [0.0005, 0.001, 0.000965745789630079, 0.0008681980515339464, 0.0007222075445642904];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((COSINE.learning_rate(step) - expected).abs() < 1e-12, "step {step}");
        }
    }

    #[test]
    fn the_end_is_the_floor_and_stays_there() {
        let decay = ScheduleShape::WarmupStableDecay { decay_steps: 2 };
        for shape in [ScheduleShape::Cosine, ScheduleShape::Linear, decay] {
            let schedule = Schedule { peak: 1.0, min_ratio: 0.1, warmup_steps: 0, total_steps: 4, shape };
            assert!((schedule.learning_rate(3) - 0.1).abs() < 1e-12, "{shape:?}");
            assert!((schedule.learning_rate(400) - 0.1).abs() < 1e-12, "{shape:?}");
        }
    }

    #[test]
    fn each_shape_follows_its_formula() {
        let rates = |shape| {
            let schedule = Schedule { peak: 1.0, min_ratio: 0.25, warmup_steps: 4, total_steps: 16, shape };
            [0, 3, 8, 12, 15].map(|step| (schedule.learning_rate(step) * 1e4).round() / 1e4)
        };
        assert_eq!(rates(ScheduleShape::Constant), [0.25, 1.0, 1.0, 1.0, 1.0]);
        // 5, 9 and 12 of the 12 steps behind the warmup, of a way down of 0.75.
        assert_eq!(rates(ScheduleShape::Linear), [0.25, 1.0, 0.6875, 0.4375, 0.25]);
        // sqrt(4 / 9), sqrt(4 / 13), sqrt(4 / 16).
        assert_eq!(rates(ScheduleShape::InverseSquareRoot), [0.25, 1.0, 0.6667, 0.5547, 0.5]);
        let decay = ScheduleShape::WarmupStableDecay { decay_steps: 6 };
        assert_eq!(rates(decay), [0.25, 1.0, 1.0, 0.625, 0.25]);
    }

    #[test]
    fn a_warmup_as_long_as_the_run_ends_at_the_peak() {
        let schedule = Schedule { warmup_steps: 10, ..COSINE };
        assert_eq!(schedule.learning_rate(9), 1e-3);
        assert!(schedule.learning_rate(10).is_finite());
    }
}
