//! What is known of layers and bases that were made: the trait that the control plane keeps in its store,
//! and one that keeps it in a folder.

use crate::error::{ImageError, Result};
use crate::spec::ImageSpec;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A layer that is complete on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Hex digest of how it came to be.
    pub digest: String,
    /// Bytes of file content.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// The instruction that made it, for people.
    pub origin: String,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// Name of the folder below the layers' folder; differs from the digest where a forced build made it anew.
    pub folder: String,
}

/// Remembers layers and images. What it says exists on disk; what it does not say is made anew.
#[async_trait]
pub trait LayerIndex: Send + Sync {
    /// The layer of that digest.
    async fn layer(&self, digest: &str) -> Result<Option<LayerRecord>>;
    /// Remembers a layer, in place of an earlier one of that digest.
    async fn put_layer(&self, record: LayerRecord) -> Result<()>;
    /// An image by the digest of how it came to be (a base by its reference, a build by its recipe).
    async fn image(&self, key: &str) -> Result<Option<ImageSpec>>;
    /// Remembers an image.
    async fn put_image(&self, key: &str, image: &ImageSpec) -> Result<()>;
}

/// An index of one small JSON file per entry, each written in one piece.
#[derive(Debug, Clone)]
pub struct FolderIndex {
    folder: PathBuf,
}

impl FolderIndex {
    /// An index in `folder`, which is made if needed.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        for part in ["layers", "images"] {
            let path = folder.join(part);
            std::fs::create_dir_all(&path).map_err(|e| ImageError::io("make", &path, &e))?;
        }
        Ok(Self { folder })
    }

    fn path(&self, part: &str, key: &str) -> Result<PathBuf> {
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(ImageError::Index(format!("{key:?} is not a digest")));
        }
        Ok(self.folder.join(part).join(format!("{key}.json")))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, part: &str, key: &str) -> Result<Option<T>> {
        let path = self.path(part, key)?;
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ImageError::io("read", path, &e)),
        };
        match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                // An entry of another version: what it told of is made anew.
                tracing::warn!(path = %path.display(), %error, "unreadable entry of the image index");
                Ok(None)
            }
        }
    }

    fn write<T: Serialize>(&self, part: &str, key: &str, value: &T) -> Result<()> {
        let path = self.path(part, key)?;
        let text = serde_json::to_vec(value).map_err(|e| ImageError::Index(e.to_string()))?;
        let draft = tempfile::NamedTempFile::new_in(self.folder.join(part))
            .map_err(|e| ImageError::io("make a file in", self.folder.join(part), &e))?;
        std::io::Write::write_all(&mut draft.as_file(), &text)
            .and_then(|()| draft.as_file().sync_all())
            .map_err(|e| ImageError::io("write", draft.path(), &e))?;
        draft.persist(&path).map_err(|e| ImageError::io("rename to", &path, &e.error))?;
        Ok(())
    }
}

#[async_trait]
impl LayerIndex for FolderIndex {
    async fn layer(&self, digest: &str) -> Result<Option<LayerRecord>> {
        self.read("layers", digest)
    }
    async fn put_layer(&self, record: LayerRecord) -> Result<()> {
        self.write("layers", &record.digest, &record)
    }
    async fn image(&self, key: &str) -> Result<Option<ImageSpec>> {
        self.read("images", key)
    }
    async fn put_image(&self, key: &str, image: &ImageSpec) -> Result<()> {
        self.write("images", key, image)
    }
}
