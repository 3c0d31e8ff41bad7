//! Volumes of containers: an overlay of the trees that a server names and, above them, a place for what the
//! container writes, `containers/<id>/volumes/<volume>.<slot>/`. Like the rest of a container's folder the place
//! is root's and holds ids as the container sees them; what a volume keeps of it is copied out for the server.

use super::folders::{new_folder, own_folder};
use super::ids::Range;
use super::jobs::{Asker, Outcome};
use super::request::Reply;
use super::sys::{self, Step};
use super::{Helper, rootfs, validate};
use crate::{Collected, RuntimeError, Volume, VolumeEntry, VolumeEntryKind};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use std::collections::HashMap;
use std::ffi::CString;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The folder of places in a container's folder.
const PLACES: &str = "volumes";
/// Directories inside each other that are looked into.
const DEPTH_MAX: usize = 400;
/// Paths that are told of what a volume cannot hold.
const SKIPPED_MAX: usize = 16;

fn place_name(volume: &str, slot: u32) -> String {
    format!("{volume}.{slot}")
}

impl Helper {
    /// The mount of a volume for a container that has these ids.
    pub(super) fn volume_mount(
        &mut self,
        folder: BorrowedFd<'_>,
        range: Range,
        user: BorrowedFd<'_>,
        volume: &Volume,
    ) -> Result<OwnedFd, RuntimeError> {
        let places = own_folder(folder, PLACES, 0o700).step("making the folder of volumes")?;
        let name = place_name(&volume.id, volume.slot);
        let place = new_folder(places.as_fd(), &name, 0o700).step("making a volume's place")?;
        new_folder(place.as_fd(), "upper", 0o755).step("making a volume's upper folder")?;
        new_folder(place.as_fd(), "work", 0o700).step("making a volume's work folder")?;
        let mut trees = Vec::with_capacity(volume.trees.len());
        for tree in &volume.trees {
            let fd = self.folders.open_tree(&tree.path, tree.owner, true)?;
            let idmap = self.idmap(range, tree.owner, user)?;
            trees.push(rootfs::mapped_clone(fd.as_fd(), idmap, true)?);
        }
        let upper = rootfs::mapped_clone(place.as_fd(), user, false)?;
        let mut mount = self.stage.overlay(&trees, &upper, range.base())?;
        if !volume.sub_path.is_empty() {
            mount = self.stage.below(&mount, &volume.sub_path, range.base())?;
        }
        if volume.read_only {
            sys::set_attributes(mount.as_fd(), rustix::mount::MountAttrFlags::MOUNT_ATTR_RDONLY, None)
                .step("making a volume read-only")?;
        }
        Ok(mount)
    }

    /// One more state of a volume for a container that lives.
    pub(super) fn mount_volume(&mut self, id: &str, volume: &Volume) -> Result<OwnedFd, RuntimeError> {
        validate::id(id)?;
        validate::volume(volume)?;
        let gone = || RuntimeError::NotFound(format!("living container {id}"));
        let container = self.containers.get(id).filter(|c| c.ending.is_none()).ok_or_else(gone)?;
        let range = container.range.ok_or_else(gone)?;
        let pid = container.process.as_ref().filter(|process| !process.ended).ok_or_else(gone)?.pid;
        let user = sys::open(&format!("/proc/{pid}/ns/user"), OFlags::RDONLY).map_err(|_| gone())?;
        let folder = self.container_folder(id)?;
        self.volume_mount(folder.as_fd(), range, user.as_fd(), volume)
    }

    fn container_folder(&self, id: &str) -> Result<OwnedFd, RuntimeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.folders.containers, id, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => Err(RuntimeError::NotFound(format!("container {id}"))),
            opened => opened.step("opening the container's folder"),
        }
    }

    fn places(&self, id: &str) -> Result<OwnedFd, RuntimeError> {
        validate::id(id)?;
        let folder = self.container_folder(id)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&folder, PLACES, flags, Mode::empty()).step("opening the folder of volumes")
    }

    /// Lists what a container wrote to a volume, in a job.
    pub(super) fn begin_collect(
        &mut self,
        asker: Asker,
        (id, volume, slot): (&str, &str, u32),
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), RuntimeError> {
        validate::volume_id(volume)?;
        if fds.len() != 3 {
            return Err(RuntimeError::Refused("collecting needs three descriptors".to_owned()));
        }
        let name = format!("{}/upper", place_name(volume, slot));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let upper = rustix::fs::openat(self.places(id)?, name, flags, Mode::empty());
        fds.push(upper.step("opening what was written to a volume")?);
        let owner = self.folders.service();
        self.jobs.push(asker, fds, move |fds| collect(fds, owner).map(Reply::Collected))
    }

    /// Removes a place of a volume.
    pub(super) fn begin_drop(&mut self, id: &str, volume: &str, slot: u32) -> Outcome {
        validate::volume_id(volume)?;
        let places = match self.places(id) {
            Err(RuntimeError::NotFound(_)) => return Ok(Reply::Done),
            places => places?,
        };
        let discarded = self.folders.discard(places.as_fd(), &place_name(volume, slot));
        if let Some(name) = discarded.step("discarding a volume's place")? {
            self.empty_trash(name);
        }
        Ok(Reply::Done)
    }
}

/// Takes the traces of mounted volumes out of what a container wrote, before that becomes a layer.
pub(super) fn remove_links(upper: BorrowedFd<'_>, links: &[String]) {
    let volumes = evoke_guest::VOLUMES_FOLDER.trim_start_matches('/');
    for link in links {
        let (parents, name) = link.rsplit_once('/').unwrap_or(("", link));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let Ok(parent) = evoke_guest::tree::open_in(upper, parents.as_bytes(), flags) else { continue };
        let target = rustix::fs::readlinkat(&parent, name, Vec::new());
        if target.is_ok_and(|target| target.to_bytes().starts_with(evoke_guest::VOLUMES_FOLDER.as_bytes())) {
            // One that stays leads nowhere, which a later start with a volume there mends.
            let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
        }
    }
    let Some((outer, inner)) = volumes.split_once('/') else { return };
    if links.is_empty() {
        return;
    }
    if let Ok(outer) = evoke_guest::tree::open_in(upper, outer.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)
    {
        let _ = CString::new(inner).map(|inner| evoke_guest::tree::remove(outer.as_fd(), &inner));
    }
}

/// A walk over what was written.
struct Walk<'a> {
    known: HashMap<String, VolumeEntry>,
    listing: BufWriter<std::fs::File>,
    staging: BorrowedFd<'a>,
    owner: (u32, u32),
    staged: u64,
    collected: Collected,
}

fn collect(fds: &[OwnedFd], owner: (u32, u32)) -> Result<Collected, RuntimeError> {
    const WHAT: &str = "collecting what was written to a volume";
    let [known, listing, staging, upper] = fds else {
        return Err(RuntimeError::Refused("a job without its descriptors".to_owned()));
    };
    let file = |fd: &OwnedFd| fd.try_clone().map(std::fs::File::from).step(WHAT);
    let mut walk = Walk {
        known: read_known(file(known)?).step("reading what is known of a volume")?,
        listing: BufWriter::new(file(listing)?),
        staging: staging.as_fd(),
        owner,
        staged: 0,
        collected: Collected::default(),
    };
    walk.folder(upper.as_fd(), "", Some(""), 0).step(WHAT)?;
    walk.listing.flush().step(WHAT)?;
    Ok(walk.collected)
}

fn read_known(file: std::fs::File) -> io::Result<HashMap<String, VolumeEntry>> {
    let mut known = HashMap::new();
    for line in BufReader::new(file).lines() {
        let entry: VolumeEntry = serde_json::from_str(&line?)?;
        known.insert(entry.path.clone(), entry);
    }
    Ok(known)
}

impl Walk<'_> {
    /// Lists what is in `folder`, whose lower part is that of the path `origin`.
    fn folder(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &str,
        origin: Option<&str>,
        depth: usize,
    ) -> io::Result<()> {
        let mut names = evoke_guest::tree::names(folder)?;
        names.sort_by(|one, other| one.0.cmp(&other.0));
        for (name, _) in names {
            let Some(text) = name.to_str().ok().filter(|_| depth < DEPTH_MAX) else {
                self.skip(format!("{path}/{}", name.to_string_lossy()));
                continue;
            };
            let below = if path.is_empty() { text.to_owned() } else { format!("{path}/{text}") };
            match rustix::fs::statat(folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.entry(folder, &name, below, (origin, text), &stat, depth)?,
                // Removed meanwhile.
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CString,
        path: String,
        (origin, text): (Option<&str>, &str),
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 => self.tell(path, VolumeEntryKind::Removed, stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, &**name, Vec::new())?;
                match target.into_string() {
                    Ok(target) => self.tell(path, VolumeEntryKind::Link { target }, stat),
                    Err(_) => {
                        self.skip(path);
                        Ok(())
                    }
                }
            }
            FileType::RegularFile => match self.file(folder, name, &path, stat) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                told => told,
            },
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = match rustix::fs::openat(folder, &**name, flags, Mode::empty()) {
                    Err(rustix::io::Errno::NOENT) => return Ok(()),
                    opened => opened?,
                };
                let opaque = attribute(inner.as_fd(), "trusted.overlay.opaque")?.is_some();
                let redirect = attribute(inner.as_fd(), "trusted.overlay.redirect")?;
                let lower = origin.filter(|_| !opaque).map(|at| match &redirect {
                    Some(to) if to.starts_with('/') => to.trim_start_matches('/').to_owned(),
                    Some(to) => join(at, to),
                    None => join(at, text),
                });
                let moved = redirect.and_then(|_| lower.clone());
                self.tell(path.clone(), VolumeEntryKind::Folder { opaque, origin: moved }, stat)?;
                self.folder(inner.as_fd(), &path, lower.as_deref(), depth + 1)
            }
            _ => {
                self.skip(path);
                Ok(())
            }
        }
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &CString, path: &str, stat: &Stat) -> io::Result<()> {
        let same = self.known.get(path).is_some_and(|known| {
            matches!(known.kind, VolumeEntryKind::File { size, .. } if size == stat.st_size as u64)
                && known.inode == stat.st_ino
                && known.changed_ns == changed_ns(stat)
        });
        if same {
            let kind = VolumeEntryKind::File { size: stat.st_size as u64, staged: None };
            return self.tell(path.to_owned(), kind, stat);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = rustix::fs::openat(folder, &**name, flags, Mode::empty())?;
        let copy = self.staged;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(self.staging, copy.to_string(), flags, Mode::from_raw_mode(0o600))?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            io::copy(&mut std::fs::File::from(from.try_clone()?), &mut std::fs::File::from(to.try_clone()?))?;
        }
        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        rustix::fs::futimens(&to, &Timestamps { last_access: time, last_modification: time })?;
        rustix::fs::fchown(&to, Some(Uid::from_raw(self.owner.0)), Some(Gid::from_raw(self.owner.1)))?;
        self.staged += 1;
        let mut after = rustix::fs::fstat(&from)?;
        let size = rustix::fs::fstat(&to)?.st_size as u64;
        if changed_ns(&after) != changed_ns(stat) || size != after.st_size as u64 {
            // Written to while it was copied: looked at again the next time.
            after.st_ctime = 0;
            after.st_ctime_nsec = 0;
        }
        self.tell(path.to_owned(), VolumeEntryKind::File { size, staged: Some(copy) }, &after)
    }

    fn tell(&mut self, path: String, kind: VolumeEntryKind, stat: &Stat) -> io::Result<()> {
        let mtime_ms = (stat.st_mtime.max(0) as u64) * 1000 + stat.st_mtime_nsec / 1_000_000;
        let (mode, inode) = (stat.st_mode & 0o7777, stat.st_ino);
        let entry = VolumeEntry { path, kind, mode, mtime_ms, inode, changed_ns: changed_ns(stat) };
        serde_json::to_writer(&mut self.listing, &entry)?;
        self.listing.write_all(b"\n")
    }

    fn skip(&mut self, path: String) {
        if self.collected.skipped.len() < SKIPPED_MAX {
            self.collected.skipped.push(path.escape_debug().to_string());
        }
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn changed_ns(stat: &Stat) -> i64 {
    stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec as i64)
}

/// An attribute of the overlay's own on a directory.
fn attribute(folder: BorrowedFd<'_>, name: &str) -> io::Result<Option<String>> {
    let mut value = vec![0u8; 4096];
    match rustix::fs::fgetxattr(folder, name, &mut value[..]) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&value[..length]).into_owned())),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
