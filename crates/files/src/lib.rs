//! Files of every kind that the server keeps: contents by their hash, trees made of them, payloads by id,
//! and the bundles of Python packages that a container needs.
//!
//! Invariants: whatever has its final name is complete and verified (everything is written under a
//! temporary name and renamed); what was acknowledged as stored is on stable storage; no path that came
//! from outside can leave the folder it belongs to; no body is ever held in memory whole. All calls block:
//! async callers use `spawn_blocking`.
//!
//! Entry points: [`ObjectStore`] for contents, [`Trees`] for mount sets, [`BlobStore`] for payloads,
//! [`VolumeContents`] and [`VolumeTrees`] for volumes,
//! [`fetch::Fetcher`] for downloads, [`pypi::PackageIndex`] for Python packages,
//! [`bundles::Bundles`] for what the client needs inside containers.

mod blob_upload;
mod blobs;
pub mod bundles;
mod byte_range;
mod content_hash;
mod durable;
mod etag;
pub mod fetch;
mod hold;
mod host_env;
mod io_failure;
mod objects;
pub mod pypi;
mod shared_folders;
mod tree_paths;
mod trees;
mod volumes;

pub use blob_upload::PartWriter;
pub use blobs::{BlobError, BlobSpec, BlobStore, FinishedBlob, PARTS_MAX};
pub use byte_range::{ByteRange, RangeAnswer, parse_range};
pub use content_hash::{ContentHash, ParseHashError};
pub use etag::{BodyMd5, multipart_etag};
pub use hold::Pin;
pub use host_env::HostEnv;
pub use io_failure::IoFailure;
pub use objects::{Collected, ObjectError, ObjectStore};
pub use shared_folders::{SharedEntry, SharedFolders, SharedKind};
pub use tree_paths::PathError;
pub use trees::{MountFile, TREE_FILES_MAX, Tree, TreeError, Trees};
pub use volumes::{
    BlockFile, ParseContentError, VOLUME_BLOCK_BYTES, VolumeContent, VolumeContents, VolumeEntry,
    VolumeEntryKind, VolumeTrees,
};
