//! Moments in the protocol's form.

use evoke_core::UnixMs;
use prost_types::Timestamp;

/// Nanoseconds in a second.
pub(crate) const SECOND_NS: u64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub(crate) const MS_NS: u64 = 1_000_000;

/// A moment as clients get it.
pub(crate) fn timestamp(at: UnixMs) -> Timestamp {
    timestamp_ns(at.0.saturating_mul(MS_NS))
}

/// The same of nanoseconds since the epoch.
pub(crate) fn timestamp_ns(ns: u64) -> Timestamp {
    // Both fit: a u64 of nanoseconds has fewer seconds than an i64 holds.
    Timestamp { seconds: (ns / SECOND_NS) as i64, nanos: (ns % SECOND_NS) as i32 }
}

/// Nanoseconds since the epoch; none of it before.
pub(crate) fn nanoseconds(at: Timestamp) -> u64 {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    seconds.saturating_mul(SECOND_NS).saturating_add(u64::try_from(at.nanos).unwrap_or(0))
}
