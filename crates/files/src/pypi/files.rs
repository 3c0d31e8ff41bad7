//! One file that an index offers.

use super::Specifiers;
use crate::ContentHash;

/// Whether the file was taken back by its makers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yanked {
    /// It is offered as usual.
    No,
    /// It is only meant for those who ask for its exact version.
    Yes,
}

/// One file on a project's page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexFile {
    /// Its name.
    pub file_name: String,
    /// Where it is.
    pub url: String,
    /// Its hash, where the index says it.
    pub sha256: Option<ContentHash>,
    /// Its length in bytes, where the index says it.
    pub length: Option<u64>,
    /// Which Python versions it is for.
    pub requires_python: Option<Specifiers>,
    /// Whether it was taken back.
    pub yanked: Yanked,
}
