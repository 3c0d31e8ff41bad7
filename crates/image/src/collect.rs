//! Removes layers that nothing needs, with what is remembered of them, downloads that nobody went on with, and caches
//! and Pythons that no build used for long.
//!
//! What is remembered goes before the folder: a SIGKILL in between leaves a folder that no record names, which
//! the next round finds, and never a record of a folder that is gone.

use crate::base::blocking;
use crate::build::ImageBuilder;
use crate::error::{ImageError, Result};
use crate::index::LayerRecord;
use crate::kept;
use crate::survey::facts_key;
use crate::uses::{LayerUse, LayerUses, Round};
use evoke_core::UnixMs;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Names of folders that hold what is on its way for a moment; what is older was left by a killed server.
pub(crate) const PASSING: &str = "gather-";
/// How old something on its way may be (milliseconds).
const PASSING_MS_MAX: u64 = 24 * 3600 * 1000;
/// Layers of the client's packages, compiled.
const COMPILED: &str = "client-";
/// The layer of empty roots.
const EMPTY: &str = "empty";

/// What stays.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Folders of layers that something needs.
    pub folders: HashSet<String>,
    /// What was used since then stays, too.
    pub unused_before: UnixMs,
    /// Compiled packages of the client stay, whether they are among the folders or not.
    pub compiled: bool,
    /// Nothing is removed; what would be is counted.
    pub dry_run: bool,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollectedLayers {
    /// Layers.
    pub layers: u64,
    /// Bytes of their files, as far as they are remembered.
    pub layer_bytes: u64,
    /// Downloads that nobody went on with, and folders that builds keep for later ones.
    pub downloads: u64,
    /// Their bytes.
    pub download_bytes: u64,
}

/// A folder with a layer.
struct Found {
    name: String,
    modified: UnixMs,
}

impl ImageBuilder {
    /// Something begins to use layers: none that it looks at from now on is collected while this lives.
    pub fn begin_use(&self) -> LayerUse {
        let base = &self.inner.tools.base;
        base.uses.begin(base.clock.now())
    }

    /// Whether all layers of an image are there.
    pub async fn is_whole(&self, image: &crate::ImageSpec) -> bool {
        self.inner.tools.base.is_whole(image).await
    }

    /// Begins a round of collection. What is to stay must be found out after this.
    pub fn round(&self) -> Round {
        let base = &self.inner.tools.base;
        base.uses.round(base.clock.now())
    }

    /// Removes what is not to stay.
    pub async fn collect(&self, round: &Round, keep: Keep) -> Result<CollectedLayers> {
        let base = &self.inner.tools.base;
        let mut kept = keep.folders.clone();
        let mut records: HashMap<String, (LayerRecord, UnixMs)> = HashMap::new();
        for (record, used) in base.index.layers().await? {
            records.insert(record.folder.clone(), (record, used));
        }
        self.forget_images(&keep, &mut kept).await?;
        let layers = base.layers.clone();
        let found = blocking("list layers", move || list(&layers)).await?;
        let there: HashSet<&str> = found.iter().map(|found| found.name.as_str()).collect();
        let mut done = CollectedLayers::default();
        for folder in &found {
            let record = records.get(&folder.name);
            let used = record.map_or(folder.modified, |(_, used)| *used);
            if kept.contains(&folder.name)
                || used >= keep.unused_before
                || !keep.may_go(folder, base.clock.now())
            {
                continue;
            }
            let Some(_claim) = base.uses.claim(&folder.name, folder.modified, round) else { continue };
            done.layers += 1;
            done.layer_bytes += record.map_or(0, |(record, _)| record.bytes);
            if keep.dry_run {
                continue;
            }
            let path = base.layers.join(&folder.name);
            if let Some((record, _)) = record {
                base.index.remove_layer(&record.digest).await?;
            }
            base.index.remove_facts(&facts_key(&path)).await?;
            base.builder.remove(&path).await?;
        }
        for (folder, (record, _)) in &records {
            if !keep.dry_run && !there.contains(folder.as_str()) && !base.layers.join(folder).is_dir() {
                base.index.remove_layer(&record.digest).await?;
            }
        }
        self.collect_downloads(round, &keep, &mut done).await?;
        Ok(done)
    }

    /// Forgets images of which a layer is about to go, and keeps the layers of those that were used lately.
    async fn forget_images(&self, keep: &Keep, kept: &mut HashSet<String>) -> Result<()> {
        let index = &self.inner.tools.base.index;
        let folders = |image: &crate::ImageSpec| -> Vec<String> {
            image.layers.iter().map(|layer| folder_name(&layer.path)).collect()
        };
        let mut unused = Vec::new();
        for (key, image, used) in index.images().await? {
            if used >= keep.unused_before {
                kept.extend(folders(&image));
            } else {
                unused.push((key, image));
            }
        }
        for (key, image) in unused {
            if !keep.dry_run && !folders(&image).iter().all(|folder| kept.contains(folder)) {
                index.remove_image(&key).await?;
            }
        }
        Ok(())
    }

    /// A build may go on with a download of an earlier one, or use a cache, so none is removed while something builds.
    async fn collect_downloads(&self, round: &Round, keep: &Keep, done: &mut CollectedLayers) -> Result<()> {
        let base = &self.inner.tools.base;
        let (downloads, uses) = (base.downloads.clone(), base.uses.clone());
        let (before, dry_run) = (keep.unused_before.min(round.time()), keep.dry_run);
        let removed =
            blocking("list downloads", move || remove_downloads(&downloads, before, dry_run, &uses)).await?;
        (done.downloads, done.download_bytes) = removed;
        for home in [&self.inner.tools.caches, &self.inner.tools.pythons] {
            let (home, uses) = (home.clone(), base.uses.clone());
            let work = move || kept::remove_unused(&home, before, dry_run, &uses);
            let (count, bytes) = blocking("list what builds keep", work).await?;
            done.downloads += count;
            done.download_bytes += bytes;
        }
        Ok(())
    }
}

impl Keep {
    fn may_go(&self, folder: &Found, now: UnixMs) -> bool {
        let name = folder.name.as_str();
        if name.starts_with(PASSING) {
            return now.since(folder.modified) > PASSING_MS_MAX;
        }
        !name.starts_with('.') && name != EMPTY && !(self.compiled && name.starts_with(COMPILED))
    }
}

/// The name of a layer's folder.
pub(crate) fn folder_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn list(layers: &Path) -> Result<Vec<Found>> {
    let failed = |e: &std::io::Error| ImageError::io("list", layers, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(layers).map_err(|e| failed(&e))? {
        let entry = entry.map_err(|e| failed(&e))?;
        // What is gone by now needs no removal.
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push(Found { name, modified: modified(&about) });
        }
    }
    Ok(found)
}

/// When a file was last changed; a time that cannot be told is now.
pub(crate) fn modified(about: &std::fs::Metadata) -> UnixMs {
    let since = about.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    UnixMs(since.map_or(u64::MAX, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

fn remove_downloads(folder: &Path, before: UnixMs, dry_run: bool, uses: &LayerUses) -> Result<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(e) => return Err(ImageError::io("list", folder, &e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| ImageError::io("list", folder, &e))?;
        let (path, Ok(about)) = (entry.path(), entry.metadata()) else { continue };
        if about.is_dir() {
            let below = remove_downloads(&path, before, dry_run, uses)?;
            (count, bytes) = (count + below.0, bytes + below.1);
            continue;
        }
        if modified(&about) >= before {
            continue;
        }
        let remove = || if dry_run { Ok(()) } else { std::fs::remove_file(&path) };
        match uses.while_idle(remove) {
            None => return Ok((count, bytes)),
            Some(removed) => removed.map_err(|e| ImageError::io("remove", &path, &e))?,
        }
        (count, bytes) = (count + 1, bytes + about.len());
    }
    Ok((count, bytes))
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
