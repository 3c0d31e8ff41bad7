//! What volumes hold on the disk: the contents of their files, and folders in which those appear under their
//! names. Which files a volume has is not known here.

mod contents;
mod large;
mod trees;

pub use contents::{BlockFile, ParseContentError, VOLUME_BLOCK_BYTES, VolumeContent, VolumeContents};
pub use trees::{VolumeEntry, VolumeEntryKind, VolumeTrees};
