//! Unpacks a tar stream onto a tree, as the root of a user namespace.
//!
//! The tree is an overlay of what lies below with the new layer on top (or, for a first layer, the layer
//! itself), so a whiteout is simply a removal and the kernel writes its own marks for it. Entries are resolved
//! as if the tree were `/`: a symbolic link in it leads where it would lead in the container, never out.

use crate::step::{Step, StepError, invalid};
use crate::tree;
use crate::wire::UnpackStats;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CString;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tar::{Archive, Entry, EntryType};

/// Bytes read from the archive at a time.
const BUFFER: usize = 256 * 1024;
/// Warnings kept.
const WARNINGS_MAX: usize = 20;
/// The size of a sparse file at most: going through its holes takes time, if no room.
const SPARSE_MAX: u64 = 1 << 40;
/// Bytes of a sparse file that are looked at together; what is all zeros becomes a hole.
const SPARSE_BLOCK: usize = 64 * 1024;
/// Marks of a layer for what is not to be seen of the layers below.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";
/// Extended attributes are carried by these records.
const XATTR_RECORD: &str = "SCHILY.xattr.";

/// The step of an unpacking that fails where the archive is no archive.
pub const READING: &str = "reading the archive";
/// How the step begins that fails where an entry cannot be made as it is, before its name.
pub const MAKING: &str = "unpacking ";

type Source = BufReader<std::fs::File>;

/// Unpacks `archive` onto `tree`.
pub(crate) fn unpack(tree: OwnedFd, archive: OwnedFd) -> Result<UnpackStats, StepError> {
    let mut unpacker =
        Unpacker { root: tree, made: HashSet::new(), folders: Vec::new(), stats: UnpackStats::default() };
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, std::fs::File::from(archive)));
    // SAFETY: a plain system call.
    unsafe { libc::umask(0) };
    for entry in archive.entries().step(READING)? {
        let mut entry = entry.step(READING)?;
        let path = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&path).into_owned();
        unpacker.entry(&path, &mut entry).step(format!("{MAKING}'{shown}'"))?;
    }
    // Whoever writes the archive may pad it; reading on spares them a broken pipe.
    io::copy(&mut archive.into_inner(), &mut io::sink()).step("reading the archive's end")?;
    unpacker.finish().step("setting the times of directories")?;
    Ok(unpacker.stats)
}

struct Unpacker {
    root: OwnedFd,
    /// Paths that this archive made, which its own opaque marks spare.
    made: HashSet<Vec<u8>>,
    /// Directories with the time they get at the end.
    folders: Vec<(Vec<u8>, i64)>,
    stats: UnpackStats,
}

/// Where an entry goes.
struct Place {
    parent: OwnedFd,
    name: CString,
}

impl Place {
    fn at(&self) -> (BorrowedFd<'_>, &CString) {
        (self.parent.as_fd(), &self.name)
    }
}

impl Unpacker {
    fn entry(&mut self, path: &[u8], entry: &mut Entry<'_, Source>) -> io::Result<()> {
        let parts = tree::components(path)?;
        let Some((name, parents)) = parts.split_last() else { return self.root_itself(entry) };
        let joined = parts.join(&b'/');
        if name.starts_with(WHITEOUT) {
            return self.whiteout(parents, name);
        }
        let parent = tree::make_dirs(self.root.as_fd(), &parents.join(&b'/'))?;
        let place = Place { parent, name: CString::new(*name)? };
        let kind = entry.header().entry_type();
        let written = match kind {
            EntryType::Directory => self.folder(&place, &joined, entry)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(&place, entry)?,
            EntryType::Symlink => symlink(&place, entry)?,
            EntryType::Link => self.hard_link(&place, entry)?,
            EntryType::Fifo => fifo(&place, entry)?,
            EntryType::XGlobalHeader => return Ok(()),
            other => {
                let what = match other {
                    EntryType::Char | EntryType::Block => "a device node, which no container may have",
                    _ => "of a kind that is not known",
                };
                self.warn(format!("'{}' was left out: {what}", String::from_utf8_lossy(path)));
                return Ok(());
            }
        };
        self.stats.bytes += written;
        self.stats.entries += 1;
        self.made.insert(joined);
        Ok(())
    }

    fn warn(&mut self, text: String) {
        if self.stats.warnings.len() < WARNINGS_MAX {
            self.stats.warnings.push(text);
        }
    }

    fn root_itself(&mut self, entry: &mut Entry<'_, Source>) -> io::Result<()> {
        let header = entry.header();
        if header.entry_type() != EntryType::Directory {
            return Ok(());
        }
        let (uid, gid, mode) = owner_and_mode(header)?;
        let root = tree::open_in(self.root.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::fchown(&root, Some(uid), Some(gid))?;
        Ok(rustix::fs::fchmod(&root, mode)?)
    }

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> io::Result<()> {
        let folder = parents.join(&b'/');
        let parent = match tree::open_in(self.root.as_fd(), &folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(parent) => parent,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
            Err(error) => return Err(error),
        };
        if name == OPAQUE {
            return self.clear_below(parent.as_fd(), &folder);
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(invalid("a whiteout of nothing"));
        }
        tree::remove(parent.as_fd(), &CString::new(hidden)?)
    }

    /// An opaque directory: removes what came from below and leaves what this archive put there.
    fn clear_below(&self, top: BorrowedFd<'_>, folder: &[u8]) -> io::Result<()> {
        let top = tree::open_in(top, b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut waiting = vec![(top, folder.to_vec())];
        while let Some((at, path)) = waiting.pop() {
            for (name, kind) in tree::names(at.as_fd())? {
                let full = if path.is_empty() {
                    name.to_bytes().to_vec()
                } else {
                    [&path, b"/".as_slice(), name.to_bytes()].concat()
                };
                if !self.made.contains(&full) {
                    tree::remove(at.as_fd(), &name)?;
                } else if kind == FileType::Directory {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    waiting.push((rustix::fs::openat(&at, &*name, flags, Mode::empty())?, full));
                }
            }
        }
        Ok(())
    }

    fn folder(&mut self, place: &Place, path: &[u8], entry: &mut Entry<'_, Source>) -> io::Result<u64> {
        let (at, name) = place.at();
        let (uid, gid, mode) = owner_and_mode(entry.header())?;
        let found = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_folder = found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if !is_folder {
            tree::remove(at, name)?;
            rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(at, name, flags, Mode::empty())?;
        rustix::fs::fchown(&folder, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&folder, mode)?;
        self.xattrs(folder.as_fd(), entry)?;
        self.folders.push((path.to_vec(), mtime(entry)));
        Ok(0)
    }

    fn file(&mut self, place: &Place, entry: &mut Entry<'_, Source>) -> io::Result<u64> {
        let (at, name) = place.at();
        let (uid, gid, mode) = owner_and_mode(entry.header())?;
        tree::remove(at, name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        let sparse = entry.header().entry_type() == EntryType::GNUSparse;
        let written = if sparse { copy_sparse(entry, &mut file)? } else { io::copy(entry, &mut file)? };
        if written != entry.size() {
            return Err(invalid("the archive ends in the middle of a file"));
        }
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&file, mode)?;
        self.xattrs(file.as_fd(), entry)?;
        rustix::fs::futimens(&file, &times(mtime(entry)))?;
        Ok(written)
    }

    fn hard_link(&mut self, place: &Place, entry: &Entry<'_, Source>) -> io::Result<u64> {
        let target = entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?;
        let parts = tree::components(&target)?;
        let Some((source_name, parents)) = parts.split_last() else {
            return Err(invalid("a link to the root"));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let source = tree::open_in(self.root.as_fd(), &parents.join(&b'/'), flags)?;
        let (at, name) = place.at();
        let same = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let wanted = rustix::fs::statat(&source, *source_name, AtFlags::SYMLINK_NOFOLLOW)?;
        if rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| same(found) == same(wanted))
        {
            return Ok(0);
        }
        tree::remove(at, name)?;
        rustix::fs::linkat(&source, *source_name, at, name, AtFlags::empty())?;
        Ok(0)
    }

    /// User attributes are kept. File capabilities have no effect here, since no program may gain privileges,
    /// and other attributes can't be set in a user namespace.
    fn xattrs(&mut self, file: BorrowedFd<'_>, entry: &mut Entry<'_, Source>) -> io::Result<()> {
        let Some(records) = entry.pax_extensions()? else { return Ok(()) };
        for record in records {
            let record = record?;
            let Ok(key) = record.key() else { continue };
            let Some(name) = key.strip_prefix(XATTR_RECORD) else { continue };
            if !name.starts_with("user.") {
                continue;
            }
            match rustix::fs::fsetxattr(file, name, record.value_bytes(), XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOTSUP | Errno::PERM | Errno::NOSPC) => {
                    let text = format!("the attribute {name} could not be kept");
                    if self.stats.warnings.len() < WARNINGS_MAX {
                        self.stats.warnings.push(text);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Directories get their times last, since making what is in them changes them.
    fn finish(&mut self) -> io::Result<()> {
        for (path, mtime) in std::mem::take(&mut self.folders).into_iter().rev() {
            match tree::open_in(
                self.root.as_fd(),
                &path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            ) {
                Ok(folder) => rustix::fs::futimens(&folder, &times(mtime))?,
                // Replaced or removed by a later entry.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Copies a file with holes, without filling them.
fn copy_sparse(entry: &mut Entry<'_, Source>, file: &mut std::fs::File) -> io::Result<u64> {
    use std::io::{Read, Seek, Write};
    let size = entry.size();
    if size > SPARSE_MAX {
        return Err(invalid(format!("a file with holes of {size} bytes; at most {SPARSE_MAX} are unpacked")));
    }
    let mut block = vec![0u8; SPARSE_BLOCK];
    let mut written = 0;
    loop {
        let n = entry.read(&mut block)?;
        if n == 0 {
            file.set_len(written)?;
            return Ok(written);
        }
        written += n as u64;
        if block[..n].iter().any(|byte| *byte != 0) {
            file.write_all(&block[..n])?;
        } else {
            file.seek_relative(n as i64)?;
        }
    }
}

fn symlink(place: &Place, entry: &Entry<'_, Source>) -> io::Result<u64> {
    let target = entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?;
    let (at, name) = place.at();
    let (uid, gid, _) = owner_and_mode(entry.header())?;
    tree::remove(at, name)?;
    rustix::fs::symlinkat(&*target, at, name)?;
    rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(at, name, &times(mtime(entry)), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(0)
}

fn fifo(place: &Place, entry: &Entry<'_, Source>) -> io::Result<u64> {
    let (at, name) = place.at();
    let (uid, gid, mode) = owner_and_mode(entry.header())?;
    tree::remove(at, name)?;
    rustix::fs::mknodat(at, name, FileType::Fifo, mode, 0)?;
    rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(0)
}

fn owner_and_mode(header: &tar::Header) -> io::Result<(Uid, Gid, Mode)> {
    let id = |raw: u64| u32::try_from(raw).map_err(|_| invalid("an owner beyond 32 bits"));
    let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
    Ok((Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?), mode))
}

fn mtime(entry: &Entry<'_, Source>) -> i64 {
    entry.header().mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0)
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;
    use tar::{Builder, Header};

    struct Tar(Builder<Vec<u8>>);

    impl Tar {
        fn new() -> Self {
            Self(Builder::new(Vec::new()))
        }

        fn add(mut self, path: &str, kind: EntryType, link: &str, content: &str) -> Self {
            let mut header = Header::new_gnu();
            let mut raw = [0u8; 100];
            raw[..path.len()].copy_from_slice(path.as_bytes());
            header.as_old_mut().name = raw;
            header.set_entry_type(kind);
            header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
            header.set_uid(u64::from(rustix::process::getuid().as_raw()));
            header.set_gid(u64::from(rustix::process::getgid().as_raw()));
            header.set_mtime(1_000_000);
            header.set_size(content.len() as u64);
            if !link.is_empty() {
                header.set_link_name_literal(link).unwrap();
            }
            header.set_cksum();
            self.0.append(&header, content.as_bytes()).unwrap();
            self
        }

        fn unpack(self, root: &Path) -> Result<UnpackStats, StepError> {
            let file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut &file, &self.0.into_inner().unwrap()).unwrap();
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            unpack(rustix::fs::open(root, flags, Mode::empty()).unwrap(), file.into())
        }
    }

    #[test]
    fn files_links_and_whiteouts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("opaque/sub")).unwrap();
        std::fs::write(root.join("opaque/old"), "x").unwrap();
        std::fs::write(root.join("gone"), "x").unwrap();
        let stats = Tar::new()
            .add("./", EntryType::Directory, "", "")
            .add("d/", EntryType::Directory, "", "")
            .add("d/f", EntryType::Regular, "", "hello")
            .add("d/s", EntryType::Symlink, "/etc/passwd", "")
            .add("d/h", EntryType::Link, "d/f", "")
            .add("d/h", EntryType::Link, "d/f", "")
            .add("dev", EntryType::Char, "", "")
            .add("opaque/new", EntryType::Regular, "", "n")
            .add("opaque/.wh..wh..opq", EntryType::Regular, "", "")
            .add(".wh.gone", EntryType::Regular, "", "")
            .add(".wh.never", EntryType::Regular, "", "")
            .unpack(&root)
            .unwrap();
        assert_eq!(std::fs::read(root.join("d/h")).unwrap(), b"hello");
        let meta = std::fs::metadata(root.join("d/f")).unwrap();
        assert_eq!((meta.nlink(), meta.mode() & 0o777, meta.mtime()), (2, 0o640, 1_000_000));
        assert_eq!(std::fs::metadata(root.join("d")).unwrap().mtime(), 1_000_000);
        assert_eq!(std::fs::read_link(root.join("d/s")).unwrap(), Path::new("/etc/passwd"));
        assert!(!root.join("gone").exists() && !root.join("opaque/old").exists());
        assert!(!root.join("opaque/sub").exists() && root.join("opaque/new").exists());
        assert!(!root.join("dev").exists());
        assert_eq!((stats.entries, stats.bytes), (6, 6));
        assert_eq!(stats.warnings, ["'dev' was left out: a device node, which no container may have"]);
    }

    #[test]
    fn files_with_holes_keep_them() {
        let folder = tempfile::tempdir().unwrap();
        let (from, root) = (folder.path().join("from"), folder.path().join("root"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&root).unwrap();
        let file = std::fs::File::create(from.join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 500 << 20).unwrap();
        let archive = folder.path().join("sparse.tar");
        let mut command = std::process::Command::new("tar");
        command.args(["--sparse", "--format=gnu", "-C"]).arg(&from).arg("-cf").arg(&archive).arg("sparse");
        assert!(command.status().unwrap().success());
        let open = std::fs::File::open(&archive).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let stats = unpack(rustix::fs::open(&root, flags, Mode::empty()).unwrap(), open.into()).unwrap();
        let about = std::fs::metadata(root.join("sparse")).unwrap();
        assert_eq!((stats.bytes, about.len()), (1 << 30, 1 << 30));
        assert!(about.blocks() * 512 < 10 << 20, "{} blocks", about.blocks());
        let mut middle = [0; 6];
        let file = std::fs::File::open(root.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut middle, 500 << 20).unwrap();
        assert_eq!(&middle, b"middle");
    }

    #[test]
    fn nothing_is_written_outside() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let outside = folder.path().join("outside");
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "s").unwrap();
        symlink(&outside, root.join("pre")).unwrap();
        for tar in [
            Tar::new().add("../escaped", EntryType::Regular, "", "x"),
            Tar::new().add("a/../../escaped", EntryType::Regular, "", "x"),
            Tar::new().add("l", EntryType::Symlink, "../outside", "").add(
                "l/escaped",
                EntryType::Regular,
                "",
                "x",
            ),
            Tar::new().add("pre/escaped", EntryType::Regular, "", "x"),
            Tar::new().add("h", EntryType::Link, "../outside/secret", ""),
            Tar::new().add("h", EntryType::Link, "pre/secret", ""),
            Tar::new().add(".wh...", EntryType::Regular, "", ""),
        ] {
            assert!(tar.unpack(&root).is_err());
        }
        Tar::new().add("pre/.wh.secret", EntryType::Regular, "", "").unpack(&root).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        assert!(!folder.path().join("escaped").exists());
        Tar::new().add("pre", EntryType::Regular, "", "now a file").unpack(&root).unwrap();
        assert!(root.join("pre").symlink_metadata().unwrap().is_file());
    }
}
