//! Apps: made, kept alive by their client's heartbeat, stopped. What they consist of is published in
//! `publish.rs`, and told in `app_info.rs`.

use crate::registry::{App, read_layout};
use crate::{Control, parse_id};
use evoke_core::AppId;
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::{AppRow, AppWrite, Grade, ScheduleWrite, SecretWrite};
use prost::Message;
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
        let (functions, classes) = read_layout(&row.layout);
        let app = App {
            functions,
            classes,
            environment,
            heard_at: self.now(),
            stopping: row.state == api::AppState::Stopping as i32,
            row,
        };
        self.registry.lock().apps.entry(app.row.id).or_insert(app);
        self.liveness.notify_one();
    }

    /// The app with this id, if it is not stopped and not told to stop.
    pub(crate) fn running_app(&self, text: &str) -> Result<App, Status> {
        let app = self.app(text)?;
        if app.stopping {
            return Err(Status::new(Code::FailedPrecondition, format!("The app {text} is being stopped")));
        }
        Ok(app)
    }

    /// The app with this id, if it is not stopped.
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
        if app.state() != api::AppState::Detached {
            return Ok(());
        }
        self.client_left(app.row.id).await?;
        if request.reason() == api::AppDisconnectReason::EntrypointCompleted {
            // It waits for the end of its logs, which may be far away.
            self.app_events.farewell(app.row.id, context.peer);
        }
        Ok(())
    }

    /// The client of a detached app is gone: the app goes on by itself, until nothing that it was given is
    /// left to do.
    pub(crate) async fn client_left(&self, id: AppId) -> Result<(), Status> {
        let state = api::AppState::DetachedDisconnected as i32;
        self.submit(vec![AppWrite::State { id, state, stopped_at: None }.into()], Grade::Synced).await?;
        if let Some(app) = self.registry.lock().apps.get_mut(&id) {
            app.row.state = state;
        }
        self.end_if_done(id).await
    }

    /// A detached app whose client is gone ends with its last piece of work.
    async fn end_if_done(&self, id: AppId) -> Result<(), Status> {
        let left = api::AppState::DetachedDisconnected;
        let alone =
            self.registry.lock().apps.get(&id).is_some_and(|app| !app.stopping && app.state() == left);
        if alone && !self.calls.look(|engine| engine.app_has_work(id)) {
            return self.stop_app(id, "its client is gone and its work is done").await;
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
        let schedules = ScheduleWrite::DeleteOfApp { app_id: id };
        self.submit(vec![write.into(), schedules.clone().into()], Grade::Synced).await?;
        self.schedules.apply(vec![schedules], self.now());
        self.calls.stop_app(self, id).await?;
        self.app_events.changed(id);
        if self.calls.app_is_idle(id) {
            self.app_stopped(id).await?;
        }
        Ok(())
    }

    /// The last container of an app is gone; if the app was told to stop, it is stopped now. A detached one
    /// that nobody holds may be done.
    pub(crate) async fn app_stopped(&self, id: AppId) -> Result<(), Status> {
        if !self.registry.lock().apps.get(&id).is_some_and(|app| app.stopping) {
            return Box::pin(self.end_if_done(id)).await;
        }
        let state = api::AppState::Stopped as i32;
        let write = AppWrite::State { id, state, stopped_at: Some(self.now()) };
        let secrets = SecretWrite::DeleteOfApp { app_id: id };
        let objects = evoke_store::ObjectWrite::DeleteOfApp { app_id: id };
        self.submit(vec![write.into(), secrets.into(), objects.into()], Grade::Synced).await?;
        self.registry.lock().forget(id);
        self.sync_web().await;
        self.app_events.changed(id);
        Ok(())
    }
}
