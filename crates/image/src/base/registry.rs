//! The OCI distribution protocol: tokens, manifests, layers; mirrors first.

use super::manifest::{self, Either, Manifest};
use super::{BaseTools, Bases, DOCKER_HUB, Found, Miss, Reference, blob, blocking};
use crate::digest::{Hasher, sha256};
use crate::error::{ImageError, Result};
use crate::log::{LogSink, say};
use crate::spec::{ImageSpec, LayerRef};
use crate::steps::Root;
use base64::Engine as _;
use evoke_files::ContentHash;
use evoke_files::fetch::{Download, Fetcher, Reply};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

/// A name and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Bases {
    pub(super) async fn registry(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        log: &dyn LogSink,
    ) -> Found {
        let renamed = rename(&self.config.registry, reference)?;
        let mut failures = Vec::new();
        for (base, own) in endpoints(&self.config.registry, &renamed.registry) {
            // A mirror is another host: it does not get the registry's password.
            let credentials = credentials.filter(|_| own).cloned();
            match pull(&self.tools, &renamed, &base, credentials, log).await {
                Ok(image) => return Ok(image),
                Err(error) => failures.push(error),
            }
        }
        match failures.as_slice() {
            [only] => Err(Miss::Failed(only.clone())),
            many => {
                let all: Vec<String> = many.iter().map(ToString::to_string).collect();
                Err(Miss::Failed(ImageError::Unreachable { message: all.join("; "), hint: None }))
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

/// A repository at one address.
struct Repository {
    fetcher: Fetcher,
    /// `https://host/v2/library/python`
    url: String,
    name: String,
    credentials: Option<Credentials>,
    /// The Authorization header that worked last.
    authorization: Mutex<Option<String>>,
}

impl Repository {
    fn get(&self, path: &str, accept: &str) -> Result<Reply> {
        let url = format!("{}/{path}", self.url);
        let mut reply = self.send(&url, accept)?;
        if reply.status == 401 {
            let challenge = reply.header("www-authenticate").unwrap_or_default().to_owned();
            drop(reply);
            self.authorize(&url, &challenge)?;
            reply = self.send(&url, accept)?;
        }
        match reply.status {
            200 => Ok(reply),
            404 => Err(ImageError::fetch(&url, "the registry has no such image (404)")),
            401 | 403 => Err(ImageError::fetch(
                &url,
                format!("access refused ({}): it does not exist, or needs credentials", reply.status),
            )),
            429 => {
                Err(ImageError::fetch(&url, "too many requests (429): log in, use a mirror, or try later"))
            }
            status => Err(ImageError::fetch(&url, format!("status {status}"))),
        }
    }

    fn send(&self, url: &str, accept: &str) -> Result<Reply> {
        let authorization = self.header();
        let mut headers = vec![("accept", accept), ("accept-encoding", "identity")];
        if let Some(value) = &authorization {
            headers.push(("authorization", value));
        }
        Ok(self.fetcher.get(url, &headers)?)
    }

    fn header(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers a challenge: the registry's own token service, or a plain password.
    fn authorize(&self, url: &str, challenge: &str) -> Result<()> {
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let basic = self.credentials.as_ref().map(|c| {
            let text = format!("{}:{}", c.username, c.password);
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        });
        let header = if scheme.eq_ignore_ascii_case("basic") {
            basic.ok_or_else(|| ImageError::fetch(url, "the registry asks for a name and a password"))?
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let fields = challenge_fields(rest);
            let realm = fields
                .get("realm")
                .ok_or_else(|| ImageError::fetch(url, "the registry's challenge names no token service"))?;
            let scope =
                fields.get("scope").cloned().unwrap_or_else(|| format!("repository:{}:pull", self.name));
            let mut address =
                format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, escape(&scope));
            if let Some(service) = fields.get("service") {
                address.push_str(&format!("&service={}", escape(service)));
            }
            format!("Bearer {}", self.token(&address, basic.as_deref())?)
        } else {
            return Err(ImageError::fetch(
                url,
                format!("the registry asks for {scheme:?}, which is not supported"),
            ));
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
        Ok(())
    }

    fn token(&self, address: &str, basic: Option<&str>) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let mut headers = vec![("accept", "application/json")];
        if let Some(basic) = basic {
            headers.push(("authorization", basic));
        }
        let reply = self.fetcher.get(address, &headers)?;
        if reply.status != 200 {
            return Err(ImageError::fetch(address, format!("no token: status {}", reply.status)));
        }
        let bytes = reply.bytes(DOCUMENT_MAX)?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::fetch(address, format!("the answer holds no token: {e}")))?;
        token
            .token
            .or(token.access_token)
            .ok_or_else(|| ImageError::fetch(address, "the answer holds no token"))
    }

    /// A document by tag or digest; one asked for by digest must have it.
    fn document(&self, path: &str, digest: Option<&str>) -> Result<Vec<u8>> {
        let bytes = self.get(path, manifest::ACCEPT)?.bytes(DOCUMENT_MAX)?;
        if let Some(digest) = digest {
            let hex = manifest::check_digest(path, digest)?;
            let got = sha256(&bytes);
            if got != hex {
                return Err(ImageError::Digest {
                    what: format!("{}/{path}", self.url),
                    expected: hex.to_owned(),
                    got,
                });
            }
        }
        Ok(bytes)
    }

    fn manifest(&self, version: &str) -> Result<Manifest> {
        let mut version = version.to_owned();
        for _ in 0..INDEX_DEPTH_MAX {
            let digest = version.contains(':').then_some(version.as_str());
            let path = format!("manifests/{version}");
            let bytes = self.document(&path, digest)?;
            let what = format!("{}/{path}", self.url);
            match manifest::read(&what, &bytes)? {
                Either::Manifest(manifest) => return Ok(manifest),
                Either::Index(list) => {
                    let chosen = manifest::choose(&what, &list)?;
                    manifest::check_digest(&what, &chosen.digest)?;
                    version.clone_from(&chosen.digest);
                }
            }
        }
        Err(ImageError::malformed(&self.url, "indexes within indexes"))
    }

    /// Brings a layer to a file, resumed where it stopped, checked against its digest.
    fn layer(&self, digest: &str, size: u64, folder: &Path) -> Result<PathBuf> {
        let hex = manifest::check_digest(&self.url, digest)?;
        let target = folder.join(hex);
        let url = format!("{}/blobs/{digest}", self.url);
        let hash: ContentHash = hex.parse().map_err(|_| ImageError::malformed(&url, "not a digest"))?;
        let authorization = self.header();
        let headers: Vec<(&str, &str)> =
            authorization.iter().map(|v| ("authorization", v.as_str())).collect();
        let download = Download {
            url: &url,
            headers: &headers,
            sha256: Some(hash),
            length: (size > 0).then_some(size),
            passing: true,
            progress: None,
        };
        self.fetcher.download(&download, &target)?;
        Ok(target)
    }
}

/// `key="value",key=value` of a challenge.
fn challenge_fields(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        fields.insert(key, value.to_owned());
        rest = tail.trim_start_matches([' ', ',']);
    }
    fields
}

fn escape(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~/".contains(b);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Brings an image here from one address.
async fn pull(
    tools: &BaseTools,
    reference: &Reference,
    base: &str,
    credentials: Option<Credentials>,
    log: &dyn LogSink,
) -> Result<ImageSpec> {
    let repository = Arc::new(Repository {
        fetcher: tools.fetcher.clone(),
        url: format!("{base}/v2/{}", reference.repository),
        name: reference.repository.clone(),
        credentials,
        authorization: Mutex::new(None),
    });
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
        let (remote, permits, folder) = (repository.clone(), permits.clone(), folder.clone());
        let (digest, size) = (descriptor.digest.clone(), descriptor.size);
        let download = async move {
            let _permit = permits.acquire().await.map_err(|e| ImageError::builder("download a layer", e))?;
            blocking("download a layer", move || remote.layer(&digest, size, &folder)).await
        };
        downloads.push((key, descriptor.digest.clone(), spawn(download)));
    }
    for (key, digest, download) in downloads {
        let file = download.join().await?;
        if tools.layer(&key).await?.is_none() {
            let layer = unpack_file(tools, &layers, &file, &key, &format!("{reference} {digest}")).await?;
            layers.push(layer);
        } else if let Some(layer) = tools.layer(&key).await? {
            layers.push(layer);
        }
        std::fs::remove_file(&file).map_err(|e| ImageError::io("remove", &file, &e))?;
        say(log, format!("  {} done", &digest[..19.min(digest.len())]));
    }
    Ok(layers)
}

async fn unpack_file(
    tools: &BaseTools,
    below: &[LayerRef],
    file: &Path,
    key: &str,
    what: &str,
) -> Result<LayerRef> {
    let opened = std::fs::File::open(file).map_err(|e| ImageError::io("open", file, &e))?;
    let name = what.to_owned();
    let (pipe, writer) = blob::pipe_through(name.clone(), move |out| {
        let mut plain = blob::decompress(&name, opened)?;
        blob::copy(&name, &mut plain, out)
    })?;
    let lower = Root { layers: below.to_vec(), host_binds: Vec::new() };
    let unpacked = tools.unpack(&lower, pipe, key, what.to_owned()).await;
    blob::settle(unpacked, writer).await
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
#[path = "registry_tests.rs"]
mod tests;
