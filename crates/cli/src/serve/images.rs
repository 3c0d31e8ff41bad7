//! The image builder as control asks it: the client's description of an image becomes a recipe, the built
//! image becomes what containers need.

use super::bytecode::Bytecode;
use async_trait::async_trait;
use evoke_control::ports::{
    BuildLog, BuildRequest, BuiltImage, FileChanges, ImageBuilder, LayerCollection, LayerOverview,
    LayersCollected, LayersKept, PackageOverview, StoredLayer,
};
use evoke_core::Error;
use evoke_image::{
    Context, ContextEntry, ContextMount, ImageError, ImageSpec, LayerOwner, LayerRef, Libc, LogSink,
    LogStream, Login, LoginKind, PackageChange, Recipe, SecretRef, StandalonePythons, Surveys, VolumeRef,
};
use evoke_proto::api;
use evoke_proto::worker::VolumeMount;
use evoke_worker::BuildVolumes;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Folders of the context mounts of builds that run, by the mount's id.
#[derive(Default)]
pub(super) struct Contexts(Mutex<HashMap<String, PathBuf>>);

impl Contexts {
    fn put(&self, mount: &str, folder: PathBuf) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(mount.to_owned(), folder);
    }
}

#[async_trait]
impl Context for Contexts {
    async fn tree(&self, mount_id: &str) -> Result<PathBuf, ImageError> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(mount_id).cloned();
        found.ok_or_else(|| ImageError::Unsupported(format!("the files of mount {mount_id} are not here")))
    }
}

/// The image builder.
pub(super) struct Images {
    builder: evoke_image::ImageBuilder,
    contexts: Arc<Contexts>,
    layers: PathBuf,
    bytecode: Bytecode,
    pythons: Arc<StandalonePythons>,
    surveys: Surveys,
    volumes: BuildVolumes,
}

impl Images {
    pub(super) fn new(
        builder: evoke_image::ImageBuilder,
        contexts: Arc<Contexts>,
        layers: PathBuf,
        bytecode: Bytecode,
        pythons: Arc<StandalonePythons>,
        surveys: Surveys,
        volumes: BuildVolumes,
    ) -> Self {
        Self { builder, contexts, layers, bytecode, pythons, surveys, volumes }
    }
}

/// Where the lines of a build go.
struct Lines(BuildLog);

impl LogSink for Lines {
    fn write(&self, stream: LogStream, text: &str) {
        let fd = match stream {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
        };
        (self.0)(fd, text);
    }
}

#[async_trait]
impl ImageBuilder for Images {
    async fn build(&self, request: BuildRequest) -> Result<BuiltImage, Error> {
        let image = request.image;
        let context_mount = request.context.map(|(files, folder)| {
            self.contexts.put(&image.context_mount_id, folder);
            let entries = files.into_iter().map(|file| ContextEntry {
                path: file.filename.trim_start_matches('/').to_owned(),
                sha256: file.sha256_hex,
                mode: file.mode,
            });
            ContextMount { id: image.context_mount_id.clone(), entries: entries.collect() }
        });
        let mut bases = std::collections::BTreeMap::new();
        for (name, built) in &request.bases {
            bases.insert(name.clone(), spec_of(built)?);
        }
        let (mounts, keeper) = request.volumes;
        let recipe = Recipe {
            lines: image.dockerfile_commands,
            bases,
            context_files: image.context_files.into_iter().map(|f| (f.filename, f.data.to_vec())).collect(),
            context_mount,
            build_args: image.build_args.into_iter().collect(),
            secrets: secrets(&image.secret_ids, &request.secrets),
            volumes: mounts.iter().map(volume).collect(),
            builder_version: request.builder_version,
            run_function: None,
        };
        let kind = image.image_registry_config.unwrap_or_default().registry_auth_type();
        let login = request.registry_secret.map(|values| Login::from_secret(login_kind(kind), &values));
        let login = login.transpose().map_err(|e| e.to_core())?;
        let wanted = evoke_image::BuildRequest {
            recipe,
            secret_env: request.secrets,
            volumes: (!mounts.is_empty())
                .then(|| self.volumes.of(keeper, &mounts, format!("build of {}", request.image_id))),
            login,
            force_build: request.force_build,
            ignore_cache: request.ignore_cache,
        };
        let spec = self.builder.build(wanted, Arc::new(Lines(request.log))).await.map_err(|e| e.to_core())?;
        let built = built_of(&spec)?;
        self.bytecode.prepare(&built);
        Ok(built)
    }

    fn knows_python(&self, name: &str) -> bool {
        StandalonePythons::knows(name)
    }

    async fn standalone_python(
        &self,
        name: &str,
        log: BuildLog,
    ) -> Result<(Vec<api::MountFile>, PathBuf), Error> {
        let python = self.pythons.get(name, Arc::new(Lines(log))).await.map_err(|e| e.to_core())?;
        let files = python.files.into_iter().map(|file| api::MountFile {
            filename: format!("/{}", file.path),
            sha256_hex: file.sha256,
            mode: file.mode,
            ..Default::default()
        });
        Ok((files.collect(), python.tree))
    }

    fn layer_path(&self, name: &str) -> PathBuf {
        self.layers.join(name)
    }

    async fn with_layer(&self, base: &BuiltImage, layer: &str, step: &str) -> Result<BuiltImage, Error> {
        let path = self.layer_path(Path::new(layer).file_name().and_then(|n| n.to_str()).unwrap_or(layer));
        let mut spec = spec_of(base)?;
        // Named by what it is, not by how it came to be: a function's work cannot be told from its recipe.
        let digest = evoke_core::hex(&Sha256::digest(path.to_string_lossy().as_bytes()));
        spec.layers.push(LayerRef { digest, path, owner: LayerOwner::Canonical });
        if let Err(error) = self.surveys.remember(&spec, step).await {
            // It is looked at again when somebody asks for it.
            tracing::warn!(%error, layer, "what a build function wrote could not be looked at");
        }
        built_of(&spec)
    }

    async fn layers(&self, image: &BuiltImage) -> Result<Vec<LayerOverview>, Error> {
        let reports = self.surveys.of(&spec_of(image)?).await.map_err(|e| e.to_core())?;
        let packages = |list: Vec<PackageChange>| {
            let shown = |change: PackageChange| PackageOverview {
                name: change.name,
                before: change.before,
                after: change.after,
            };
            list.into_iter().map(shown).collect()
        };
        let layer = |report: evoke_image::LayerReport| LayerOverview {
            digest: report.digest,
            step: report.origin,
            took_ms: report.took_ms,
            bytes: report.bytes,
            files: FileChanges { added: report.added, changed: report.changed, removed: report.removed },
            python: packages(report.python),
            debian: packages(report.debian),
        };
        Ok(reports.into_iter().map(layer).collect())
    }

    fn begin_use(&self) -> Box<dyn Send + Sync> {
        Box::new(self.builder.begin_use())
    }

    async fn is_whole(&self, image: &BuiltImage) -> Result<bool, Error> {
        Ok(self.builder.is_whole(&spec_of(image)?).await)
    }

    fn folders_of(&self, image: &BuiltImage) -> Result<Vec<String>, Error> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut folders: Vec<String> = image.layers.iter().map(|l| name(Path::new(&l.path))).collect();
        folders.extend(self.bytecode.folder(image)?.map(|path| name(&path)));
        Ok(folders)
    }

    fn begin_collection(&self) -> Box<dyn LayerCollection> {
        Box::new(Collection { round: self.builder.round(), builder: self.builder.clone() })
    }

    async fn bytes(&self, image: &BuiltImage) -> Result<u64, Error> {
        self.surveys.bytes(&spec_of(image)?).await.map_err(|e| e.to_core())
    }
}

/// A round of collection.
struct Collection {
    builder: evoke_image::ImageBuilder,
    round: evoke_image::Round,
}

#[async_trait]
impl LayerCollection for Collection {
    async fn finish(self: Box<Self>, keep: LayersKept) -> Result<LayersCollected, Error> {
        let LayersKept { folders, unused_before, compiled, dry_run } = keep;
        let keep = evoke_image::Keep { folders, unused_before, compiled, dry_run };
        let done = self.builder.collect(&self.round, keep).await.map_err(|e| e.to_core())?;
        let evoke_image::CollectedLayers { layers, layer_bytes, downloads, download_bytes } = done;
        Ok(LayersCollected { layers, layer_bytes, downloads, download_bytes })
    }
}

/// A volume as what is built with it knows it.
fn volume(mount: &VolumeMount) -> VolumeRef {
    VolumeRef {
        id: mount.volume.to_string(),
        target: mount.target.clone(),
        read_only: mount.read_only,
        sub_path: mount.sub_path.clone(),
    }
}

/// What the client says the registry's secret holds.
fn login_kind(kind: api::RegistryAuthType) -> LoginKind {
    match kind {
        api::RegistryAuthType::Aws => LoginKind::Aws,
        api::RegistryAuthType::Gcp => LoginKind::Google,
        api::RegistryAuthType::StaticCreds => LoginKind::Password,
        api::RegistryAuthType::Unspecified | api::RegistryAuthType::Public => LoginKind::Any,
    }
}

/// A secret's values decide what a step sees, so they are part of the recipe's identity: as a digest.
fn secrets(ids: &[String], values: &[(String, String)]) -> Vec<SecretRef> {
    let mut sorted: Vec<_> = values.iter().collect();
    sorted.sort();
    let mut hash = Sha256::new();
    for (name, value) in sorted {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((value.len() as u64).to_le_bytes());
        hash.update(value);
    }
    let digest = hash.finalize();
    let mut version = [0u8; 8];
    version.copy_from_slice(&digest[..8]);
    // Clients make a secret of given values anew each time: its id says nothing.
    let named =
        (!ids.is_empty()).then(|| SecretRef { id: "values".into(), version: u64::from_le_bytes(version) });
    named.into_iter().collect()
}

/// The builder's own description, carried along in what control stores.
pub(super) fn spec_of(built: &BuiltImage) -> Result<ImageSpec, Error> {
    serde_json::from_str(&built.spec)
        .map_err(|e| Error::internal(format!("a stored image does not read: {e}")))
}

fn built_of(spec: &ImageSpec) -> Result<BuiltImage, Error> {
    let layers = spec.layers.iter().map(|layer| StoredLayer {
        path: layer.path.to_string_lossy().into_owned(),
        single: match layer.owner {
            LayerOwner::Canonical => None,
            LayerOwner::Single { uid, gid } => Some((uid, gid)),
        },
    });
    let python = spec.python.as_ref();
    Ok(BuiltImage {
        layers: layers.collect(),
        binds: spec.binds.iter().map(|bind| (bind.source.clone(), bind.target.clone())).collect(),
        env: spec.env.clone(),
        // An image that sets none starts in the home folder, as the platform documents.
        workdir: if spec.workdir == "/" { String::new() } else { spec.workdir.clone() },
        python: python.map(|p| p.version.trim_start_matches("Python ").to_owned()).unwrap_or_default(),
        python_path: python.map(|p| p.path.clone()).unwrap_or_default(),
        libc: match &spec.libc {
            Some(Libc::Glibc(version)) => {
                format!("glibc {}", version.as_deref().unwrap_or_default()).trim().to_owned()
            }
            Some(Libc::Musl) => "musl 1.2".to_owned(),
            None => String::new(),
        },
        builder_version: spec.builder_version.clone(),
        packages: spec.packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect(),
        spec: serde_json::to_string(spec).map_err(|e| Error::internal(format!("storing an image: {e}")))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_image::PythonInfo;

    #[test]
    fn an_image_survives_being_stored() {
        let mut spec = ImageSpec { builder_version: "2025.06".into(), ..ImageSpec::default() };
        spec.python = Some(PythonInfo {
            version: "Python 3.11.2".into(),
            path: "/usr/local/bin/python".into(),
            minor: 11,
            layers: 1,
        });
        spec.libc = Some(Libc::Glibc(Some("2.36".into())));
        spec.layers.push(LayerRef { digest: "d".into(), path: "/l/d".into(), owner: LayerOwner::Canonical });
        let built = built_of(&spec).unwrap();
        assert_eq!(
            (built.python.as_str(), built.libc.as_str(), built.workdir.as_str()),
            ("3.11.2", "glibc 2.36", "")
        );
        assert_eq!(spec_of(&built).unwrap(), spec);
    }

    #[test]
    fn other_values_of_a_secret_are_another_recipe() {
        let of = |value: &str| secrets(&["st-1".into()], &[("K".into(), value.into())]);
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_eq!(secrets(&["st-2".into()], &[("K".into(), "a".into())]), of("a"));
        assert!(secrets(&[], &[]).is_empty());
    }
}
