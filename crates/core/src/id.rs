//! Typed object ids: the protocol's prefix, a dash, and 22 base-62 characters.
//!
//! The 22 characters encode 128 bits, most significant first: 48 bits of Unix milliseconds, a 16-bit shard
//! tag and 64 random bits. Ids made later therefore sort later, which keeps index inserts local, and a
//! request can be routed by its id without a look-up. The prefixes and the rule that a suffix is
//! alphanumeric come from the official client.

use crate::{Entropy, UnixMs};
use serde::{Deserialize, Serialize};
use std::{fmt, marker::PhantomData, str::FromStr};

/// Characters after the dash.
pub const SUFFIX_LEN: usize = 22;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What an id names: the two letters in front of the dash.
pub trait Kind: Copy + Eq + Ord + std::hash::Hash + fmt::Debug + Send + Sync + 'static {
    /// The protocol's prefix, without the dash.
    const PREFIX: &'static str;
    /// Whether the protocol forbids suffixes that end in `V` (task ids: the client takes those for
    /// sandboxes of the second generation).
    const NO_TRAILING_V: bool = false;
}

/// The id of one object of kind `K`. 22 bytes, `Copy`, ordered by time of creation.
pub struct Id<K: Kind> {
    suffix: [u8; SUFFIX_LEN],
    kind: PhantomData<K>,
}

// Written by hand because derives would demand the bounds of `K` in places where they are irrelevant.
impl<K: Kind> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K: Kind> Copy for Id<K> {}
impl<K: Kind> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.suffix == other.suffix
    }
}
impl<K: Kind> Eq for Id<K> {}
impl<K: Kind> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K: Kind> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.suffix.cmp(&other.suffix)
    }
}
impl<K: Kind> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.suffix.hash(state);
    }
}

/// Why a string is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a valid {prefix}-… id")]
pub struct ParseIdError {
    text: String,
    prefix: &'static str,
}

impl<K: Kind> Id<K> {
    /// A new id for an object made at `now`.
    pub fn new(now: UnixMs, entropy: &mut dyn Entropy) -> Self {
        loop {
            let random = u128::from(entropy.next_u64());
            let id = Self::from_bits((u128::from(now.0) << 80) | random);
            if !(K::NO_TRAILING_V && id.suffix[SUFFIX_LEN - 1] == b'V') {
                return id;
            }
        }
    }

    /// The id that stands for these 128 bits; used where the same content must give the same id.
    pub fn from_bits(mut bits: u128) -> Self {
        let mut suffix = [b'0'; SUFFIX_LEN];
        for slot in suffix.iter_mut().rev() {
            *slot = ALPHABET[(bits % 62) as usize];
            bits /= 62;
        }
        Self { suffix, kind: PhantomData }
    }

    /// The characters after the dash.
    pub fn suffix(&self) -> &str {
        // The suffix only ever holds bytes of ALPHABET.
        std::str::from_utf8(&self.suffix).unwrap_or_default()
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", K::PREFIX, self.suffix())
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let fail = || ParseIdError { text: text.chars().take(64).collect(), prefix: K::PREFIX };
        let rest = text.strip_prefix(K::PREFIX).and_then(|r| r.strip_prefix('-')).ok_or_else(fail)?;
        let suffix: [u8; SUFFIX_LEN] = rest.as_bytes().try_into().map_err(|_| fail())?;
        if !suffix.iter().all(u8::is_ascii_alphanumeric) {
            return Err(fail());
        }
        Ok(Self { suffix, kind: PhantomData })
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident, $alias:ident, $prefix:literal $(, $rule:ident)?;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {}
        impl Kind for $name {
            const PREFIX: &'static str = $prefix;
            $(const $rule: bool = true;)?
        }
        $(#[$doc])*
        pub type $alias = Id<$name>;
    )*};
}

kinds! {
    /// An app: one run, or one deployment with its versions.
    App, AppId, "ap";
    /// A function, and equally the service function of a class or a variant bound to parameters.
    Function, FunctionId, "fu";
    /// A class handle.
    Class, ClassId, "cs";
    /// One immutable definition of a function.
    Definition, DefinitionId, "de";
    /// A function call with its inputs.
    Call, CallId, "fc";
    /// One input of a call.
    Input, InputId, "in";
    /// A task: one container.
    Task, TaskId, "ta", NO_TRAILING_V;
    /// An image.
    Image, ImageId, "im";
    /// A set of mounted files.
    Mount, MountId, "mo";
    /// A secret.
    Secret, SecretId, "st";
    /// A payload too large to travel inline.
    Blob, BlobId, "bl";
    /// A volume: a file system of its own, with versions.
    Volume, VolumeId, "vo";
    /// A network file system: a folder that containers share live.
    SharedVolume, SharedVolumeId, "sv";
    /// An environment: a namespace of apps and named objects.
    Environment, EnvironmentId, "en";
    /// A dictionary shared by clients and containers.
    Dict, DictId, "di";
    /// A queue shared by clients and containers.
    Queue, QueueId, "qu";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededEntropy;

    #[test]
    fn ids_print_parse_and_sort_by_time() {
        let mut entropy = SeededEntropy::new(7);
        let early = CallId::new(UnixMs(1_700_000_000_000), &mut entropy);
        let late = CallId::new(UnixMs(1_700_000_000_001), &mut entropy);
        assert!(early < late);
        assert_eq!(early.to_string().len(), 25);
        assert_eq!(early.to_string().parse::<CallId>().unwrap(), early);
    }

    #[test]
    fn task_ids_never_look_like_sandboxes_of_the_second_generation() {
        let mut entropy = SeededEntropy::new(1);
        for n in 0..5_000 {
            assert!(!TaskId::new(UnixMs(n), &mut entropy).to_string().ends_with('V'));
        }
    }

    #[test]
    fn refuses_other_prefixes_lengths_and_characters() {
        for bad in
            ["", "fc-", "in-0000000000000000000000", "fc-000000000000000000000", "fc-00000000000-0000000000"]
        {
            assert!(bad.parse::<CallId>().is_err(), "{bad}");
        }
    }
}
