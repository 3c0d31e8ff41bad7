//! Folders that builds keep for later ones: caches of `RUN --mount=type=cache`, standalone Pythons. Each says by its
//! time when it was last used; what was not for long goes while nothing is built.

use crate::collect::modified;
use crate::error::{ImageError, Result};
use crate::uses::LayerUses;
use evoke_core::UnixMs;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// How the names of folders begin that are being removed. What a killed server left so, the next round removes.
const GONE: &str = ".gone-";
/// The permissions with which the owner may remove what is in a folder.
const REMOVABLE: u32 = 0o700;

/// Notes that a folder is used now.
pub(crate) fn touch(folder: &Path) -> Result<()> {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_modification = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access, last_modification };
    rustix::fs::utimensat(CWD, folder, &times, AtFlags::empty())
        .map_err(|e| ImageError::io("set the time of", folder, &e.into()))
}

/// Removes the folders in `home` that were not used since `before`; how many there were, and their bytes.
pub(crate) fn remove_unused(
    home: &Path,
    before: UnixMs,
    dry_run: bool,
    uses: &LayerUses,
) -> Result<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    let entries = match std::fs::read_dir(home) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(e) => return Err(ImageError::io("list", home, &e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| ImageError::io("list", home, &e))?;
        let (path, Ok(about)) = (entry.path(), entry.metadata()) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let left = name.starts_with(GONE);
        if !about.is_dir() || (name.starts_with('.') && !left) || (!left && modified(&about) >= before) {
            continue;
        }
        let failed = |e: &io::Error| ImageError::io("remove", &path, e);
        let size = size_of(&path).map_err(|e| failed(&e))?;
        if !dry_run {
            let gone = if left { path.clone() } else { home.join(format!("{GONE}{name}")) };
            // A build that begins afterwards makes a new one.
            match uses.while_idle(|| if left { Ok(()) } else { std::fs::rename(&path, &gone) }) {
                None => return Ok((count, bytes)),
                Some(renamed) => renamed.map_err(|e| failed(&e))?,
            }
            make_removable(&gone).and_then(|()| std::fs::remove_dir_all(&gone)).map_err(|e| failed(&e))?;
        }
        (count, bytes) = (count + 1, bytes + size);
    }
    Ok((count, bytes))
}

/// Bytes of the files below a folder. What cannot be looked into is not counted.
fn size_of(folder: &Path) -> io::Result<u64> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(0),
        other => other?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() { size_of(&entry.path())? } else { about.len() };
    }
    Ok(bytes)
}

/// Programs may leave folders that their owner cannot write to, as Go does with its modules.
fn make_removable(folder: &Path) -> io::Result<()> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(REMOVABLE))?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_removable(&entry.path())?;
        }
    }
    Ok(())
}
