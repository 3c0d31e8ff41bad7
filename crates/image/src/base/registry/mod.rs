//! Images from registries by the OCI distribution protocol: mirrors first, then the registry itself.

mod arriving;
mod ecr;
mod login;
mod repository;
mod sigv4;

pub use ecr::AwsKeys;
pub use login::{Credentials, Login, LoginKind};

use super::manifest::{self, Manifest};
use super::room::Room;
use super::{BaseTools, Bases, DOCKER_HUB, Found, Miss, Reference, blob, blocking};
use crate::digest::Hasher;
use crate::error::{ImageError, Result};
use crate::log::{LogSink, say};
use crate::spec::{ImageSpec, LayerRef};
use crate::steps::Root;
use arriving::Arrival;
use repository::Repository;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a manifest or configuration at most.
const DOCUMENT_MAX: u64 = 8 * 1024 * 1024;
/// Layers downloaded at a time.
const DOWNLOADS_MAX: usize = 4;
/// Indexes within indexes followed.
const INDEX_DEPTH_MAX: usize = 3;

/// How registries are reached.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// By registry (`docker.io`), addresses that are tried before it: `http://localhost:5000`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Other names: a prefix of a reference (`docker.io/library`) and what stands for it
    /// (`registry.company.example/hub`).
    pub rename: BTreeMap<String, String>,
    /// Registries reached by plain HTTP besides those on this machine.
    pub plain_http: Vec<String>,
}

impl Bases {
    pub(super) async fn registry(
        &self,
        reference: &Reference,
        login: Option<&Login>,
        log: &dyn LogSink,
    ) -> Found {
        let renamed = rename(&self.config.registry, reference)?;
        let mut failures = Vec::new();
        for (base, own) in endpoints(&self.config.registry, &renamed.registry) {
            // A mirror, or what stands for the registry, is another host: it does not get the password.
            let login = login.filter(|_| own && renamed.registry == reference.registry);
            let pulled = match self.credentials(login, reference).await {
                Ok(credentials) => {
                    let name = &renamed.repository;
                    let fetcher = self.tools.fetcher.clone();
                    let remote = Repository::new(fetcher, &base, name, !own, credentials);
                    pull(&self.tools, &renamed, &base, remote, log).await
                }
                Err(error) => Err(error),
            };
            match pulled {
                Ok(image) => return Ok(image),
                // Elsewhere it is as large.
                Err(error @ ImageError::Io { full: true, .. }) => return Err(Miss::Failed(error)),
                Err(error) => failures.push(error),
            }
        }
        match failures.as_slice() {
            [only] => Err(Miss::Failed(only.clone())),
            [.., denied @ (ImageError::Denied { .. } | ImageError::Login(_))] => {
                Err(Miss::Failed(denied.clone()))
            }
            many => {
                let all: Vec<String> = many.iter().map(ToString::to_string).collect();
                Err(Miss::Failed(ImageError::Unreachable { message: all.join("; "), hint: None }))
            }
        }
    }

    async fn credentials(&self, login: Option<&Login>, reference: &Reference) -> Result<Option<Credentials>> {
        match login {
            None => Ok(None),
            Some(Login::Password(credentials)) => Ok(Some(credentials.clone())),
            Some(Login::Aws(keys)) => {
                let (keys, reference) = (keys.clone(), reference.clone());
                let (fetcher, endpoint) = (self.tools.fetcher.clone(), self.tools.ecr_endpoint.clone());
                let now = self.tools.clock.now();
                let exchanged = blocking("ask ECR for a password", move || {
                    ecr::exchange(&fetcher, &keys, endpoint.as_deref(), &reference, now)
                });
                Ok(Some(exchanged.await?))
            }
        }
    }
}

fn rename(config: &RegistryConfig, reference: &Reference) -> Result<Reference> {
    let full = reference.to_string();
    let longest = config
        .rename
        .iter()
        .filter(|(from, _)| {
            full.strip_prefix(from.as_str()).is_some_and(|rest| rest.starts_with(['/', ':', '@']))
        })
        .max_by_key(|(from, _)| from.len());
    match longest {
        Some((from, to)) => Reference::parse(&format!("{to}{}", &full[from.len()..])),
        None => Ok(reference.clone()),
    }
}

/// Base addresses in the order they are tried, and whether each is the registry itself.
fn endpoints(config: &RegistryConfig, registry: &str) -> Vec<(String, bool)> {
    let mut list: Vec<(String, bool)> = config
        .mirrors
        .get(registry)
        .into_iter()
        .flatten()
        .map(|mirror| {
            let mirror = mirror.trim_end_matches('/');
            let full = if mirror.contains("://") { mirror.to_owned() } else { format!("https://{mirror}") };
            (full, false)
        })
        .collect();
    let host = registry.split(':').next().unwrap_or(registry);
    let local = host == "localhost" || host.starts_with("127.");
    let plain = local || config.plain_http.iter().any(|r| r == registry);
    let own = match (registry, plain) {
        (DOCKER_HUB, _) => "https://registry-1.docker.io".to_owned(),
        (registry, true) => format!("http://{registry}"),
        (registry, false) => format!("https://{registry}"),
    };
    list.push((own, true));
    list
}

/// Brings an image here from one address.
async fn pull(
    tools: &BaseTools,
    reference: &Reference,
    base: &str,
    repository: Repository,
    log: &dyn LogSink,
) -> Result<ImageSpec> {
    let repository = Arc::new(repository);
    let version = reference.version().to_owned();
    let (remote, what) = (repository.clone(), reference.to_string());
    let (manifest, mut image) = blocking("read a manifest", move || {
        let manifest = remote.manifest(&version)?;
        let path = format!("blobs/{}", manifest.config.digest);
        let bytes = remote.document(&path, Some(&manifest.config.digest))?;
        let (image, _) = manifest::read_config(&what, &bytes)?;
        Ok((manifest, image))
    })
    .await?;
    let bytes: u64 = manifest.layers.iter().map(|l| l.size).sum();
    say(
        log,
        format!(
            "Pulling {reference} from {base}: {} layers, {} MB",
            manifest.layers.len(),
            bytes / 1_000_000
        ),
    );
    Room::on_disk_of(&tools.layers).needs(&format!("{reference}"), bytes)?;
    image.layers = fetch_layers(tools, &repository, &manifest, reference, log).await?;
    image.provenance.push(format!("{reference} from {base}"));
    Ok(image)
}

/// The digest under which each layer is kept: that of its bytes on all below it.
pub(super) fn chain(below: &[LayerRef], digest: &str) -> String {
    let mut hasher = Hasher::new("evoke-oci-layer-1");
    hasher.text(below.last().map(|l| l.digest.as_str()).unwrap_or_default()).text(digest);
    hasher.finish()
}

async fn fetch_layers(
    tools: &BaseTools,
    repository: &Arc<Repository>,
    manifest: &Manifest,
    reference: &Reference,
    log: &dyn LogSink,
) -> Result<Vec<LayerRef>> {
    let folder = tools.download_folder("layers")?;
    let permits = Arc::new(tokio::sync::Semaphore::new(DOWNLOADS_MAX));
    // All downloads run side by side; layers are unpacked in order as they come. Dropping the set on an
    // error stops those that have not begun.
    let mut downloads = Vec::new();
    let mut unknown: Vec<LayerRef> = Vec::new();
    let mut all_known = true;
    let mut layers: Vec<LayerRef> = Vec::new();
    for descriptor in &manifest.layers {
        let key = chain(if all_known { &layers } else { &unknown }, &descriptor.digest);
        if all_known {
            if let Some(layer) = tools.layer(&key).await? {
                layers.push(layer);
                continue;
            }
            all_known = false;
            unknown.clone_from(&layers);
        }
        let placeholder = LayerRef {
            digest: key.clone(),
            path: tools.layers.join(&key),
            owner: crate::spec::LayerOwner::Canonical,
        };
        unknown.push(placeholder);
        let target = folder.join(manifest::check_digest(&reference.to_string(), &descriptor.digest)?);
        let arrival = Arrival::new(&target);
        let (remote, permits) = (repository.clone(), permits.clone());
        let (layer, file, told, ending) =
            (descriptor.clone(), target.clone(), arrival.clone(), arrival.ending());
        let download = async move {
            let _permit = permits.acquire().await.map_err(|e| ImageError::builder("download a layer", e))?;
            blocking("download a layer", move || {
                remote.layer(&layer, &file, &|there, _| told.tell(there))?;
                ending.right();
                Ok(())
            })
            .await
        };
        let name = format!("{reference} {}", descriptor.digest);
        downloads.push((key, name, Arriving { target, arrival, download: spawn(download) }));
    }
    for (key, name, arriving) in downloads {
        let layer = match tools.layer(&key).await? {
            Some(layer) => {
                arriving.download.join().await?;
                remove(&arriving.target)?;
                layer
            }
            None => arriving.unpack(tools, &layers, &key, &name, log).await?,
        };
        layers.push(layer);
        let digest = name.rsplit(' ').next().unwrap_or_default();
        say(log, format!("  {} done", &digest[..19.min(digest.len())]));
    }
    Ok(layers)
}

/// A layer on its way.
struct Arriving {
    target: PathBuf,
    arrival: Arrival,
    download: Task<()>,
}

impl Arriving {
    /// Unpacks it while it arrives. The layer is remembered only once all of it was found right.
    async fn unpack(
        self,
        tools: &BaseTools,
        below: &[LayerRef],
        key: &str,
        name: &str,
        log: &dyn LogSink,
    ) -> Result<LayerRef> {
        let unpacked = unpack_from(tools, below, self.arrival.reader(), key, name, log).await;
        // Why the download failed says more than that its unpacking did.
        self.download.join().await?;
        let unpacked = match unpacked {
            Err(_) if self.arrival.was_begun_anew() => {
                let whole = Arrival::new(&self.target);
                whole.ending().right();
                unpack_from(tools, below, whole.reader(), key, name, log).await
            }
            other => other,
        };
        remove(&self.target)?;
        unpacked
    }
}

async fn unpack_from(
    tools: &BaseTools,
    below: &[LayerRef],
    archive: arriving::Reader,
    key: &str,
    what: &str,
    log: &dyn LogSink,
) -> Result<LayerRef> {
    let name = what.to_owned();
    let room = Room::on_disk_of(&tools.layers);
    let piped = blob::pipe_through(name.clone(), move |out| {
        let mut plain = blob::decompress(&name, archive)?;
        blob::copy(&name, &mut plain, out, room)
    })?;
    let lower = Root { layers: below.to_vec(), host_binds: Vec::new() };
    tools.unpack(&lower, piped, key, what.to_owned(), log).await
}

/// Removes an archive that is not needed any more.
fn remove(file: &Path) -> Result<()> {
    std::fs::remove_file(file).map_err(|e| ImageError::io("remove", file, &e))
}

/// A task that ends with its handle.
struct Task<T>(tokio::task::JoinHandle<Result<T>>);

fn spawn<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Task<T> {
    Task(tokio::spawn(work))
}

impl<T> Task<T> {
    async fn join(mut self) -> Result<T> {
        match (&mut self.0).await {
            Ok(result) => result,
            Err(error) => Err(ImageError::builder("download a layer", error)),
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
