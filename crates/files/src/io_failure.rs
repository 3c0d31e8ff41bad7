//! One failed operation on one path: what every store of this crate reports when the disk says no.

use evoke_core::{Error, ErrorCode};
use std::{
    io,
    path::{Path, PathBuf},
};

/// An operation of the file system that failed, with what was being done and to which path.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {path}: {source}")]
pub struct IoFailure {
    /// What was being done, as a verb: "create", "rename", "sync".
    pub action: &'static str,
    /// The path it was done to.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl IoFailure {
    /// Whether the cause is a full disk or an exhausted quota.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl From<IoFailure> for Error {
    fn from(failure: IoFailure) -> Error {
        let message = failure.to_string();
        if failure.is_disk_full() {
            return Error::new(ErrorCode::ResourceExhausted, message)
                .with_hint("Free some space on the disk that holds the data folder, then try again.");
        }
        Error::internal(message)
    }
}

/// Adds the action and the path to a failed operation.
pub(crate) trait IoContext<T> {
    /// `action` as a verb, `path` as its object.
    fn during(self, action: &'static str, path: &Path) -> Result<T, IoFailure>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, IoFailure> {
        self.map_err(|source| IoFailure { action, path: path.to_owned(), source })
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, IoFailure> {
        self.map_err(|source| IoFailure { action, path: path.to_owned(), source: source.into() })
    }
}
