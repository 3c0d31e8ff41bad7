//! Failures of making an image. Each carries what a person needs to mend it; [`ImageError::to_core`] maps
//! it to the system's error codes.

use crate::dockerfile::DockerfileError;
use evoke_core::{Error, ErrorCode};
use evoke_files::fetch::{FetchError, redact_url};
use std::path::PathBuf;
use thiserror::Error as ThisError;

/// Why an image could not be made.
#[derive(Debug, Clone, ThisError)]
pub enum ImageError {
    /// The recipe's text cannot be read.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// An instruction cannot be carried out as written.
    #[error("Dockerfile line {line}: {message}\n    {text}")]
    Instruction {
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong.
        message: String,
    },
    /// A RUN ended with a code other than zero.
    #[error("Dockerfile line {line}: the command failed with {exit}:\n    {text}\nIts last lines:\n{log}")]
    Run {
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
        /// `exit code 2`, `signal 9 (out of memory)`.
        exit: String,
        /// The end of its log.
        log: String,
    },
    /// Nothing could supply a base.
    #[error("no source has the base image {reference}:{}\n{mend}", bullets(tried))]
    NoBase {
        /// What was asked for.
        reference: String,
        /// Each source and why it failed.
        tried: Vec<(String, String)>,
        /// What to do about it.
        mend: String,
    },
    /// No archive with a standalone Python could be had.
    #[error("there is no standalone Python {version} of the release {release} to be had: {why}\n{mend}")]
    NoPython {
        /// Its version.
        version: String,
        /// The release that has it.
        release: String,
        /// What stood in the way.
        why: String,
        /// What to do about it.
        mend: String,
    },
    /// A reference that is not one.
    #[error("{text:?} is not an image reference: {message}")]
    Reference {
        /// As written.
        text: String,
        /// What is wrong.
        message: String,
    },
    /// A request to a registry, archive or package index failed.
    #[error("{url}: {message}")]
    Fetch {
        /// What was asked for, without credentials.
        url: String,
        /// What happened.
        message: String,
        /// The mend, where it is known.
        hint: Option<&'static str>,
    },
    /// The same, where the message names the address.
    #[error("{message}")]
    Unreachable {
        /// What happened.
        message: String,
        /// The mend, where it is known.
        hint: Option<&'static str>,
    },
    /// A registry, or who gives out its passwords, said no.
    #[error("{url}: {message}. {mend}")]
    Denied {
        /// What was asked for, without credentials.
        url: String,
        /// What was refused.
        message: String,
        /// What to do about it.
        mend: String,
    },
    /// A secret that holds no login for a registry.
    #[error("{0}")]
    Login(String),
    /// What came is not what its digest says.
    #[error("{what}: the content does not match its digest: expected {expected}, got {got}")]
    Digest {
        /// What was fetched.
        what: String,
        /// Expected.
        expected: String,
        /// Got.
        got: String,
    },
    /// Data that cannot be read as what it should be.
    #[error("{what}: {message}")]
    Malformed {
        /// What was read.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// Reading or writing a file of ours failed.
    #[error("{action} {}: {message}", path.display())]
    Io {
        /// `write`, `open` …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        message: String,
        /// The disk is full.
        full: bool,
    },
    /// A volume of a step could not be mounted or written to.
    #[error("a volume of the build: {0}")]
    Volume(Error),
    /// The container of a step could not be run.
    #[error("{action}: {message}")]
    Builder {
        /// What was attempted.
        action: String,
        /// What happened.
        message: String,
    },
    /// The index of layers could not be read or written.
    #[error("image index: {0}")]
    Index(String),
    /// Not something this builder does.
    #[error("{0}")]
    Unsupported(String),
}

/// Shorthand.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

fn bullets(tried: &[(String, String)]) -> String {
    tried.iter().map(|(source, why)| format!("\n  - {source}: {why}")).collect()
}

impl ImageError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        Self::Io { action, path: path.into(), message: error.to_string(), full }
    }

    pub(crate) fn fetch(url: &str, message: impl ToString) -> Self {
        Self::Fetch { url: redact_url(url), message: message.to_string(), hint: None }
    }

    pub(crate) fn malformed(what: impl Into<String>, message: impl ToString) -> Self {
        Self::Malformed { what: what.into(), message: message.to_string() }
    }

    pub(crate) fn builder(action: impl Into<String>, message: impl ToString) -> Self {
        Self::Builder { action: action.into(), message: message.to_string() }
    }

    /// The failure in the system's vocabulary.
    pub fn to_core(&self) -> Error {
        let code = match self {
            Self::Dockerfile(_) | Self::Instruction { .. } | Self::Reference { .. } | Self::Login(_) => {
                ErrorCode::InvalidArgument
            }
            Self::Denied { .. } => ErrorCode::PermissionDenied,
            Self::Run { .. } | Self::NoBase { .. } | Self::NoPython { .. } => ErrorCode::FailedPrecondition,
            Self::Fetch { .. } | Self::Unreachable { .. } => ErrorCode::Unavailable,
            Self::Digest { .. } | Self::Malformed { .. } => ErrorCode::DataLoss,
            Self::Io { full: true, .. } => ErrorCode::ResourceExhausted,
            Self::Io { .. } | Self::Builder { .. } | Self::Index(_) => ErrorCode::Internal,
            Self::Unsupported(_) => ErrorCode::Unimplemented,
            Self::Volume(error) => error.code,
        };
        let error = Error::new(code, self.to_string());
        match self {
            Self::Fetch { hint: Some(hint), .. } | Self::Unreachable { hint: Some(hint), .. } => {
                error.with_hint(*hint)
            }
            _ => error,
        }
    }
}

impl From<FetchError> for ImageError {
    fn from(error: FetchError) -> Self {
        let hint = error.hint();
        match error {
            FetchError::Mismatch { url, wanted, got, .. } => {
                Self::Digest { what: url, expected: wanted, got }
            }
            other => Self::Unreachable { message: other.to_string(), hint },
        }
    }
}
