//! What the control plane asks of rooms that it does not know: image builds, client bundles, addresses. The
//! binary puts the pieces together.

use async_trait::async_trait;
use evoke_core::{AppId, BlobId, Error, ImageId, UnixMs};
use evoke_files::{ContentHash, VolumeContent};
use evoke_proto::api;
use evoke_proto::worker::{Control as VolumeKeeper, LayerRef, VolumeMount};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Addresses that clients and containers are given. `origin` is the base address by which the caller reached
/// the server, without a slash at the end.
pub trait Urls: Send + Sync {
    /// The page that shows all apps.
    fn home(&self, origin: &str) -> String;
    /// The page of an app.
    fn app(&self, origin: &str, app: AppId) -> String;
    /// Where the whole of a blob is put in one request.
    fn blob_put(&self, origin: &str, blob: BlobId) -> String;
    /// Where part `number` (from 1) of a blob is put.
    fn blob_part(&self, origin: &str, blob: BlobId, number: u32) -> String;
    /// Where the end of an upload in parts is told.
    fn blob_complete(&self, origin: &str, blob: BlobId) -> String;
    /// Where a blob is read.
    fn blob_get(&self, origin: &str, blob: BlobId) -> String;
    /// Where a block of a volume's file is put.
    fn volume_block(&self, origin: &str, block: ContentHash) -> String;
    /// Where `length` bytes from `start` on of a volume's file are read.
    fn volume_content(&self, origin: &str, content: VolumeContent, start: u64, length: u64) -> String;
    /// Where a web function is reached, by its label and its port.
    fn web(&self, origin: &str, label: &str, port: u16) -> String;
}

/// A built image, as the containers of its functions need it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltImage {
    /// Its layers, bottom first.
    pub layers: Vec<StoredLayer>,
    /// Folders and files of this machine that its containers see read-only, with the paths inside.
    #[serde(default)]
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Environment variables that it sets, in order.
    pub env: Vec<(String, String)>,
    /// Its working folder; empty for none.
    pub workdir: String,
    /// The Python inside, as `3.11.2`; empty where there is none.
    pub python: String,
    /// The program that `python` means inside; empty where there is none.
    pub python_path: String,
    /// `glibc 2.36` or `musl 1.2`; empty where not known.
    pub libc: String,
    /// The builder version that it was made with.
    pub builder_version: String,
    /// Python packages in it, by name and version; not stored a second time: `spec` has them.
    #[serde(skip)]
    pub packages: Vec<(String, String)>,
    /// What the builder itself needs to build on top of it; opaque here.
    pub spec: String,
}

/// [`LayerRef`] as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLayer {
    /// The folder.
    pub path: String,
    /// The host's user and group whose files appear as root's; none where ids are the container's own.
    pub single: Option<(u32, u32)>,
}

impl From<&StoredLayer> for LayerRef {
    fn from(layer: &StoredLayer) -> Self {
        use evoke_proto::worker::LayerOwner;
        let owner = layer.single.map_or(LayerOwner::Canonical, |(uid, gid)| LayerOwner::Single { uid, gid });
        LayerRef { path: layer.path.clone().into(), owner }
    }
}

/// A layer of an image as people are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerOverview {
    /// Names it.
    pub digest: String,
    /// The instruction that made it.
    pub step: String,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// How many files it touched.
    pub files: FileChanges,
    /// Python distributions that it touched.
    pub python: Vec<PackageOverview>,
    /// Debian packages that it touched.
    pub debian: Vec<PackageOverview>,
}

/// Files that a layer touched; folders are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileChanges {
    /// Were not there.
    pub added: u64,
    /// Were there and are others now.
    pub changed: u64,
    /// Are not there any more.
    pub removed: u64,
}

/// A package that a layer touched: no `before` where it added it, no `after` where it removed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageOverview {
    /// Its name.
    pub name: String,
    /// The version below the layer.
    pub before: Option<String>,
    /// The version that the layer has.
    pub after: Option<String>,
}

/// Takes the pieces of a build's log: file descriptor (1 or 2) and text.
pub type BuildLog = Arc<dyn Fn(i32, &str) + Send + Sync>;

/// An image to build.
pub struct BuildRequest {
    /// The image's id.
    pub image_id: ImageId,
    /// The recipe as the client sent it.
    pub image: api::Image,
    /// The builder version asked for.
    pub builder_version: String,
    /// Images that the recipe builds on, by the name it gives them.
    pub bases: Vec<(String, BuiltImage)>,
    /// Build secrets, for the environment of its steps only.
    pub secrets: Vec<(String, String)>,
    /// Volumes that its steps see, and who keeps them.
    pub volumes: (Vec<VolumeMount>, Arc<dyn VolumeKeeper>),
    /// The secret with a login for the base's registry, if the recipe names one.
    pub registry_secret: Option<BTreeMap<String, String>>,
    /// Files of the context mount: path, digest, mode; and a folder with them.
    pub context: Option<(Vec<api::MountFile>, PathBuf)>,
    /// Build anew and replace what is cached.
    pub force_build: bool,
    /// Build anew and leave what is cached alone.
    pub ignore_cache: bool,
    /// Called with each piece of the build's log: file descriptor (1 or 2) and text.
    pub log: BuildLog,
}

/// Builds images.
#[async_trait]
pub trait ImageBuilder: Send + Sync {
    /// Builds an image, or finds it in the cache. Dropping the future stops the build and leaves nothing.
    async fn build(&self, request: BuildRequest) -> Result<BuiltImage, Error>;

    /// Whether there can be a standalone Python of that name (`<release>.<version>-<libc>`).
    fn knows_python(&self, name: &str) -> bool;

    /// The standalone Python of that name as a build context: its files, and a folder with them. Brought here
    /// first if it is not.
    async fn standalone_python(
        &self,
        name: &str,
        log: BuildLog,
    ) -> Result<(Vec<api::MountFile>, PathBuf), Error>;

    /// A folder in which a layer of this digest-like name may be put by a container's commit.
    fn layer_path(&self, name: &str) -> PathBuf;

    /// `base` with one more layer, which a container committed there; `step` says what made it.
    async fn with_layer(&self, base: &BuiltImage, layer: &str, step: &str) -> Result<BuiltImage, Error>;

    /// What each layer of an image brought, bottom first.
    async fn layers(&self, image: &BuiltImage) -> Result<Vec<LayerOverview>, Error>;

    /// Whatever is looked up or made from now on is not collected while the result lives.
    fn begin_use(&self) -> Box<dyn Send + Sync>;

    /// Whether all layers of an image are there.
    async fn is_whole(&self, image: &BuiltImage) -> Result<bool, Error>;

    /// The folders of layers that containers of an image need.
    fn folders_of(&self, image: &BuiltImage) -> Result<Vec<String>, Error>;

    /// A round of collection begins. What is to stay must be found out after this.
    fn begin_collection(&self) -> Box<dyn LayerCollection>;

    /// Bytes of all layers of an image.
    async fn bytes(&self, image: &BuiltImage) -> Result<u64, Error>;
}

/// Layers that stay.
#[derive(Debug, Clone)]
pub struct LayersKept {
    /// Folders that something needs.
    pub folders: HashSet<String>,
    /// What was used since then stays, too.
    pub unused_before: UnixMs,
    /// Compiled packages of the client stay, whoever needs them.
    pub compiled: bool,
    /// Nothing is removed; what would be is counted.
    pub dry_run: bool,
}

/// Layers that were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayersCollected {
    /// How many.
    pub layers: u64,
    /// Bytes of their files, as far as they are remembered.
    pub layer_bytes: u64,
    /// Downloads that nobody went on with.
    pub downloads: u64,
    /// Their bytes.
    pub download_bytes: u64,
}

/// A round of collection of layers.
#[async_trait]
pub trait LayerCollection: Send + Sync {
    /// Removes what is not to stay.
    async fn finish(self: Box<Self>, keep: LayersKept) -> Result<LayersCollected, Error>;
}

/// Supplies the official client's packages for containers.
#[async_trait]
pub trait Bundles: Send + Sync {
    /// The packages of the client of this version, as a layer.
    async fn client(&self, version: &str) -> Result<LayerRef, Error>;
    /// What those packages depend on, for an image, as a layer; none where the image contains them itself.
    async fn dependencies(&self, image: &BuiltImage) -> Result<Option<LayerRef>, Error>;
}
