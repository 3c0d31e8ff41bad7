//! What is known of layers and bases that were made: the trait that the control plane keeps in its store,
//! and one that keeps it in a folder.

use crate::error::{ImageError, Result};
use crate::spec::ImageSpec;
use crate::survey::LayerFacts;
use async_trait::async_trait;
use evoke_core::UnixMs;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long after a use of an entry the next one is noted.
const USE_NOTED_EVERY: Duration = Duration::from_secs(3600);

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
    /// All layers, each with the time of its last use, to the hour.
    async fn layers(&self) -> Result<Vec<(LayerRecord, UnixMs)>>;
    /// All images by their keys, each with the time of its last use, to the hour.
    async fn images(&self) -> Result<Vec<(String, ImageSpec, UnixMs)>>;
    /// Forgets a layer.
    async fn remove_layer(&self, digest: &str) -> Result<()>;
    /// Forgets an image.
    async fn remove_image(&self, key: &str) -> Result<()>;
    /// Forgets what was found in a layer.
    async fn remove_facts(&self, key: &str) -> Result<()>;
    /// What was found in a layer when it was looked at, by a digest of its folder's name.
    async fn facts(&self, key: &str) -> Result<Option<LayerFacts>>;
    /// Remembers what was found.
    async fn put_facts(&self, key: &str, facts: &LayerFacts) -> Result<()>;
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
        for part in ["layers", "images", "facts"] {
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

    /// An entry that somebody uses.
    fn used<T: serde::de::DeserializeOwned>(&self, part: &str, key: &str) -> Result<Option<T>> {
        let value = self.read(part, key)?;
        if value.is_some() {
            note_use(&self.path(part, key)?);
        }
        Ok(value)
    }

    /// All entries of a part, with the key and the time of the last use of each.
    async fn all<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        part: &'static str,
    ) -> Result<Vec<(String, T, UnixMs)>> {
        let index = self.clone();
        crate::base::blocking("list the image index", move || {
            let folder = index.folder.join(part);
            let failed = |e: std::io::Error| ImageError::io("list", &folder, &e);
            let mut all = Vec::new();
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                // What is being written has a name that is no key.
                let digest = !key.is_empty() && key.chars().all(|c| c.is_ascii_hexdigit());
                let Some(about) = path.metadata().ok().filter(|_| digest) else { continue };
                if let Some(value) = index.read(part, &key)? {
                    all.push((key, value, crate::collect::modified(&about)));
                }
            }
            Ok(all)
        })
        .await
    }

    fn remove(&self, part: &str, key: &str) -> Result<()> {
        let path = self.path(part, key)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ImageError::io("remove", path, &e)),
            _ => Ok(()),
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
        self.used("layers", digest)
    }
    async fn put_layer(&self, record: LayerRecord) -> Result<()> {
        self.write("layers", &record.digest, &record)
    }
    async fn image(&self, key: &str) -> Result<Option<ImageSpec>> {
        self.used("images", key)
    }
    async fn put_image(&self, key: &str, image: &ImageSpec) -> Result<()> {
        self.write("images", key, image)
    }
    async fn layers(&self) -> Result<Vec<(LayerRecord, UnixMs)>> {
        Ok(self.all("layers").await?.into_iter().map(|(_, record, used)| (record, used)).collect())
    }
    async fn images(&self) -> Result<Vec<(String, ImageSpec, UnixMs)>> {
        self.all("images").await
    }
    async fn remove_layer(&self, digest: &str) -> Result<()> {
        self.remove("layers", digest)
    }
    async fn remove_image(&self, key: &str) -> Result<()> {
        self.remove("images", key)
    }
    async fn remove_facts(&self, key: &str) -> Result<()> {
        self.remove("facts", key)
    }
    async fn facts(&self, key: &str) -> Result<Option<LayerFacts>> {
        self.read("facts", key)
    }
    async fn put_facts(&self, key: &str, facts: &LayerFacts) -> Result<()> {
        self.write("facts", key, facts)
    }
}

/// Sets the time of an entry's last use, unless that was lately.
fn note_use(path: &Path) {
    let now = SystemTime::now();
    let old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age > USE_NOTED_EVERY);
    let noted = std::fs::File::options()
        .append(true)
        .open(path)
        .and_then(|file| if old(file.metadata()?.modified()?) { file.set_modified(now) } else { Ok(()) });
    if let Err(error) = noted {
        tracing::warn!(path = %path.display(), %error, "the use of an image could not be noted");
    }
}
