//! What is live, in memory: environments, apps and their functions, rebuilt from the store at start. The
//! store stays the source of truth; this is the index that the call path reads.

use crate::definition::Definition;
use crate::machine::Fit;
use crate::scaling::override_autoscaler;
use bytes::Bytes;
use evoke_core::{AppId, ClassId, DefinitionId, EnvironmentId, FunctionId, UnixMs};
use evoke_engine::FunctionConf;
use evoke_proto::api;
use evoke_store::AppRow;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One function, or a variant of one bound to parameters. Immutable: a change makes a new record.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its id.
    pub id: FunctionId,
    /// The app that it belongs to.
    pub app_id: AppId,
    /// Its name in the app.
    pub tag: String,
    /// The definition that is live.
    pub definition_id: DefinitionId,
    /// Grows with each change of what its containers run.
    pub generation: u64,
    /// What its containers run; a variant's has its options applied.
    pub definition: Arc<Definition>,
    /// What clients are given as its handle.
    pub metadata: api::FunctionHandleMetadata,
    /// For a variant: the function that it was made of.
    pub base: Option<FunctionId>,
    /// For a variant: the class parameters, as the container gets them.
    pub serialized_params: Bytes,
    /// For a variant: what it was asked to do otherwise than its base.
    pub options: Arc<api::FunctionOptions>,
    /// What was set while it was live, until the next deployment.
    pub scaling: api::AutoscalerConfiguration,
    /// For what was looked up at a version of the app: that version. New deployments leave it alone.
    pub pinned: Option<Arc<PinnedVersion>>,
    /// It left its app with a later deployment: it finishes the calls that it has and takes no new ones.
    pub removed: bool,
    /// Whether and with what its containers can run on this machine.
    pub fit: Fit,
}

/// A version of an app that something is held to.
#[derive(Debug)]
pub struct PinnedVersion {
    /// Its number.
    pub version: u32,
    /// The functions of that version, by tag.
    pub functions: BTreeMap<String, FunctionId>,
    /// The classes of that version, by tag.
    pub classes: BTreeMap<String, ClassId>,
}

/// How long a container of a function that left its app waits for more inputs (milliseconds).
const REMOVED_WINDOW_MS: u64 = 1_000;

impl Function {
    /// A function that runs this definition, in this version and generation, as it was asked for.
    pub fn of(
        id: FunctionId,
        app_id: AppId,
        (definition_id, generation): (DefinitionId, u64),
        definition: Arc<Definition>,
        fit: Fit,
    ) -> Self {
        Self {
            id,
            app_id,
            tag: definition.function.function_name.clone(),
            definition_id,
            generation,
            metadata: definition.metadata(app_id, definition_id),
            base: None,
            serialized_params: Bytes::new(),
            options: Arc::default(),
            scaling: api::AutoscalerConfiguration::default(),
            pinned: None,
            removed: false,
            fit,
            definition,
        }
    }

    /// The settings that the engine schedules by, as far as they are its own.
    pub fn conf(&self) -> FunctionConf {
        let mut conf = self.definition.conf(self.id, self.app_id, self.definition_id, self.generation);
        override_autoscaler(&mut conf.autoscaler, &self.scaling.override_settings.unwrap_or_default());
        conf.unsatisfiable.clone_from(&self.fit.refusal);
        conf.gpus.clone_from(&self.fit.gpus);
        if self.removed || self.pinned.is_some() {
            // Nothing stands ready for what is looked up now and then.
            conf.autoscaler.min = 0;
            conf.autoscaler.buffer = 0;
        }
        if self.removed {
            conf.autoscaler.scaledown_window_ms = REMOVED_WINDOW_MS;
        }
        conf
    }
}

/// One class handle.
#[derive(Debug, Clone)]
pub struct Class {
    /// What clients are given as its handle.
    pub metadata: api::ClassHandleMetadata,
}

/// One app that is not stopped.
#[derive(Debug, Clone)]
pub struct App {
    /// What is stored of it.
    pub row: AppRow,
    /// The name of its environment.
    pub environment: String,
    /// Functions by tag, as last published.
    pub functions: BTreeMap<String, FunctionId>,
    /// Classes by tag, as last published.
    pub classes: BTreeMap<String, ClassId>,
    /// When its client was last heard of.
    pub heard_at: UnixMs,
    /// Told to stop, waiting for its containers to end.
    pub stopping: bool,
}

impl App {
    /// The protocol's state.
    pub fn state(&self) -> api::AppState {
        api::AppState::try_from(self.row.state).unwrap_or(api::AppState::Unspecified)
    }
    /// Whether it ends when its client is gone.
    pub fn needs_client(&self) -> bool {
        matches!(self.state(), api::AppState::Ephemeral | api::AppState::Initializing)
    }
    /// Key-value metadata that its owner attached.
    pub fn tags(&self) -> BTreeMap<String, String> {
        api::AppCreateRequest::decode(self.row.body.as_slice()).unwrap_or_default().tags
    }
    /// Replaces the tags.
    pub fn set_tags(&mut self, tags: BTreeMap<String, String>) {
        let mut request = api::AppCreateRequest::decode(self.row.body.as_slice()).unwrap_or_default();
        request.tags = tags;
        self.row.body = request.encode_to_vec();
    }
    /// Whether a function is, or once was, part of what was published of this app.
    pub fn has_published(&self, function: &Function) -> bool {
        function.removed || self.functions.values().any(|id| *id == function.id)
    }
    /// The functions that clients reach by the app: those that are live, and those that were looked up at a version.
    pub fn reachable<'a>(&'a self, live: &'a Live) -> impl Iterator<Item = &'a Arc<Function>> {
        let published = self.functions.values().filter_map(|id| live.functions.get(id));
        let pinned = live.functions.values();
        let pinned = pinned.filter(|f| f.app_id == self.row.id && f.options.pinned_app_version.is_some());
        published.chain(pinned)
    }
    /// Whether a client holds it, so that its silence means something.
    pub fn has_client(&self) -> bool {
        self.needs_client() || self.state() == api::AppState::Detached
    }
}

/// One environment.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: UnixMs,
    /// What can be set of it.
    pub settings: api::EnvironmentSettings,
}

/// Everything that is live.
#[derive(Debug, Default)]
pub struct Live {
    /// Environments by name.
    pub environments: BTreeMap<String, Environment>,
    /// The one that is meant where none is named.
    pub default: Option<EnvironmentId>,
    /// Apps that are not stopped.
    pub apps: HashMap<AppId, App>,
    /// Their functions.
    pub functions: HashMap<FunctionId, Arc<Function>>,
    /// Their classes.
    pub classes: HashMap<ClassId, Class>,
}

impl Live {
    /// Takes an environment in, under its name.
    pub fn put_environment(&mut self, environment: Environment) {
        self.environments.insert(environment.name.clone(), environment);
    }

    /// The settings that the engine schedules a function by, its environment among them.
    pub fn scheduled(&self, function: &Function) -> FunctionConf {
        let environment_id = self.apps.get(&function.app_id).map(|app| app.row.environment_id);
        FunctionConf { environment_id, ..function.conf() }
    }

    /// The deployed app of this name.
    pub fn deployed(&self, environment: EnvironmentId, name: &str) -> Option<&App> {
        self.apps.values().find(|app| {
            app.row.environment_id == environment && !app.stopping && app.row.name.as_deref() == Some(name)
        })
    }

    /// The variants of a function that follow its deployments, and variants of those.
    pub fn followers_of(&self, base: FunctionId) -> Vec<Arc<Function>> {
        let variants = self.functions.values().filter(|function| function.base == Some(base));
        variants.filter(|function| function.pinned.is_none()).cloned().collect()
    }

    /// Forgets an app with all that belongs to it.
    pub fn forget(&mut self, app: AppId) {
        self.apps.remove(&app);
        self.functions.retain(|_, function| function.app_id != app);
    }
}

/// Functions and classes by tag.
pub type Layout = (BTreeMap<String, FunctionId>, BTreeMap<String, ClassId>);

/// The layout out of what is stored of it.
pub fn read_layout(stored: &[u8]) -> Layout {
    fn parsed<T: std::str::FromStr>(ids: BTreeMap<String, String>) -> BTreeMap<String, T> {
        ids.into_iter().filter_map(|(tag, id)| Some((tag, id.parse().ok()?))).collect()
    }
    let layout = api::AppLayout::decode(stored).unwrap_or_default();
    (parsed(layout.function_ids), parsed(layout.class_ids))
}

/// The live index behind its lock. The lock is never held across an await.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Live>);

impl Registry {
    /// Locks the index.
    pub fn lock(&self) -> MutexGuard<'_, Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function with this id.
    pub fn function(&self, id: FunctionId) -> Option<Arc<Function>> {
        self.lock().functions.get(&id).cloned()
    }
}
