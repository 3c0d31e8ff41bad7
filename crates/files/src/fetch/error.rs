//! What can go wrong between us and a server on the network, each with a mend that holds for any host.

use crate::{IoFailure, fetch::redact_url};
use evoke_core::{Error, ErrorCode};

/// A request that did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address is not one we can ask.
    #[error("'{url}' is not a valid http:// or https:// address")]
    Url {
        /// The address, without credentials.
        url: String,
    },
    /// No connection, or one that broke, after all attempts.
    #[error("could not reach {url}: {reason}")]
    Unreachable {
        /// The address, without credentials.
        url: String,
        /// What the last attempt met.
        reason: String,
    },
    /// The server's certificate does not verify.
    #[error("the certificate of {url} is not trusted: {reason}")]
    Certificate {
        /// The address, without credentials.
        url: String,
        /// What the verification said.
        reason: String,
    },
    /// The server answered with a status that is not a success.
    #[error("{url} answered {status}")]
    Status {
        /// The address, without credentials.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// Redirects led in a circle or too far.
    #[error("{url} redirects more than {limit} times")]
    Redirects {
        /// The address, without credentials.
        url: String,
        /// How many are followed.
        limit: u32,
    },
    /// The body is longer than the caller takes.
    #[error("{url} sent more than {limit_bytes} bytes")]
    TooLarge {
        /// The address, without credentials.
        url: String,
        /// The caller's limit.
        limit_bytes: u64,
    },
    /// The bytes that arrived are not those that were promised.
    #[error("{url} gave a content with {what} {got} where {wanted} was expected")]
    Mismatch {
        /// The address, without credentials.
        url: String,
        /// "SHA-256" or "length".
        what: &'static str,
        /// What was promised.
        wanted: String,
        /// What arrived.
        got: String,
    },
    /// A proxy variable of the environment can't be used.
    #[error("the proxy '{proxy}' from {variable} is not usable: {reason}")]
    Proxy {
        /// Which variable gave it.
        variable: &'static str,
        /// The proxy's address, without credentials.
        proxy: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificate authority could be loaded at all.
    #[error("no certificate authorities found on this machine{detail}")]
    NoTrust {
        /// What the loading met, if anything.
        detail: String,
    },
    /// The local file failed, not the network.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl FetchError {
    /// Sorts an error of the HTTP library; `url` is redacted here.
    pub(super) fn of_transport(url: &str, error: &ureq::Error) -> Self {
        let reason = error.to_string();
        let url = redact_url(url);
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => FetchError::Url { url },
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => FetchError::Certificate { url, reason },
            ureq::Error::Io(io) if io.to_string().contains("certificate") => {
                FetchError::Certificate { url, reason }
            }
            _ => FetchError::Unreachable { url, reason },
        }
    }

    /// The HTTP status, where the server gave one.
    pub fn status(&self) -> Option<u16> {
        match self {
            FetchError::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the network or the server is out of reach (as opposed to having said no).
    pub fn is_unreachable(&self) -> bool {
        matches!(self, FetchError::Unreachable { .. } | FetchError::Certificate { .. })
            || matches!(self.status(), Some(status) if status >= 500 || status == 429)
    }

    /// What the person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            FetchError::Unreachable { .. } | FetchError::Proxy { .. } => Some(
                "Check this machine's network. Behind a proxy, set HTTPS_PROXY and HTTP_PROXY (and NO_PROXY \
                 for hosts reached directly) for the server.",
            ),
            FetchError::Certificate { .. } | FetchError::NoTrust { .. } => Some(
                "If a proxy or mirror with its own certificate authority is used here, set SSL_CERT_FILE to a \
                 bundle that holds it; otherwise install the system's CA certificates (package ca-certificates).",
            ),
            FetchError::Status { status: 401 | 403 | 407, .. } => {
                Some("The server wants credentials: put them into the address or the host's configuration.")
            }
            FetchError::Mismatch { .. } => {
                Some("The mirror or a proxy on the way may hold a damaged copy: try again or use another.")
            }
            _ => None,
        }
    }
}

impl From<FetchError> for Error {
    fn from(error: FetchError) -> Error {
        let error = match error {
            FetchError::Io(failure) => return failure.into(),
            other => other,
        };
        let code = match &error {
            FetchError::Url { .. } | FetchError::Proxy { .. } => ErrorCode::InvalidArgument,
            FetchError::Status { status: 404 | 410, .. } => ErrorCode::NotFound,
            FetchError::Status { status: 401, .. } => ErrorCode::Unauthenticated,
            FetchError::Status { status: 403, .. } => ErrorCode::PermissionDenied,
            FetchError::Mismatch { .. } => ErrorCode::DataLoss,
            FetchError::TooLarge { .. } | FetchError::Redirects { .. } | FetchError::NoTrust { .. } => {
                ErrorCode::FailedPrecondition
            }
            _ => ErrorCode::Unavailable,
        };
        let out = Error::new(code, error.to_string());
        match error.hint() {
            Some(hint) => out.with_hint(hint),
            None => out,
        }
    }
}
