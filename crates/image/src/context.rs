//! The files a COPY may take: those of the recipe's context mount and its inline files, matched by the
//! dialect's patterns.

use crate::digest::Hasher;
use crate::error::{ImageError, Result};
use crate::glob;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A file of the build context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextEntry {
    /// Path below the context, without a leading slash.
    pub path: String,
    /// Hex SHA-256 of its content; of a symbolic link, of where it points.
    pub sha256: String,
    /// Permission bits, where the client sent them.
    pub mode: Option<u32>,
}

/// Supplies the files of a context mount.
#[async_trait]
pub trait Context: Send + Sync {
    /// A read-only folder with the files of the mount, as `ContextEntry::path` names them. It stays as it
    /// is while the build runs.
    async fn tree(&self, mount_id: &str) -> Result<PathBuf>;
}

/// A context of no files.
#[derive(Debug, Default)]
pub struct NoContext;

#[async_trait]
impl Context for NoContext {
    async fn tree(&self, mount_id: &str) -> Result<PathBuf> {
        Err(ImageError::builder("read the build context", format!("there is no mount {mount_id}")))
    }
}

/// What the sources of one COPY name, and the digest of it all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matched {
    /// Names of files and folders of the context.
    pub sources: Vec<String>,
    /// All files that are copied.
    pub files: Vec<String>,
    /// Some file of a folder is left out.
    pub partial: bool,
    /// Digest of names and contents.
    pub digest: String,
}

/// `..` and `.` removed, no leading slash; `..` never leaves the top.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Finds what `sources` name among `files`.
pub(crate) fn select(
    files: &BTreeMap<String, ContextEntry>,
    sources: &[String],
    exclude: &[String],
    parents: bool,
) -> std::result::Result<Matched, String> {
    let mut matched =
        Matched { sources: Vec::new(), files: Vec::new(), partial: false, digest: String::new() };
    let mut hasher = Hasher::new("evoke-copy-1");
    hasher.number(u64::from(parents));
    for source in sources {
        let found = names(files, source);
        if found.is_empty() {
            return Err(format!("{source:?} is not in the build context"));
        }
        for name in found {
            let folder = !files.contains_key(&name);
            // The name of a folder does not show in what is copied from it, unless it is kept.
            hasher.text("source").text(if folder && !parents { "" } else { &name });
            for (path, entry) in below(files, &name) {
                let relative = path[name.len()..].trim_start_matches('/');
                let shown = if relative.is_empty() { path } else { relative };
                if exclude.iter().any(|pattern| excluded(pattern, shown)) {
                    matched.partial = true;
                    continue;
                }
                hasher.text(relative).text(&entry.sha256).number(u64::from(entry.mode.unwrap_or(u32::MAX)));
                matched.files.push(path.clone());
            }
            matched.sources.push(name);
        }
    }
    matched.digest = hasher.finish();
    Ok(matched)
}

fn excluded(pattern: &str, path: &str) -> bool {
    let pattern = clean(pattern);
    let mut end = 0;
    // A pattern that names a folder leaves out all below it.
    loop {
        end = path[end..].find('/').map_or(path.len(), |at| end + at);
        if glob::matches_path(&pattern, &path[..end]) {
            return true;
        }
        if end == path.len() {
            return false;
        }
        end += 1;
    }
}

/// The file of that name, or all files below the folder of that name.
fn below<'a>(
    files: &'a BTreeMap<String, ContextEntry>,
    name: &'a str,
) -> impl Iterator<Item = (&'a String, &'a ContextEntry)> {
    let prefix = if name.is_empty() { String::new() } else { format!("{name}/") };
    let only = files.get_key_value(name);
    let many = files.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix));
    only.into_iter().chain(many.filter(move |_| only.is_none()))
}

/// Names of files and folders that a source means.
fn names(files: &BTreeMap<String, ContextEntry>, source: &str) -> Vec<String> {
    let name = clean(source);
    if name.is_empty() || files.contains_key(&name) || below(files, &name).next().is_some() {
        return vec![name];
    }
    if !glob::is_pattern(&name) {
        return Vec::new();
    }
    let depth = name.split('/').count();
    let any_depth = name.split('/').any(|part| part == "**");
    let mut found = std::collections::BTreeSet::new();
    for path in files.keys() {
        if any_depth {
            if glob::matches_path(&name, path) {
                found.insert(path.clone());
            }
            continue;
        }
        // Files and folders alike may match, at the pattern's depth.
        let head: Vec<&str> = path.split('/').take(depth).collect();
        if head.len() == depth {
            let head = head.join("/");
            if glob::matches_path(&name, &head) {
                found.insert(head);
            }
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(paths: &[&str]) -> BTreeMap<String, ContextEntry> {
        let entry = |p: &str| ContextEntry { path: p.into(), sha256: format!("h{p}"), mode: Some(0o644) };
        paths.iter().map(|p| ((*p).to_owned(), entry(p))).collect()
    }

    fn pick(paths: &[&str], sources: &[&str]) -> Vec<String> {
        let sources: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
        select(&files(paths), &sources, &[], false).unwrap().sources
    }

    #[test]
    fn selects() {
        let tree = ["a.py", "d/b.py", "d/e/c.py", "da", "x.txt"];
        assert_eq!(pick(&tree, &["."]), [""]);
        assert_eq!(pick(&tree, &["/a.py", "d/"]), ["a.py", "d"]);
        assert_eq!(pick(&tree, &["*.py"]), ["a.py"]);
        assert_eq!(pick(&tree, &["d*"]), ["d", "da"]);
        assert_eq!(pick(&tree, &["d/*"]), ["d/b.py", "d/e"]);
        assert_eq!(pick(&tree, &["../../d/./e"]), ["d/e"]);
        assert_eq!(pick(&tree, &["**/*.py"]).len(), 3);
        assert!(select(&files(&tree), &["nope".into()], &[], false).unwrap_err().contains("nope"));
    }

    #[test]
    fn the_digest_follows_the_content() {
        let mut tree = files(&["d/a", "d/b", "other"]);
        let of = |tree: &BTreeMap<_, _>, exclude: &[&str]| {
            let exclude: Vec<String> = exclude.iter().map(|s| (*s).to_owned()).collect();
            select(tree, &["d".into()], &exclude, false).unwrap().digest
        };
        let first = of(&tree, &[]);
        tree.get_mut("other").unwrap().sha256 = "changed".into();
        assert_eq!(of(&tree, &[]), first);
        tree.get_mut("d/b").unwrap().sha256 = "changed".into();
        assert_ne!(of(&tree, &[]), first);
        let without = of(&tree, &["b"]);
        tree.get_mut("d/b").unwrap().sha256 = "again".into();
        assert_eq!(of(&tree, &["b"]), without);
    }

    #[test]
    fn excludes_folders() {
        assert!(excluded("e", "e/c.py") && excluded("*.py", "c.py") && !excluded("*.py", "e/c.py"));
        assert!(excluded("**/*.py", "e/c.py") && excluded("e/", "e/x/y"));
    }

    proptest! {
        #[test]
        fn clean_never_leaves(path in "[a./]{0,30}") {
            let clean = clean(&path);
            prop_assert!(!clean.starts_with('/') && clean.split('/').all(|p| p != ".." && p != "."));
        }

        #[test]
        fn select_never_panics(source in "[ab*?/.\\[\\]]{0,12}", exclude in "[ab*/]{0,6}") {
            let _ = select(&files(&["a", "b/a", "b/b/a"]), &[source], &[exclude], true);
        }
    }
}
