//! Version specifiers of PEP 440: `~=1.2`, `==1.*`, `>=1,<2`, `!=1.5` and so on.

use super::{Version, VersionError};
use std::{fmt, str::FromStr};

/// A list of conditions that a version must meet all of. The empty list admits every version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Specifiers {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    operator: Operator,
    version: Version,
    /// Whether the version ends in `.*`.
    prefix: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Compatible,
    Equal,
    NotEqual,
    AtMost,
    AtLeast,
    Below,
    Above,
}

/// The longer ones first: the first that fits is taken.
const OPERATORS: &[(&str, Operator)] = &[
    ("===", Operator::Equal),
    ("~=", Operator::Compatible),
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("<", Operator::Below),
    (">", Operator::Above),
];

/// Why a text is not a list of specifiers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecifierError {
    /// No operator in front.
    #[error("'{0}' does not begin with one of ~= == != <= >= < >")]
    Operator(String),
    /// What follows is not a version.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The operator does not go with this version.
    #[error("'{0}' is not a condition that the standard defines")]
    Undefined(String),
}

impl Specifiers {
    /// The condition of being exactly `version`.
    pub fn exactly(version: Version) -> Self {
        Self { conditions: vec![Condition { operator: Operator::Equal, version, prefix: false }] }
    }

    /// The one version that is asked for, where there is one.
    pub fn pin(&self) -> Option<&Version> {
        match self.conditions.as_slice() {
            [Condition { operator: Operator::Equal, version, prefix: false }] => Some(version),
            _ => None,
        }
    }

    /// Whether `version` meets all conditions. Pre-releases are judged like others; whether they are wanted
    /// at all is told by [`Specifiers::names_prerelease`].
    pub fn admits(&self, version: &Version) -> bool {
        self.conditions.iter().all(|condition| condition.admits(version))
    }

    /// Whether a condition names a pre-release, which makes all pre-releases candidates.
    pub fn names_prerelease(&self) -> bool {
        self.conditions.iter().any(|condition| condition.version.is_prerelease())
    }
}

impl Condition {
    fn admits(&self, version: &Version) -> bool {
        let wanted = &self.version;
        let public = version.public();
        match self.operator {
            Operator::Equal => self.equals(version),
            Operator::NotEqual => !self.equals(version),
            Operator::AtMost => public <= *wanted,
            Operator::AtLeast => public >= *wanted,
            Operator::Compatible => {
                public >= *wanted && wanted.without_last().is_some_and(|prefix| public.begins_with(&prefix))
            }
            // "Below 1.0" does not mean its pre-releases, nor "above 1.0" its post-releases.
            Operator::Below => {
                public < *wanted
                    && (wanted.is_prerelease() || !public.is_prerelease() || public.base() != wanted.base())
            }
            Operator::Above => {
                public > *wanted
                    && (wanted.is_postrelease() || !public.is_postrelease() || public.base() != wanted.base())
            }
        }
    }

    fn equals(&self, version: &Version) -> bool {
        if self.prefix {
            return version.begins_with(&self.version);
        }
        let compared = if self.version.is_local() { version.clone() } else { version.public() };
        compared == self.version
    }
}

impl FromStr for Specifiers {
    type Err = SpecifierError;
    fn from_str(text: &str) -> Result<Self, SpecifierError> {
        let conditions = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(read_condition)
            .collect::<Result<_, _>>()?;
        Ok(Self { conditions })
    }
}

fn read_condition(text: &str) -> Result<Condition, SpecifierError> {
    let found = OPERATORS.iter().find_map(|(sign, operator)| Some((*operator, text.strip_prefix(sign)?)));
    let (operator, rest) = found.ok_or_else(|| SpecifierError::Operator(text.to_owned()))?;
    let rest = rest.trim();
    let (number, prefix) = rest.strip_suffix(".*").map_or((rest, false), |number| (number, true));
    let version: Version = number.parse()?;
    let undefined = match operator {
        Operator::Equal | Operator::NotEqual => false,
        Operator::Compatible => prefix || version.without_last().is_none(),
        _ => prefix,
    };
    if undefined {
        return Err(SpecifierError::Undefined(text.to_owned()));
    }
    Ok(Condition { operator, version, prefix })
}

impl fmt::Display for Specifiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, condition) in self.conditions.iter().enumerate() {
            let sign = OPERATORS.iter().rev().find(|(_, o)| *o == condition.operator).map_or("", |(s, _)| s);
            let star = if condition.prefix { ".*" } else { "" };
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{sign}{}{star}", condition.version)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_admit_what_the_standard_says() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("~=0.12.7", &["0.12.7", "0.12.10", "0.12.7.post1"], &["0.12.6", "0.13.0", "0.12.7rc1"]),
            ("~=8.1", &["8.1", "8.4.2"], &["9.0", "8.0"]),
            ("==1.5", &["1.5", "1.5.0", "1.5+local"], &["1.5.1"]),
            ("==1.5.*", &["1.5", "1.5.3"], &["1.6", "1.50"]),
            ("!=1.5.*", &["1.6"], &["1.5", "1.5.3"]),
            (">=3.20,<6", &["3.20", "5.29"], &["6.0", "3.19", "6.0rc1"]),
            ("!=4.24.0,<8.0,>=3.19", &["4.24.1"], &["4.24.0", "8.0"]),
            (">1.0", &["1.1", "1.0.1"], &["1.0", "1.0.post1", "1.0+x"]),
            ("", &["1"], &[]),
        ];
        for (text, good, bad) in cases {
            let specifiers: Specifiers = text.parse().unwrap();
            for version in *good {
                assert!(specifiers.admits(&version.parse().unwrap()), "{version} by {text}");
            }
            for version in *bad {
                assert!(!specifiers.admits(&version.parse().unwrap()), "{version} by {text}");
            }
            assert_eq!(specifiers.to_string().parse::<Specifiers>().unwrap(), specifiers);
        }
        for bad in ["1.0", "~=1", ">=1.*", "==x", "=>1"] {
            assert!(bad.parse::<Specifiers>().is_err(), "{bad}");
        }
        assert!(">=1.0rc1".parse::<Specifiers>().unwrap().names_prerelease());
    }
}
