//! Files of every kind that the server keeps: contents by their hash, trees made of them, payloads by id,
//! and the bundles of Python packages that a container needs.
//!
//! Invariants: whatever has its final name is complete and verified (everything is written under a
//! temporary name and renamed); what was acknowledged as stored is on stable storage; no path that came
//! from outside can leave the folder it belongs to; no body is ever held in memory whole. All calls block:
//! async callers use `spawn_blocking`.
//!
//! Entry points: [`fetch::Fetcher`] for downloads.

mod content_hash;
pub mod fetch;
mod host_env;
mod io_failure;

pub use content_hash::{ContentHash, ParseHashError};
pub use host_env::HostEnv;
pub use io_failure::IoFailure;
