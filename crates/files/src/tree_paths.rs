//! Which paths a tree may hold. Paths come from clients; nothing they say may lead out of the tree.

use evoke_core::Error;
use std::collections::BTreeSet;

/// The longest path that Linux takes, without the final NUL.
const PATH_BYTES_MAX: usize = 4095;
/// The longest component.
const NAME_BYTES_MAX: usize = 255;

/// Why a set of paths is not a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not from the root on.
    #[error("the path '{0}' is not absolute")]
    Relative(String),
    /// A component is empty, `.` or `..`, or holds a NUL.
    #[error("the path '{path}' has the component '{component}', which is not a file name")]
    Component {
        /// The path, made printable.
        path: String,
        /// Its bad component, made printable.
        component: String,
    },
    /// Longer than the kernel takes.
    #[error("the path '{0}…' or a component of it is too long")]
    TooLong(String),
    /// The same path with two contents or modes.
    #[error("the path '{0}' is given twice with different contents or modes")]
    Twice(String),
    /// A path that must be both a file and a folder.
    #[error("the path '{0}' is a file, and other paths lie below it")]
    FileAndFolder(String),
    /// More files than one set may have.
    #[error("{0} files are more than one mount may hold ({1})")]
    TooMany(usize, usize),
}

impl From<PathError> for Error {
    fn from(error: PathError) -> Error {
        Error::invalid(error.to_string())
    }
}

/// `path` below the root of a tree: checked, without its first slash.
pub(crate) fn inside(path: &str) -> Result<&str, PathError> {
    let printable = || path.chars().take(200).collect::<String>().escape_debug().to_string();
    let inside = path.strip_prefix('/').ok_or_else(|| PathError::Relative(printable()))?;
    if path.len() > PATH_BYTES_MAX {
        return Err(PathError::TooLong(printable()));
    }
    for component in inside.split('/') {
        if matches!(component, "" | "." | "..") || component.contains('\0') {
            let component = component.escape_debug().to_string();
            return Err(PathError::Component { path: printable(), component });
        }
        if component.len() > NAME_BYTES_MAX {
            return Err(PathError::TooLong(printable()));
        }
    }
    Ok(inside)
}

/// All folders that `files` (checked, relative) need, parents before children. Fails where a file would
/// have to be a folder too.
pub(crate) fn folders_of<'a>(files: &BTreeSet<&'a str>) -> Result<BTreeSet<&'a str>, PathError> {
    let mut folders = BTreeSet::new();
    for file in files {
        let mut at = *file;
        while let Some(slash) = at.rfind('/') {
            at = &at[..slash];
            if files.contains(at) {
                return Err(PathError::FileAndFolder(format!("/{at}")));
            }
            if !folders.insert(at) {
                break;
            }
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_absolute_paths_pass() {
        for good in ["/root/app.py", "/a/..b/c...", "/a b/ü"] {
            assert_eq!(inside(good), Ok(&good[1..]));
        }
        for bad in ["", "a", "/", "//a", "/a//b", "/a/", "/../a", "/a/..", "/./a", "/a\0b", "../a"] {
            assert!(inside(bad).is_err(), "{bad:?}");
        }
        assert!(inside(&format!("/{}", "x".repeat(256))).is_err());
        assert!(inside(&"/x".repeat(2500)).is_err());
    }

    #[test]
    fn folders_come_parents_first_and_never_as_files() {
        let files = BTreeSet::from(["a/b/c", "a/d", "e"]);
        assert_eq!(folders_of(&files).unwrap().into_iter().collect::<Vec<_>>(), ["a", "a/b"]);
        let files = BTreeSet::from(["a/b/c", "a-x", "a"]);
        assert_eq!(folders_of(&files), Err(PathError::FileAndFolder("/a".into())));
    }
}
