//! Working inside a directory tree that somebody else wrote: every path is resolved beneath the tree's root,
//! so that no symbolic link in it leads out, and nothing here recurses as deep as the tree is.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Directories held open at once while a tree is walked; deeper ones are first moved to the top.
const DEPTH_MAX: usize = 64;
/// Components of a path at most.
const COMPONENTS_MAX: usize = 512;

/// The components of a path that is meant relative to a root: no `..`, no empty ones, no `.`.
pub fn components(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts: Vec<_> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.len() > COMPONENTS_MAX || parts.contains(&b"..".as_slice()) || path.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path with '..' or too many components"));
    }
    Ok(parts)
}

/// Opens `path` as if `root` were `/`: symbolic links and `..` in the tree never lead out of it.
pub fn open_in(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel asks to try again when the tree was renamed under it.
            Err(Errno::AGAIN | Errno::INTR) => continue,
            other => return Ok(other?),
        }
    }
}

/// Opens the directory `path` beneath `root`, making what is missing with mode 0755.
pub fn make_dirs(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let parts = components(path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_in(root, &parts.join(&b'/'), flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut at = open_in(root, b"", flags)?;
    for count in 1..=parts.len() {
        let next = open_in(root, &parts[..count].join(&b'/'), flags);
        at = match next {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = parts[count - 1];
                rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                rustix::fs::openat(&at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// The names in a directory.
pub fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<(CString, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn open_dir(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Removes `name` in the directory `at`, whatever it is and however deep; absent is fine. Symbolic links are
/// removed, never followed. Works on trees that are deeper than a process may have files open.
pub fn remove(at: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = match open_dir(at, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    clear(top.as_fd())?;
    match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Empties the directory `top`.
pub fn clear(top: BorrowedFd<'_>) -> io::Result<()> {
    let mut moved = 0u64;
    loop {
        let waiting: VecDeque<_> = names(top)?.into();
        if waiting.is_empty() {
            return Ok(());
        }
        for (name, _) in waiting {
            remove_bounded(top, top, &name, 1, &mut moved)?;
        }
    }
}

fn remove_bounded(
    top: BorrowedFd<'_>,
    at: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
    moved: &mut u64,
) -> io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    if depth >= DEPTH_MAX {
        return move_to_top(top, at, name, moved);
    }
    let inner = match open_dir(at, name) {
        Ok(inner) => inner,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for (child, _) in names(inner.as_fd())? {
        remove_bounded(top, inner.as_fd(), &child, depth + 1, moved)?;
    }
    match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Moves a directory that lies too deep to the top of the tree, where the next round of [`clear`] finds it.
fn move_to_top(top: BorrowedFd<'_>, at: BorrowedFd<'_>, name: &CStr, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let target = format!(".evoke-deep-{moved}");
        match rustix::fs::renameat_with(at, name, top, &*target, rustix::fs::RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Counts the entries of a tree and the bytes of its regular files (a file with several names once per name).
pub fn measure(top: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut entries = 0;
    let mut bytes = 0;
    let mut stack = vec![names(top)?.into_iter().map(|(name, _)| name).collect::<Vec<_>>()];
    let mut open: Vec<OwnedFd> = vec![open_dir(top, c".")?];
    while let (Some(list), Some(at)) = (stack.last_mut(), open.last()) {
        let Some(name) = list.pop() else {
            stack.pop();
            open.pop();
            continue;
        };
        let stat = rustix::fs::statat(at, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        entries += 1;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => bytes += u64::try_from(stat.st_size).unwrap_or(0),
            // Below the bound only the count of what is there suffers.
            FileType::Directory if open.len() < DEPTH_MAX * 4 => {
                let inner = open_dir(at.as_fd(), &name)?;
                stack.push(names(inner.as_fd())?.into_iter().map(|(name, _)| name).collect());
                open.push(inner);
            }
            _ => {}
        }
    }
    Ok((entries, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn paths_with_dot_dot_are_refused() {
        assert_eq!(components(b"/a/./b//c").unwrap(), [b"a", b"b", b"c"]);
        assert!(components(b"a/../b").is_err());
        assert!(components(b"a\0b").is_err());
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let root = folder.path().join("root");
        std::fs::create_dir(&outside).unwrap();
        std::fs::create_dir_all(root.join("real")).unwrap();
        symlink("../outside", root.join("up")).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("/real", root.join("inside")).unwrap();
        let fd = open(&root);
        make_dirs(fd.as_fd(), b"inside/made").unwrap();
        assert!(root.join("real/made").is_dir());
        assert!(make_dirs(fd.as_fd(), b"absolute/x").is_err());
        assert!(make_dirs(fd.as_fd(), b"up/x").is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn removes_very_deep_trees_and_leaves_what_links_point_to() {
        let folder = tempfile::tempdir().unwrap();
        let keep = folder.path().join("keep");
        std::fs::write(&keep, "x").unwrap();
        std::fs::create_dir(folder.path().join("t")).unwrap();
        symlink(&keep, folder.path().join("t/link")).unwrap();
        let mut at = open(&folder.path().join("t"));
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        let fd = open(folder.path());
        assert!(measure(fd.as_fd()).unwrap().0 > 250);
        remove(fd.as_fd(), c"t").unwrap();
        remove(fd.as_fd(), c"t").unwrap();
        assert!(!folder.path().join("t").exists());
        assert!(keep.exists());
    }
}
