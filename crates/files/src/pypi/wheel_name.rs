//! What a wheel's file name says, and how well it fits an interpreter.

use super::{Version, normal_name};
use std::str::FromStr;

/// The C library of the interpreter, with the version that wheels may need at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Libc {
    /// glibc 2.`minor`.
    Glibc {
        /// The number after `2.`.
        minor: u32,
    },
    /// musl 1.`minor`.
    Musl {
        /// The number after `1.`.
        minor: u32,
    },
}

impl Libc {
    /// What the client's dependencies are published for on glibc.
    pub const MANYLINUX_2_17: Libc = Libc::Glibc { minor: 17 };
    /// What the client's dependencies are published for on musl.
    pub const MUSLLINUX_1_2: Libc = Libc::Musl { minor: 2 };

    /// `manylinux_2_17` or `musllinux_1_2`, as names of mounts have it.
    pub fn tag(&self) -> String {
        match self {
            Libc::Glibc { minor } => format!("manylinux_2_{minor}"),
            Libc::Musl { minor } => format!("musllinux_1_{minor}"),
        }
    }
}

/// The interpreter that a wheel is wanted for: a CPython 3 on Linux.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The 11 of 3.11.
    pub python_minor: u8,
    /// Its C library.
    pub libc: Libc,
    /// `x86_64` or `aarch64`.
    pub arch: &'static str,
}

/// The parts of a wheel's file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WheelName {
    /// The project, in its normal form.
    pub name: String,
    /// Its version.
    pub version: Version,
    build: u64,
    pythons: Vec<String>,
    abis: Vec<String>,
    platforms: Vec<String>,
}

impl WheelName {
    /// How well it fits: greater is better, `None` where it does not fit at all.
    pub fn fit(&self, target: &Target) -> Option<impl Ord + use<>> {
        let platform = self.platforms.iter().filter_map(|p| platform_rank(p, target)).max()?;
        let mut best = None;
        for python in &self.pythons {
            for abi in &self.abis {
                best = best.max(python_rank(python, abi, target.python_minor));
            }
        }
        Some((best?, platform, self.build))
    }
}

impl FromStr for WheelName {
    type Err = ();
    fn from_str(file_name: &str) -> Result<Self, ()> {
        let stem = file_name.strip_suffix(".whl").ok_or(())?;
        let parts: Vec<&str> = stem.split('-').collect();
        let (name, version, build, tags) = match parts.as_slice() {
            [name, version, tags @ ..] if tags.len() == 3 => (name, version, "", tags),
            [name, version, build, tags @ ..] if tags.len() == 3 => (name, version, *build, tags),
            _ => return Err(()),
        };
        let digits = build.find(|c: char| !c.is_ascii_digit()).unwrap_or(build.len());
        let split = |tag: &str| tag.split('.').map(str::to_owned).collect::<Vec<_>>();
        Ok(Self {
            name: normal_name(name),
            version: version.replace('_', "+").parse().or_else(|_| version.parse()).map_err(|_| ())?,
            build: build[..digits].parse().unwrap_or(0),
            pythons: split(tags[0]),
            abis: split(tags[1]),
            platforms: split(tags[2]),
        })
    }
}

/// Made for exactly this interpreter is best, then its stable ABI from the newest on, then pure Python.
fn python_rank(python: &str, abi: &str, minor: u8) -> Option<u32> {
    let own = u32::from(minor);
    if let Some(wheel) = python.strip_prefix("cp3").and_then(|m| m.parse::<u32>().ok()) {
        return match abi {
            _ if wheel == own && abi == format!("cp3{own}") => Some(3000),
            "abi3" if wheel <= own && wheel >= 2 => Some(2000 + wheel),
            "none" if wheel == own => Some(1900),
            _ => None,
        };
    }
    if abi != "none" {
        return None;
    }
    match python.strip_prefix("py3") {
        Some("") => Some(1000),
        Some(rest) => rest.parse::<u32>().ok().filter(|m| *m <= own).map(|m| 1000 + m),
        None => None,
    }
}

/// Newer C libraries are preferred up to the target's; `any` comes last.
fn platform_rank(platform: &str, target: &Target) -> Option<u32> {
    if platform == "any" {
        return Some(0);
    }
    let plain = platform.strip_suffix(target.arch)?.strip_suffix('_')?;
    let number = |prefix: &str| plain.strip_prefix(prefix)?.parse::<u32>().ok();
    match target.libc {
        Libc::Glibc { minor } => {
            let needs = match plain {
                "manylinux1" => 5,
                "manylinux2010" => 12,
                "manylinux2014" => 17,
                "linux" => return Some(1),
                _ => number("manylinux_2_")?,
            };
            (needs <= minor).then_some(10 + needs)
        }
        Libc::Musl { minor } => match plain {
            "linux" => Some(1),
            _ => number("musllinux_1_").filter(|needs| *needs <= minor).map(|needs| 10 + needs),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best<'a>(names: &[&'a str], target: &Target) -> Option<&'a str> {
        let fitting = names.iter().filter_map(|n| Some((n.parse::<WheelName>().ok()?.fit(target)?, *n)));
        fitting.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, name)| name)
    }

    #[test]
    fn the_most_specific_wheel_wins() {
        let glibc = Target { python_minor: 11, libc: Libc::MANYLINUX_2_17, arch: "x86_64" };
        let musl = Target { libc: Libc::MUSLLINUX_1_2, ..glibc.clone() };
        let names = [
            "a-1-py3-none-any.whl",
            "a-1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "a-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
            "a-1-cp311-cp311-manylinux_2_5_x86_64.manylinux1_x86_64.whl",
            "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "a-1-cp311-cp311-musllinux_1_2_x86_64.whl",
            "a-1-cp312-cp312-manylinux_2_17_x86_64.whl",
            "a-1-cp39-abi3-manylinux_2_17_x86_64.whl",
            "a-1-cp311-cp311-win_amd64.whl",
        ];
        assert_eq!(best(&names, &glibc), Some(names[4]));
        assert_eq!(best(&names, &musl), Some(names[5]));
        assert_eq!(best(&names, &Target { python_minor: 10, ..glibc.clone() }), Some(names[7]));
        assert_eq!(best(&names, &Target { python_minor: 8, ..glibc.clone() }), Some(names[0]));
        assert_eq!(best(&names[1..2], &glibc), None);
        let abi3 = [
            "p-6-cp310-abi3-manylinux2014_x86_64.whl",
            "p-6-py3-none-any.whl",
            "p-6-cp39-abi3-manylinux2014_x86_64.whl",
        ];
        assert_eq!(best(&abi3, &glibc), Some(abi3[0]));
        let builds = ["b-1-py2.py3-none-any.whl", "b-1-2-py2.py3-none-any.whl"];
        assert_eq!(best(&builds, &glibc), Some(builds[1]));
        assert_eq!(
            best(&["t-1-cp313-cp313t-manylinux_2_17_x86_64.whl"], &Target { python_minor: 13, ..glibc }),
            None
        );
    }

    #[test]
    fn names_are_taken_apart() {
        let wheel: WheelName = "Typing_Extensions-4.13.2-py3-none-any.whl".parse().unwrap();
        assert_eq!(
            (wheel.name.as_str(), wheel.version.to_string().as_str()),
            ("typing-extensions", "4.13.2")
        );
        assert!("modal-1.6.4.tar.gz".parse::<WheelName>().is_err());
        assert!("modal-py3-none-any.whl".parse::<WheelName>().is_err());
    }
}
