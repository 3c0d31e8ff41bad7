//! A small blocking HTTP client for package indexes, distribution archives and registries.
//!
//! It honours the host's proxy variables (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), trusts what
//! the host trusts (`SSL_CERT_FILE`, `SSL_CERT_DIR`, else the system's bundle), follows redirects without
//! carrying credentials to another host, tries transient failures again with back-off, and bounds every
//! wait. Async callers use it inside `spawn_blocking`.

mod client;
mod download;
mod error;
mod plain_proxy;
mod proxies;
mod resolver;
mod url;

pub use client::{Fetcher, Limits, Reply};
pub use download::{Download, Downloaded, Progress};
pub use error::FetchError;
pub use url::{join_url, redact_url};
