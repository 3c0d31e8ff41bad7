//! Errors that say which step failed: what the guest reports when it can't do its work.

use std::fmt;
use std::io;

/// A failed step.
#[derive(Debug)]
pub(crate) struct StepError {
    pub(crate) step: String,
    pub(crate) cause: io::Error,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)
    }
}

/// Adds the step to an error.
pub(crate) trait Step<T> {
    fn step(self, what: impl Into<String>) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl Into<String>) -> Result<T, StepError> {
        self.map_err(|cause| StepError { step: what.into(), cause: cause.into() })
    }
}

/// An error that is ours and not the kernel's.
pub(crate) fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}
