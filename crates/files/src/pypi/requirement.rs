//! Requirements: `grpclib<0.4.10,>=0.4.7; python_version < "3.14"`.

use super::{Marker, MarkerEnv, SpecifierError, Specifiers};
use std::str::FromStr;

/// One requirement of a package or of a requirements file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The project, in its normal form.
    pub name: String,
    /// Which versions will do.
    pub specifiers: Specifiers,
    /// When it applies at all.
    pub marker: Option<Marker>,
}

/// Why a line is not a requirement that we understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequirementError {
    /// There is no project name in front.
    #[error("'{0}' does not begin with a project name")]
    Name(String),
    /// A direct reference, which we don't follow.
    #[error("'{0}' names an address instead of a version, which is not supported here")]
    Address(String),
    /// The versions are not understood.
    #[error("'{line}': {source}")]
    Specifiers {
        /// The line.
        line: String,
        /// What is wrong.
        source: SpecifierError,
    },
    /// The marker is not understood.
    #[error("'{line}': {reason}")]
    Marker {
        /// The line.
        line: String,
        /// What is wrong.
        reason: String,
    },
}

impl Requirement {
    /// Whether it applies to this interpreter.
    pub fn applies(&self, env: &MarkerEnv) -> bool {
        self.marker.as_ref().is_none_or(|marker| marker.holds(env))
    }

    /// The requirements of a requirements file. Comments and empty lines are skipped; options are refused.
    pub fn read_file(text: &str) -> Result<Vec<Self>, RequirementError> {
        text.lines()
            .map(|line| match line.find(" #") {
                Some(comment) => line[..comment].trim(),
                None => line.trim(),
            })
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::parse)
            .collect()
    }
}

impl FromStr for Requirement {
    type Err = RequirementError;
    fn from_str(text: &str) -> Result<Self, RequirementError> {
        let line = text.trim();
        let end = line.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).unwrap_or(line.len());
        let name = &line[..end];
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(RequirementError::Name(line.to_owned()));
        }
        let mut rest = line[end..].trim_start();
        if let Some(extras) = rest.strip_prefix('[') {
            rest = extras.split_once(']').map_or("", |(_, after)| after).trim_start();
        }
        if rest.starts_with('@') {
            return Err(RequirementError::Address(line.to_owned()));
        }
        let (versions, marker) = rest.split_once(';').map_or((rest, None), |(v, m)| (v, Some(m)));
        let versions = versions.trim();
        let bare = versions.strip_prefix('(').and_then(|v| v.strip_suffix(')')).unwrap_or(versions);
        let specifiers =
            bare.parse().map_err(|source| RequirementError::Specifiers { line: line.to_owned(), source })?;
        let marker = marker.map(Marker::parse).transpose();
        let marker = marker.map_err(|reason| RequirementError::Marker { line: line.to_owned(), reason })?;
        Ok(Self { name: normal_name(name), specifiers, marker })
    }
}

/// The project name as indexes write it: lower case, runs of `-`, `_` and `.` as one dash.
pub fn normal_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.trim().chars() {
        if "-_.".contains(c) {
            if !out.ends_with('-') {
                out.push('-');
            }
        } else {
            out.push(c.to_ascii_lowercase());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read() {
        let env = MarkerEnv { python_minor: 11, machine: "x86_64".into() };
        let text = "# comment\naiohttp==3.12.7 ; python_version < \"3.14\"\n\nasync-timeout==5.0.1 ; python_version < \"3.11\"\nprotobuf>=3.20,<6 # why\nPython_Socks[asyncio] (>=2.5)\ncloudpickle==2.2.0;python_version>='3.11'";
        let all = Requirement::read_file(text).unwrap();
        let applying: Vec<String> =
            all.iter().filter(|r| r.applies(&env)).map(|r| format!("{} {}", r.name, r.specifiers)).collect();
        assert_eq!(
            applying,
            ["aiohttp ==3.12.7", "protobuf >=3.20,<6", "python-socks >=2.5", "cloudpickle ==2.2.0"]
        );
        for bad in ["-r other.txt", "a @ https://x", "a>>1", "a==1; b"] {
            assert!(bad.parse::<Requirement>().is_err(), "{bad}");
        }
        assert_eq!(normal_name("A__b.-C"), "a-b-c");
    }
}
