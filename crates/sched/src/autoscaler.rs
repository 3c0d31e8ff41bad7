//! What a function asks of its pool of containers, and of retries.

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autoscaler {
    /// Containers kept even without work.
    pub min: u32,
    /// Containers at most; none for no bound of the function's own.
    pub max: Option<u32>,
    /// Containers kept ready beyond those that work, while there is work.
    pub buffer: u32,
    /// How long a container may be idle before it is stopped.
    pub scaledown_window_ms: u64,
}

/// The idle time after which a container is stopped, unless the function says otherwise.
pub const SCALEDOWN_WINDOW_MS: u64 = 60_000;

impl Default for Autoscaler {
    fn default() -> Self {
        Self { min: 0, max: None, buffer: 0, scaledown_window_ms: SCALEDOWN_WINDOW_MS }
    }
}

/// How failures of user code are retried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub retries: u32,
    /// Each delay is so many times the one before.
    pub backoff_coefficient: f32,
    /// The delay before the first retry.
    pub initial_delay_ms: u64,
    /// No delay is longer.
    pub max_delay_ms: u64,
}

impl RetryPolicy {
    /// No retries.
    pub const NEVER: RetryPolicy =
        RetryPolicy { retries: 0, backoff_coefficient: 1.0, initial_delay_ms: 0, max_delay_ms: 0 };

    /// The delay before the next try after `failures` counted failures (at least 1), or none where no tries
    /// are left.
    pub fn next_delay_ms(&self, failures: u32) -> Option<u64> {
        if failures == 0 || failures > self.retries {
            return None;
        }
        let factor = f64::from(self.backoff_coefficient.max(0.0)).powi((failures - 1).min(1024) as i32);
        let delay = self.initial_delay_ms as f64 * factor;
        // A product that is not finite is larger than any bound; `max_delay_ms` is one.
        let delay = if delay.is_finite() { delay as u64 } else { u64::MAX };
        Some(delay.min(self.max_delay_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_their_bound_and_end() {
        let policy = RetryPolicy {
            retries: 4,
            backoff_coefficient: 2.0,
            initial_delay_ms: 1_000,
            max_delay_ms: 3_000,
        };
        let delays: Vec<_> = (0..=5).map(|n| policy.next_delay_ms(n)).collect();
        assert_eq!(delays, [None, Some(1_000), Some(2_000), Some(3_000), Some(3_000), None]);
    }

    #[test]
    fn odd_coefficients_are_harmless() {
        for coefficient in [f32::INFINITY, f32::NAN, -3.0, 0.0] {
            let policy = RetryPolicy {
                retries: 2_000,
                backoff_coefficient: coefficient,
                initial_delay_ms: 10,
                max_delay_ms: 60_000,
            };
            assert!(policy.next_delay_ms(2_000).is_some_and(|delay| delay <= 60_000));
        }
    }
}
