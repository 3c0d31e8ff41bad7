//! The error codes of the whole system. Every failure that reaches a user has one of these codes, a
//! message, and where we know it the mend. They are mapped once to gRPC (in `evoke-proto`), to HTTP and to
//! the exit code of the command line.

use std::fmt;

/// What kind of failure it is, from the caller's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request itself is wrong; asking again does not help.
    InvalidArgument,
    /// What the request names does not exist.
    NotFound,
    /// What should be created exists already.
    AlreadyExists,
    /// The caller is known and may not do this.
    PermissionDenied,
    /// The caller is not known.
    Unauthenticated,
    /// A limit is reached; asking later may help.
    ResourceExhausted,
    /// The object is not in a state that allows this.
    FailedPrecondition,
    /// Not served by this server.
    Unimplemented,
    /// Temporarily not reachable; asking again helps.
    Unavailable,
    /// A deadline passed.
    DeadlineExceeded,
    /// Stored data does not verify.
    DataLoss,
    /// A defect of ours.
    Internal,
}

/// A failure with its code, and the mend where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The kind of failure.
    pub code: ErrorCode,
    /// What failed, in words for the person who caused it.
    pub message: String,
    /// What that person can do about it.
    pub hint: Option<String>,
}

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with `code` and `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }
    /// The same error with the mend added.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }
    /// What the request names does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }
    /// A defect of ours, or of the machine below us.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }
    /// The object is not in a state that allows this.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::FailedPrecondition, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
