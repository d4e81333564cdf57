//! The learning rate as a function of the step.

/// Linear warmup to a peak, then a cosine down to a share of it, as the paper trains (appendix on training details).
///
/// With `s` optimizer steps done after the coming one:
/// ```text
/// s ≤ warmup:  peak · s / warmup
/// otherwise:   floor + (peak - floor) · (1 + cos(π · (s - warmup) / (total - warmup))) / 2,  floor = peak · min_ratio
/// ```
/// Beyond `total` it stays at the floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// What remains of it at the end.
    pub min_ratio: f64,
    /// Steps of warmup.
    pub warmup_steps: usize,
    /// Steps altogether.
    pub total_steps: usize,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        let done = (step + 1) as f64;
        let warmup = self.warmup_steps as f64;
        if done <= warmup {
            return self.peak * done / warmup;
        }
        let floor = self.peak * self.min_ratio;
        let progress = ((done - warmup) / (self.total_steps as f64 - warmup).max(1.0)).min(1.0);
        floor + 0.5 * (self.peak - floor) * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_reference_run() {
        // From the reference cases: warmup over 2 steps to 1e-3, cosine to 10 % at step 10.
        let schedule = Schedule { peak: 1e-3, min_ratio: 0.1, warmup_steps: 2, total_steps: 10 };
        let expected = [0.0005, 0.001, 0.000965745789630079, 0.0008681980515339464, 0.0007222075445642904];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((schedule.learning_rate(step) - expected).abs() < 1e-12, "step {step}");
        }
    }

    #[test]
    fn the_end_is_the_floor_and_stays_there() {
        let schedule = Schedule { peak: 1.0, min_ratio: 0.1, warmup_steps: 0, total_steps: 4 };
        assert!((schedule.learning_rate(3) - 0.1).abs() < 1e-12);
        assert!((schedule.learning_rate(400) - 0.1).abs() < 1e-12);
    }
}
