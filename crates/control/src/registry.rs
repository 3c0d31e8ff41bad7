//! What is live, in memory: environments, apps and their functions, rebuilt from the store at start. The
//! store stays the source of truth; this is the index that the call path reads.

use crate::definition::Definition;
use bytes::Bytes;
use evoke_core::{AppId, ClassId, DefinitionId, EnvironmentId, FunctionId, UnixMs};
use evoke_engine::FunctionConf;
use evoke_proto::api;
use evoke_store::AppRow;
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
    /// Why its calls cannot run on this machine, where that is so.
    pub unsatisfiable: Option<String>,
}

impl Function {
    /// The settings that the engine schedules by.
    pub fn conf(&self) -> FunctionConf {
        let mut conf = self.definition.conf(self.id, self.app_id, self.definition_id, self.generation);
        conf.unsatisfiable.clone_from(&self.unsatisfiable);
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
}

/// One environment.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// Its name.
    pub name: String,
}

/// Everything that is live.
#[derive(Debug, Default)]
pub struct Live {
    /// Environments by name.
    pub environments: BTreeMap<String, Environment>,
    /// Apps that are not stopped.
    pub apps: HashMap<AppId, App>,
    /// Their functions.
    pub functions: HashMap<FunctionId, Arc<Function>>,
    /// Their classes.
    pub classes: HashMap<ClassId, Class>,
}

impl Live {
    /// The deployed app of this name.
    pub fn deployed(&self, environment: EnvironmentId, name: &str) -> Option<&App> {
        self.apps.values().find(|app| {
            app.row.environment_id == environment && !app.stopping && app.row.name.as_deref() == Some(name)
        })
    }

    /// Forgets an app with all that belongs to it.
    pub fn forget(&mut self, app: AppId) {
        self.apps.remove(&app);
        self.functions.retain(|_, function| function.app_id != app);
    }
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
