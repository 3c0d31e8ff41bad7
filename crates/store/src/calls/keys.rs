//! Ids of calls and inputs that carry the key of their row.
//!
//! The 64 low bits, random in other ids, hold the row's key in their upper 40 bits and 24 random bits
//! ("salt") below. The row stores the salt and the time, so an id whose key was used before a crash and
//! given again after it does not match the new row and is reported as unknown.

use evoke_core::id::{Id, Kind};
use evoke_core::{Entropy, UnixMs};

/// Bits of the key inside an id: enough for 10^12 rows.
const KEY_BITS: u32 = 40;
/// Random bits below the key.
const SALT_BITS: u32 = 24;
const SALT_MASK: u64 = (1 << SALT_BITS) - 1;
/// The largest key that fits an id.
pub const KEY_MAX: i64 = (1 << KEY_BITS) - 1;

/// What an id of a call or an input consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Milliseconds since the Unix epoch at which it was made.
    pub at: UnixMs,
    /// The key of its row.
    pub key: i64,
    /// The random part.
    pub salt: u32,
}

/// The random part of a new id.
pub fn salt(entropy: &mut dyn Entropy) -> u32 {
    (entropy.next_u64() & SALT_MASK) as u32
}

/// The id that consists of these parts.
pub fn join<K: Kind>(parts: Parts) -> Id<K> {
    let low = ((parts.key as u64) << SALT_BITS) | (u64::from(parts.salt) & SALT_MASK);
    Id::from_bits((u128::from(parts.at.0) << 80) | u128::from(low))
}

/// The parts of an id; nonsense for an id that was not made by [`join`], which then matches no row.
pub fn split<K: Kind>(id: &Id<K>) -> Parts {
    let mut bits: u128 = 0;
    for byte in id.suffix().bytes() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'Z' => byte - b'A' + 10,
            _ => byte.wrapping_sub(b'a').wrapping_add(36),
        };
        bits = bits.wrapping_mul(62).wrapping_add(u128::from(digit));
    }
    let low = bits as u64;
    Parts { at: UnixMs((bits >> 80) as u64), key: (low >> SALT_BITS) as i64, salt: (low & SALT_MASK) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::{CallId, InputId};

    #[test]
    fn an_id_gives_its_parts_back() {
        for (at, key, salt) in
            [(0, 1, 0), (1_700_000_000_123, 77, 5), ((1 << 48) - 1, KEY_MAX, (1 << 24) - 1)]
        {
            let parts = Parts { at: UnixMs(at), key, salt };
            assert_eq!(split(&join::<evoke_core::id::Call>(parts)), parts);
        }
    }

    #[test]
    fn ids_sort_by_time_then_key() {
        let id = |at, key| -> InputId { join(Parts { at: UnixMs(at), key, salt: 9 }) };
        assert!(id(5, 100) < id(6, 1));
        assert!(id(5, 1) < id(5, 2));
    }

    #[test]
    fn a_foreign_id_does_not_panic() {
        let id: CallId = "fc-zzzzzzzzzzzzzzzzzzzzzz".parse().unwrap();
        let _ = split(&id);
    }
}
