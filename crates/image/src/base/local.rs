//! Images on this machine: OCI layout folders, the same in a tar file, and what `docker save` writes.

use super::manifest::{self, Descriptor, Either, Manifest};
use super::registry::chain;
use super::room::Room;
use super::{Bases, Found, Miss, Reference, blob, blocking};
use crate::digest::sha256;
use crate::error::{ImageError, Result};
use crate::log::{LogSink, say};
use crate::spec::{ImageSpec, LayerRef};
use crate::steps::Root;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of one document at most.
const DOCUMENT_MAX: u64 = 8 * 1024 * 1024;
/// Entries of one archive at most.
const ENTRIES_MAX: usize = 100_000;

/// A folder or a plain tar file, read by names inside it.
enum Store {
    Folder(PathBuf),
    Archive { path: PathBuf, parts: BTreeMap<String, (u64, u64)> },
}

/// What a store has for a reference.
struct Located {
    image: ImageSpec,
    /// Name inside the store, digest to check it by where there is one, key that tells layers apart.
    layers: Vec<LocatedLayer>,
}

struct LocatedLayer {
    name: String,
    digest: Option<String>,
    key: String,
}

impl Bases {
    pub(super) async fn local(&self, reference: &Reference, log: &dyn LogSink) -> Found {
        if self.config.local.is_empty() {
            return Err(Miss::NotMine("none are configured (images.local)".into()));
        }
        let mut failures = Vec::new();
        for path in &self.config.local {
            let (path_in, reference_in) = (path.clone(), reference.clone());
            let found = blocking("read a local image", move || {
                let store = Store::open(&path_in)?;
                let located = store.locate(&reference_in)?;
                Ok(located.map(|located| (Arc::new(store), located)))
            })
            .await;
            match found {
                Ok(Some((store, located))) => {
                    say(log, format!("Using {reference} from {}", path.display()));
                    let mut image = located.image;
                    image.layers = self.unpack_local(store, located.layers, reference, log).await?;
                    image.provenance.push(format!("{reference} from {}", path.display()));
                    return Ok(image);
                }
                Ok(None) => {}
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() {
            return Err(Miss::NotMine(format!("none of {} has it", self.config.local.len())));
        }
        Err(Miss::Failed(ImageError::malformed("local images", failures.join("; "))))
    }

    async fn unpack_local(
        &self,
        store: Arc<Store>,
        located: Vec<LocatedLayer>,
        reference: &Reference,
        log: &dyn LogSink,
    ) -> Result<Vec<LayerRef>> {
        let mut layers: Vec<LayerRef> = Vec::new();
        for layer in located {
            let key = chain(&layers, &layer.key);
            if let Some(known) = self.tools.layer(&key).await? {
                layers.push(known);
                continue;
            }
            let what = format!("{reference} {}", layer.name);
            let (name, store) = (what.clone(), store.clone());
            let room = Room::on_disk_of(&self.tools.layers);
            let piped = blob::pipe_through(what.clone(), move |out| {
                if let Some(digest) = &layer.digest {
                    store.verify(&layer.name, digest)?;
                }
                let mut plain = blob::decompress(&name, store.reader(&layer.name)?)?;
                blob::copy(&name, &mut plain, out, room)
            })?;
            let lower = Root { layers: layers.clone(), host_binds: Vec::new() };
            layers.push(self.tools.unpack(&lower, piped, &key, what, log).await?);
        }
        Ok(layers)
    }
}

impl Store {
    fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let file = File::open(path).map_err(|e| ImageError::io("open", path, &e))?;
        let mut archive = tar::Archive::new(&file);
        let mut parts = BTreeMap::new();
        let broken = |e: &std::io::Error| {
            let message = format!("not a plain tar file (compressed ones must be unpacked first): {e}");
            ImageError::malformed(path.display().to_string(), message)
        };
        for entry in archive.entries_with_seek().map_err(|e| broken(&e))? {
            let entry = entry.map_err(|e| broken(&e))?;
            if parts.len() == ENTRIES_MAX {
                return Err(ImageError::malformed(path.display().to_string(), "too many entries"));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let at = (entry.raw_file_position(), entry.size());
            // `docker save` writes a layer that several images share once and links to it.
            let linked = entry.link_name_bytes().map(|link| {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                resolve(folder, &String::from_utf8_lossy(&link))
            });
            let found = match linked {
                Some(target) => parts.get(&target).copied(),
                None => Some(at),
            };
            if let Some(found) = found {
                parts.insert(name, found);
            }
        }
        if parts.is_empty() {
            return Err(ImageError::malformed(path.display().to_string(), "an empty archive"));
        }
        Ok(Self::Archive { path: path.to_owned(), parts })
    }

    fn place(&self) -> String {
        match self {
            Self::Folder(path) | Self::Archive { path, .. } => path.display().to_string(),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(path) => path.join(name).is_file(),
            Self::Archive { parts, .. } => parts.contains_key(name),
        }
    }

    fn reader(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(ImageError::malformed(self.place(), format!("{name:?} leaves the image")));
        }
        match self {
            Self::Folder(path) => {
                let path = path.join(name);
                Ok(Box::new(File::open(&path).map_err(|e| ImageError::io("open", &path, &e))?))
            }
            Self::Archive { path, parts, .. } => {
                let (offset, size) = parts
                    .get(name)
                    .ok_or_else(|| ImageError::malformed(self.place(), format!("it has no {name}")))?;
                // Opened anew: a duplicate would share its position with other readers.
                let mut file = File::open(path).map_err(|e| ImageError::io("open", path, &e))?;
                file.seek(SeekFrom::Start(*offset)).map_err(|e| ImageError::io("read", path, &e))?;
                Ok(Box::new(file.take(*size)))
            }
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let place = self.place();
        self.reader(name)?
            .take(DOCUMENT_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| ImageError::malformed(&place, e))?;
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(ImageError::malformed(&place, format!("{name} is larger than {DOCUMENT_MAX} bytes")));
        }
        Ok(bytes)
    }

    fn verify(&self, name: &str, hex: &str) -> Result<()> {
        use sha2::{Digest as _, Sha256};
        let mut reader = self.reader(name)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0u8; 128 * 1024];
        loop {
            match reader.read(&mut buffer).map_err(|e| ImageError::malformed(self.place(), e))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let got = evoke_core::hex(&hasher.finalize());
        if got == hex {
            return Ok(());
        }
        let what = format!("{} {name}", self.place());
        Err(ImageError::Digest { what, expected: hex.to_owned(), got })
    }

    fn locate(&self, reference: &Reference) -> Result<Option<Located>> {
        if self.has("index.json") {
            if let Some(found) = self.in_layout(reference)? {
                return Ok(Some(found));
            }
        }
        if self.has("manifest.json") { self.in_docker_save(reference) } else { Ok(None) }
    }

    fn in_layout(&self, reference: &Reference) -> Result<Option<Located>> {
        let what = format!("{} index.json", self.place());
        let Either::Index(list) = manifest::read(&what, &self.document("index.json")?)? else {
            return Err(ImageError::malformed(what, "not an index"));
        };
        let Some(found) = list.iter().find(|d| names(d).any(|name| same_image(name, reference))) else {
            return Ok(None);
        };
        let manifest = self.manifest(&found.digest)?;
        let config = self.blob_document(&manifest.config.digest)?;
        let (image, _) = manifest::read_config(&what, &config)?;
        let layers = manifest
            .layers
            .iter()
            .map(|layer| {
                let hex = manifest::check_digest(&what, &layer.digest)?.to_owned();
                let name = format!("blobs/sha256/{hex}");
                Ok(LocatedLayer { name, digest: Some(hex), key: layer.digest.clone() })
            })
            .collect::<Result<_>>()?;
        Ok(Some(Located { image, layers }))
    }

    fn manifest(&self, digest: &str) -> Result<Manifest> {
        let mut digest = digest.to_owned();
        for _ in 0..3 {
            let what = format!("{} {digest}", self.place());
            match manifest::read(&what, &self.blob_document(&digest)?)? {
                Either::Manifest(manifest) => return Ok(manifest),
                Either::Index(list) => digest.clone_from(&manifest::choose(&what, &list)?.digest),
            }
        }
        Err(ImageError::malformed(self.place(), "indexes within indexes"))
    }

    fn blob_document(&self, digest: &str) -> Result<Vec<u8>> {
        let hex = manifest::check_digest(&self.place(), digest)?;
        let bytes = self.document(&format!("blobs/sha256/{hex}"))?;
        let got = sha256(&bytes);
        if got == hex {
            return Ok(bytes);
        }
        let what = format!("{} {digest}", self.place());
        Err(ImageError::Digest { what, expected: hex.to_owned(), got })
    }

    fn in_docker_save(&self, reference: &Reference) -> Result<Option<Located>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let what = format!("{} manifest.json", self.place());
        let list: Vec<Saved> = serde_json::from_slice(&self.document("manifest.json")?)
            .map_err(|e| ImageError::malformed(&what, e))?;
        let named = |saved: &&Saved| saved.repo_tags.iter().flatten().any(|tag| same_image(tag, reference));
        let Some(saved) = list.iter().find(named) else { return Ok(None) };
        let (image, diff_ids) = manifest::read_config(&what, &self.document(&saved.config)?)?;
        if diff_ids.len() != saved.layers.len() {
            return Err(ImageError::malformed(what, "the configuration lists other layers than the archive"));
        }
        let layers = saved.layers.iter().zip(diff_ids).map(|(name, diff_id)| {
            // A diff id is the digest of the plain tar, which is what most versions save.
            LocatedLayer { name: name.clone(), digest: None, key: format!("saved {diff_id}") }
        });
        Ok(Some(Located { image, layers: layers.collect() }))
    }
}

/// The names that tools give an image of a layout.
fn names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .into_iter()
        .filter_map(|key| descriptor.annotations.get(key).map(String::as_str))
}

fn same_image(name: &str, reference: &Reference) -> bool {
    Reference::parse(name).is_ok_and(|other| {
        other.registry == reference.registry
            && other.repository == reference.repository
            && other.tag == reference.tag
    })
}

/// A relative link inside an archive.
fn resolve(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_links() {
        assert_eq!(resolve("a/b", "../c/layer.tar"), "a/c/layer.tar");
        assert_eq!(resolve("", "x"), "x");
    }

    #[test]
    fn compares_names() {
        let reference = Reference::parse("python:3.11-slim").unwrap();
        assert!(same_image("docker.io/library/python:3.11-slim", &reference));
        assert!(same_image("python:3.11-slim", &reference));
        assert!(!same_image("python:3.12-slim", &reference));
    }
}
