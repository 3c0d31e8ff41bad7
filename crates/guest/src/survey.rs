//! Says what a layer changed of what lies below it: files, and the packages that files stand for. Runs in a
//! container whose root is what lies below, with the layer bound beside it, after every privilege was given
//! up: nothing that an image holds is read by anybody with more rights than the image's own programs have.
//!
//! What a folder hid that was removed and made again in one step cannot be seen from here (the mark on it is
//! the kernel's own), so such files are not counted; packages are found all the same where their list tells.

use crate::tree;
use crate::wire::{LayerFacts, Package, Survey};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Folders held open at once; what lies deeper is not looked at.
const DEPTH_MAX: usize = 256;
/// Bytes of a Python package's description that are read: name and version come first.
const HEAD_MAX: u64 = 64 * 1024;
/// Bytes of a list of Debian packages that are read.
const LIST_MAX: u64 = 64 * 1024 * 1024;
/// Packages of one kind that are told of.
const PACKAGES_MAX: usize = 10_000;
/// Where Debian's list of packages is.
const DPKG_STATUS: &[u8] = b"var/lib/dpkg/status";

/// Looks, prints what it found as JSON, and returns the exit code.
pub(crate) fn run(job: &Survey) -> i32 {
    let found = look(job).and_then(|facts| {
        let text = serde_json::to_vec(&facts)?;
        // This process ends without flushing anything.
        let mut out = io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush())
    });
    match found {
        Ok(()) => 0,
        Err(error) => {
            // Standard error may be closed; the exit code remains.
            let _ = writeln!(io::stderr(), "{error}");
            1
        }
    }
}

fn look(job: &Survey) -> io::Result<LayerFacts> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let layer = rustix::fs::open(&*job.layer, flags, Mode::empty())?;
    let below = rustix::fs::open(&*job.below, flags, Mode::empty())?;
    compare(layer.as_fd(), below.as_fd())
}

fn compare(layer: BorrowedFd<'_>, below: BorrowedFd<'_>) -> io::Result<LayerFacts> {
    let mut facts = LayerFacts::default();
    walk(layer, Some(below), &mut |at, name, stat, under| facts_of(&mut facts, at, name, stat, under))?;
    debian(&mut facts, layer, below);
    Ok(facts)
}

/// What is told of each entry: the folder that it is in, its name, what it is, and the folder below.
type Tell<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &CStr, &Stat, Option<BorrowedFd<'_>>) -> io::Result<()>;

/// Goes through a tree, and through the same folders of what lies below it.
fn walk(top: BorrowedFd<'_>, below: Option<BorrowedFd<'_>>, tell: Tell<'_>) -> io::Result<()> {
    struct Level {
        at: OwnedFd,
        under: Option<OwnedFd>,
        left: Vec<CString>,
    }
    let level = |at: OwnedFd, under: Option<OwnedFd>| -> io::Result<Level> {
        let left = tree::names(at.as_fd())?.into_iter().map(|(name, _)| name).collect();
        Ok(Level { at, under, left })
    };
    let under = below.and_then(|below| folder(below, c"."));
    let mut stack = vec![level(tree::open_in(top, b"", OFlags::RDONLY | OFlags::DIRECTORY)?, under)?];
    while let Some(Level { at, under, left }) = stack.last_mut() {
        let Some(name) = left.pop() else {
            stack.pop();
            continue;
        };
        let stat = rustix::fs::statat(&*at, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        tell(at.as_fd(), &name, &stat, under.as_ref().map(AsFd::as_fd))?;
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let inner = if is_folder { folder(at.as_fd(), &name) } else { None };
        let inner_under = under.as_ref().and_then(|under| folder(under.as_fd(), &name));
        if let Some(inner) = inner.filter(|_| stack.len() < DEPTH_MAX) {
            stack.push(level(inner, inner_under)?);
        }
    }
    Ok(())
}

/// The folder of that name, if there is one.
fn folder(at: BorrowedFd<'_>, name: &CStr) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty()).ok()
}

fn facts_of(
    facts: &mut LayerFacts,
    at: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    under: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let below = under.and_then(|under| {
        let stat = rustix::fs::statat(under, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((under, FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
    });
    let kind = FileType::from_raw_mode(stat.st_mode);
    // A device 0/0 is the mark of what is not to be seen of what lies below.
    let hides = kind == FileType::CharacterDevice && stat.st_rdev == 0;
    if let Some((under, is_folder)) = below.filter(|_| kind != FileType::Directory) {
        keep(&mut facts.python_gone, python(under, name));
        if is_folder {
            if let Some(gone) = folder(under, name) {
                walk(gone.as_fd(), None, &mut |at, name, stat, _| {
                    facts.removed += u64::from(FileType::from_raw_mode(stat.st_mode) != FileType::Directory);
                    keep(&mut facts.python_gone, python(at, name));
                    Ok(())
                })?;
            }
        }
        match (hides, is_folder) {
            (true, false) => facts.removed += 1,
            (false, _) => facts.changed += 1,
            (true, true) => {}
        }
    } else if kind != FileType::Directory && !hides {
        facts.added += 1;
    }
    if hides {
        return Ok(());
    }
    if kind == FileType::RegularFile {
        facts.bytes += u64::try_from(stat.st_size).unwrap_or(0);
    }
    if let Some(found) = python(at, name) {
        if kind == FileType::Directory {
            keep(&mut facts.python_gone, under.and_then(|under| python(under, name)));
        }
        keep(&mut facts.python_found, Some(found));
    }
    Ok(())
}

fn keep(list: &mut Vec<Package>, package: Option<Package>) {
    if let Some(package) = package.filter(|_| list.len() < PACKAGES_MAX) {
        list.push(package);
    }
}

/// The Python distribution that a folder or file of this name stands for.
fn python(at: BorrowedFd<'_>, name: &CStr) -> Option<Package> {
    let name = name.to_bytes();
    let inside = if name.ends_with(b".dist-info") {
        "METADATA"
    } else if name.ends_with(b".egg-info") {
        "PKG-INFO"
    } else {
        return None;
    };
    let text =
        read(at, &[name, b"/", inside.as_bytes()].concat(), HEAD_MAX).or_else(|| read(at, name, HEAD_MAX))?;
    let head = text.split("\n\n").next().unwrap_or_default();
    let field = |wanted: &str| {
        let mut values = head.lines().filter_map(|line| line.strip_prefix(wanted));
        values.next().map(|value| value.trim().to_owned())
    };
    Some(Package { name: field("Name:")?, version: field("Version:").unwrap_or_default() })
}

/// The start of a plain file, without following any link.
fn read(at: BorrowedFd<'_>, path: &[u8], most: u64) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    File::from(file).take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lists of Debian packages before and after, where the layer touches the list.
fn debian(facts: &mut LayerFacts, layer: BorrowedFd<'_>, below: BorrowedFd<'_>) {
    if rustix::fs::statat(layer, DPKG_STATUS, AtFlags::SYMLINK_NOFOLLOW).is_err() {
        return;
    }
    let list = |at| read(at, DPKG_STATUS, LIST_MAX).map(|text| installed(&text)).unwrap_or_default();
    facts.debian_found = list(layer);
    facts.debian_gone = list(below);
}

/// The packages that a list says are installed.
fn installed(text: &str) -> Vec<Package> {
    let packages = text.split("\n\n").filter_map(|stanza| {
        let field = |wanted: &str| stanza.lines().find_map(|line| line.strip_prefix(wanted)).map(str::trim);
        let status = field("Status:").unwrap_or_default();
        let package = Package { name: field("Package:")?.to_owned(), version: field("Version:")?.to_owned() };
        status.ends_with(" installed").then_some(package)
    });
    packages.take(PACKAGES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn hide(root: &Path, path: &str) -> bool {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0)
            .is_ok()
    }

    fn facts(layer: &Path, below: &Path) -> LayerFacts {
        let open =
            |path: &Path| rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        compare(open(layer).as_fd(), open(below).as_fd()).unwrap()
    }

    fn package(name: &str, version: &str) -> Package {
        Package { name: name.into(), version: version.into() }
    }

    #[test]
    fn files_are_added_changed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (layer, below) = (folder.path().join("layer"), folder.path().join("below"));
        for (path, text) in
            [("same/kept", "k"), ("etc/conf", "old"), ("gone", "g"), ("dir/a", "a"), ("dir/b/c", "c")]
        {
            write(&below, path, text);
        }
        write(&layer, "etc/conf", "newer");
        write(&layer, "new/file", "12345");
        std::os::unix::fs::symlink("/nowhere", layer.join("new/link")).unwrap();
        if !hide(&layer, "gone") {
            eprintln!("skipped: this user may not make whiteouts");
            return;
        }
        assert!(hide(&layer, "dir") && hide(&layer, "never"));
        let facts = facts(&layer, &below);
        assert_eq!((facts.added, facts.changed, facts.removed, facts.bytes), (2, 1, 3, 10));
    }

    #[test]
    fn packages_are_found_by_what_describes_them() {
        let folder = tempfile::tempdir().unwrap();
        let (layer, below) = (folder.path().join("layer"), folder.path().join("below"));
        let about = |name: &str, version: &str| format!("Name: {name}\nVersion: {version}\n\nVersion: 9\n");
        write(&below, "lib/six-1.0.dist-info/METADATA", &about("six", "1.0"));
        write(&below, "lib/plain.egg-info/PKG-INFO", &about("plain", "1"));
        write(&layer, "lib/six-1.1.dist-info/METADATA", &about("six", "1.1"));
        write(&layer, "lib/plain.egg-info/PKG-INFO", &about("plain", "2"));
        write(&layer, "lib/old.egg-info", &about("old", "3"));
        let whiteout = hide(&layer, "lib/six-1.0.dist-info");
        let status = |packages: &[(&str, &str, &str)]| -> String {
            let stanza = |(name, version, state): &(&str, &str, &str)| {
                format!("Package: {name}\nStatus: install ok {state}\nVersion: {version}\n\n")
            };
            packages.iter().map(stanza).collect()
        };
        write(&below, "var/lib/dpkg/status", &status(&[("git", "1", "installed")]));
        write(&layer, "var/lib/dpkg/status", &status(&[("git", "2", "installed"), ("x", "1", "unpacked")]));
        let mut facts = facts(&layer, &below);
        facts.python_found.sort();
        facts.python_gone.sort();
        assert_eq!(facts.python_found, [package("old", "3"), package("plain", "2"), package("six", "1.1")]);
        let gone = [package("plain", "1"), package("six", "1.0")];
        assert_eq!(facts.python_gone, gone[..1 + usize::from(whiteout)]);
        assert_eq!(facts.debian_found, [package("git", "2")]);
        assert_eq!(facts.debian_gone, [package("git", "1")]);
    }
}
