//! Versions as PEP 440 writes and orders them.

use std::{cmp::Ordering, fmt, str::FromStr};

/// A version, in its normal form. `1.0` and `1.0.0` are equal.
#[derive(Debug, Clone)]
pub struct Version {
    epoch: u64,
    release: Vec<u64>,
    pre: Option<(Pre, u64)>,
    post: Option<u64>,
    dev: Option<u64>,
    local: Vec<Segment>,
}

/// The kinds of pre-release, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Pre {
    Alpha,
    Beta,
    Candidate,
}

/// One part of a local version; numbers come after words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    Word(String),
    Number(u64),
}

/// Why a text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a version")]
pub struct VersionError(pub(super) String);

impl Version {
    /// The numbers between the dots.
    pub fn release(&self) -> &[u64] {
        &self.release
    }

    /// Whether this is a pre-release or a development release.
    pub fn is_prerelease(&self) -> bool {
        self.pre.is_some() || self.dev.is_some()
    }

    /// The same version without its local part.
    pub(super) fn public(&self) -> Version {
        Version { local: Vec::new(), ..self.clone() }
    }

    pub(super) fn is_local(&self) -> bool {
        !self.local.is_empty()
    }

    pub(super) fn is_postrelease(&self) -> bool {
        self.post.is_some()
    }

    /// Epoch and release alone.
    pub(super) fn base(&self) -> Version {
        Version { pre: None, post: None, dev: None, local: Vec::new(), ..self.clone() }
    }

    /// Whether this version begins with the release numbers of `prefix`, in its epoch.
    pub(super) fn begins_with(&self, prefix: &Version) -> bool {
        let numbers = self.release.iter().copied().chain(std::iter::repeat(0));
        self.epoch == prefix.epoch && numbers.zip(&prefix.release).all(|(own, wanted)| own == *wanted)
    }

    /// The same version with its last release number dropped: what `~=` compares by prefix.
    pub(super) fn without_last(&self) -> Option<Version> {
        let (_, kept) = self.release.split_last().filter(|(_, kept)| !kept.is_empty())?;
        Some(Version { release: kept.to_vec(), ..self.base() })
    }

    /// Where this version stands relative to its release: dev < pre < final < post.
    fn key(&self) -> (i8, u64, i8, u64, u64) {
        let (stage, number) = match (self.pre, self.post, self.dev) {
            (Some((pre, number)), _, _) => (pre as i8, number),
            // A development release of the final version comes before its pre-releases.
            (None, None, Some(_)) => (-1, 0),
            (None, _, _) => (3, 0),
        };
        let (has_post, post) = self.post.map_or((0, 0), |n| (1, n));
        (stage, number, has_post, post, self.dev.unwrap_or(u64::MAX))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let length = self.release.len().max(other.release.len());
        let padded = |v: &Version| {
            let mut numbers = v.release.clone();
            numbers.resize(length, 0);
            numbers
        };
        self.epoch
            .cmp(&other.epoch)
            .then_with(|| padded(self).cmp(&padded(other)))
            .then_with(|| self.key().cmp(&other.key()))
            .then_with(|| self.local.cmp(&other.local))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Reads a version from left to right.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let number = self.rest[..end].parse().ok()?;
        self.rest = &self.rest[end..];
        Some(number)
    }

    /// Takes one of `words`, with an optional separator before it, and gives its place in the list.
    fn word(&mut self, words: &[&str]) -> Option<usize> {
        let after = self.rest.strip_prefix(['.', '-', '_']).unwrap_or(self.rest);
        let at = words.iter().position(|word| after.starts_with(word))?;
        self.rest = &after[words[at].len()..];
        Some(at)
    }

    /// The number after a word, with an optional separator before it; 0 where there is none.
    fn number_after_word(&mut self) -> u64 {
        let after = self.rest.strip_prefix(['.', '-', '_']).unwrap_or(self.rest);
        if after.starts_with(|c: char| c.is_ascii_digit()) {
            self.rest = after;
        }
        self.number().unwrap_or(0)
    }
}

impl FromStr for Version {
    type Err = VersionError;
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let fail = || VersionError(text.chars().take(80).collect());
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_prefix('v').unwrap_or(&lower);
        let (public, local) = lower.split_once('+').map_or((lower, None), |(p, l)| (p, Some(l)));
        let mut reader = Reader { rest: public };
        let mut first = reader.number().ok_or_else(fail)?;
        let mut epoch = 0;
        if let Some(rest) = reader.rest.strip_prefix('!') {
            epoch = first;
            reader.rest = rest;
            first = reader.number().ok_or_else(fail)?;
        }
        let mut release = vec![first];
        while let Some(rest) = reader.rest.strip_prefix('.') {
            if !rest.starts_with(|c: char| c.is_ascii_digit()) {
                break;
            }
            reader.rest = rest;
            release.push(reader.number().ok_or_else(fail)?);
        }
        let words = ["alpha", "beta", "preview", "pre", "rc", "a", "b", "c"];
        let pre = reader.word(&words).map(|at| {
            let kind = match words[at] {
                "alpha" | "a" => Pre::Alpha,
                "beta" | "b" => Pre::Beta,
                _ => Pre::Candidate,
            };
            (kind, reader.number_after_word())
        });
        let implicit = reader.rest.strip_prefix('-').filter(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        let post = if let Some(rest) = implicit {
            reader.rest = rest;
            reader.number()
        } else {
            reader.word(&["post", "rev", "r"]).map(|_| reader.number_after_word())
        };
        let dev = reader.word(&["dev"]).map(|_| reader.number_after_word());
        if !reader.rest.is_empty() {
            return Err(fail());
        }
        let local = local.map_or(Ok(Vec::new()), |l| read_local(l).ok_or_else(fail))?;
        Ok(Version { epoch, release, pre, post, dev, local })
    }
}

fn read_local(text: &str) -> Option<Vec<Segment>> {
    text.split(['.', '-', '_'])
        .map(|part| {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return None;
            }
            Some(part.parse().map_or_else(|_| Segment::Word(part.to_owned()), Segment::Number))
        })
        .collect()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.epoch > 0 {
            write!(f, "{}!", self.epoch)?;
        }
        let numbers: Vec<String> = self.release.iter().map(u64::to_string).collect();
        f.write_str(&numbers.join("."))?;
        if let Some((kind, number)) = self.pre {
            let letter = ["a", "b", "rc"][kind as usize];
            write!(f, "{letter}{number}")?;
        }
        if let Some(number) = self.post {
            write!(f, ".post{number}")?;
        }
        if let Some(number) = self.dev {
            write!(f, ".dev{number}")?;
        }
        for (i, segment) in self.local.iter().enumerate() {
            f.write_str(if i == 0 { "+" } else { "." })?;
            match segment {
                Segment::Word(word) => f.write_str(word)?,
                Segment::Number(number) => write!(f, "{number}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_the_standard_says() {
        let sorted = [
            "0.9",
            "1.0.dev1",
            "1.0a1.dev1",
            "1.0a1",
            "1.0a2",
            "1.0b1",
            "1.0rc1.dev3",
            "1.0rc1",
            "1.0",
            "1.0+abc",
            "1.0+abc.5",
            "1.0+5",
            "1.0.post1.dev2",
            "1.0.post1",
            "1.0.1",
            "1.1",
            "1.10",
            "1!0.1",
        ];
        let versions: Vec<Version> = sorted.iter().map(|t| t.parse().unwrap()).collect();
        for (i, a) in versions.iter().enumerate() {
            for (j, b) in versions.iter().enumerate() {
                assert_eq!(a.cmp(b), i.cmp(&j), "{a} and {b}");
            }
        }
    }

    #[test]
    fn spellings_are_normalised() {
        for (text, wanted) in [
            ("v1.0", "1.0"),
            ("1.0-ALPHA.1", "1.0a1"),
            ("1.0preview2", "1.0rc2"),
            ("1.0-3", "1.0.post3"),
            ("1.0.rev4", "1.0.post4"),
            ("1.0_dev", "1.0.dev0"),
            ("1.6.3.dev8", "1.6.3.dev8"),
            ("1!2.0+Ubuntu-1", "1!2.0+ubuntu.1"),
        ] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), wanted);
        }
        assert_eq!("1.0".parse::<Version>().unwrap().cmp(&"1.0.0".parse().unwrap()), Ordering::Equal);
        for bad in ["", "a", "1..0", "1.0x", "1.0+", "1.0+a..b", "../1", "1.0 ; rm"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
