//! What each layer of an image brought: its step, its size, files and packages added, changed and removed.
//! A layer is looked at when somebody first asks, in a container like those of builds, and what was found is
//! remembered with the layer.

use crate::digest::Hasher;
use crate::error::Result;
use crate::index::{LayerIndex, LayerRecord};
use crate::spec::{ImageSpec, LayerRef};
use crate::steps::Root;
use async_trait::async_trait;
pub use evoke_runtime::LayerFacts;
use evoke_runtime::LayerPackage;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Looks at a layer.
#[async_trait]
pub trait Surveyor: Send + Sync {
    /// What the layer changed of `below`.
    async fn survey(&self, below: &Root, layer: &LayerRef) -> Result<LayerFacts>;
}

/// A package that a layer touched. One that it added has no `before`, one that it removed no `after`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageChange {
    /// Its name.
    pub name: String,
    /// The version that lies below.
    pub before: Option<String>,
    /// The version that the layer has.
    pub after: Option<String>,
}

/// A layer as people are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerReport {
    /// Hex digest of how it came to be.
    pub digest: String,
    /// The instruction that made it; empty where that is not remembered.
    pub origin: String,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Files that it added.
    pub added: u64,
    /// Files that it changed.
    pub changed: u64,
    /// Files that it removed.
    pub removed: u64,
    /// Python distributions that it touched.
    pub python: Vec<PackageChange>,
    /// Debian packages that it touched.
    pub debian: Vec<PackageChange>,
}

/// Tells what layers brought. Cheap to clone.
#[derive(Clone)]
pub struct Surveys {
    index: Arc<dyn LayerIndex>,
    surveyor: Arc<dyn Surveyor>,
}

impl Surveys {
    /// Of the layers that `index` knows.
    pub fn new(index: Arc<dyn LayerIndex>, surveyor: Arc<dyn Surveyor>) -> Self {
        Self { index, surveyor }
    }

    /// The layers of an image, bottom first.
    pub async fn of(&self, image: &ImageSpec) -> Result<Vec<LayerReport>> {
        let mut reports = Vec::new();
        for (at, layer) in image.layers.iter().enumerate() {
            let below = Root { layers: image.layers[..at].to_vec(), host_binds: Vec::new() };
            let facts = self.facts(&below, layer).await?;
            let record = self.index.layer(&layer.digest).await?;
            reports.push(LayerReport {
                digest: layer.digest.clone(),
                took_ms: record.as_ref().map_or(0, |record| record.took_ms),
                origin: record.map(|record| record.origin).unwrap_or_default(),
                bytes: facts.bytes,
                added: facts.added,
                changed: facts.changed,
                removed: facts.removed,
                python: changes(&facts.python_gone, &facts.python_found),
                debian: changes(&facts.debian_gone, &facts.debian_found),
            });
        }
        Ok(reports)
    }

    /// Bytes of all layers of an image, as far as they are remembered.
    pub async fn bytes(&self, image: &ImageSpec) -> Result<u64> {
        let mut bytes = 0;
        for layer in &image.layers {
            bytes += self.index.layer(&layer.digest).await?.map_or(0, |record| record.bytes);
        }
        Ok(bytes)
    }

    /// Remembers the highest layer of an image, which no build made: `origin` says what did.
    pub async fn remember(&self, image: &ImageSpec, origin: &str) -> Result<()> {
        let Some((layer, below)) = image.layers.split_last() else { return Ok(()) };
        let below = Root { layers: below.to_vec(), host_binds: Vec::new() };
        let facts = self.facts(&below, layer).await?;
        let record = LayerRecord {
            digest: layer.digest.clone(),
            bytes: facts.bytes,
            entries: facts.added + facts.changed,
            origin: origin.to_owned(),
            took_ms: 0,
            folder: layer.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        self.index.put_layer(record).await
    }

    async fn facts(&self, below: &Root, layer: &LayerRef) -> Result<LayerFacts> {
        let key = facts_key(&layer.path);
        if let Some(known) = self.index.facts(&key).await? {
            return Ok(known);
        }
        let found = self.surveyor.survey(below, layer).await?;
        self.index.put_facts(&key, &found).await?;
        Ok(found)
    }
}

/// What is found in a layer is remembered by its folder: a forced build makes another one of the same digest.
pub(crate) fn facts_key(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut hasher = Hasher::new("evoke-layer-facts-1");
    hasher.text(&name);
    hasher.finish()
}

/// What `after` differs from `before` in, by name.
fn changes(before: &[LayerPackage], after: &[LayerPackage]) -> Vec<PackageChange> {
    let mut both: BTreeMap<&str, (Option<&str>, Option<&str>)> = BTreeMap::new();
    for package in before {
        both.entry(&package.name).or_default().0 = Some(&package.version);
    }
    for package in after {
        both.entry(&package.name).or_default().1 = Some(&package.version);
    }
    let changed = both.into_iter().filter(|(_, (before, after))| before != after);
    let change = |(name, (before, after)): (&str, (Option<&str>, Option<&str>))| PackageChange {
        name: name.to_owned(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
    };
    changed.map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::FolderIndex;
    use crate::spec::LayerOwner;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn package(name: &str, version: &str) -> LayerPackage {
        LayerPackage { name: name.into(), version: version.into() }
    }

    #[test]
    fn packages_are_compared_by_name() {
        let change = |name: &str, before: Option<&str>, after: Option<&str>| PackageChange {
            name: name.into(),
            before: before.map(Into::into),
            after: after.map(Into::into),
        };
        let before = [package("gone", "1"), package("same", "1"), package("new", "1")];
        let after = [package("same", "1"), package("new", "2"), package("added", "3")];
        let expected = [
            change("added", None, Some("3")),
            change("gone", Some("1"), None),
            change("new", Some("1"), Some("2")),
        ];
        assert_eq!(changes(&before, &after), expected);
    }

    struct Counting(AtomicUsize);

    #[async_trait]
    impl Surveyor for Counting {
        async fn survey(&self, below: &Root, _layer: &LayerRef) -> Result<LayerFacts> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let added = below.layers.len() as u64 + 1;
            Ok(LayerFacts { added, python_found: vec![package("p", "1")], ..LayerFacts::default() })
        }
    }

    #[tokio::test]
    async fn a_layer_is_looked_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let index = Arc::new(FolderIndex::open(folder.path()).unwrap());
        let record = LayerRecord {
            digest: "ab".into(),
            bytes: 5,
            entries: 1,
            origin: "RUN x".into(),
            took_ms: 7,
            folder: "ab".into(),
        };
        index.put_layer(record).await.unwrap();
        let surveyor = Arc::new(Counting(AtomicUsize::new(0)));
        let surveys = Surveys::new(index, surveyor.clone());
        let layer = |name: &str| LayerRef {
            digest: name.into(),
            path: Path::new("/layers").join(name),
            owner: LayerOwner::Canonical,
        };
        let image = ImageSpec { layers: vec![layer("ab"), layer("cd")], ..ImageSpec::default() };
        for _ in 0..2 {
            let reports = surveys.of(&image).await.unwrap();
            let shown: Vec<_> = reports.iter().map(|r| (r.origin.as_str(), r.added, r.took_ms)).collect();
            assert_eq!(shown, [("RUN x", 1, 7), ("", 2, 0)]);
            assert_eq!(reports[0].python[0].after.as_deref(), Some("1"));
        }
        assert_eq!(surveyor.0.load(Ordering::SeqCst), 2);
    }
}
