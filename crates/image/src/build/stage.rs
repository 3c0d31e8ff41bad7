//! Folders that hold just the files of one COPY, for what the context's own tree cannot show as it is.

use super::BuildTools;
use crate::base::blocking;
use crate::base::{pipe_through, settle};
use crate::error::{ImageError, Result};
use crate::plan::{StagedFile, Step};
use crate::recipe::Recipe;
use crate::steps::LayerSize;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Bytes that ADD fetches from an address at most.
const FETCH_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// Removes what an earlier life left.
pub(super) fn clear(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(ImageError::io("remove", folder, &error)),
    }
    std::fs::create_dir_all(folder).map_err(|e| ImageError::io("make", folder, &e))
}

/// Where each file comes from, once it is known.
enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
    Url(String, Option<String>),
}

/// Puts a folder together; it goes when the value is dropped. What will be written to must be `copies`.
pub(super) async fn make(
    tools: &BuildTools,
    recipe: &Recipe,
    files: &[(String, StagedFile)],
    copies: bool,
) -> Result<tempfile::TempDir> {
    let mut tree = None;
    let mut sources = Vec::new();
    for (name, file) in files {
        let source = match file {
            StagedFile::Text(text) => Source::Bytes(text.clone().into_bytes()),
            StagedFile::Url(url, checksum) => Source::Url(url.clone(), checksum.clone()),
            StagedFile::Context(path) => match (recipe.inline(path), &recipe.context_mount) {
                (Some(bytes), _) => Source::Bytes(bytes.to_vec()),
                (None, Some(mount)) => {
                    if tree.is_none() {
                        tree = Some(tools.context.tree(&mount.id).await?);
                    }
                    let tree: &PathBuf = tree.get_or_insert_default();
                    Source::File(tree.join(path))
                }
                (None, None) => {
                    return Err(ImageError::builder("stage a file", format!("{path} is nowhere")));
                }
            },
        };
        sources.push((name.clone(), source));
    }
    let folder = tempfile::Builder::new()
        .prefix("copy-")
        .tempdir_in(&tools.staging)
        .map_err(|e| ImageError::io("make a folder in", &tools.staging, &e))?;
    set_mode(folder.path(), 0o755)?;
    let fetcher = tools.base.fetcher.clone();
    blocking("stage files", move || {
        for (name, source) in sources {
            let target = folder.path().join(&name);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).map_err(|e| ImageError::io("make", parent, &e))?;
            }
            match source {
                Source::Bytes(bytes) => write(&target, &bytes)?,
                Source::File(path) => link_or_copy(&path, &target, copies)?,
                Source::Url(url, checksum) => fetch(&fetcher, &url, checksum.as_deref(), &target)?,
            }
        }
        Ok(folder)
    })
    .await
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| ImageError::io("set the mode of", path, &e))
}

fn write(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = std::fs::File::create(target).map_err(|e| ImageError::io("make", target, &e))?;
    file.write_all(bytes).map_err(|e| ImageError::io("write", target, &e))?;
    set_mode(target, 0o644)
}

/// A hard link where both lie on one file system and nothing forbids it, else a copy. What is a symbolic link
/// stays one.
fn link_or_copy(from: &Path, to: &Path, copies: bool) -> Result<()> {
    let kind = from.symlink_metadata().map_err(|e| ImageError::io("look at", from, &e))?;
    if kind.is_symlink() {
        let target = std::fs::read_link(from).map_err(|e| ImageError::io("read", from, &e))?;
        return std::os::unix::fs::symlink(target, to).map_err(|e| ImageError::io("make", to, &e));
    }
    if !copies && kind.is_file() && std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    std::fs::copy(from, to).map(drop).map_err(|e| ImageError::io("copy", from, &e))
}

fn fetch(
    fetcher: &evoke_files::fetch::Fetcher,
    url: &str,
    checksum: Option<&str>,
    target: &Path,
) -> Result<()> {
    let sha256 = match checksum {
        None => None,
        Some(text) => {
            let hex = text.strip_prefix("sha256:").unwrap_or(text);
            Some(
                hex.parse()
                    .map_err(|_| ImageError::malformed(url, format!("{text:?} is not a sha256 checksum")))?,
            )
        }
    };
    let download = evoke_files::fetch::Download { url, sha256, ..Default::default() };
    let done = fetcher.download(&download, target)?;
    if done.length > FETCH_MAX {
        return Err(ImageError::fetch(url, format!("larger than {FETCH_MAX} bytes")));
    }
    // As Docker does it: what was fetched is its owner's alone.
    set_mode(target, 0o600)
}

/// Unpacks a local archive below `destination` as a layer.
pub(super) async fn extract(
    tools: &BuildTools,
    step: &Step,
    archive: &Path,
    destination: &str,
    commit: &Path,
) -> Result<LayerSize> {
    let file = std::fs::File::open(archive).map_err(|e| ImageError::io("open", archive, &e))?;
    let what = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = crate::context::clean(destination);
    let name = what.clone();
    let (pipe, writer) = pipe_through(what, move |out| {
        let broken = |e: std::io::Error| ImageError::malformed(&name, e);
        let mut tree = crate::tree::TreeWriter::new(&name, out);
        let mut from = tar::Archive::new(crate::base::decompress(&name, file)?);
        for entry in from.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let below = |path: &[u8]| {
                let path = crate::context::clean(&String::from_utf8_lossy(path));
                if prefix.is_empty() { path } else { format!("{prefix}/{path}") }
            };
            let path = below(&entry.path_bytes());
            let kind = entry.header().entry_type();
            let mut header = entry.header().clone();
            let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
            match (kind, link) {
                (tar::EntryType::Directory, _) => {
                    tree.entry(&mut header, &format!("{path}/"), std::io::empty())?;
                }
                (tar::EntryType::Link, Some(target)) => {
                    tree.link_entry(&mut header, &path, &below(&target))?;
                }
                (tar::EntryType::Symlink, Some(target)) => {
                    tree.link_entry(&mut header, &path, &String::from_utf8_lossy(&target))?;
                }
                (kind, _) if kind.is_file() => {
                    header.set_size(entry.size());
                    tree.entry(&mut header, &path, &mut entry)?;
                }
                // Devices and pipes of an archive are not made.
                _ => {}
            }
        }
        tree.finish()
    })?;
    let unpacked = tools.base.builder.unpack(&step.onto, pipe, commit, &crate::log::NoLog).await;
    settle(unpacked, writer).await
}
