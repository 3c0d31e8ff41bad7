//! Bytecode of the client's packages: compiled once per base image, so that containers do not compile half a
//! second's worth of modules at each start.
//!
//! An interpreter of the right version compiles them in a container without a network, and what it wrote
//! becomes a layer with the dependencies and the bytecode in it. Which interpreter decides who trusts the
//! result: only the layers up to the one that brought the interpreter are used, nothing that was built on top
//! of them, so that no image can put code into another one's client. The client's own bytecode is bound to its
//! source by hash and checked when it is imported, because the same layer serves several client versions.
//! Until it is there the plain packages do, only slower.

use super::bundles::plain;
use super::images::spec_of;
use evoke_control::ports::BuiltImage;
use evoke_core::{Error, ErrorCode};
use evoke_files::bundles::Bundles;
use evoke_image::steps::{Builder, Command, ReadOnlyBind, Root};
use evoke_image::{ImageSpec, LayerOwner, LayerRef, NoLog};
use evoke_proto::worker;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the packages are seen while they are compiled.
const FROM: &str = "/__evoke/packages";
/// Copies the dependencies to where they belong and compiles both. Warnings of single modules do not matter.
const PROGRAM: &str = "\
import compileall, py_compile, shutil, sys
shutil.copytree('/__evoke/packages', '/', dirs_exist_ok=True)
checked = py_compile.PycInvalidationMode.CHECKED_HASH
compileall.compile_dir('/__modal/deps', quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
compileall.compile_dir('/pkg', quiet=2, invalidation_mode=checked)
";

/// The compiled layers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Bytecode {
    inner: Arc<Inner>,
}

struct Inner {
    builder: Arc<dyn Builder>,
    layers: PathBuf,
    bundles: Bundles,
    uid: u32,
    gid: u32,
    /// Layers that are being made, or that could not be made: tried once per server.
    tried: Mutex<HashSet<PathBuf>>,
}

impl Bytecode {
    pub(super) fn new(
        builder: Arc<dyn Builder>,
        layers: PathBuf,
        bundles: Bundles,
        uid: u32,
        gid: u32,
    ) -> Self {
        Self { inner: Arc::new(Inner { builder, layers, bundles, uid, gid, tried: Mutex::default() }) }
    }

    /// The compiled dependencies for this image, if they have been made.
    pub(super) fn ready(&self, image: &BuiltImage) -> Result<Option<worker::LayerRef>, Error> {
        let Some((_, path)) = self.place(image)? else { return Ok(None) };
        // A layer has its name only once it is complete.
        Ok(path.is_dir().then_some(worker::LayerRef { path, owner: worker::LayerOwner::Canonical }))
    }

    /// Begins to make them in the background, unless they are there or were tried.
    pub(super) fn prepare(&self, image: &BuiltImage) {
        let place = match self.place(image) {
            Ok(Some(place)) => place,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "the client cannot be compiled for an image"),
        };
        let (base, path) = place;
        let fresh = self.inner.tried.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
        if path.is_dir() || !fresh {
            return;
        }
        let (inner, image) = (self.inner.clone(), image.clone());
        tokio::spawn(async move {
            match inner.make(&image, &base, &path).await {
                Ok(()) => {
                    inner.tried.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
                    tracing::debug!(layer = %path.display(), "the client is compiled");
                }
                Err(error) => {
                    tracing::warn!(%error, "the client could not be compiled; containers start slower")
                }
            }
        });
    }

    /// The folder where the compiled dependencies for this image are or will be.
    pub(super) fn folder(&self, image: &BuiltImage) -> Result<Option<PathBuf>, Error> {
        Ok(self.place(image)?.map(|(_, path)| path))
    }

    /// The layers that bring the interpreter, and where the compiled layer for it is or will be.
    fn place(&self, image: &BuiltImage) -> Result<Option<(ImageSpec, PathBuf)>, Error> {
        let mut spec = spec_of(image)?;
        let Some(python) = spec.python.clone() else { return Ok(None) };
        if image.builder_version.as_str() <= "2024.10" || spec.host {
            return Ok(None);
        }
        if python.layers > 0 {
            spec.layers.truncate(python.layers);
        }
        let mut hash = Sha256::new();
        for part in [&spec.root_digest(), &image.builder_version, &python.path] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(evoke_proto::CLIENT_VERSION);
        hash.update(evoke_files::bundles::own_digest());
        hash.update(PROGRAM);
        let name = evoke_core::hex(&hash.finalize()[..16]);
        Ok(Some((spec, self.inner.layers.join(format!("client-{name}")))))
    }
}

impl Inner {
    async fn make(&self, image: &BuiltImage, base: &ImageSpec, path: &Path) -> Result<(), Error> {
        let Some(dependencies) = plain(&self.bundles, image).await? else { return Ok(()) };
        let bundles = self.bundles.clone();
        let client = tokio::task::spawn_blocking(move || {
            bundles.client_mount(evoke_proto::CLIENT_VERSION, &|line| tracing::info!("{line}"))
        });
        let client = client.await.map_err(|e| Error::internal(format!("preparing the client: {e}")))??;
        let mut root = Root::of(base);
        root.layers.push(LayerRef {
            digest: client.key,
            path: client.tree,
            owner: LayerOwner::Single { uid: self.uid, gid: self.gid },
        });
        let python = base.python.as_ref().map_or("python", |p| p.path.as_str());
        let command = Command {
            root,
            argv: [python, "-I", "-c", PROGRAM].map(str::to_owned).to_vec(),
            env: base.env.clone(),
            cwd: "/".to_owned(),
            user: String::new(),
            binds: vec![ReadOnlyBind { source: dependencies, target: FROM.into() }],
            mounts: Vec::new(),
            volumes: None,
            network: false,
            commit: Some(path.to_path_buf()),
        };
        let (end, _) = self.builder.run(command, &NoLog).await.map_err(|e| e.to_core())?;
        if !end.success() {
            return Err(Error::new(
                ErrorCode::Internal,
                format!("the compilation ended with {}", end.describe()),
            ));
        }
        Ok(())
    }
}

/// A folder of the server's own files as a layer: they appear as root's.
pub(super) fn own_layer(path: &Path) -> Result<worker::LayerRef, Error> {
    use std::os::unix::fs::MetadataExt;
    let about = std::fs::metadata(path).map_err(|e| Error::internal(format!("{}: {e}", path.display())))?;
    let owner = worker::LayerOwner::Single { uid: about.uid(), gid: about.gid() };
    Ok(worker::LayerRef { path: path.to_path_buf(), owner })
}
