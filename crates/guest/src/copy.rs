//! Copies files inside a container as `COPY` of a Dockerfile does. Runs as the container's root after every
//! privilege was given up, so it can do no more than a `cp` in the container could.

use crate::step::invalid;
use crate::tree;
use crate::users;
use crate::wire::Copy;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Nesting of directories at most.
const DEPTH_MAX: usize = 256;

/// Copies and returns the exit code; complaints go to standard error.
pub(crate) fn run(job: &Copy) -> i32 {
    match copy_all(job) {
        Ok(()) => 0,
        Err(error) => {
            // Standard error may be closed; the exit code remains.
            let _ = writeln!(io::stderr(), "COPY: {error}");
            1
        }
    }
}

struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Option<u32>,
}

fn copy_all(job: &Copy) -> io::Result<()> {
    let owner = users::resolve(&job.owner)?;
    let attributes =
        Attributes { uid: Uid::from_raw(owner.uid), gid: Gid::from_raw(owner.gid), mode: job.mode };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::open(&*job.from, flags, Mode::empty())?;
    let into_folder =
        job.destination.ends_with('/') || job.destination.ends_with("/.") || job.sources.len() > 1;
    for source in &job.sources {
        copy_one(from.as_fd(), source, &job.destination, into_folder, &attributes).map_err(|error| {
            io::Error::new(error.kind(), format!("'{source}' to '{}': {error}", job.destination))
        })?;
    }
    Ok(())
}

fn copy_one(
    from: BorrowedFd<'_>,
    source: &str,
    destination: &str,
    into_folder: bool,
    attributes: &Attributes,
) -> io::Result<()> {
    let found = tree::open_in(from, source.trim_start_matches('/').as_bytes(), OFlags::PATH)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    if kind == FileType::Directory {
        let target = make_folders(destination, attributes)?;
        let source = tree::open_in(found.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
        return copy_children(source.as_fd(), target.as_fd(), attributes, 0);
    }
    let is_folder = std::fs::metadata(destination).is_ok_and(|found| found.is_dir());
    let parts = tree::components(source.as_bytes())?;
    let Some((source_name, source_parents)) = parts.split_last() else {
        return Err(invalid("nothing to copy"));
    };
    let source_parent = tree::open_in(from, &source_parents.join(&b'/'), OFlags::RDONLY | OFlags::DIRECTORY)?;
    let source_name = CString::new(*source_name)?;
    let (folder, name) = if into_folder || is_folder {
        (destination.to_owned(), source_name.clone())
    } else {
        let (folder, name) = destination.rsplit_once('/').unwrap_or((".", destination));
        (if folder.is_empty() { "/".to_owned() } else { folder.to_owned() }, CString::new(name)?)
    };
    let target = make_folders(&folder, attributes)?;
    copy_file(source_parent.as_fd(), &source_name, target.as_fd(), &name, attributes)
}

/// Opens a directory, making what is missing with the owner that everything copied gets.
fn make_folders(path: &str, attributes: &Attributes) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at =
        rustix::fs::openat(CWD, if path.starts_with('/') { "/" } else { "." }, flags, Mode::empty())?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        at = match rustix::fs::openat(&at, part, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                rustix::fs::chownat(
                    &at,
                    part,
                    Some(attributes.uid),
                    Some(attributes.gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
                rustix::fs::openat(&at, part, flags | OFlags::NOFOLLOW, Mode::empty())?
            }
            other => other?,
        };
    }
    Ok(at)
}

fn copy_children(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attributes: &Attributes,
    depth: usize,
) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(invalid(format!("directories are nested deeper than {DEPTH_MAX}")));
    }
    for (name, _) in tree::names(source)? {
        let stat = rustix::fs::statat(source, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            copy_file(source, &name, target, &name, attributes)?;
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::mkdirat(target, &*name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // An existing link to a directory is followed, as Docker does: the copy lands where the link points.
        let inner_target = rustix::fs::openat(target, &*name, flags, Mode::empty())?;
        let inner_source = rustix::fs::openat(source, &*name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        copy_children(inner_source.as_fd(), inner_target.as_fd(), attributes, depth + 1)?;
        rustix::fs::fchown(&inner_target, Some(attributes.uid), Some(attributes.gid))?;
        rustix::fs::fchmod(&inner_target, mode_of(&stat, attributes))?;
    }
    Ok(())
}

fn mode_of(stat: &rustix::fs::Stat, attributes: &Attributes) -> Mode {
    Mode::from_raw_mode(attributes.mode.unwrap_or(stat.st_mode) & 0o7777)
}

fn copy_file(
    source: BorrowedFd<'_>,
    source_name: &CStr,
    target: BorrowedFd<'_>,
    name: &CStr,
    attributes: &Attributes,
) -> io::Result<()> {
    let stat = rustix::fs::statat(source, source_name, AtFlags::SYMLINK_NOFOLLOW)?;
    match rustix::fs::unlinkat(target, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let owner = (Some(attributes.uid), Some(attributes.gid));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(source, source_name, Vec::new())?;
            rustix::fs::symlinkat(&*link, target, name)?;
            rustix::fs::chownat(target, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        FileType::RegularFile => {
            let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let write = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from = rustix::fs::openat(source, source_name, read, Mode::empty())?;
            let to = rustix::fs::openat(target, name, write, Mode::from_raw_mode(0o600))?;
            let mut to = std::fs::File::from(to);
            io::copy(&mut std::fs::File::from(from), &mut to)?;
            rustix::fs::fchown(&to, owner.0, owner.1)?;
            rustix::fs::fchmod(&to, mode_of(&stat, attributes))?;
            let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
            rustix::fs::futimens(&to, &Timestamps { last_access: time, last_modification: time })?;
        }
        other => return Err(invalid(format!("{other:?} cannot be copied"))),
    }
    Ok(())
}
