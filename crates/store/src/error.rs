//! What can go wrong with stored state, and what the person affected can do about it.

use evoke_core::{Error, ErrorCode};
use std::path::PathBuf;
use std::sync::Arc;

/// A failure of the store. Cloneable, because one failed commit fails every batch that was in it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database could not be opened.
    #[error("cannot open the database {path}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The file exists and is not a database of ours.
    #[error("{path} is not an Evoke database: {reason}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What gives it away.
        reason: String,
    },
    /// The database was written by a newer version of this program.
    #[error("the database has schema {found}, and this version knows schemas up to {known}")]
    NewerSchema {
        /// The schema number in the file.
        found: u32,
        /// The highest one that this version can read.
        known: u32,
    },
    /// No space is left on the disk that holds the data folder. Nothing of the batch was stored.
    #[error("the disk that holds the data folder is full")]
    DiskFull,
    /// Stored bytes do not verify.
    #[error("stored data does not verify: {0}")]
    Corrupt(String),
    /// The batch contradicts what is stored (a name taken, a parent missing). Nothing of it was stored.
    #[error("conflicts with what is stored: {0}")]
    Conflict(String),
    /// The machine failed to write or read.
    #[error("cannot access the stored state")]
    Io(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// A sync failed earlier: what had been acknowledged as written may not be on the disk, so the store
    /// takes no more until it is opened again.
    #[error("the disk failed to sync earlier ({0}); the server must be restarted")]
    Poisoned(String),
    /// The store is closed, or was closed before this could be done.
    #[error("the store is closed")]
    Closed,
    /// The request asks for more than one answer may hold.
    #[error("too much is asked for at once: {0}")]
    TooMuch(String),
    /// A statement of ours is wrong.
    #[error("a statement failed")]
    Statement(#[source] Arc<rusqlite::Error>),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Sql;
        let rusqlite::Error::SqliteFailure(failure, text) = &error else {
            return match error {
                rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
                    StoreError::Corrupt(error.to_string())
                }
                other => StoreError::Statement(Arc::new(other)),
            };
        };
        let words = || text.clone().unwrap_or_else(|| failure.to_string());
        match failure.code {
            Sql::DiskFull => StoreError::DiskFull,
            // Growing the shared-memory file is where SQLite reports a full disk as a plain I/O error.
            _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => StoreError::DiskFull,
            Sql::ConstraintViolation => StoreError::Conflict(words()),
            Sql::DatabaseCorrupt | Sql::NotADatabase => StoreError::Corrupt(words()),
            Sql::SystemIoFailure | Sql::CannotOpen | Sql::ReadOnly | Sql::PermissionDenied => {
                StoreError::Io(Arc::new(error))
            }
            _ => StoreError::Statement(Arc::new(error)),
        }
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
            _ => StoreError::Io(Arc::new(error)),
        }
    }
}

impl StoreError {
    /// Whether the failure lies with the disk or the program rather than with the batch.
    pub(crate) fn is_of_the_machine(&self) -> bool {
        !matches!(self, StoreError::Conflict(_) | StoreError::Statement(_))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let message = with_causes(&error);
        match error {
            StoreError::DiskFull => Error::new(ErrorCode::ResourceExhausted, message).with_hint(
                "Free some space on it; nothing was half-stored, and the request can be repeated.",
            ),
            StoreError::Foreign { .. } => Error::new(ErrorCode::FailedPrecondition, message)
                .with_hint("Choose another data folder with --data, or move that file away."),
            StoreError::NewerSchema { .. } => Error::new(ErrorCode::FailedPrecondition, message)
                .with_hint("Start the version of Evoke that last used this data folder, or a newer one."),
            StoreError::Corrupt(_) => Error::new(ErrorCode::DataLoss, message),
            StoreError::Conflict(_) => Error::new(ErrorCode::AlreadyExists, message),
            StoreError::TooMuch(_) => Error::new(ErrorCode::InvalidArgument, message),
            StoreError::Closed | StoreError::Poisoned(_) => Error::new(ErrorCode::Unavailable, message),
            StoreError::Open { .. } | StoreError::Io(_) | StoreError::Statement(_) => {
                Error::new(ErrorCode::Internal, message)
            }
        }
    }
}

/// The message of `error` with those of its causes, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        message.push_str(": ");
        message.push_str(&inner.to_string());
        cause = inner.source();
    }
    message
}
