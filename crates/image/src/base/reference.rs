//! Image references: `[registry/]repository[:tag][@digest]`, with Docker Hub's short forms.

use crate::error::{ImageError, Result};
use std::fmt;

/// The registry that short names belong to.
pub const DOCKER_HUB: &str = "docker.io";

/// A reference taken apart; short forms are written out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `docker.io`, `ghcr.io`, `localhost:5000`.
    pub registry: String,
    /// `library/python`.
    pub repository: String,
    /// `latest` where none is written and there is no digest.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a reference.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |message: &str| ImageError::Reference { text: text.into(), message: message.into() };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        if let Some(digest) = &digest {
            let hex = digest.strip_prefix("sha256:").ok_or_else(|| wrong("the digest must be a sha256"))?;
            if hex.len() != 64 || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
                return Err(wrong("a sha256 digest has 64 hexadecimal digits"));
            }
        }
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
            _ => (name, None),
        };
        if let Some(tag) = &tag {
            let fine = !tag.is_empty()
                && tag.len() <= 128
                && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
            if !fine {
                return Err(wrong("a tag has letters, digits, '_', '.' and '-'"));
            }
        }
        let (registry, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest.to_owned()),
            _ => (DOCKER_HUB, path.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        let part = |p: &str| {
            !p.is_empty()
                && p.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-'))
                && p != "."
                && p != ".."
        };
        if !repository.split('/').all(part) || repository == "library/" {
            return Err(wrong("a repository has lower-case letters, digits, '_', '.', '-' and '/'"));
        }
        let host_sign = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-');
        if !registry.starts_with(|c: char| c.is_ascii_alphanumeric()) || !registry.chars().all(host_sign) {
            return Err(wrong("that is not a registry's host"));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// What to ask a registry for: the digest where there is one.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// The name as Docker shows it: `python:3.11-slim`.
    pub fn familiar(&self) -> String {
        let name = match (self.registry.as_str(), self.repository.strip_prefix("library/")) {
            (DOCKER_HUB, Some(short)) => short.to_owned(),
            (DOCKER_HUB, None) => self.repository.clone(),
            _ => format!("{}/{}", self.registry, self.repository),
        };
        self.with_version(name)
    }

    /// The official image of that name (`python`, `debian`), if it is one.
    pub fn official(&self) -> Option<&str> {
        if self.registry != DOCKER_HUB { None } else { self.repository.strip_prefix("library/") }
    }

    fn with_version(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest);
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_version(format!("{}/{}", self.registry, self.repository)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, full, familiar) in [
            ("python", "docker.io/library/python:latest", "python:latest"),
            ("python:3.11-slim", "docker.io/library/python:3.11-slim", "python:3.11-slim"),
            ("mambaorg/micromamba:2", "docker.io/mambaorg/micromamba:2", "mambaorg/micromamba:2"),
            ("ghcr.io/astral-sh/uv", "ghcr.io/astral-sh/uv:latest", "ghcr.io/astral-sh/uv:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest", "localhost:5000/a:latest"),
            ("localhost/a:1", "localhost/a:1", "localhost/a:1"),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, familiar));
        }
        let pinned = Reference::parse(&format!("a@{digest}")).unwrap();
        assert_eq!((pinned.version(), pinned.tag.as_deref()), (digest.as_str(), None));
    }

    #[test]
    fn refuses() {
        for text in
            ["", ":", "A", "a//b", "a:", "a:t/../x", "../a", "a@md5:1", "a@sha256:12", "a b", "x.io/../y"]
        {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "[a-zA-Z0-9.:/@_-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
