//! Unpacking a wheel without letting it write anywhere else.

use crate::{IoFailure, io_failure::IoContext};
use evoke_core::{Error, ErrorCode};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use zip::ZipArchive;

/// Files in one wheel.
const ENTRIES_MAX: usize = 100_000;
/// Bytes that a wheel may unpack to.
const UNPACKED_BYTES_MAX: u64 = 4 << 30;
/// Bytes of a single text that is read into memory.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Why a wheel could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is not a zip archive, or a damaged one.
    #[error("{path} is not a readable wheel: {source}")]
    Archive {
        /// The wheel.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: zip::result::ZipError,
    },
    /// An entry would be written elsewhere, or is not a plain file.
    #[error("{path} holds '{entry}', which is {what}")]
    Entry {
        /// The wheel.
        path: PathBuf,
        /// The entry, made printable.
        entry: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It is too large.
    #[error("{path} has more than {limit} {unit}")]
    TooLarge {
        /// The wheel.
        path: PathBuf,
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// It lacks a file that every wheel has.
    #[error("{path} has no {what}")]
    Lacks {
        /// The wheel.
        path: PathBuf,
        /// What it lacks.
        what: String,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl From<UnpackError> for Error {
    fn from(error: UnpackError) -> Error {
        match error {
            UnpackError::Io(failure) => failure.into(),
            other => Error::new(ErrorCode::DataLoss, other.to_string()),
        }
    }
}

/// Unpacks into `target`, which must exist, what an installer would put into `site-packages` and `wanted`
/// says yes to (by its path inside). Scripts and headers are left out. Folders get mode 0755, files 0644 or
/// 0755; existing files are kept, so that several wheels can share a folder.
pub fn unpack_wheel(wheel: &Path, target: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<(), UnpackError> {
    let mut archive = open(wheel)?;
    if archive.len() > ENTRIES_MAX {
        let limit = ENTRIES_MAX as u64;
        return Err(UnpackError::TooLarge { path: wheel.to_owned(), limit, unit: "entries" });
    }
    let mut folders = BTreeSet::new();
    let mut budget = UNPACKED_BYTES_MAX;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(|source| unreadable(wheel, source))?;
        if entry.is_dir() {
            continue;
        }
        let name = entry.name().to_owned();
        let bad = |what| UnpackError::Entry {
            path: wheel.to_owned(),
            entry: name.escape_debug().to_string(),
            what,
        };
        let inside = installed_path(&name).map_err(bad)?;
        let Some(inside) = inside.filter(|inside| wanted(inside)) else { continue };
        // The upper bits of the mode tell the kind of file; wheels made on other systems have none.
        let mode = entry.unix_mode().unwrap_or(0);
        if !matches!(mode & 0o170_000, 0 | 0o100_000) {
            return Err(bad("a link or a special file"));
        }
        let path = target.join(inside);
        make_folders(target, inside, &mut folders)?;
        let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        if file.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists) {
            continue;
        }
        let mut file = file.during("create", &path)?;
        let written = io::copy(&mut (&mut entry).take(budget + 1), &mut file).during("unpack", &path)?;
        budget = budget.checked_sub(written).ok_or_else(|| UnpackError::TooLarge {
            path: wheel.to_owned(),
            limit: UNPACKED_BYTES_MAX,
            unit: "bytes unpacked",
        })?;
        file.set_permissions(Permissions::from_mode(mode)).during("set the mode of", &path)?;
    }
    Ok(())
}

/// The `METADATA` of a wheel.
pub fn metadata_of_wheel(wheel: &Path) -> Result<String, UnpackError> {
    let archive = open(wheel)?;
    let name = archive
        .file_names()
        .find(|name| name.strip_suffix(".dist-info/METADATA").is_some_and(|folder| !folder.contains('/')));
    let name = name.map(str::to_owned);
    drop(archive);
    let lacks = || UnpackError::Lacks { path: wheel.to_owned(), what: "METADATA".into() };
    text_in_wheel(wheel, &name.ok_or_else(lacks)?)?.ok_or_else(lacks)
}

/// A text inside a wheel; `None` where it has no such file.
pub fn text_in_wheel(wheel: &Path, name: &str) -> Result<Option<String>, UnpackError> {
    let mut archive = open(wheel)?;
    let entry = match archive.by_name(name) {
        Err(zip::result::ZipError::FileNotFound) => return Ok(None),
        found => found.map_err(|source| unreadable(wheel, source))?,
    };
    let mut text = String::new();
    entry.take(TEXT_BYTES_MAX).read_to_string(&mut text).during("read", wheel)?;
    Ok(Some(text))
}

fn open(wheel: &Path) -> Result<ZipArchive<File>, UnpackError> {
    let file = File::open(wheel).during("open", wheel)?;
    ZipArchive::new(file).map_err(|source| unreadable(wheel, source))
}

fn unreadable(wheel: &Path, source: zip::result::ZipError) -> UnpackError {
    UnpackError::Archive { path: wheel.to_owned(), source }
}

/// Where an entry is installed below `site-packages`; `None` where it goes elsewhere.
fn installed_path(name: &str) -> Result<Option<&str>, &'static str> {
    let plain = !name.is_empty()
        && !name.contains(['\\', '\0'])
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain {
        return Err("a path that leads elsewhere");
    }
    let Some((first, rest)) = name.split_once('/') else { return Ok(Some(name)) };
    if !first.ends_with(".data") {
        return Ok(Some(name));
    }
    Ok(rest.strip_prefix("purelib/").or_else(|| rest.strip_prefix("platlib/")))
}

fn make_folders(target: &Path, inside: &str, made: &mut BTreeSet<PathBuf>) -> Result<(), IoFailure> {
    let mut path = target.to_owned();
    let Some((folders, _)) = inside.rsplit_once('/') else { return Ok(()) };
    for part in folders.split('/') {
        path.push(part);
        if !made.insert(path.clone()) {
            continue;
        }
        match fs::create_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made.during("create", &path)?;
                fs::set_permissions(&path, Permissions::from_mode(0o755)).during("set the mode of", &path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    /// Writes a wheel with these entries: name, content, mode (0 for none).
    pub(crate) fn write_wheel(path: &Path, entries: &[(&str, &str, u32)]) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, text, mode) in entries {
            let mut options = SimpleFileOptions::default();
            if *mode & 0o170_000 == 0o120_000 {
                zip.add_symlink(*name, *text, options).unwrap();
                continue;
            }
            if *mode != 0 {
                options = options.unix_permissions(*mode);
            }
            zip.start_file(*name, options).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn what_belongs_into_site_packages_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("a.whl");
        write_wheel(
            &wheel,
            &[
                ("a/__init__.py", "1", 0),
                ("a/tool", "2", 0o755),
                ("a-1.data/purelib/b.py", "3", 0o644),
                ("a-1.data/scripts/run", "4", 0o755),
                ("a-1.dist-info/METADATA", "Name: a\n", 0),
                ("docs/x.md", "5", 0),
            ],
        );
        let target = folder.path().join("out");
        fs::create_dir(&target).unwrap();
        unpack_wheel(&wheel, &target, &|path| !path.starts_with("docs/")).unwrap();
        assert_eq!(fs::read_to_string(target.join("b.py")).unwrap(), "3");
        let mode = |path: &str| fs::metadata(target.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("a/__init__.py"), mode("a/tool"), mode("a")), (0o644, 0o755, 0o755));
        assert!(!target.join("docs").exists() && !target.join("a-1.data").exists());
        assert_eq!(metadata_of_wheel(&wheel).unwrap(), "Name: a\n");
        assert_eq!(text_in_wheel(&wheel, "nope").unwrap(), None);
        unpack_wheel(&wheel, &target, &|_| true).unwrap();
    }

    #[test]
    fn nothing_is_written_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::create_dir(&target).unwrap();
        let wheel = folder.path().join("evil.whl");
        for (name, mode) in [
            ("../evil", 0),
            ("a/../../evil", 0),
            ("/evil", 0),
            ("a//evil", 0),
            ("..\\evil", 0),
            ("x.data/purelib/../../evil", 0),
            ("link", 0o120_777),
        ] {
            write_wheel(&wheel, &[(name, "/etc/passwd", mode)]);
            let error = unpack_wheel(&wheel, &target, &|_| true).unwrap_err();
            assert!(matches!(error, UnpackError::Entry { .. }), "{name}: {error}");
        }
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        assert!(!folder.path().join("evil").exists());
        fs::write(&wheel, "not a zip").unwrap();
        assert!(matches!(unpack_wheel(&wheel, &target, &|_| true), Err(UnpackError::Archive { .. })));
    }
}
