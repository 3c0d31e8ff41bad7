//! The room that the disk of the layers has, watched while something is unpacked onto it: an archive says
//! nothing of the size that it unpacks to.

use crate::error::{ImageError, Result};
use std::path::{Path, PathBuf};

/// What is left free for everything else (bytes): the database and the logs are on the same disk.
const RESERVE_BYTES: u64 = 512 << 20;
/// Files and folders that stay possible on a file system that counts them.
const RESERVE_FILES: u64 = 10_000;
/// Bytes of an archive between two looks at the disk.
const LOOK_BYTES: u64 = 16 << 20;

/// The disk of a folder.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    folder: PathBuf,
    since_look: u64,
    unpacked: u64,
}

impl Room {
    pub(crate) fn on_disk_of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), since_look: LOOK_BYTES, unpacked: 0 }
    }

    /// So many bytes more of `what` are unpacked; an error where the disk has no room for them.
    pub(crate) fn take(&mut self, what: &str, bytes: u64) -> Result<()> {
        self.unpacked += bytes;
        self.since_look += bytes;
        if self.since_look < LOOK_BYTES {
            return Ok(());
        }
        self.since_look = 0;
        let (free, files) = self.free()?;
        if free >= RESERVE_BYTES && files >= RESERVE_FILES {
            return Ok(());
        }
        let sort = if free < RESERVE_BYTES { "bytes" } else { "files" };
        Err(self.full(format!(
            "{what} unpacks to more {sort} than the disk has room for: after {} MB of it {} MB are left",
            self.unpacked / 1_000_000,
            free / 1_000_000
        )))
    }

    /// An error where the disk has no room for so many bytes.
    pub(crate) fn needs(&self, what: &str, bytes: u64) -> Result<()> {
        let (free, _) = self.free()?;
        if free >= bytes.saturating_add(RESERVE_BYTES) {
            return Ok(());
        }
        let (needed, free) = (bytes / 1_000_000, free / 1_000_000);
        Err(self.full(format!("{what} has {needed} MB before it is unpacked, and {free} MB are free")))
    }

    fn free(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.folder)
            .map_err(|e| ImageError::io("look at the disk of", &self.folder, &e.into()))?;
        // A file system that counts no files says 0 of 0.
        let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), files))
    }

    fn full(&self, what: String) -> ImageError {
        let mend = "Free some: `evoke image prune` removes the images that nothing needs";
        ImageError::Io {
            action: "unpack to",
            path: self.folder.clone(),
            message: format!("{what}. {mend}"),
            full: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_has_no_room_for_is_refused_with_the_mend() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::on_disk_of(folder.path());
        let error = room.needs("the image", u64::MAX / 2).unwrap_err();
        assert!(error.to_string().contains("evoke image prune"), "{error}");
        assert_eq!(error.to_core().code, evoke_core::ErrorCode::ResourceExhausted);
    }
}
