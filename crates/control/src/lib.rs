//! The control plane: serves the protocol's `ModalClient` service to clients and containers.
//!
//! One file per aggregate. Decisions about calls are the engine's (`evoke-engine`, pure); this crate is the
//! async shell around it, and the keeper of apps, functions, images, mounts and secrets. Every mutation is
//! stored before it is acknowledged, together with the answer to the request that caused it.
//!
//! Entry points: [`Control::start`], [`Control::resume`]; it is an [`evoke_proto::Service`] and an
//! [`evoke_proto::worker::Control`]. What it needs of other rooms comes in through [`ports`].

mod app_info;
mod apps;
mod auth_tokens;
mod blobs;
mod buckets;
mod call_graph;
mod chunk_readers;
mod classes;
mod collection;
mod containers;
mod data_objects;
mod definition;
mod deployments;
mod dicts;
mod environments;
mod explain;
mod functions;
mod gpus;
mod image_logs;
mod image_names;
mod image_overview;
mod images;
mod invocations;
mod last_writes;
mod launch;
mod log_history;
mod logins;
mod logs;
mod machine;
mod mounts;
mod named;
mod names;
mod overview;
pub mod ports;
mod publish;
mod questions;
mod queue_lines;
mod queues;
mod rebuild;
mod registry;
mod reports;
mod results;
mod retention;
mod scaling;
mod schedules;
mod secrets;
mod service;
mod shared_volumes;
mod shell;
mod stats;
mod times;
mod tunnels;
mod variants;
mod version_diff;
mod version_views;
mod volumes;
mod wakers;
mod web;
mod wire;
mod workspace;

pub use collection::{CollectionConfig, CollectionReport};
pub use evoke_engine::Gpu;
pub use gpus::Inventory;
pub use image_overview::ImageOverview;
pub use logins::TokenOverview;
pub use machine::{Fit, Machine};
pub use overview::{AppOverview, CallOverview, FunctionOverview, TaskOverview};
pub use version_diff::{
    FileChange, FunctionChange, ImageChange, PackageChange, SettingChange, VersionDiff, VersionFacts,
};
pub use version_views::{ShownVersion, VersionOverview};
pub use volumes::{VolumeChangeOverview, VolumeVersionOverview};

use evoke_core::{Clock, Entropy, Error, FunctionId, SystemEntropy, UnixMs};
use evoke_engine::{Engine, EngineConf, WorkerCapacity};
use evoke_files::{BlobStore, ObjectStore, SharedFolders, Trees, VolumeContents, VolumeTrees};
use evoke_proto::tunnels::Tunnels;
use evoke_proto::web::WebListeners;
use evoke_proto::worker::Worker;
use evoke_proto::{Dispatcher, Status};
use evoke_store::logs::Logs;
use evoke_store::vault::Vault;
use evoke_store::{Store, StoreError};
use ports::{Bundles, ImageBuilder, Urls};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// The one workspace of a server.
pub(crate) const WORKSPACE: &str = "main";

/// What the control plane is set up with.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The image builder version that clients are told to use.
    pub builder_version: String,
    /// What this machine has.
    pub machine: Machine,
    /// When what nothing needs is removed.
    pub collection: CollectionConfig,
    /// The lean ways that containers take, as their runtime reads them: `transport,start,inputs,web`, or `off`.
    pub lean: String,
    /// Whether containers may be forked by templates.
    pub templates: bool,
    /// What the keys are made of by which containers know the gateway.
    pub web_key: [u8; 32],
}

/// The rooms that the control plane stands on.
pub struct Dependencies {
    /// Durable rows.
    pub store: Store,
    /// Durable output.
    pub logs: Logs,
    /// Seals secrets.
    pub vault: Vault,
    /// Contents of mounted files.
    pub objects: ObjectStore,
    /// Mounted files as folders.
    pub trees: Trees,
    /// Contents of volumes.
    pub contents: VolumeContents,
    /// Volumes as folders.
    pub volume_trees: VolumeTrees,
    /// Network file systems.
    pub shared_folders: SharedFolders,
    /// Large payloads.
    pub blobs: BlobStore,
    /// Large values of dictionaries.
    pub values: BlobStore,
    /// Builds images.
    pub builder: Arc<dyn ImageBuilder>,
    /// The client's packages.
    pub bundles: Arc<dyn Bundles>,
    /// Addresses.
    pub urls: Arc<dyn Urls>,
    /// Opens ports for web functions.
    pub web_listeners: Arc<dyn WebListeners>,
    /// Opens ports for tunnels.
    pub tunnels: Arc<dyn Tunnels>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The control plane.
pub struct Control {
    pub(crate) config: ControlConfig,
    pub(crate) store: Store,
    pub(crate) logs: Logs,
    pub(crate) vault: Vault,
    pub(crate) objects: ObjectStore,
    pub(crate) trees: Trees,
    pub(crate) contents: VolumeContents,
    pub(crate) volume_trees: VolumeTrees,
    pub(crate) shared_folders: SharedFolders,
    pub(crate) shared_heard: shared_volumes::Heard,
    pub(crate) blobs: BlobStore,
    pub(crate) values: BlobStore,
    pub(crate) builder: Arc<dyn ImageBuilder>,
    pub(crate) bundles: Arc<dyn Bundles>,
    pub(crate) urls: Arc<dyn Urls>,
    pub(crate) web_listeners: Arc<dyn WebListeners>,
    pub(crate) tunnels: Arc<dyn Tunnels>,
    pub(crate) web: web::State,
    pub(crate) logins: logins::Logins,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) machine: Machine,
    pub(crate) lean: String,
    pub(crate) calls: shell::Calls,
    pub(crate) registry: registry::Registry,
    pub(crate) schedules: schedules::Schedules,
    /// Held while what an app consists of is changed.
    pub(crate) publishing: tokio::sync::Mutex<()>,
    /// The turn to look for a secret without a name, and to make it.
    pub(crate) anonymous_secrets: tokio::sync::Mutex<()>,
    pub(crate) builds: image_logs::Builds,
    pub(crate) commits: reports::Commits,
    pub(crate) volumes: volumes::State,
    pub(crate) collection: collection::State,
    pub(crate) app_events: logs::AppEvents,
    pub(crate) last_writes: last_writes::LastWrites,
    pub(crate) queue_lines: queue_lines::QueueLines,
    /// Who reads the items of generators.
    pub(crate) chunk_readers: chunk_readers::ChunkReaders,
    /// Who looks at the next items of a partition.
    pub(crate) queue_peeks: wakers::Wakers<queues::SpotKey>,
    /// Who waits for room in a partition.
    pub(crate) queue_room: wakers::Wakers<queues::SpotKey>,
    /// Told when something was deleted of which much may be left.
    pub(crate) sweep: Notify,
    /// Told when an app came that must be watched for its client's silence.
    pub(crate) liveness: Notify,
    /// Told when this server can do no good any more.
    pub(crate) doomed: Notify,
    /// The engine is being made anew.
    pub(crate) rebuilding: AtomicBool,
    /// What can be reserved on this machine.
    pub(crate) capacity: OnceLock<(WorkerCapacity, Vec<Gpu>)>,
    dispatcher: Dispatcher,
    worker: OnceLock<Arc<dyn Worker>>,
    random: Mutex<SystemEntropy>,
    me: Weak<Control>,
}

impl Control {
    /// Puts the control plane together. It serves nothing before [`Control::resume`].
    pub fn start(config: ControlConfig, dependencies: Dependencies) -> Arc<Self> {
        let Dependencies { store, logs, vault, objects, trees, contents, volume_trees, blobs, .. } =
            dependencies;
        let Dependencies {
            shared_folders,
            values,
            builder,
            bundles,
            urls,
            web_listeners,
            tunnels,
            clock,
            ..
        } = dependencies;
        let engine = Engine::new(EngineConf::default(), Box::new(SystemEntropy::default()));
        Arc::new_cyclic(|me| Self {
            machine: config.machine.clone(),
            lean: config.lean.clone(),
            config,
            calls: shell::Calls::new(engine, store.clone(), clock.clone()),
            store,
            logs,
            vault,
            objects,
            trees,
            contents,
            volume_trees,
            shared_folders,
            shared_heard: shared_volumes::Heard::default(),
            blobs,
            values,
            builder,
            bundles,
            urls,
            web_listeners,
            tunnels,
            web: web::State::default(),
            clock,
            registry: registry::Registry::default(),
            logins: logins::Logins::default(),
            schedules: schedules::Schedules::default(),
            publishing: tokio::sync::Mutex::default(),
            anonymous_secrets: tokio::sync::Mutex::default(),
            builds: image_logs::Builds::default(),
            commits: reports::Commits::default(),
            volumes: volumes::State::default(),
            collection: collection::State::default(),
            app_events: logs::AppEvents::default(),
            last_writes: last_writes::LastWrites::default(),
            queue_lines: queue_lines::QueueLines::default(),
            chunk_readers: chunk_readers::ChunkReaders::default(),
            queue_peeks: wakers::Wakers::default(),
            queue_room: wakers::Wakers::default(),
            sweep: Notify::new(),
            liveness: Notify::new(),
            doomed: Notify::new(),
            rebuilding: AtomicBool::new(false),
            capacity: OnceLock::new(),
            dispatcher: service::dispatcher(me.clone()),
            worker: OnceLock::new(),
            random: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Takes up where the last server left: reads what is live from the store, gives the functions and the
    /// unfinished calls to the engine. Call [`Control::adopt`] once the worker has its containers back.
    pub async fn resume(self: &Arc<Self>, capacity: WorkerCapacity, gpus: Vec<Gpu>) -> Result<(), Error> {
        self.resume_inner(capacity, gpus).await.map_err(|status| Error::internal(status.message))
    }

    async fn resume_inner(self: &Arc<Self>, capacity: WorkerCapacity, gpus: Vec<Gpu>) -> Result<(), Status> {
        self.load_environments().await?;
        self.load_logins().await?;
        // While no server ran, no client of an ephemeral object could be heard of.
        let heard = evoke_store::ObjectWrite::AllHeard { at: self.now() };
        self.submit(vec![heard.into()], evoke_store::Grade::Written).await?;
        self.end_cut_off_builds().await?;
        let _ = self.capacity.set((capacity, gpus.clone()));
        self.calls.apply(self, |engine, now| Ok(engine.put_worker(capacity, gpus, now))).await?;
        for (environment, limits) in self.all_limits() {
            self.calls.apply(self, |engine, now| Ok(engine.put_limits(environment, limits, now))).await?;
        }
        for row in self.store.apps().live().await.map_err(stored)? {
            let app = row.id;
            let environment = self.environment_of(&row);
            self.insert_app(row, environment);
            for class in self.store.classes().of_app(app).await.map_err(stored)? {
                let metadata = prost::Message::decode(class.metadata.as_slice()).unwrap_or_default();
                self.registry.lock().classes.insert(class.id, registry::Class { metadata });
            }
            let stopping = self.registry.lock().apps.get(&app).is_some_and(|app| app.stopping);
            for function in self.load_functions(app).await? {
                // What is left of a stopped app ends; it starts nothing more.
                if !stopping {
                    self.make_live(function).await?;
                }
            }
        }
        self.load_schedules().await?;
        self.load_web().await?;
        self.sync_web().await;
        let recovered = self.store.read(|db| Ok(evoke_store::calls::recover(db)?)).await.map_err(stored)?;
        self.calls.apply(self, |engine, now| Ok(engine.recover(recovered, now))).await
    }

    /// The worker has back what lived on: from now on containers are started and stopped, and time counts.
    pub async fn adopt(self: &Arc<Self>, worker: Arc<dyn Worker>) -> Result<(), Error> {
        let alive = worker.running().await;
        self.collection.adopted(&alive);
        let _ = self.worker.set(worker);
        let adopted = self.calls.apply(self, |engine, now| Ok(engine.adopt(&alive, now))).await;
        adopted.map_err(|status| Error::internal(status.message))?;
        self.watch_servers(&alive);
        let stopping: Vec<_> = {
            let live = self.registry.lock();
            live.apps.values().filter(|app| app.stopping).map(|app| app.row.id).collect()
        };
        for app in stopping {
            // The last server was told to stop it and did not get to the end.
            let again = self.calls.stop_app(self, app).await;
            again.map_err(|status| Error::internal(status.message))?;
        }
        if alive.is_empty() {
            // Nothing has a volume mounted: what is left of older versions on disk can go.
            self.sweep_trees().await.map_err(|status| Error::internal(status.message))?;
        }
        self.spawn("engine-timer", |control| async move { control.calls.run_timer(control.clone()).await });
        self.spawn("retention", Control::run_retention);
        self.spawn("collection", Control::run_collection);
        self.spawn("schedules", Control::keep_schedules);
        self.spawn("sweeps", Control::run_sweeps);
        self.spawn("client-liveness", |control| async move { control.watch_clients().await });
        Ok(())
    }

    /// Stops ephemeral apps whose client has gone silent, and lets detached ones go on alone. Sleeps until the
    /// next one can be due.
    async fn watch_clients(self: Arc<Self>) {
        loop {
            let now = self.now();
            let (silent, next) = {
                let live = self.registry.lock();
                let watched = live.apps.values().filter(|app| app.has_client() && !app.stopping);
                let due = |app: &registry::App| app.heard_at.plus_ms(apps::CLIENT_SILENCE_MS_MAX);
                let (silent, waiting): (Vec<_>, Vec<_>) = watched.partition(|app| due(app) <= now);
                let silent: Vec<_> = silent.iter().map(|app| (app.row.id, app.needs_client())).collect();
                (silent, waiting.into_iter().map(due).min())
            };
            for (app, ends) in silent {
                let done = match ends {
                    true => self.stop_app(app, "its client was not heard of for a minute").await,
                    false => self.client_left(app).await,
                };
                if let Err(status) = done {
                    tracing::error!(%app, %status, "could not record that an app's client is gone");
                }
            }
            match next {
                Some(at) => tokio::time::sleep(Duration::from_millis(at.since(now).max(1))).await,
                None => self.liveness.notified().await,
            }
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> UnixMs {
        self.clock.now()
    }

    /// Now, as the protocol's timestamp.
    pub(crate) fn timestamp(&self) -> prost_types::Timestamp {
        times::timestamp(self.now())
    }

    /// Randomness for ids.
    pub(crate) fn entropy(&self) -> MutexGuard<'_, impl Entropy + use<>> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's agent. There is one before anything is started.
    pub(crate) fn worker(&self) -> Arc<dyn Worker> {
        self.worker.get().cloned().unwrap_or_else(|| Arc::new(NoWorker))
    }

    /// Runs `work` beside the caller. A panic in it is logged by the runtime and harms nobody else.
    pub(crate) fn spawn<F, Fut>(&self, kind: &'static str, work: F)
    where
        F: FnOnce(Arc<Control>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let Some(me) = self.me.upgrade() else { return };
        tracing::trace!(kind, "task begins");
        tokio::spawn(work(me));
    }

    /// The containers or the waiting inputs of a function changed.
    pub(crate) fn pool_changed(&self, _function: FunctionId) {
        // Nobody shows pools live yet; pages read them when they are looked at.
    }
}

/// Stands in until the worker is there: nothing runs, so there is nothing to stop.
struct NoWorker;

#[async_trait::async_trait]
impl Worker for NoWorker {
    async fn assign(&self, _assignment: evoke_proto::worker::Assignment) -> Result<(), Error> {
        Err(Error::new(evoke_core::ErrorCode::Unavailable, "the server is still starting"))
    }
    async fn stop(&self, _task: evoke_core::TaskId, _how: evoke_proto::worker::StopMode) {}
    async fn running(&self) -> Vec<evoke_core::TaskId> {
        Vec::new()
    }
    async fn commit_volume(
        &self,
        _task: evoke_core::TaskId,
        _volume: evoke_core::VolumeId,
    ) -> Result<(), Error> {
        Err(Error::new(evoke_core::ErrorCode::Unavailable, "the server is still starting"))
    }
    async fn reload_volume(
        &self,
        _task: evoke_core::TaskId,
        _volume: evoke_core::VolumeId,
    ) -> Result<(), Error> {
        Err(Error::new(evoke_core::ErrorCode::Unavailable, "the server is still starting"))
    }
    fn address(&self, _task: evoke_core::TaskId) -> Option<std::net::IpAddr> {
        None
    }
    fn set_current_input(
        &self,
        _task: evoke_core::TaskId,
        _current: Option<(evoke_core::CallId, evoke_core::InputId)>,
    ) {
    }
}

/// An id out of a request.
pub(crate) fn parse_id<T: FromStr<Err = evoke_core::id::ParseIdError>>(text: &str) -> Result<T, Status> {
    text.parse().map_err(|error: evoke_core::id::ParseIdError| Status::invalid(error.to_string()))
}

/// A failure of the store as callers see it.
pub(crate) fn stored(error: StoreError) -> Status {
    Error::from(error).into()
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(ended) => Err(Status::internal(format!("the work ended without a result: {ended}"))),
    }
}
