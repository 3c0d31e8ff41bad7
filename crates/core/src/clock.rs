//! Time and randomness as parameters, so that whatever decides by them runs in simulation with a seed.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The same instant in seconds, as the protocol's timestamps are.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1000.0
    }
    /// Milliseconds from `earlier` to this instant; zero if it lies in the future.
    pub fn since(self, earlier: UnixMs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
    /// This instant moved by `ms` milliseconds.
    pub fn plus_ms(self, ms: u64) -> UnixMs {
        UnixMs(self.0.saturating_add(ms))
    }
}

impl Add<Duration> for UnixMs {
    type Output = UnixMs;
    fn add(self, by: Duration) -> UnixMs {
        self.plus_ms(by.as_millis() as u64)
    }
}

impl Sub for UnixMs {
    type Output = Duration;
    fn sub(self, earlier: UnixMs) -> Duration {
        Duration::from_millis(self.since(earlier))
    }
}

/// Where the current time comes from.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> UnixMs;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMs(since.as_millis() as u64)
    }
}

/// Where random numbers come from.
pub trait Entropy: Send {
    /// The next 64 random bits.
    fn next_u64(&mut self) -> u64;
}

/// A repeatable sequence (SplitMix64), for simulation and tests.
#[derive(Debug, Clone)]
pub struct SeededEntropy(u64);

impl SeededEntropy {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// The kernel's random numbers, for ids and keys.
#[derive(Debug, Default)]
pub struct SystemEntropy {
    buffer: Vec<u64>,
}

/// Numbers fetched from the kernel at a time.
const ENTROPY_BATCH: usize = 64;

impl Entropy for SystemEntropy {
    fn next_u64(&mut self) -> u64 {
        if let Some(value) = self.buffer.pop() {
            return value;
        }
        let mut bytes = [0u8; ENTROPY_BATCH * 8];
        // The operating system's generator does not fail on a running system; were it to, nothing that
        // follows could be made unguessable, so stopping is the only safe answer.
        #[allow(clippy::expect_used)]
        getrandom::fill(&mut bytes).expect("the kernel's random number generator answers");
        self.buffer.extend(bytes.chunks_exact(8).map(|c| {
            let mut word = [0u8; 8];
            word.copy_from_slice(c);
            u64::from_le_bytes(word)
        }));
        self.buffer.pop().unwrap_or_default()
    }
}
