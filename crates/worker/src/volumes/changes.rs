//! What a container changed in a volume between two looks at the place that it writes to. Pure.

use evoke_core::UnixMs;
use evoke_proto::worker::{VolumeChange, VolumeChangeKind};
use evoke_runtime::{VolumeEntry, VolumeEntryKind};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The changes from `before` to `now`, both as the helper lists them, in an order in which they can be merged.
/// Copies of files lie in `staging`.
pub(super) fn between(before: &[VolumeEntry], now: &[VolumeEntry], staging: &Path) -> Vec<VolumeChange> {
    let known: HashMap<&str, &VolumeEntry> = before.iter().map(|entry| (&*entry.path, entry)).collect();
    let there: HashSet<&str> = now.iter().map(|entry| &*entry.path).collect();
    let mut changes = Vec::new();
    // What the container made itself and removed again leaves no trace in the second list. The deepest first,
    // so that a folder goes after what was in it.
    let mut gone: Vec<&VolumeEntry> = before
        .iter()
        .filter(|entry| !there.contains(&*entry.path) && entry.kind != VolumeEntryKind::Removed)
        .collect();
    gone.sort_by_key(|entry| std::cmp::Reverse(entry.path.matches('/').count()));
    changes.extend(gone.into_iter().map(|entry| change(entry, VolumeChangeKind::Remove)));
    for entry in now {
        changes_of(entry, known.get(&*entry.path).copied(), staging, &mut changes);
    }
    changes
}

fn changes_of(
    entry: &VolumeEntry,
    known: Option<&VolumeEntry>,
    staging: &Path,
    changes: &mut Vec<VolumeChange>,
) {
    let same_inode = known.is_some_and(|known| known.inode == entry.inode);
    let unchanged =
        known.is_some_and(|known| known.changed_ns == entry.changed_ns && known.kind == entry.kind);
    match &entry.kind {
        VolumeEntryKind::File { staged: Some(number), .. } => {
            let staged = staging.join(number.to_string());
            changes.push(change(entry, VolumeChangeKind::File { staged }));
        }
        VolumeEntryKind::File { staged: None, .. } => {}
        VolumeEntryKind::Link { target } => {
            if !(same_inode && unchanged) {
                changes.push(change(entry, VolumeChangeKind::Link { target: target.clone() }));
            }
        }
        VolumeEntryKind::Removed => {
            if !(same_inode && unchanged) {
                changes.push(change(entry, VolumeChangeKind::Remove));
            }
        }
        VolumeEntryKind::Folder { opaque, origin } => {
            let same_mode = known.is_some_and(|known| known.mode == entry.mode);
            if !(same_inode && same_mode) {
                changes.push(change(entry, VolumeChangeKind::Folder));
            }
            let (was_opaque, came_from) = match known.filter(|_| same_inode).map(|known| &known.kind) {
                Some(VolumeEntryKind::Folder { opaque, origin }) => (*opaque, origin.as_ref()),
                _ => (false, None),
            };
            if *opaque && !was_opaque {
                changes.push(change(entry, VolumeChangeKind::Empty));
            }
            if let Some(from) = origin.as_ref().filter(|from| came_from != Some(*from)) {
                changes.push(change(entry, VolumeChangeKind::Moved { from: from.clone() }));
            }
        }
    }
}

fn change(entry: &VolumeEntry, kind: VolumeChangeKind) -> VolumeChange {
    VolumeChange { path: entry.path.clone(), mode: entry.mode, mtime: UnixMs(entry.mtime_ms), kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, inode: u64, changed_ns: i64, kind: VolumeEntryKind) -> VolumeEntry {
        VolumeEntry { path: path.into(), kind, mode: 0o644, mtime_ms: 1, inode, changed_ns }
    }

    fn file(staged: Option<u64>) -> VolumeEntryKind {
        VolumeEntryKind::File { size: 1, staged }
    }

    fn folder(opaque: bool, origin: Option<&str>) -> VolumeEntryKind {
        VolumeEntryKind::Folder { opaque, origin: origin.map(str::to_owned) }
    }

    fn shown(before: &[VolumeEntry], now: &[VolumeEntry]) -> Vec<String> {
        let changes = between(before, now, Path::new("/s"));
        changes.iter().map(|change| format!("{} {:?}", change.path, change.kind)).collect()
    }

    #[test]
    fn everything_is_new_at_first_and_nothing_the_second_time() {
        let first = [
            entry("d", 1, 1, folder(true, None)),
            entry("d/f", 2, 1, file(Some(0))),
            entry("gone", 3, 1, VolumeEntryKind::Removed),
            entry("link", 4, 1, VolumeEntryKind::Link { target: "d".into() }),
            entry("moved", 5, 1, folder(false, Some("old"))),
        ];
        assert_eq!(
            shown(&[], &first),
            [
                "d Folder",
                "d Empty",
                "d/f File { staged: \"/s/0\" }",
                "gone Remove",
                "link Link { target: \"d\" }",
                "moved Folder",
                "moved Moved { from: \"old\" }"
            ]
        );
        let mut second = first.clone();
        second[1].kind = file(None);
        // A folder changes its time with what is in it, which is no change of its own.
        second[0].changed_ns = 9;
        assert_eq!(shown(&first, &second), [""; 0]);
    }

    #[test]
    fn what_was_made_and_removed_again_is_removed_deepest_first() {
        let before = [entry("d", 1, 1, folder(false, None)), entry("d/f", 2, 1, file(None))];
        assert_eq!(shown(&before, &[]), ["d/f Remove", "d Remove"]);
        let whiteout = [entry("d", 9, 1, VolumeEntryKind::Removed)];
        assert_eq!(shown(&before, &whiteout), ["d/f Remove", "d Remove"]);
        assert_eq!(shown(&whiteout, &whiteout), [""; 0]);
    }
}
