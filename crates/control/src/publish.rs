//! Publications: what an app consists of from a moment on.
//!
//! Creating a function that runs already changes nothing: its new definition is only kept. A publication makes
//! a set of definitions live, all at once, in the store and then in the scheduler. What did not change stays,
//! with its containers; the containers of what did finish the inputs that they have and take no more; what
//! the app no longer has finishes its calls. A rollback, a rollover and a promotion are publications of what
//! an earlier version had.

use crate::definition::Definition;
use crate::registry::{App, Function};
use crate::schedules::schedule_of;
use crate::{Control, WORKSPACE, parse_id, stored};
use bytes::Bytes;
use evoke_core::{AppId, ClassId, DefinitionId, FunctionId, Principal, UnixMs};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::{AppWrite, DeploymentRow, FunctionWrite, Grade, ScalingWrite, Write};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is to be published.
pub(crate) struct Release {
    /// The request that is kept in the history.
    pub request: api::AppPublishRequest,
    /// Functions by tag.
    pub functions: BTreeMap<String, FunctionId>,
    /// Classes by tag.
    pub classes: BTreeMap<String, ClassId>,
    /// What each function runs.
    definitions: BTreeMap<FunctionId, DefinitionId>,
    /// Whether what did not change gets new containers, too.
    pub fresh: bool,
}

/// What a publication does to the functions of an app.
struct Changes {
    /// New, or with another definition.
    changed: Vec<Function>,
    /// No part of the app any more.
    removed: Vec<Function>,
}

impl Release {
    /// What a request publishes.
    pub(crate) fn of(request: api::AppPublishRequest) -> Result<Self, Status> {
        let functions = parsed(&request.function_ids)?;
        let classes = parsed(&request.class_ids)?;
        let mut definitions = BTreeMap::new();
        for (function, definition) in &request.definition_ids {
            definitions.insert(parse_id(function)?, parse_id(definition)?);
        }
        Ok(Self { request, functions, classes, definitions, fresh: false })
    }

    /// What a function runs, where the request says so.
    pub(crate) fn definition(&self, function: FunctionId) -> Option<DefinitionId> {
        self.definitions.get(&function).copied()
    }

    fn kind(&self) -> api::DeploymentType {
        self.request.deployment_type()
    }
}

impl Control {
    pub(crate) async fn app_publish(
        self: Arc<Self>,
        context: CallContext,
        mut request: api::AppPublishRequest,
    ) -> Result<api::AppPublishResponse, Status> {
        use api::DeploymentType as Kind;
        let id: AppId = parse_id(&request.app_id)?;
        let deploying = request.app_state() == api::AppState::Deployed;
        if deploying && request.name.is_empty() {
            return Err(Status::invalid("A deployment needs a name"));
        }
        if request.staged && !deploying {
            return Err(Status::invalid("Only a deployment can be staged"));
        }
        request.rollback_version = 0;
        request.set_deployment_type(if request.staged { Kind::Staged } else { Kind::Standard });
        let release = Release::of(request)?;
        let reply = |at: UnixMs| api::AppPublishResponse {
            url: self.urls.app(&context.origin, id),
            deployed_at: at.as_secs_f64(),
            ..Default::default()
        };
        self.publish(&context, id, release, reply).await
    }

    /// Publishes `release` as the app's next version, or as what an app runs that has no versions. The reply
    /// is made from the time of it, which is 0 where nothing changed.
    pub(crate) async fn publish<R: Message>(
        &self,
        context: &CallContext,
        id: AppId,
        mut release: Release,
        reply: impl FnOnce(UnixMs) -> R,
    ) -> Result<R, Status> {
        // One at a time: each builds on what the one before has made live.
        let _turn = self.publishing.lock().await;
        let mut app = self.running_app(&id.to_string())?;
        let now = self.now();
        let deploying = release.kind() != api::DeploymentType::Unspecified
            && release.request.app_state() == api::AppState::Deployed;
        if deploying {
            self.check_name(&app, &release.request.name)?;
        }
        let changes = self.changes(&app, &mut release).await?;
        let staged = release.request.staged;
        if deploying && !staged && self.is_unchanged(&app, &release, &changes).await? {
            let reply = reply(UnixMs(0));
            self.commit(context, Vec::new(), Grade::Written, &reply).await?;
            return Ok(reply);
        }
        if release.request.app_state() != api::AppState::Unspecified {
            app.row.state = release.request.app_state;
        }
        if deploying {
            app.row.name = Some(release.request.name.clone());
            app.row.description.clone_from(&release.request.name);
        }
        let mut writes: Vec<Write> = Vec::new();
        if deploying {
            writes.push(AppWrite::Deployed(self.deployment(context, &app, &release, now).await?).into());
        }
        if !staged {
            app.functions.clone_from(&release.functions);
            app.classes.clone_from(&release.classes);
            app.row.layout = layout_bytes(&release.functions, &release.classes);
            if !release.request.tags.is_empty() {
                app.set_tags(release.request.tags.clone());
            }
            writes.extend(function_writes(&changes, now));
            writes.push(ScalingWrite::ResetApp { app_id: id }.into());
        }
        let schedules = match app.state() {
            api::AppState::Deployed if !staged => {
                self.schedule_changes(&app, &changes.changed, &release, now)
            }
            _ => Vec::new(),
        };
        writes.extend(schedules.iter().cloned().map(Write::from));
        writes.push(AppWrite::Put(app.row.clone()).into());
        let reply = reply(now);
        self.commit(context, writes, Grade::Synced, &reply).await?;
        self.go_live(app, (!staged).then_some(changes)).await?;
        self.schedules.apply(schedules, now);
        Ok(reply)
    }

    /// A name belongs to one app at a time.
    fn check_name(&self, app: &App, name: &str) -> Result<(), Status> {
        let live = self.registry.lock();
        match live.deployed(app.row.environment_id, name) {
            Some(other) if other.row.id != app.row.id => Err(Status::new(
                Code::FailedPrecondition,
                format!(
                    "App '{name}' was deployed by somebody else meanwhile, as {}. Deploy again to put yours in its place",
                    other.row.id
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Compares what is to be published with what is live. Completes the release with the definitions that it
    /// leaves open.
    async fn changes(&self, app: &App, release: &mut Release) -> Result<Changes, Status> {
        let mut changed = Vec::new();
        for (tag, id) in &release.functions {
            let current = self.registry.function(*id).filter(|function| function.app_id == app.row.id);
            let current = current
                .ok_or_else(|| Status::not_found(format!("The app has no function '{tag}' ({id})")))?;
            let wanted = release.definitions.get(id).copied().unwrap_or(current.definition_id);
            let live = !current.removed && app.functions.values().any(|published| published == id);
            let definition = if wanted == current.definition_id {
                current.definition.clone()
            } else {
                Arc::new(self.kept_definition(tag, *id, wanted).await?)
            };
            if live && !release.fresh && definition.is_same(&current.definition) {
                release.definitions.insert(*id, current.definition_id);
                continue;
            }
            release.definitions.insert(*id, wanted);
            let fresh = live || current.removed;
            changed.push(Function {
                definition_id: wanted,
                generation: current.generation + u64::from(fresh),
                metadata: definition.metadata(app.row.id, wanted),
                removed: false,
                fit: self.machine.fit(&definition)?,
                definition,
                ..(*current).clone()
            });
        }
        let kept: BTreeSet<FunctionId> = release.functions.values().copied().collect();
        let left = app.functions.values().filter(|id| !kept.contains(id));
        let removed = left.filter_map(|id| self.registry.function(*id));
        let removed = removed.map(|function| Function { removed: true, ..(*function).clone() }).collect();
        Ok(Changes { changed, removed })
    }

    /// A definition that was created before.
    pub(crate) async fn kept_definition(
        &self,
        tag: &str,
        function: FunctionId,
        id: DefinitionId,
    ) -> Result<Definition, Status> {
        let row = self.store.functions().definition(id).await.map_err(stored)?;
        let row = row.filter(|row| row.function_id == function).ok_or_else(|| {
            Status::not_found(format!("The function '{tag}' ({function}) has no definition {id}"))
        })?;
        Ok(Definition::from_stored(&Bytes::from(row.body))?)
    }

    /// Whether publishing would change nothing that anybody could see.
    async fn is_unchanged(&self, app: &App, release: &Release, changes: &Changes) -> Result<bool, Status> {
        let request = &release.request;
        let same = app.state() == api::AppState::Deployed
            && app.row.name.as_deref() == Some(request.name.as_str())
            && changes.changed.is_empty()
            && changes.removed.is_empty()
            && app.functions == release.functions
            && app.classes == release.classes
            && (request.tags.is_empty() || app.tags() == request.tags);
        if !same || release.fresh || release.kind() != api::DeploymentType::Standard {
            return Ok(false);
        }
        let Some(version) = self.production(app.row.id).await? else { return Ok(false) };
        let before = api::AppPublishRequest::decode(version.body.as_slice()).unwrap_or_default();
        Ok(request.deployment_tag.is_empty() || before.deployment_tag == request.deployment_tag)
    }

    /// The next entry of an app's history.
    async fn deployment(
        &self,
        context: &CallContext,
        app: &App,
        release: &Release,
        now: UnixMs,
    ) -> Result<DeploymentRow, Status> {
        let latest = self.store.apps().deployments(app.row.id, 1).await.map_err(stored)?;
        let mut request = release.request.clone();
        request.client_version = context.header("x-modal-client-version").unwrap_or_default().to_string();
        let definitions = release.definitions.iter();
        request.definition_ids = definitions.map(|(f, d)| (f.to_string(), d.to_string())).collect();
        Ok(DeploymentRow {
            app_id: app.row.id,
            version: latest.first().map_or(1, |row| row.version + 1),
            deployed_at: now,
            layout: layout_bytes(&release.functions, &release.classes),
            kind: request.deployment_type,
            body: request.encode_to_vec(),
            deployed_by: actor(context),
        })
    }

    /// Makes what is stored the truth in memory, and then the scheduler's. A staged version changes no function.
    async fn go_live(&self, app: App, changes: Option<Changes>) -> Result<(), Status> {
        let id = app.row.id;
        let mut scheduled = BTreeSet::new();
        {
            let mut live = self.registry.lock();
            if let Some(entry) = live.apps.get_mut(&id) {
                entry.row = app.row;
                entry.functions = app.functions;
                entry.classes = app.classes;
            }
            if changes.is_some() {
                scheduled.extend(live.scale_as_published(id));
            }
            let changes = changes.into_iter().flat_map(|c| c.changed.into_iter().chain(c.removed));
            let mut pending: Vec<Function> = changes.collect();
            for function in &mut pending {
                function.scaling = api::AutoscalerConfiguration::default();
            }
            while let Some(function) = pending.pop() {
                for variant in live.followers_of(function.id) {
                    let (params, options) = (&variant.serialized_params, variant.options.clone());
                    pending.push(self.variant(&function, variant.id, params, options)?);
                }
                scheduled.insert(function.id);
                live.functions.insert(function.id, Arc::new(function));
            }
        }
        for function in scheduled {
            self.make_live(function).await?;
        }
        self.sync_web().await;
        self.app_events.changed(id);
        Ok(())
    }

    /// The schedules that a deployment adds, changes and ends. A period counts from the deployment; a cron
    /// line that stays the same goes on as if nothing had happened.
    fn schedule_changes(
        &self,
        app: &App,
        changed: &[Function],
        release: &Release,
        now: UnixMs,
    ) -> Vec<evoke_store::ScheduleWrite> {
        let definition = |id: FunctionId| {
            let new = changed.iter().find(|function| function.id == id).map(|f| f.definition.clone());
            new.or_else(|| self.registry.function(id).map(|function| function.definition.clone()))
        };
        let mut wanted = BTreeMap::new();
        for id in release.functions.values() {
            let schedule = definition(*id).and_then(|found| found.function.schedule.clone());
            if let Some(schedule) = schedule.filter(|_| {
                definition(*id).is_some_and(|d| matches!(schedule_of(&d.function, now), Ok(Some(_))))
            }) {
                wanted.insert(*id, schedule);
            }
        }
        let restarts = release.kind() != api::DeploymentType::Rollover;
        self.schedules.changes(app.row.id, wanted, restarts, now)
    }
}

fn function_writes(changes: &Changes, now: UnixMs) -> Vec<Write> {
    let live = changes.changed.iter().map(|function| FunctionWrite::Live {
        id: function.id,
        definition_id: function.definition_id,
        generation: function.generation,
    });
    let gone = changes.removed.iter().map(|function| FunctionWrite::Delete { id: function.id, at: now });
    live.chain(gone).map(Write::from).collect()
}

/// Who does something, for the history.
pub(crate) fn actor(context: &CallContext) -> String {
    match &context.principal {
        Principal::Container(task) => task.to_string(),
        Principal::Client { .. } | Principal::Anonymous => WORKSPACE.to_string(),
    }
}

fn parsed<T: std::str::FromStr<Err = evoke_core::id::ParseIdError>>(
    ids: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, T>, Status> {
    ids.iter().map(|(tag, id)| Ok((tag.clone(), parse_id(id)?))).collect()
}

fn layout_bytes(functions: &BTreeMap<String, FunctionId>, classes: &BTreeMap<String, ClassId>) -> Vec<u8> {
    let function_ids = functions.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect();
    let class_ids = classes.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect();
    api::AppLayout { objects: Vec::new(), function_ids, class_ids }.encode_to_vec()
}
