//! Which mirror of Debian's archive is asked: the configured one, else that of this machine's own package
//! sources where it runs Debian, else Debian's.

use super::control::stanzas;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Debian's own address.
pub(super) const MIRROR: &str = "http://deb.debian.org/debian";
/// Debian's own address of security updates.
pub(super) const SECURITY: &str = "http://deb.debian.org/debian-security";

/// Debian's archive as a source of bases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DebianConfig {
    /// The archive's address; found out where not given.
    pub mirror: Option<String>,
    /// The address of security updates; found out where not given.
    pub security_mirror: Option<String>,
}

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirrors {
    pub main: String,
    pub security: String,
}

/// Addresses for `config` on this machine.
pub(super) fn choose(config: &DebianConfig) -> Mirrors {
    let host = if config.mirror.is_none() { host_sources(Path::new("/")) } else { Vec::new() };
    decide(config, &host)
}

fn decide(config: &DebianConfig, host: &[String]) -> Mirrors {
    let trim = |url: &String| url.trim_end_matches('/').to_owned();
    let plain = |url: &&String| !url.contains("security");
    let main = config.mirror.as_ref().or_else(|| host.iter().find(plain)).map_or(MIRROR.to_owned(), trim);
    let from_host = || host.iter().find(|url| url.contains("security")).filter(|_| config.mirror.is_none());
    let security = match config.security_mirror.as_ref().or_else(from_host) {
        Some(url) => trim(url),
        // A mirror of Debian keeps security updates beside the rest.
        None => match main.strip_suffix("/debian") {
            Some(base) => format!("{base}/debian-security"),
            None => SECURITY.to_owned(),
        },
    };
    Mirrors { main, security }
}

/// Addresses of this machine's sources, where it runs Debian.
fn host_sources(root: &Path) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    if !read("etc/os-release").lines().any(|line| line == "ID=debian") {
        return Vec::new();
    }
    let mut texts = vec![(false, read("etc/apt/sources.list"))];
    let folder = root.join("etc/apt/sources.list.d");
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let deb822 = name.ends_with(".sources");
        if deb822 || name.ends_with(".list") {
            texts.push((deb822, std::fs::read_to_string(entry.path()).unwrap_or_default()));
        }
    }
    texts.iter().flat_map(|(deb822, text)| if *deb822 { of_stanzas(text) } else { of_lines(text) }).collect()
}

/// Third-party sources are not mirrors of Debian.
fn is_debian(url: &str) -> bool {
    let path = url.trim_end_matches('/');
    url.starts_with("http") && (path.ends_with("/debian") || path.ends_with("/debian-security"))
}

fn of_stanzas(text: &str) -> Vec<String> {
    stanzas(text)
        .filter(|s| s.get("Enabled") != Some("no"))
        .filter(|s| s.get("Components").is_some_and(|c| c.split_whitespace().any(|c| c == "main")))
        .filter(|s| s.get("Types").is_some_and(|t| t.split_whitespace().any(|t| t == "deb")))
        .flat_map(|s| {
            s.get("URIs").unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|url| is_debian(url))
        .collect()
}

fn of_lines(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("deb "))
        .filter_map(|line| {
            let line = line.trim();
            let line = if line.starts_with('[') { line.split_once(']')?.1.trim() } else { line };
            let mut words = line.split_whitespace();
            let url = words.next()?.to_owned();
            // Others' sources (`… bookworm stable`) end like Debian's and have no `main`.
            words.skip(1).any(|component| component == "main").then_some(url)
        })
        .filter(|url| is_debian(url))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decides() {
        let of = |mirror: Option<&str>, host: &[&str]| {
            let config = DebianConfig { mirror: mirror.map(str::to_owned), security_mirror: None };
            let host: Vec<String> = host.iter().map(|s| (*s).to_owned()).collect();
            let mirrors = decide(&config, &host);
            (mirrors.main, mirrors.security)
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(of(None, &[]), pair(MIRROR, SECURITY));
        assert_eq!(of(Some("http://m/debian/"), &[]), pair("http://m/debian", "http://m/debian-security"));
        assert_eq!(
            of(None, &["http://h/debian-security", "http://g/debian"]),
            pair("http://g/debian", "http://h/debian-security")
        );
        assert_eq!(of(Some("http://m/d"), &["http://g/debian"]), pair("http://m/d", SECURITY));
    }

    #[test]
    fn reads_sources() {
        let text = "# c\ndeb [signed-by=/x y=z] http://m/debian bookworm main\ndeb-src http://s/debian x\ndeb https://download.docker.com/linux/debian x stable\n";
        assert_eq!(of_lines(text), ["http://m/debian"]);
        let text = "Types: deb\nURIs: http://a/debian http://b/x\nSuites: c\nComponents: main\n\nTypes: deb-src\nURIs: http://d/debian\nComponents: main\n";
        assert_eq!(of_stanzas(text), ["http://a/debian"]);
    }
}
