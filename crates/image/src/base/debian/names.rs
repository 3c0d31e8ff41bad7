//! What a reference to an official image asks of Debian: which release, which Python.

use crate::base::Reference;

/// Releases by name and number, newest stable one first.
const RELEASES: [(&str, &str); 4] =
    [("trixie", "13"), ("bookworm", "12"), ("bullseye", "11"), ("forky", "14")];
/// Releases that are tried where a tag names none.
const STABLE: [&str; 3] = ["trixie", "bookworm", "bullseye"];

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Releases in the order they are tried.
    pub codenames: Vec<&'static str>,
    /// `3.11`; empty is whichever the release has; none is no Python at all.
    pub python: Option<String>,
    /// `3.11.12`, where the patch version is given.
    pub python_full: Option<String>,
}

/// Whether Debian's archive can stand in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Wanted(Wanted),
    NotMine(String),
}

pub(super) fn read(reference: &Reference) -> Wish {
    let no = |why: &str| Wish::NotMine(why.to_owned());
    if reference.digest.is_some() {
        return no("a digest names one image of a registry");
    }
    let tag = reference.tag.as_deref().unwrap_or("latest");
    match reference.official() {
        Some("debian") => debian(tag).map_or_else(|| no("it makes Debian 11 to 13 only"), Wish::Wanted),
        Some("python") => python(tag),
        _ => no("it makes debian and slim python images only"),
    }
}

fn codename(text: &str) -> Option<&'static str> {
    RELEASES
        .iter()
        .find(|(name, number)| text == *name || text.split('.').next() == Some(*number))
        .map(|(n, _)| *n)
}

fn debian(tag: &str) -> Option<Wanted> {
    let tag = tag.strip_suffix("-slim").unwrap_or(tag);
    // Dated tags (`bookworm-20250520`) ask for what the archive no longer tells apart.
    let name = tag.split('-').next().unwrap_or(tag);
    let name = match name {
        "latest" | "stable" => STABLE[0],
        other => codename(other)?,
    };
    Some(Wanted { codenames: vec![name], python: None, python_full: None })
}

fn python(tag: &str) -> Wish {
    let no = |why: &str| Wish::NotMine(why.to_owned());
    let mut parts = tag.split('-');
    let first = parts.next().unwrap_or_default();
    let version = if first == "slim" { "3" } else { first };
    let rest: Vec<&str> =
        if first == "slim" { std::iter::once("slim").chain(parts).collect() } else { parts.collect() };
    if rest.first() != Some(&"slim") {
        return no("it makes slim python images only (python:<version>-slim)");
    }
    let codenames = match rest.as_slice() {
        ["slim"] => STABLE.to_vec(),
        ["slim", name] => match codename(name) {
            Some(name) => vec![name],
            None => return no("it knows no Debian release of that name"),
        },
        _ => return no("the tag is not one of a slim python image"),
    };
    let numbers: Option<Vec<u32>> = version.split('.').map(|n| n.parse().ok()).collect();
    let (python, python_full) = match numbers.as_deref() {
        Some([3]) => (String::new(), None),
        Some([3, minor]) => (format!("3.{minor}"), None),
        Some([3, minor, patch]) => (format!("3.{minor}"), Some(format!("3.{minor}.{patch}"))),
        _ => return no("the tag names no released Python 3"),
    };
    Wish::Wanted(Wanted { codenames, python: Some(python), python_full })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Option<(Vec<&'static str>, Option<String>)> {
        match read(&Reference::parse(text).unwrap()) {
            Wish::Wanted(w) => Some((w.codenames, w.python)),
            Wish::NotMine(_) => None,
        }
    }

    #[test]
    fn reads_tags() {
        let py = |v: &str| Some(v.to_owned());
        assert_eq!(wanted("python:3.11.12-slim-bookworm"), Some((vec!["bookworm"], py("3.11"))));
        assert_eq!(wanted("python:3.13-slim"), Some((STABLE.to_vec(), py("3.13"))));
        assert_eq!(wanted("python:3-slim-trixie"), Some((vec!["trixie"], py(""))));
        assert_eq!(wanted("python:slim"), Some((STABLE.to_vec(), py(""))));
        assert_eq!(wanted("debian:12.5-slim"), Some((vec!["bookworm"], None)));
        assert_eq!(wanted("debian"), Some((vec!["trixie"], None)));
        assert_eq!(wanted("debian:bookworm-20250520-slim"), Some((vec!["bookworm"], None)));
        for none in [
            "python:3.11",
            "python:3.11-alpine",
            "python:2.7-slim",
            "python:3.11rc1-slim",
            "debian:buster",
            "ubuntu:22.04",
            "python:3.11-slim-nope",
            "me/python:3.11-slim",
        ] {
            assert_eq!(wanted(none), None, "{none}");
        }
    }
}
