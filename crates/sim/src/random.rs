//! Choices drawn from the seed.

use evoke_core::{Entropy, SeededEntropy};

/// A repeatable source of choices.
pub(crate) struct Random(SeededEntropy);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeededEntropy::new(seed))
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    /// True in so many of a thousand cases.
    pub(crate) fn permille(&mut self, n: u64) -> bool {
        self.between(0, 999) < n
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.between(0, options.len() as u64 - 1) as usize]
    }

    pub(crate) fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }
}
