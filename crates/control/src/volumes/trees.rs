//! From the newest version of a volume to the few folders that are mounted for it. Each holds what some versions
//! in a row changed; small ones are folded together as new ones come, so that their number grows with the
//! logarithm of what changed, and a large one is not made anew for a small change.

use super::draft::parent;
use super::{Control, lock};
use crate::{blocking, stored};
use evoke_core::{Error, VolumeId};
use evoke_files::{VolumeEntry, VolumeEntryKind};
use evoke_proto::Status;
use evoke_proto::worker::VolumeView;
use evoke_store::{
    Grade, TREE_LEVELS_MAX, VolumeFile, VolumeFileKind, VolumeRow, VolumeSnapshot, VolumeTree, VolumeWrite,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a folder is made of.
struct Parts {
    entries: Vec<VolumeEntry>,
    removes: Vec<String>,
}

impl Control {
    /// The newest version, with its folders made. From now on they stay.
    pub(crate) async fn view_of(&self, volume: VolumeId) -> Result<VolumeView, Status> {
        lock(&self.volumes.mounted).insert(volume);
        let _turn = self.volumes.turn(volume).await;
        let row = self.volume(&volume.to_string()).await?;
        let trees = self.trees_of(&row).await?;
        let paths = trees.iter().map(|tree| self.volume_trees.path(volume, tree.from, tree.to));
        let mut paths: Vec<_> = paths.collect();
        if paths.is_empty() {
            paths.push(self.volume_trees.empty());
        }
        Ok(VolumeView { version: row.head, trees: paths })
    }

    async fn trees_of(&self, row: &VolumeRow) -> Result<Vec<VolumeTree>, Status> {
        let mut trees = row.trees.clone();
        let made = trees.last().map_or(0, |tree| tree.to);
        if made == row.head {
            let on_disk = |tree: &VolumeTree| self.volume_trees.path(row.id, tree.from, tree.to).is_dir();
            if trees.iter().all(on_disk) {
                return Ok(trees);
            }
            // Lost with a disk's cache: everything is made anew.
            trees.clear();
        }
        let mut from = trees.last().map_or(1, |tree| tree.to + 1);
        let mut parts = self.parts(row.id, from, row.head).await?;
        while trees.last().is_some_and(|last| folds(last.entries, parts.size(), trees.len())) {
            from = trees.pop().map_or(from, |last| last.from);
            parts = self.parts(row.id, from, row.head).await?;
        }
        let entries = parts.size();
        let (folders, id, to) = (self.volume_trees.clone(), row.id, row.head);
        blocking(move || folders.build(id, (from, to), &parts.entries, &parts.removes).map_err(Error::from))
            .await?;
        trees.push(VolumeTree { from, to, entries });
        let write = VolumeWrite::Trees { id: row.id, trees: trees.clone() };
        self.submit(vec![write.into()], Grade::Written).await?;
        Ok(trees)
    }

    /// What the versions `from` to `to` changed, with all folders that the entries lie in.
    async fn parts(&self, volume: VolumeId, from: u64, to: u64) -> Result<Parts, Status> {
        let read = self.store.read(move |conn| {
            let newest = VolumeSnapshot::new(conn, volume, to);
            let (puts, removes) = newest.since(from - 1)?;
            let mut files: BTreeMap<String, VolumeFile> =
                puts.into_iter().map(|file| (file.path.clone(), file)).collect();
            let paths = files.keys().chain(&removes);
            let mut needed: BTreeSet<String> = BTreeSet::new();
            for path in paths {
                let mut at = parent(path);
                while !at.is_empty() && !files.contains_key(at) && needed.insert(at.to_owned()) {
                    at = parent(at);
                }
            }
            for path in needed {
                if let Some(folder) = newest.get(&path)? {
                    files.insert(path, folder);
                }
            }
            Ok((files, removes))
        });
        let (files, removes) = read.await.map_err(stored)?;
        let entries = files.into_values().map(entry).collect::<Result<_, _>>()?;
        Ok(Parts { entries, removes })
    }

    /// Removes the folders of a volume but for `keep`, unless one may be mounted somewhere: then the next start
    /// that finds no container does.
    pub(super) fn remove_trees(&self, volume: VolumeId, keep: Vec<VolumeTree>) {
        if lock(&self.volumes.mounted).contains(&volume) {
            return;
        }
        let folders = self.volume_trees.clone();
        self.spawn("volume-trees", move |_| async move {
            let removed = blocking(move || {
                let kept = |from, to| keep.iter().any(|tree| (tree.from, tree.to) == (from, to));
                folders.remove_others(volume, &kept).map_err(Error::from)
            });
            if let Err(status) = removed.await {
                tracing::warn!(%volume, %status, "folders of a volume stay until the next start");
            }
        });
    }

    /// At a start without containers: removes every folder that no newest version needs.
    pub(crate) async fn sweep_trees(&self) -> Result<(), Status> {
        let volumes = self.volume_trees.volumes().map_err(Error::from)?;
        for volume in volumes {
            let row = self.store.volumes().by_id(volume).await.map_err(stored)?;
            self.remove_trees(volume, row.map(|row| row.trees).unwrap_or_default());
        }
        Ok(())
    }
}

impl Parts {
    fn size(&self) -> u64 {
        (self.entries.len() + self.removes.len()) as u64
    }
}

/// Whether a new folder of `new` entries takes in the one below it, of `last`, where there are `count` already.
fn folds(last: u64, new: u64, count: usize) -> bool {
    last <= new.saturating_mul(2) || count + 1 > TREE_LEVELS_MAX
}

fn entry(file: VolumeFile) -> Result<VolumeEntry, Error> {
    let kind = match file.kind {
        VolumeFileKind::Folder => VolumeEntryKind::Folder { mode: file.mode },
        VolumeFileKind::Link => VolumeEntryKind::Link(file.content),
        VolumeFileKind::File => {
            VolumeEntryKind::File { content: super::uploads::parse_content(&file.content)?, mode: file.mode }
        }
    };
    Ok(VolumeEntry { path: file.path, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred thousand files, then a thousand changes of one: how many folders there are at most, and how
    /// many entries are written in all.
    #[test]
    fn small_changes_cost_little_and_leave_few_folders() {
        let mut trees = vec![100_000u64];
        let (mut most, mut written) = (0, 0);
        for _ in 0..1000 {
            let mut new = 1;
            while trees.last().is_some_and(|last| folds(*last, new, trees.len())) {
                new += trees.pop().unwrap_or_default();
            }
            written += new;
            trees.push(new);
            most = most.max(trees.len());
        }
        assert!(most <= 12, "{most}");
        assert!(written < 20_000, "{written}");
        assert_eq!(trees[0], 100_000);
    }
}
