//! Standalone Pythons, for images that have none: archives of the python-build-standalone project, unpacked once
//! and kept as folders that a COPY takes its files from.
//!
//! Layout: `<folder>/<name>/tree/python/…` is a Python, `<folder>/<name>/files.json` lists its files. A name is
//! there once its content is complete and synced, and stays; removing its folder has it brought again.

use crate::base::{blocking, decompress};
use crate::context::ContextEntry;
use crate::digest::sha256;
use crate::error::{ImageError, Result};
use crate::log::{LogSink, say};
use evoke_files::ContentHash;
use evoke_files::fetch::{Download, FetchError, Fetcher};
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the project publishes its archives.
pub const STANDALONE_SOURCE: &str = "https://github.com/astral-sh/python-build-standalone/releases/download";
/// The list of digests of a release.
const SUMS: &str = "SHA256SUMS";
/// Bytes of that list at most.
const SUMS_MAX: u64 = 4 * 1024 * 1024;
/// Entries of an archive at most: a complete one has some 5,000.
const ENTRIES_MAX: usize = 200_000;
/// Bytes that an archive may unpack to: a complete one with its debug symbols has less than one.
const BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Standalone Pythons of this server.
pub struct StandalonePythons {
    source: String,
    folder: PathBuf,
    fetcher: Fetcher,
    /// Two that want the same one would fetch it twice.
    turn: tokio::sync::Mutex<()>,
}

/// A Python as a build context: its files lie below `/python`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandalonePython {
    /// The folder with `python/`.
    pub tree: PathBuf,
    /// What is in it. A symbolic link has the digest of where it points.
    pub files: Vec<ContextEntry>,
}

/// Which archive is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    release: String,
    version: String,
    free_threaded: bool,
    libc: String,
}

impl Wanted {
    /// Reads `20241008.3.13.0-gnu`; the version ends in `t` where threads run freely.
    fn parse(name: &str) -> Option<Self> {
        let (release, rest) = name.split_once('.')?;
        let (version, libc) = rest.rsplit_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (version, free_threaded) = match version.strip_suffix('t') {
            Some(version) => (version, true),
            None => (version, false),
        };
        let known = digits(release) && version.split('.').all(digits) && matches!(libc, "gnu" | "musl");
        known.then(|| Self {
            release: release.to_owned(),
            version: version.to_owned(),
            free_threaded,
            libc: libc.to_owned(),
        })
    }

    /// Names of archives that hold it, the best first: those that are complete and nothing more.
    fn archives(&self) -> Vec<String> {
        let Self { release, version, libc, .. } = self;
        let stem = format!("cpython-{version}+{release}-{}-unknown-linux-{libc}", std::env::consts::ARCH);
        let ends: &[&str] = if self.free_threaded {
            &[
                "freethreaded-install_only.tar.gz",
                "freethreaded-install_only_stripped.tar.gz",
                "freethreaded+pgo+lto-full.tar.zst",
            ]
        } else {
            &["install_only.tar.gz", "install_only_stripped.tar.gz"]
        };
        ends.iter().map(|end| format!("{stem}-{end}")).collect()
    }
}

impl StandalonePythons {
    /// Pythons from `source`, an address or a folder, kept below `folder`. Removes what an earlier life began.
    pub fn open(source: &str, folder: PathBuf, fetcher: Fetcher) -> Result<Self> {
        let source = source.trim_end_matches('/').to_owned();
        let this = Self { source, folder, fetcher, turn: tokio::sync::Mutex::new(()) };
        let begun = this.begun();
        match std::fs::remove_dir_all(&begun) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", begun, &error));
            }
            _ => {}
        }
        std::fs::create_dir_all(&begun).map_err(|e| ImageError::io("make", begun, &e))?;
        Ok(this)
    }

    /// Whether `name` is one that a Python can have.
    pub fn knows(name: &str) -> bool {
        Wanted::parse(name).is_some()
    }

    fn begun(&self) -> PathBuf {
        self.folder.join(".begun")
    }

    /// The Python of that name, brought here first if needed.
    pub async fn get(self: &Arc<Self>, name: &str, log: Arc<dyn LogSink>) -> Result<StandalonePython> {
        let wanted = Wanted::parse(name)
            .ok_or_else(|| ImageError::Unsupported(format!("{name:?} names no standalone Python")))?;
        let _turn = self.turn.lock().await;
        let (this, name) = (self.clone(), name.to_owned());
        blocking("bring a standalone Python", move || {
            let home = this.folder.join(&name);
            if !home.is_dir() {
                this.bring(&wanted, &home, &*log).map_err(|error| this.explained(&wanted, &error))?;
            }
            crate::kept::touch(&home)?;
            let list = home.join("files.json");
            let text = std::fs::read(&list).map_err(|e| ImageError::io("read", &list, &e))?;
            let files = serde_json::from_slice(&text)
                .map_err(|e| ImageError::malformed(list.to_string_lossy(), e))?;
            Ok(StandalonePython { tree: home.join("tree"), files })
        })
        .await
    }

    /// What stood in the way, and what to do about it.
    fn explained(&self, wanted: &Wanted, error: &ImageError) -> ImageError {
        if matches!(error, ImageError::Io { .. }) {
            return error.clone();
        }
        let archive = wanted.archives().swap_remove(0);
        let reach = if is_address(&self.source) {
            format!("Make {} reachable from this machine,\nor put ", self.source)
        } else {
            "Put ".to_owned()
        };
        ImageError::NoPython {
            version: wanted.version.clone(),
            release: wanted.release.clone(),
            why: error.to_string(),
            mend: format!(
                "{reach}{archive} into a folder that the server may read and name the folder in evoke.toml \
                 (images.standalone_python = \"/the/folder\"),\nor use a base that has Python, such as \
                 modal.Image.from_registry(\"python:3.11-slim\")."
            ),
        }
    }

    fn bring(&self, wanted: &Wanted, home: &Path, log: &dyn LogSink) -> Result<()> {
        let draft =
            tempfile::tempdir_in(self.begun()).map_err(|e| ImageError::io("make", self.begun(), &e))?;
        let unpacked = draft.path().join("unpacked");
        std::fs::create_dir(&unpacked).map_err(|e| ImageError::io("make", &unpacked, &e))?;
        if is_address(&self.source) {
            let (name, archive) = self.fetch(wanted, log)?;
            unpack(&name, &archive, &unpacked)?;
            // What is kept from now on is what was in it.
            std::fs::remove_file(&archive).map_err(|e| ImageError::io("remove", &archive, &e))?;
        } else {
            let (name, archive) = self.find(wanted)?;
            say(log, format!("Unpacking {}", archive.display()));
            unpack(&name, &archive, &unpacked)?;
        }
        settle(draft.path(), &unpacked)?;
        rustix::fs::open(draft.path(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
            .and_then(rustix::fs::syncfs)
            .map_err(|e| ImageError::io("sync", draft.path(), &e.into()))?;
        std::fs::rename(draft.keep(), home).map_err(|e| ImageError::io("rename to", home, &e))
    }

    /// The archive in the configured folder, or in the release's folder there.
    fn find(&self, wanted: &Wanted) -> Result<(String, PathBuf)> {
        let folder = Path::new(&self.source);
        for name in wanted.archives() {
            for place in [folder.join(&wanted.release), folder.to_owned()] {
                let path = place.join(&name);
                if !path.is_file() {
                    continue;
                }
                if let Ok(sums) = std::fs::read(place.join(SUMS)) {
                    check(&path, digests(&sums).get(&name).copied())?;
                }
                return Ok((name, path));
            }
        }
        Err(ImageError::malformed(&self.source, "none of the archives there holds it"))
    }

    /// Brings the archive, checked by the digests that its release publishes.
    fn fetch(&self, wanted: &Wanted, log: &dyn LogSink) -> Result<(String, PathBuf)> {
        let address = |name: &str| format!("{}/{}/{}", self.source, wanted.release, name.replace('+', "%2B"));
        let sums = found(self.fetcher.get_bytes(&address(SUMS), &[], SUMS_MAX))?;
        let sums = sums.map(|text| digests(&text));
        if sums.is_none() {
            say(log, format!("note: the release {} publishes no {SUMS}", wanted.release));
        }
        for name in wanted.archives() {
            let known = sums.as_ref().map(|sums| sums.get(&name).copied());
            if known == Some(None) {
                continue;
            }
            let url = address(&name);
            say(log, format!("Fetching {name}"));
            let target = self.folder.join(&name);
            let passing = known.flatten().is_some();
            let what = Download { url: &url, sha256: known.flatten(), passing, ..Default::default() };
            if found(self.fetcher.download(&what, &target))?.is_some() {
                return Ok((name, target));
            }
        }
        Err(ImageError::malformed(address(""), "none of the release's archives holds it"))
    }
}

fn is_address(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// What was asked for, unless there is no such thing.
fn found<T>(answer: std::result::Result<T, FetchError>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.status(), Some(404 | 410)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Lines of `<digest>  <name>`.
fn digests(text: &[u8]) -> HashMap<String, ContentHash> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    lines
        .filter_map(|(digest, name)| {
            Some((name.trim().trim_start_matches('*').to_owned(), digest.parse().ok()?))
        })
        .collect()
}

fn check(path: &Path, expected: Option<ContentHash>) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let file = std::fs::File::open(path).map_err(|e| ImageError::io("open", path, &e))?;
    let (got, _) = ContentHash::of_reader(file).map_err(|e| ImageError::io("read", path, &e))?;
    if got == expected {
        return Ok(());
    }
    let what = path.display().to_string();
    Err(ImageError::Digest { what, expected: expected.to_string(), got: got.to_string() })
}

/// Unpacks an archive; nothing in it can be written elsewhere.
fn unpack(name: &str, archive: &Path, target: &Path) -> Result<()> {
    let broken = |e: std::io::Error| ImageError::malformed(name, e);
    let file = std::fs::File::open(archive).map_err(|e| ImageError::io("open", archive, &e))?;
    let mut from = tar::Archive::new(decompress(name, file)?);
    let (mut entries, mut bytes) = (0, 0);
    for entry in from.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        entries += 1;
        bytes += entry.size();
        if entries > ENTRIES_MAX || bytes > BYTES_MAX {
            return Err(ImageError::malformed(name, "larger than a Python can be"));
        }
        let kind = entry.header().entry_type();
        let wanted = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link();
        if wanted && !entry.unpack_in(target).map_err(broken)? {
            let path = String::from_utf8_lossy(&entry.path_bytes()).escape_debug().to_string();
            return Err(ImageError::malformed(name, format!("it holds {path}, which leads out of it")));
        }
    }
    Ok(())
}

/// Makes of what was unpacked the tree that is kept, and lists it.
fn settle(draft: &Path, unpacked: &Path) -> Result<()> {
    let (tree, list) = (draft.join("tree"), draft.join("files.json"));
    // Complete archives have the installation beside what it was built from.
    let whole = unpacked.join("python/install");
    let python = if whole.is_dir() { whole } else { unpacked.join("python") };
    if python.join("bin/python3").symlink_metadata().is_err() {
        return Err(ImageError::malformed("the archive", "it has no python/bin/python3"));
    }
    std::fs::create_dir(&tree).map_err(|e| ImageError::io("make", &tree, &e))?;
    let target = tree.join("python");
    std::fs::rename(&python, &target).map_err(|e| ImageError::io("rename to", &target, &e))?;
    std::fs::remove_dir_all(unpacked).map_err(|e| ImageError::io("remove", unpacked, &e))?;
    let mut files = Vec::new();
    list_below(&tree, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let text = serde_json::to_vec(&files).map_err(|e| ImageError::Index(e.to_string()))?;
    std::fs::write(&list, text).map_err(|e| ImageError::io("write", &list, &e))?;
    std::fs::set_permissions(draft, std::fs::Permissions::from_mode(0o755))
        .map_err(|e| ImageError::io("set the mode of", draft, &e))
}

fn list_below(tree: &Path, inside: &str, files: &mut Vec<ContextEntry>) -> Result<()> {
    let folder = tree.join(inside);
    let failed = |e: std::io::Error| ImageError::io("read", &folder, &e);
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let inside = if inside.is_empty() { name } else { format!("{inside}/{name}") };
        let path = entry.path();
        let meta = entry.metadata().map_err(failed)?;
        if meta.is_dir() {
            list_below(tree, &inside, files)?;
            continue;
        }
        let hash = if meta.is_symlink() {
            let target = std::fs::read_link(&path).map_err(|e| ImageError::io("read", &path, &e))?;
            sha256(target.as_os_str().as_encoded_bytes())
        } else {
            let file = std::fs::File::open(&path).map_err(|e| ImageError::io("open", &path, &e))?;
            ContentHash::of_reader(file).map_err(|e| ImageError::io("read", &path, &e))?.0.to_string()
        };
        files.push(ContextEntry {
            path: inside,
            sha256: hash,
            mode: Some(meta.permissions().mode() & 0o777),
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "standalone_tests.rs"]
mod tests;
