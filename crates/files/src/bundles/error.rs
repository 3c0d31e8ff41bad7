//! Why a bundle could not be made, with the mend.

use crate::{
    IoFailure,
    pypi::{PypiError, RequirementError, UnpackError, VersionError},
};
use evoke_core::{Error, ErrorCode};
use std::path::PathBuf;

/// What kept a bundle from being made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The client's version is not one.
    #[error("the client version: {0}")]
    Version(#[from] VersionError),
    /// The name of the image builder version is not one.
    #[error("'{0}' is not an image builder version, such as 2025.06 or PREVIEW")]
    Builder(String),
    /// The client does not know this image builder version.
    #[error("the client {client} has no dependency list for the image builder version {builder}")]
    UnknownBuilder {
        /// The client's version.
        client: String,
        /// The image builder version.
        builder: String,
    },
    /// The wheel that the configuration names can't be used.
    #[error("EVOKE_MODAL_WHEEL names {path}, which is {what}")]
    NamedWheel {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A package could not be had.
    #[error("the client bundle needs {name}: {source}")]
    Package {
        /// The project.
        name: String,
        /// What the index said.
        source: Box<PypiError>,
    },
    /// A line of a dependency list or of a wheel's metadata is not understood.
    #[error("a dependency of the client is not understood: {0}")]
    Requirement(#[from] RequirementError),
    /// A wheel does not name a dependency that it must have.
    #[error("the client's wheel does not say which {0} it needs")]
    Undeclared(&'static str),
    /// A wheel is damaged.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The name for an interpreter is not usable in a path.
    #[error("'{0}' can't name an interpreter: letters, digits, dots and dashes only")]
    Interpreter(String),
    /// The interpreter compiled nothing.
    #[error("the interpreter wrote no bytecode for CPython 3.{0}; is it that version?")]
    NoBytecode(u8),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl From<BundleError> for Error {
    fn from(error: BundleError) -> Error {
        let message = error.to_string();
        match error {
            BundleError::Io(failure) => failure.into(),
            BundleError::Unpack(unpack) => Error::from(unpack).with_hint(
                "Remove the damaged wheel (and its copy in bundles/wheels of the data folder), then try again.",
            ),
            BundleError::Package { name, source } => package_error(&name, *source, message),
            BundleError::NamedWheel { .. } => Error::precondition(message)
                .with_hint("Point EVOKE_MODAL_WHEEL at the file modal-<version>-py3-none-any.whl, or unset it."),
            BundleError::NoBytecode(_) => Error::precondition(message),
            BundleError::Undeclared(_) => Error::new(ErrorCode::DataLoss, message),
            _ => Error::invalid(message),
        }
    }
}

/// Where a package comes from, and how to do without an index.
fn package_error(name: &str, source: PypiError, message: String) -> Error {
    let code = match &source {
        // A version that nobody has published is the client's matter, not a missing object.
        PypiError::NoProject { .. } | PypiError::NoWheel { .. } => ErrorCode::FailedPrecondition,
        _ => {
            let error = Error::from(source);
            return Error { code: error.code, message, hint: Some(with_seed(name, error.hint)) };
        }
    };
    Error { code, message, hint: Some(with_seed(name, source.hint())) }
}

fn with_seed(name: &str, hint: Option<String>) -> String {
    let seed = match name {
        "modal" => "Or set EVOKE_MODAL_WHEEL to the wheel of that client version.",
        _ => {
            "Or put its wheel into the folder bundles/wheels of the data folder, or beside the wheel that \
             EVOKE_MODAL_WHEEL names."
        }
    };
    hint.map_or_else(|| seed.to_owned(), |hint| format!("{hint} {seed}"))
}
