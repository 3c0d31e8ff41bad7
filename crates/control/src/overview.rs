//! What people are shown: apps with their functions, calls and containers, gathered from memory and store.

use crate::definition::Definition;
use crate::{Control, stored};
use bytes::Bytes;
use evoke_core::{AppId, CallId, ErrorCode, FunctionId, ImageId, Phase, TaskId, UnixMs};
use evoke_engine::ResultStatus;
use evoke_proto::{Status, api};
use evoke_store::calls;
use evoke_store::{AppRow, FunctionRow};
use std::sync::Arc;

/// Apps in the list.
const APPS_MAX: u32 = 200;
/// Calls per function on an app's page.
const CALLS_MAX: u32 = 50;
/// Containers on an app's page.
const TASKS_MAX: u32 = 50;

/// An app in a line.
#[derive(Debug, Clone)]
pub struct AppOverview {
    /// Its id.
    pub id: AppId,
    /// Its name, or its description.
    pub name: String,
    /// Its environment's name.
    pub environment: String,
    /// Its state in a word.
    pub state: String,
    /// When it was made.
    pub created: UnixMs,
    /// When it was stopped.
    pub stopped: Option<UnixMs>,
    /// Containers that exist.
    pub containers: u64,
}

/// A function in numbers.
#[derive(Debug, Clone)]
pub struct FunctionOverview {
    /// Its id.
    pub id: FunctionId,
    /// Its name.
    pub name: String,
    /// What its containers run in; none where it is not known any more.
    pub image: Option<ImageId>,
    /// Containers that exist for it.
    pub containers: u64,
    /// Inputs that wait.
    pub queued: u64,
    /// Inputs that run.
    pub running: u64,
}

/// A call in numbers.
#[derive(Debug, Clone)]
pub struct CallOverview {
    /// Its id.
    pub id: CallId,
    /// The function's id.
    pub function: FunctionId,
    /// The function's name.
    pub name: String,
    /// When it was made.
    pub created: UnixMs,
    /// Its inputs.
    pub inputs: u64,
    /// Those that have not ended.
    pub unfinished: u64,
    /// Those that succeeded.
    pub succeeded: u64,
    /// Those that failed in whatever way.
    pub failed: u64,
}

/// A container in a line.
#[derive(Debug, Clone)]
pub struct TaskOverview {
    /// Its id.
    pub id: TaskId,
    /// The function's name.
    pub function: String,
    /// The phase it is in.
    pub state: String,
    /// When it was decided on.
    pub created: UnixMs,
    /// How long it took from there to its first input, in milliseconds.
    pub start_ms: Option<u64>,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// How it ended, in words.
    pub outcome: String,
}

impl Control {
    /// All apps worth showing, newest first.
    pub async fn app_overviews(&self) -> Result<Vec<AppOverview>, Status> {
        let environments: Vec<_> = {
            let live = self.registry.lock();
            live.environments.values().map(|environment| environment.id).collect()
        };
        let mut rows = Vec::new();
        for environment in environments {
            rows.extend(self.store.apps().recent(environment, APPS_MAX).await.map_err(stored)?);
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.id));
        rows.truncate(APPS_MAX as usize);
        Ok(rows.iter().map(|row| self.app_line(row)).collect())
    }

    /// One app.
    pub async fn app_overview(&self, id: AppId) -> Result<AppOverview, Status> {
        let row = self.store.apps().by_id(id).await.map_err(stored)?;
        let row = row.ok_or_else(|| {
            Status::from(evoke_core::Error::new(ErrorCode::NotFound, format!("There is no app {id}")))
        })?;
        Ok(self.app_line(&row))
    }

    fn app_line(&self, row: &AppRow) -> AppOverview {
        let state = match api::AppState::try_from(row.state) {
            Ok(api::AppState::Ephemeral | api::AppState::Detached) => "running",
            Ok(api::AppState::DetachedDisconnected) => "running (detached)",
            Ok(api::AppState::Deployed) => "deployed",
            Ok(api::AppState::Initializing) => "starting",
            Ok(api::AppState::Stopping) => "stopping",
            _ => "stopped",
        };
        AppOverview {
            id: row.id,
            name: row.name.clone().unwrap_or_else(|| row.description.clone()),
            environment: self.environment_of(row),
            state: state.to_string(),
            created: row.created_at,
            stopped: row.stopped_at,
            containers: self.calls.containers_of(row.id) as u64,
        }
    }

    /// The functions of an app, by name.
    pub async fn function_overviews(&self, app: AppId) -> Result<Vec<FunctionOverview>, Status> {
        let rows = self.store.functions().of_app(app).await.map_err(stored)?;
        let mut lines: Vec<_> = rows
            .into_iter()
            .map(|row| {
                let pool = self.calls.look(|engine| engine.pool_info(row.id)).unwrap_or_default();
                let image = self.image_of(&row);
                FunctionOverview {
                    id: row.id,
                    name: row.tag,
                    image,
                    containers: u64::from(pool.containers),
                    queued: u64::from(pool.backlog),
                    running: u64::from(pool.running_inputs),
                }
            })
            .collect();
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(lines)
    }

    /// What a function's containers run in, of a stopped app's too.
    fn image_of(&self, row: &FunctionRow) -> Option<ImageId> {
        let definition = match self.registry.function(row.id) {
            Some(function) => function.definition.clone(),
            // What is stored of a variant are its options alone.
            None if row.base_id.is_some() || row.definition_id.is_none() => return None,
            None => Arc::new(Definition::from_stored(&Bytes::from(row.body.clone())).ok()?),
        };
        definition.function.image_id.parse().ok()
    }

    /// The newest calls of an app, newest first.
    pub async fn call_overviews(&self, app: AppId) -> Result<Vec<CallOverview>, Status> {
        let mut lines = Vec::new();
        for function in self.function_overviews(app).await? {
            let id = function.id;
            let read = move |db: &_| Ok(calls::calls_of_function(db, &id, CALLS_MAX)?);
            for view in self.store.read(read).await.map_err(stored)? {
                let succeeded = ended(&view, |status| status == ResultStatus::Success);
                lines.push(CallOverview {
                    id: view.row.id,
                    function: id,
                    name: function.name.clone(),
                    created: view.row.created,
                    inputs: u64::from(view.inputs),
                    unfinished: u64::from(view.unfinished),
                    succeeded,
                    failed: ended(&view, |status| status != ResultStatus::Success),
                });
            }
        }
        lines.sort_by_key(|line| std::cmp::Reverse(line.id));
        Ok(lines)
    }

    /// The newest containers of an app, newest first.
    pub async fn task_overviews(&self, app: AppId) -> Result<Vec<TaskOverview>, Status> {
        let read = move |db: &_| Ok(calls::tasks_of_app(db, &app, TASKS_MAX)?);
        let rows = self.store.read(read).await.map_err(stored)?;
        let line = |row: calls::TaskRow| {
            let at = |phase: Phase| row.phases.iter().find(|(p, _)| *p == phase).map(|(_, at)| *at);
            let queued = at(Phase::Queued).or(row.phases.first().map(|(_, at)| *at)).unwrap_or_default();
            let name = self.registry.function(row.function_id).map(|f| f.tag.clone());
            let latest =
                row.phases.iter().max_by_key(|(phase, _)| *phase).map(|(phase, _)| format!("{phase:?}"));
            TaskOverview {
                id: row.id,
                function: name.unwrap_or_else(|| row.function_id.to_string()),
                state: latest.unwrap_or_default().to_lowercase(),
                created: queued,
                start_ms: at(Phase::Ready).map(|ready| ready.since(queued)),
                ended: row.end.as_ref().map(|end| end.at),
                outcome: row.end.map(|end| end.text).unwrap_or_default(),
            }
        };
        Ok(rows.into_iter().map(line).collect())
    }
}

fn ended(view: &calls::CallView, wanted: impl Fn(ResultStatus) -> bool) -> u64 {
    view.ended.iter().filter(|(status, _)| wanted(*status)).map(|(_, count)| u64::from(*count)).sum()
}
