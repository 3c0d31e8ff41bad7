//! Where a base comes from. Sources are tried in the configured order; what none of them has is an error
//! that lists each attempt and the mend.

mod blob;
use blob::Piped;
pub(crate) use blob::{decompress, pipe_through, settle};
pub mod debian;
mod host;
mod local;
mod manifest;
mod reference;
mod registry;
mod room;
mod uv;

pub use host::{HostConfig, find_interpreters};
pub use reference::{DOCKER_HUB, Reference};
pub use registry::{AwsKeys, Credentials, Login, LoginKind, RegistryConfig};

use crate::digest::Hasher;
use crate::error::{ImageError, Result};
use crate::index::{LayerIndex, LayerRecord};
use crate::log::{LogSink, say};
use crate::spec::{ImageSpec, LayerOwner, LayerRef};
use crate::steps::{Builder, LayerSize, Root};
use evoke_core::Clock;
use evoke_files::fetch::Fetcher;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One kind of place that a base may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseSource {
    /// OCI layouts and archives on this machine.
    Local,
    /// Registries and their mirrors.
    Registry,
    /// Debian's package archive, for `debian` and slim `python` images; and the package index for `uv`.
    Debian,
    /// This machine's own interpreter and libraries, for `debian` and slim `python` images.
    Host,
}

/// Where bases come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BaseConfig {
    /// Sources in the order they are tried. `host` is tried only if it is listed.
    pub order: Vec<BaseSource>,
    /// OCI layout folders, OCI archives and `docker save` archives.
    pub local: Vec<PathBuf>,
    /// Registries: mirrors, renames, plain ones.
    pub registry: RegistryConfig,
    /// Debian's archive.
    pub debian: debian::DebianConfig,
    /// This machine as a base.
    pub host: HostConfig,
    /// Where archives of standalone Pythons are: an address or a folder.
    pub standalone_python: String,
}

impl Default for BaseConfig {
    fn default() -> Self {
        Self {
            order: vec![BaseSource::Local, BaseSource::Registry, BaseSource::Debian],
            local: Vec::new(),
            registry: RegistryConfig::default(),
            debian: debian::DebianConfig::default(),
            host: HostConfig::default(),
            standalone_python: crate::STANDALONE_SOURCE.to_owned(),
        }
    }
}

/// What the making of bases needs.
#[derive(Clone)]
pub struct BaseTools {
    /// Requests.
    pub fetcher: Fetcher,
    /// Containers.
    pub builder: Arc<dyn Builder>,
    /// What is there already.
    pub index: Arc<dyn LayerIndex>,
    /// The time, for how long things took.
    pub clock: Arc<dyn Clock>,
    /// Where layers live.
    pub layers: PathBuf,
    /// Where downloads are kept while they are needed.
    pub downloads: PathBuf,
    /// How the host reaches package indexes, for set-up commands of a base.
    pub network: Arc<crate::network::HostNetwork>,
    /// What uses layers now.
    pub uses: crate::uses::LayerUses,
    /// Where the API of Amazon's registry is, if this machine's configuration says another address.
    pub ecr_endpoint: Option<String>,
}

/// The machine's architecture as registries and Debian call it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Brings bases here.
pub struct Bases {
    config: BaseConfig,
    tools: BaseTools,
}

/// Why a source did not give a base.
pub(crate) enum Miss {
    /// It never has images of that name.
    NotMine(String),
    /// It should have it, and failed.
    Failed(ImageError),
}

impl From<ImageError> for Miss {
    fn from(error: ImageError) -> Self {
        Self::Failed(error)
    }
}

type Found = std::result::Result<ImageSpec, Miss>;

/// What stands between us and an image, the one that a person can do most about last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    /// It is not there, or not to be reached.
    Unreachable,
    /// What came cannot be used.
    Damaged,
    /// Somebody must say who they are.
    Refused,
}

impl Obstacle {
    fn of(error: &ImageError) -> Self {
        match error {
            ImageError::Denied { .. } => Self::Refused,
            ImageError::Digest { .. } | ImageError::Malformed { .. } | ImageError::Reference { .. } => {
                Self::Damaged
            }
            _ => Self::Unreachable,
        }
    }
}

impl Bases {
    /// Bases from the configured places.
    pub fn new(config: BaseConfig, tools: BaseTools) -> Self {
        Self { config, tools }
    }

    /// The key under which a resolved base is remembered. It follows the part of the configuration that
    /// decides what a name means.
    fn key(&self, reference: &str) -> String {
        let mut hasher = Hasher::new("evoke-base-1");
        hasher.text(reference).text(architecture());
        hasher.text(&format!("{:?}", self.config.order));
        hasher.text(&format!("{:?}", self.config.registry.rename));
        hasher.finish()
    }

    /// A digest of the configuration that decides what names mean, for keys of whole builds.
    pub fn config_digest(&self) -> String {
        self.key("")
    }

    /// The image of that reference, from the index or from the first source that has it.
    pub async fn resolve(
        &self,
        reference: &str,
        login: Option<&Login>,
        fresh: bool,
        log: &dyn LogSink,
    ) -> Result<ImageSpec> {
        if reference == "scratch" {
            return Ok(ImageSpec::default());
        }
        let key = self.key(reference);
        if !fresh {
            if let Some(image) = self.tools.index.image(&key).await? {
                // A view of this machine follows what is installed here.
                if !image.host && self.tools.is_whole(&image).await {
                    return Ok(image);
                }
            }
        }
        let image = self.find(reference, login, log).await?;
        self.tools.index.put_image(&key, &image).await?;
        Ok(image)
    }

    async fn find(&self, reference: &str, login: Option<&Login>, log: &dyn LogSink) -> Result<ImageSpec> {
        let parsed = Reference::parse(reference)?;
        let mut tried = Vec::new();
        let mut obstacle = Obstacle::Unreachable;
        for source in &self.config.order {
            let (name, found) = match source {
                BaseSource::Local => ("local images", self.local(&parsed, log).await),
                BaseSource::Registry => ("registry", self.registry(&parsed, login, log).await),
                BaseSource::Debian if uv::is_uv(&parsed) => ("package index", self.uv(&parsed, log).await),
                BaseSource::Debian => ("Debian archive", self.debian(&parsed, log).await),
                BaseSource::Host => ("this machine", self.host(&parsed, log).await),
            };
            match found {
                Ok(image) => return Ok(image),
                Err(Miss::NotMine(why)) => tried.push((name.to_owned(), why)),
                // What else has an image of that name would not be the one that a password was given for.
                Err(Miss::Failed(error @ (ImageError::Denied { .. } | ImageError::Login(_))))
                    if login.is_some() =>
                {
                    return Err(error);
                }
                // Elsewhere it is as large.
                Err(Miss::Failed(error @ ImageError::Io { full: true, .. })) => return Err(error),
                Err(Miss::Failed(error)) => {
                    say(log, format!("{name}: {error}"));
                    obstacle = obstacle.max(Obstacle::of(&error));
                    tried.push((name.to_owned(), error.to_string()));
                }
            }
        }
        Err(ImageError::NoBase { reference: parsed.familiar(), tried, mend: self.mend(&parsed, obstacle) })
    }

    fn mend(&self, reference: &Reference, obstacle: Obstacle) -> String {
        let mut mends = vec![
            match obstacle {
                Obstacle::Refused => format!("Give {} the credentials it asks for", reference.registry),
                Obstacle::Damaged => format!(
                    "Nothing of what {} gave is kept: try again, and if it stays so have the image pushed anew",
                    reference.registry
                ),
                Obstacle::Unreachable => format!("Make {} reachable from this machine", reference.registry),
            },
            format!(
                "or configure a mirror of it (images.registry.mirrors.\"{}\" = [\"http://host:5000\"])",
                reference.registry
            ),
            format!(
                "or save it where it can be reached (docker save -o image.tar {}) and list the file in images.local",
                reference.familiar()
            ),
        ];
        if matches!(reference.official(), Some("python" | "debian"))
            && !self.config.order.contains(&BaseSource::Host)
        {
            mends.push("or add \"host\" to images.order to use this machine's own Python".to_owned());
        }
        format!("{}.", mends.join(",\n"))
    }
}

impl BaseTools {
    /// A layer by its digest, if it is complete.
    pub(crate) async fn layer(&self, digest: &str) -> Result<Option<LayerRef>> {
        let Some(record) = self.index.layer(digest).await? else { return Ok(None) };
        let path = self.layers.join(&record.folder);
        self.uses.touch(&record.folder).await;
        Ok(path.is_dir().then(|| LayerRef { digest: digest.to_owned(), path, owner: LayerOwner::Canonical }))
    }

    /// Whether all layers of an image are there. From now on they stay as long as what uses them runs.
    pub(crate) async fn is_whole(&self, image: &ImageSpec) -> bool {
        for layer in &image.layers {
            self.uses.touch(&crate::collect::folder_name(&layer.path)).await;
            if !layer.path.is_dir() {
                return false;
            }
        }
        true
    }

    /// Remembers a layer that was just made at its own place.
    pub(crate) async fn remember(
        &self,
        digest: &str,
        origin: String,
        size: LayerSize,
        took_ms: u64,
    ) -> Result<LayerRef> {
        let record = LayerRecord {
            digest: digest.to_owned(),
            bytes: size.bytes,
            entries: size.entries,
            origin,
            took_ms,
            folder: digest.to_owned(),
        };
        self.index.put_layer(record).await?;
        Ok(LayerRef {
            digest: digest.to_owned(),
            path: self.layers.join(digest),
            owner: LayerOwner::Canonical,
        })
    }

    /// Makes a layer of what is written into a pipe, in place of what an interrupted attempt left.
    pub(crate) async fn unpack(
        &self,
        lower: &Root,
        (archive, writer): Piped,
        digest: &str,
        origin: String,
        log: &dyn LogSink,
    ) -> Result<LayerRef> {
        let start = self.clock.now();
        let path = self.layers.join(digest);
        self.clear(&path).await?;
        let unpacked = self.builder.unpack(lower, archive, &path, log).await;
        match settle(unpacked, writer).await {
            Ok(size) => self.remember(digest, origin, size, self.clock.now().since(start)).await,
            Err(error) => {
                // What wrote the stream may have failed at its very end, when the layer was there already.
                if let Err(left) = self.clear(&path).await {
                    tracing::warn!(error = %left, "a layer that failed could not be removed yet");
                }
                Err(error)
            }
        }
    }

    /// Removes what an interrupted attempt left at a layer's place, which is about to be filled anew.
    pub(crate) async fn clear(&self, path: &Path) -> Result<()> {
        self.uses.touch(&crate::collect::folder_name(path)).await;
        if path.symlink_metadata().is_ok() { self.builder.remove(path).await } else { Ok(()) }
    }

    /// A folder for downloads, made if needed.
    pub(crate) fn download_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.downloads.join(name);
        std::fs::create_dir_all(&path).map_err(|e| ImageError::io("make", &path, &e))?;
        Ok(path)
    }
}

/// Runs blocking work on a thread where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::builder(what, error)),
    }
}

/// Labels of an image's configuration that we keep.
pub(crate) fn env_pairs(list: &[String]) -> Vec<(String, String)> {
    let mut seen = BTreeMap::new();
    let mut pairs: Vec<(String, String)> = Vec::new();
    for entry in list {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        match seen.get(key) {
            Some(at) => {
                let slot: &mut (String, String) = &mut pairs[*at];
                value.clone_into(&mut slot.1);
            }
            None => {
                seen.insert(key.to_owned(), pairs.len());
                pairs.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    pairs
}
