//! Apps: made, kept alive by their client's heartbeat, published, stopped.

use crate::registry::App;
use crate::{Control, parse_id, stored};
use evoke_core::{AppId, ClassId, FunctionId, UnixMs};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{AppRow, AppWrite, DeploymentRow, Grade, Write};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An ephemeral app whose client was not heard of for this long (milliseconds) is stopped: four of the
/// client's heartbeats, which come every 15 s.
pub(crate) const CLIENT_SILENCE_MS_MAX: u64 = 60_000;
/// Most characters of a description that are kept.
const DESCRIPTION_CHARS_MAX: usize = 512;

impl Control {
    pub(crate) async fn app_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppCreateRequest,
    ) -> Result<api::AppCreateResponse, Status> {
        let environment = self.environment(&request.environment_name)?;
        let now = self.now();
        let state = match request.app_state() {
            api::AppState::Unspecified => api::AppState::Ephemeral,
            state @ (api::AppState::Ephemeral | api::AppState::Detached | api::AppState::Initializing) => {
                state
            }
            other => {
                return Err(Status::invalid(format!(
                    "An app cannot be created in state {}",
                    other.as_str_name()
                )));
            }
        };
        let row = AppRow {
            id: AppId::new(now, &mut *self.entropy()),
            environment_id: environment.id,
            name: None,
            description: request.description.chars().take(DESCRIPTION_CHARS_MAX).collect(),
            state: state as i32,
            created_at: now,
            heartbeat_at: Some(now),
            stopped_at: None,
            layout: Vec::new(),
            body: request.encode_to_vec(),
        };
        let page = self.urls.app(&context.origin, row.id);
        let reply = api::AppCreateResponse {
            app_id: row.id.to_string(),
            app_page_url: page.clone(),
            app_logs_url: page,
        };
        self.commit(&context, vec![AppWrite::Put(row.clone()).into()], Grade::Synced, &reply).await?;
        self.insert_app(row, environment.name);
        Ok(reply)
    }

    /// Takes an app into the live index. Its client counts as heard of now.
    pub(crate) fn insert_app(&self, row: AppRow, environment: String) {
        let layout = api::AppLayout::decode(row.layout.as_slice()).unwrap_or_default();
        let app = App {
            functions: parsed(layout.function_ids),
            classes: parsed(layout.class_ids),
            environment,
            heard_at: self.now(),
            stopping: row.state == api::AppState::Stopping as i32,
            row,
        };
        self.registry.lock().apps.entry(app.row.id).or_insert(app);
        self.liveness.notify_one();
    }

    /// The live app with this id.
    pub(crate) fn app(&self, text: &str) -> Result<App, Status> {
        let id: AppId = parse_id(text)?;
        self.registry.lock().apps.get(&id).cloned().ok_or_else(|| {
            Status::not_found(format!(
                "The app {id} is not running: it was stopped, or never existed on this server"
            ))
        })
    }

    pub(crate) async fn app_heartbeat(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppHeartbeatRequest,
    ) -> Result<(), Status> {
        let id: AppId = parse_id(&request.app_id)?;
        let now = self.now();
        if let Some(app) = self.registry.lock().apps.get_mut(&id) {
            app.heard_at = now;
        }
        Ok(())
    }

    pub(crate) async fn app_client_disconnect(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppClientDisconnectRequest,
    ) -> Result<(), Status> {
        let Ok(app) = self.app(&request.app_id) else { return Ok(()) };
        tracing::debug!(app = %app.row.id, reason = request.reason().as_str_name(), "client disconnected");
        if app.needs_client() {
            return self.stop_app(app.row.id, "its client disconnected").await;
        }
        if app.state() == api::AppState::Detached {
            let id = app.row.id;
            let state = api::AppState::DetachedDisconnected as i32;
            let write = AppWrite::State { id, state, stopped_at: None };
            self.commit(&context, vec![write.into()], Grade::Synced, &()).await?;
            if let Some(app) = self.registry.lock().apps.get_mut(&id) {
                app.row.state = state;
            }
        }
        Ok(())
    }

    pub(crate) async fn app_stop(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppStopRequest,
    ) -> Result<(), Status> {
        let id: AppId = parse_id(&request.app_id)?;
        self.stop_app(id, "it was stopped on request").await
    }

    /// Stops an app for good: its calls are cancelled, its containers told to stop. Idempotent.
    pub(crate) async fn stop_app(&self, id: AppId, why: &str) -> Result<(), Status> {
        let state = api::AppState::Stopping as i32;
        {
            let mut live = self.registry.lock();
            let Some(app) = live.apps.get_mut(&id) else { return Ok(()) };
            if std::mem::replace(&mut app.stopping, true) {
                return Ok(());
            }
            app.row.state = state;
        }
        tracing::info!(app = %id, why, "stopping app");
        let write = AppWrite::State { id, state, stopped_at: None };
        self.submit(vec![write.into()], Grade::Synced).await?;
        self.calls.stop_app(self, id).await?;
        self.app_events.changed(id);
        if self.calls.app_is_idle(id) {
            self.app_stopped(id).await?;
        }
        Ok(())
    }

    /// The last container of an app is gone; if the app was told to stop, it is stopped now.
    pub(crate) async fn app_stopped(&self, id: AppId) -> Result<(), Status> {
        if !self.registry.lock().apps.get(&id).is_some_and(|app| app.stopping) {
            return Ok(());
        }
        let state = api::AppState::Stopped as i32;
        let write = AppWrite::State { id, state, stopped_at: Some(self.now()) };
        let secrets = evoke_store::SecretWrite::DeleteOfApp { app_id: id };
        self.submit(vec![write.into(), secrets.into()], Grade::Synced).await?;
        self.registry.lock().forget(id);
        self.app_events.changed(id);
        Ok(())
    }

    pub(crate) async fn app_publish(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppPublishRequest,
    ) -> Result<api::AppPublishResponse, Status> {
        let mut app = self.app(&request.app_id)?;
        let now = self.now();
        let functions: BTreeMap<String, FunctionId> = parsed(request.function_ids.clone());
        let classes: BTreeMap<String, ClassId> = parsed(request.class_ids.clone());
        if functions.len() != request.function_ids.len() || classes.len() != request.class_ids.len() {
            return Err(Status::invalid("The app's layout names an object that is not a function or class"));
        }
        for (tag, id) in &functions {
            if self.registry.function(*id).is_none() {
                return Err(Status::not_found(format!(
                    "The function '{tag}' ({id}) was not created on this server"
                )));
            }
        }
        let deploying = request.app_state() == api::AppState::Deployed;
        if request.app_state() != api::AppState::Unspecified {
            app.row.state = request.app_state;
        }
        if deploying {
            if request.name.is_empty() {
                return Err(Status::invalid("A deployment needs a name"));
            }
            app.row.name = Some(request.name.clone());
            app.row.description = request.name.clone();
        }
        app.row.layout = layout_bytes(&functions, &classes);
        let mut writes: Vec<Write> = vec![AppWrite::Put(app.row.clone()).into()];
        if deploying {
            writes.push(self.deployment(&app, &request, now).await?.into());
        }
        let reply = api::AppPublishResponse {
            url: self.urls.app(&context.origin, app.row.id),
            deployed_at: now.as_secs_f64(),
            ..Default::default()
        };
        self.commit(&context, writes, Grade::Synced, &reply).await?;
        {
            let mut live = self.registry.lock();
            if let Some(entry) = live.apps.get_mut(&app.row.id) {
                entry.row = app.row.clone();
                entry.functions = functions.clone();
                entry.classes = classes;
            }
        }
        for id in functions.values() {
            self.make_live(*id).await?;
        }
        self.app_events.changed(app.row.id);
        Ok(reply)
    }

    async fn deployment(
        &self,
        app: &App,
        request: &api::AppPublishRequest,
        now: UnixMs,
    ) -> Result<AppWrite, Status> {
        let latest = self.store.apps().deployments(app.row.id, 1).await.map_err(stored)?;
        Ok(AppWrite::Deployed(DeploymentRow {
            app_id: app.row.id,
            version: latest.first().map_or(1, |row| row.version + 1),
            deployed_at: now,
            layout: app.row.layout.clone(),
            body: request.encode_to_vec(),
        }))
    }

    pub(crate) async fn app_get_by_deployment_name(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetByDeploymentNameRequest,
    ) -> Result<api::AppGetByDeploymentNameResponse, Status> {
        let environment = self.environment(&request.environment_name)?;
        let found = self.registry.lock().deployed(environment.id, &request.name).cloned();
        let mut reply =
            api::AppGetByDeploymentNameResponse { environment_name: environment.name, ..Default::default() };
        if let Some(app) = found {
            reply.app_id = app.row.id.to_string();
            reply.lifecycle = Some(self.lifecycle(&app.row).await?);
            return Ok(reply);
        }
        let previous = self.store.apps().last_stopped(environment.id, request.name).await.map_err(stored)?;
        if let Some(row) = previous {
            reply.previous_app_id = row.id.to_string();
        }
        Ok(reply)
    }

    async fn lifecycle(&self, row: &AppRow) -> Result<api::AppLifecycle, Status> {
        let latest = self.store.apps().deployments(row.id, 1).await.map_err(stored)?;
        Ok(api::AppLifecycle {
            app_state: row.state,
            created_at: row.created_at.as_secs_f64(),
            deployed_at: latest.first().map_or(0.0, |d| d.deployed_at.as_secs_f64()),
            version: latest.first().map_or(0, |d| d.version as i32),
            stopped_at: row.stopped_at.map_or(0.0, UnixMs::as_secs_f64),
            ..Default::default()
        })
    }

    pub(crate) async fn app_get_lifecycle(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetLifecycleRequest,
    ) -> Result<api::AppGetLifecycleResponse, Status> {
        let id: AppId = parse_id(&request.app_id)?;
        let row = self.store.apps().by_id(id).await.map_err(stored)?;
        let row = row.ok_or_else(|| Status::not_found(format!("There is no app {id}")))?;
        Ok(api::AppGetLifecycleResponse { lifecycle: Some(self.lifecycle(&row).await?) })
    }

    pub(crate) async fn app_get_layout(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetLayoutRequest,
    ) -> Result<api::AppGetLayoutResponse, Status> {
        let app = self.app(&request.app_id)?;
        Ok(api::AppGetLayoutResponse { app_layout: Some(self.layout(&app)) })
    }

    /// The layout of an app as clients and containers get it: ids by tag, and the metadata of each object.
    pub(crate) fn layout(&self, app: &App) -> api::AppLayout {
        let live = self.registry.lock();
        let functions =
            app.functions.values().filter_map(|id| live.functions.get(id)).map(|function| api::Object {
                object_id: function.id.to_string(),
                handle_metadata_oneof: Some(api::object::HandleMetadataOneof::FunctionHandleMetadata(
                    function.metadata.clone(),
                )),
            });
        let classes =
            app.classes.values().filter_map(|id| Some((id, live.classes.get(id)?))).map(|(id, class)| {
                api::Object {
                    object_id: id.to_string(),
                    handle_metadata_oneof: Some(api::object::HandleMetadataOneof::ClassHandleMetadata(
                        class.metadata.clone(),
                    )),
                }
            });
        api::AppLayout {
            objects: functions.chain(classes).collect(),
            function_ids: printed(&app.functions),
            class_ids: printed(&app.classes),
        }
    }

    pub(crate) async fn app_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppListRequest,
    ) -> Result<api::AppListResponse, Status> {
        /// Most apps that one listing shows.
        const APPS_MAX: u32 = 500;
        let environment = self.environment(&request.environment_name)?;
        let rows = self.store.apps().recent(environment.id, APPS_MAX).await.map_err(stored)?;
        let apps = rows.into_iter().map(|row| api::app_list_response::AppListItem {
            app_id: row.id.to_string(),
            n_running_tasks: self.calls.containers_of(row.id) as i32,
            description: row.description,
            state: row.state,
            created_at: row.created_at.as_secs_f64(),
            stopped_at: row.stopped_at.map_or(0.0, UnixMs::as_secs_f64),
            name: row.name.unwrap_or_default(),
            ..Default::default()
        });
        Ok(api::AppListResponse { apps: apps.collect() })
    }
}

fn parsed<T: std::str::FromStr, I: IntoIterator<Item = (String, String)>>(ids: I) -> BTreeMap<String, T> {
    ids.into_iter().filter_map(|(tag, id)| Some((tag, id.parse().ok()?))).collect()
}

fn printed<T: ToString, M: FromIterator<(String, String)>>(ids: &BTreeMap<String, T>) -> M {
    ids.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect()
}

fn layout_bytes(functions: &BTreeMap<String, FunctionId>, classes: &BTreeMap<String, ClassId>) -> Vec<u8> {
    api::AppLayout { objects: Vec::new(), function_ids: printed(functions), class_ids: printed(classes) }
        .encode_to_vec()
}
