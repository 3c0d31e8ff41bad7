//! Role assembly: the one place where the crates of the server meet.
//!
//! In order: what is durable, then control over it, then the way in, then the worker with the containers that
//! lived on, and only then are clients accepted. The other files here are the adapters between rooms that do
//! not know each other.

mod authenticator;
mod bundles;
mod bytecode;
mod images;
mod insight;
mod machine;
mod memory;
mod pages;
mod payloads;
mod tunnels;
mod urls;
mod web;
mod worker_gate;

pub(crate) use insight::Insight;

use crate::data_folder::DataFolder;
use crate::launch::Launch;
use crate::names;
use crate::token::{Token, load_or_make_key};
use anyhow::{Context, Result};
use evoke_control::{Control, ControlConfig, Dependencies};
use evoke_core::{Clock, Error, SystemClock, SystemEntropy};
use evoke_files::fetch::Fetcher;
use evoke_files::pypi::{IndexConfig, PackageIndex};
use evoke_files::{BlobStore, ObjectStore, SharedFolders, Trees, VolumeContents, VolumeTrees};
use evoke_gateway::{Identity, Ingress, Listener, Platform, UrlSigner, WebIngress};
use evoke_image::{
    BaseTools, BuildTools, FolderIndex, HostNetwork, RuntimeBuilder, StandalonePythons, Surveys,
};
use evoke_proto::tunnels::Tunnels;
use evoke_proto::web::WebListeners;
use evoke_proto::worker::{Control as ControlPort, Worker as _};
use evoke_runtime::Runtime;
use evoke_runtime::fdstore::FdStoreClient;
use evoke_store::Store;
use evoke_store::logs::{Logs, LogsConfig};
use evoke_store::vault::Vault;
use evoke_worker::{BuildVolumes, Worker, WorkerConfig, WorkerDeps, WorkerHandle};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tunnels::TunnelPorts;
use worker_gate::WorkerGate;

/// The image builder version that clients are told to use: the newest that every supported client knows.
const BUILDER_VERSION: &str = "2025.06";
/// Variables that say where the API of Amazon's registry is, as AWS's own tools read them.
const ECR_ENDPOINT: [&str; 2] = ["AWS_ENDPOINT_URL_ECR", "AWS_ENDPOINT_URL"];
/// How long containers have from SIGINT to SIGKILL when the server is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What a server gets from the holder and its helper.
pub(crate) struct Inherited {
    /// Configuration, address, data folder.
    pub launch: Launch,
    /// Where clients connect.
    pub public: TcpListener,
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// Where descriptors go that must outlive this server.
    pub store: FdStoreClient,
    /// What former servers put there: `task/<id>/…`.
    pub kept: Vec<(String, OwnedFd)>,
    /// The token that clients must show.
    pub token: Token,
}

/// The running roles of this process.
pub(crate) struct Roles {
    control: Arc<Control>,
    worker: WorkerHandle,
    gate: Arc<WorkerGate>,
    store: Store,
    stop_ingress: watch::Sender<bool>,
    ingress: tokio::task::JoinHandle<()>,
}

impl Roles {
    /// Starts control, gateway and worker, in the order in which they depend on each other.
    pub(crate) async fn start(inherited: Inherited) -> Result<Self> {
        let Inherited { launch, public, runtime, store: fd_store, mut kept, token } = inherited;
        let data = DataFolder::at(&launch.data);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let key = load_or_make_key(&data.path().join("url.key"), &mut SystemEntropy::default())?;
        let signer = UrlSigner::new(&key, clock.clone());
        let machine = machine::look(&launch.config, &data)?;
        let web_ports = Arc::new(web::WebPorts::new(&public, fd_store.clone(), &mut kept)?);
        let (keeper, folder) = (fd_store.clone(), data.path().join("tls"));
        let tunnels = Arc::new(TunnelPorts::new(&public, folder, clock.now(), keeper, &mut kept)?);
        let listeners = Listeners { web: web_ports.clone(), tunnels: tunnels.clone() };
        let rooms = rooms(&data, &launch, runtime.clone(), &signer, listeners, machine.build_steps()).await?;
        let (store, blobs, contents) = (rooms.store.clone(), rooms.blobs.clone(), rooms.contents.clone());
        let config = ControlConfig {
            builder_version: BUILDER_VERSION.to_owned(),
            machine: machine.has.clone(),
            collection: launch.config.collection.policy(),
            lean: launch.config.containers.lean_switch(),
            templates: launch.config.containers.templates,
            web_key: key,
        };
        let control = Control::start(config, rooms);
        let resumed = control.resume(machine.capacity, machine.gpus).await;
        resumed.context("taking up where the last server left")?;

        let web = WebIngress::new(control.web_apps());
        let ingress = Ingress {
            web: Some(web.clone()),
            service: control.clone(),
            http: Arc::new(Platform::new(
                signer,
                Arc::new(payloads::Payloads(blobs)),
                Arc::new(payloads::VolumeFiles(contents.clone())),
                Arc::new(pages::Pages(control.clone())),
            )),
            authenticator: Arc::new(authenticator::Tokens::new(token, control.clone())),
        };
        let worker_config = worker_config(&data, &launch)?;
        let port: Arc<dyn ControlPort> = control.clone();
        let worker = Worker::start(
            worker_config,
            WorkerDeps {
                runtime,
                fd_keeper: Arc::new(fd_store),
                control: port,
                ingress: Arc::new(ingress.clone()),
                clock,
            },
        )?;
        worker.adopt(kept).await.context("going on with the containers that live on")?;
        let gate = Arc::new(WorkerGate::new(worker.clone()));
        control.adopt(gate.clone()).await.context("taking back the containers that live on")?;

        tunnels.adopt(|task| gate.address(task)).await.context("serving tunnels")?;
        web_ports.serve(web).await.context("serving web functions")?;
        let listener = Listener::from_tcp(public).context("serving the public listener")?;
        let (stop_ingress, stopped) = watch::channel(false);
        let serving = async move { ingress.serve(listener, Identity::Public, launch.address, stopped).await };
        let ingress = tokio::spawn(serving);
        tokio::spawn(memory::keep_small());
        Ok(Self { control, worker, gate, store, stop_ingress, ingress })
    }

    /// What the local socket answers from.
    pub(crate) fn insight(&self) -> Arc<dyn Insight> {
        Arc::new(insight::OfControl(self.control.clone()))
    }

    /// Returns once this server can do no good any more.
    pub(crate) async fn doomed(&self) {
        self.control.doomed().await;
    }

    /// Starts nothing any more, stops the containers by their grace rules, then the way in, then flushes.
    pub(crate) async fn stop(self) {
        self.gate.close();
        let left = self.worker.shutdown(STOP_GRACE).await;
        if !left.is_empty() {
            tracing::warn!(count = left.len(), "containers did not end in time; the helper removes them");
        }
        // Nobody listens any more: that is as good as stopped.
        let _ = self.stop_ingress.send(true);
        if let Err(error) = self.ingress.await {
            tracing::error!(%error, "the public listener ended badly");
        }
        let store = self.store;
        if let Err(error) = tokio::task::spawn_blocking(move || store.close()).await {
            tracing::error!(%error, "the store ended badly");
        }
    }
}

/// What opens ports for control.
struct Listeners {
    web: Arc<dyn WebListeners>,
    tunnels: Arc<dyn Tunnels>,
}

/// What the worker is told.
fn worker_config(data: &DataFolder, launch: &Launch) -> Result<WorkerConfig> {
    let (uid, gid) = own_ids();
    let mut config = WorkerConfig::new(data.path(), uid, gid);
    config.fusermount = std::env::current_exe().context("finding this program")?;
    config.templates = launch.config.containers.bounds();
    let names = names::PROXIES.into_iter().chain(names::NO_PROXY).chain(names::AUTHORITIES);
    config.network_env = names.filter_map(|name| Some((name.to_owned(), names::read(name)?))).collect();
    if let Some(most) = launch.config.limits.containers_max {
        config.containers_max = most as usize;
    }
    Ok(config)
}

/// Everything that control stands on.
async fn rooms(
    data: &DataFolder,
    launch: &Launch,
    runtime: Arc<dyn Runtime>,
    signer: &UrlSigner,
    listeners: Listeners,
    steps_at_once: usize,
) -> Result<Dependencies> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let inside = |name: &str| data.path().join(name);
    let (uid, gid) = own_ids();
    let layers = inside("layers");
    let objects = ObjectStore::open(&inside("objects"), clock.clone())?;
    let contents = VolumeContents::open(&inside("volumes"), objects.clone())?;
    let staging = inside("spool/staging");
    let volumes = BuildVolumes::new(runtime.clone(), staging.clone(), (uid, gid));
    let steps = Arc::new(RuntimeBuilder::new(runtime, uid, gid, layers.clone()));
    steps.sweep().await.context("removing what builds of an earlier server left")?;
    let fetcher = Fetcher::from_host(&launch.host_env).map_err(Error::from)?;
    let base = BaseTools {
        fetcher: fetcher.clone(),
        builder: steps.clone(),
        index: Arc::new(FolderIndex::open(inside("db/images"))?),
        clock: clock.clone(),
        layers: layers.clone(),
        downloads: inside("spool/downloads"),
        network: Arc::new(host_network(launch, &inside("run/network"))?),
        uses: Default::default(),
        ecr_endpoint: launch.host_env.first(&ECR_ENDPOINT).map(str::to_owned),
    };
    let mut bases = launch.config.images.clone();
    bases.host.never.push(data.path().to_path_buf());
    let surveys = Surveys::new(base.index.clone(), steps.clone());
    let contexts = Arc::new(images::Contexts::default());
    let (context, caches, pythons) = (contexts.clone(), inside("caches"), inside("pythons"));
    let tools = BuildTools { base, context, staging, caches, pythons, steps_at_once };
    let index = PackageIndex::new(fetcher.clone(), IndexConfig::of_host(&launch.host_env));
    let of_client = evoke_files::bundles::Bundles::open(&inside("bundles"), &launch.host_env, index)?;
    let bytecode = bytecode::Bytecode::new(steps, layers.clone(), of_client.clone(), uid, gid);
    let pythons = StandalonePythons::open(&bases.standalone_python, inside("pythons"), fetcher.clone())?;
    let builder = evoke_image::ImageBuilder::new(bases, tools)?;
    Ok(Dependencies {
        store: Store::open(&inside("db/evoke.db")).context("opening the database")?,
        logs: Logs::open(&inside("logs"), LogsConfig::default()).context("opening the logs")?,
        vault: Vault::open(&inside("key")).context("opening the key of secrets")?,
        trees: Trees::open(&inside("mounts"), objects.clone())?,
        objects,
        volume_trees: VolumeTrees::open(&inside("volumes/trees"), contents.clone())?,
        contents,
        shared_folders: SharedFolders::open(&inside("volumes/shared"))?,
        blobs: BlobStore::open(&inside("blobs"), clock.clone())?,
        values: BlobStore::open(&inside("values"), clock.clone())?,
        builder: Arc::new(images::Images::new(
            builder,
            contexts,
            layers,
            bytecode.clone(),
            Arc::new(pythons),
            surveys,
            volumes,
        )),
        bundles: Arc::new(bundles::ClientBundles::new(of_client, bytecode)),
        urls: Arc::new(urls::Signed(signer.clone())),
        web_listeners: listeners.web,
        tunnels: listeners.tunnels,
        clock,
    })
}

/// How this machine reaches package indexes, for builds.
fn host_network(launch: &Launch, folder: &Path) -> Result<HostNetwork> {
    let home = launch.host_env.path(names::HOME);
    HostNetwork::read(&names::read, Path::new("/"), home.as_deref(), folder)
        .context("reading how this machine reaches package indexes")
}

/// The user and group that this server runs as and whose files it makes.
fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// `evoke __coverage`: the RPCs that this binary serves, as Markdown.
pub(crate) fn print_coverage() -> Result<ExitCode> {
    let served = Control::served();
    let rows = evoke_proto::rpc::TABLE.iter().filter(|rpc| served.contains(&rpc.name));
    crate::stdout::write(&evoke_proto::coverage::markdown(rows))?;
    Ok(ExitCode::SUCCESS)
}
