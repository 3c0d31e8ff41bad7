//! What is told of apps: looked up by name or id, their lifecycle, layout, tags, and lists of them. An app that
//! is stopped is still told of.

use crate::registry::{App, PinnedVersion, read_layout};
use crate::{Control, WORKSPACE, parse_id, stored};
use evoke_core::{AppId, ClassId, FunctionId, Principal, UnixMs};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{AppRow, AppWrite, DeploymentRow, Grade};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most apps that one listing shows.
const APPS_MAX: u32 = 500;

impl Control {
    pub(crate) async fn app_get_by_deployment_name(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetByDeploymentNameRequest,
    ) -> Result<api::AppGetByDeploymentNameResponse, Status> {
        let environment = self.environment(&request.environment_name)?;
        let (found, stopping) = {
            let live = self.registry.lock();
            let named = |app: &&App| app.row.name.as_ref() == Some(&request.name);
            let mut stopping = live.apps.values().filter(|app| app.stopping).filter(named);
            let stopping = stopping.find(|app| app.row.environment_id == environment.id).cloned();
            (live.deployed(environment.id, &request.name).cloned(), stopping)
        };
        let mut reply =
            api::AppGetByDeploymentNameResponse { environment_name: environment.name, ..Default::default() };
        if let Some(app) = found {
            reply.app_id = app.row.id.to_string();
            reply.lifecycle = Some(self.lifecycle(&app.row).await?);
            return Ok(reply);
        }
        let previous = match stopping {
            Some(app) => Some(app.row),
            None => self.store.apps().last_stopped(environment.id, request.name).await.map_err(stored)?,
        };
        if let Some(row) = previous {
            reply.previous_app_id = row.id.to_string();
            reply.lifecycle = Some(self.lifecycle(&row).await?);
        }
        Ok(reply)
    }

    /// The version of an app that is live; none where nothing was deployed.
    pub(crate) async fn production(&self, app: AppId) -> Result<Option<DeploymentRow>, Status> {
        self.store.apps().deployment_before(app, u32::MAX).await.map_err(stored)
    }

    pub(crate) async fn lifecycle(&self, row: &AppRow) -> Result<api::AppLifecycle, Status> {
        let live = match &row.name {
            Some(_) => self.production(row.id).await?,
            None => None,
        };
        let mut lifecycle = api::AppLifecycle {
            app_state: row.state,
            created_at: row.created_at.as_secs_f64(),
            created_by: WORKSPACE.into(),
            ..Default::default()
        };
        if let Some(version) = live {
            lifecycle.deployed_at = version.deployed_at.as_secs_f64();
            lifecycle.deployed_by = version.deployed_by;
            lifecycle.version = version.version as i32;
        }
        if let Some(at) = row.stopped_at {
            lifecycle.stopped_at = at.as_secs_f64();
            // A deployed app ends on request alone.
            lifecycle.stopped_by = row.name.as_ref().map(|_| WORKSPACE.into()).unwrap_or_default();
        }
        Ok(lifecycle)
    }

    /// What is stored of an app, stopped or not.
    pub(crate) async fn app_row(&self, text: &str) -> Result<AppRow, Status> {
        let id: AppId = parse_id(text)?;
        let live = self.registry.lock().apps.get(&id).map(|app| app.row.clone());
        if let Some(row) = live {
            return Ok(row);
        }
        let row = self.store.apps().by_id(id).await.map_err(stored)?;
        row.ok_or_else(|| Status::not_found(format!("There is no app {id}")))
    }

    pub(crate) async fn app_get_lifecycle(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetLifecycleRequest,
    ) -> Result<api::AppGetLifecycleResponse, Status> {
        let row = self.app_row(&request.app_id).await?;
        Ok(api::AppGetLifecycleResponse { lifecycle: Some(self.lifecycle(&row).await?) })
    }

    pub(crate) async fn app_get_layout(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppGetLayoutRequest,
    ) -> Result<api::AppGetLayoutResponse, Status> {
        let app = self.app(&request.app_id)?;
        let layout = self.layout(&context.origin, &app.functions, &app.classes);
        Ok(api::AppGetLayoutResponse { app_layout: Some(layout) })
    }

    /// A layout as clients and containers get it: ids by tag, and the metadata of each object.
    pub(crate) fn layout(
        &self,
        origin: &str,
        functions: &BTreeMap<String, FunctionId>,
        classes: &BTreeMap<String, ClassId>,
    ) -> api::AppLayout {
        use api::object::HandleMetadataOneof as Metadata;
        let live = self.registry.lock();
        let object = |object_id: String, metadata: Metadata| api::Object {
            object_id,
            handle_metadata_oneof: Some(metadata),
        };
        let found = functions.values().filter_map(|id| live.functions.get(id));
        let of_functions = found.map(|function| {
            let metadata = self.handle(&live, origin, function);
            object(function.id.to_string(), Metadata::FunctionHandleMetadata(metadata))
        });
        let found = classes.values().filter_map(|id| Some((id, live.classes.get(id)?)));
        let of_classes = found
            .map(|(id, class)| object(id.to_string(), Metadata::ClassHandleMetadata(class.metadata.clone())));
        api::AppLayout {
            objects: of_functions.chain(of_classes).collect(),
            function_ids: functions.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect(),
            class_ids: classes.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect(),
        }
    }

    /// The deployed app of this name, and the version that is asked for, or that the asker sees, if one is.
    pub(crate) async fn lookup(
        &self,
        context: &CallContext,
        environment: &str,
        name: &str,
        version: i32,
    ) -> Result<(App, Option<Arc<PinnedVersion>>), Status> {
        let environment = self.environment(environment)?;
        let found = self.registry.lock().deployed(environment.id, name).cloned();
        let app = found.ok_or_else(|| {
            Status::not_found(format!(
                "App '{name}' is not deployed in environment '{}'. Deploy it with: evoke deploy FILE",
                environment.name
            ))
        })?;
        let pinned = match version {
            0 => self.seen_version(context, app.row.id),
            version => Some(version),
        };
        let pinned = match pinned {
            None => None,
            Some(version) => Some(Arc::new(self.pinned_version(&app, version).await?)),
        };
        Ok((app, pinned))
    }

    /// The version of an app that somebody sees who names none: a client with a [`evoke_core::View`], or a container
    /// that runs a version of the app itself. None for the live one.
    fn seen_version(&self, context: &CallContext, app: AppId) -> Option<i32> {
        let version = match &context.principal {
            Principal::Client { view, .. } => view.filter(|view| view.app == app)?.version,
            Principal::Container(task) => {
                let function = self.calls.look(|engine| engine.task_info(*task))?.function_id;
                let function = self.registry.function(function).filter(|function| function.app_id == app)?;
                function.pinned.as_ref()?.version
            }
            Principal::Anonymous => return None,
        };
        // Numbers beyond what the protocol has are no versions either.
        Some(i32::try_from(version).unwrap_or(i32::MAX))
    }

    pub(crate) async fn app_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppGetOrCreateRequest,
    ) -> Result<api::AppGetOrCreateResponse, Status> {
        use api::ObjectCreationType as Kind;
        let reply = |metadata: api::AppHandleMetadata| api::AppGetOrCreateResponse {
            app_id: metadata.app_id.clone(),
            handle_metadata: Some(metadata),
        };
        if let Ok(id) = request.app_name.parse::<AppId>() {
            let row = self.app_row(&id.to_string()).await?;
            return Ok(reply(self.app_metadata(&row).await?));
        }
        let kind = request.object_creation_type();
        if !matches!(kind, Kind::Unspecified | Kind::CreateIfMissing) {
            return Err(Status::invalid(format!("An app cannot be looked up with {}", kind.as_str_name())));
        }
        let environment = self.environment(&request.environment_name)?;
        // Two who look for it at the same time must not both make it.
        let _turn = self.publishing.lock().await;
        let found = self.registry.lock().deployed(environment.id, &request.app_name).cloned();
        if let Some(app) = found {
            return Ok(reply(self.app_metadata(&app.row).await?));
        }
        if kind == Kind::Unspecified {
            return Err(Status::not_found(format!(
                "No App with name '{}' found in the '{}' environment. Deploy it with: evoke deploy FILE, or look it up with create_if_missing=True",
                request.app_name, environment.name
            )));
        }
        let now = self.now();
        let row = AppRow {
            id: AppId::new(now, &mut *self.entropy()),
            environment_id: environment.id,
            name: Some(request.app_name.clone()),
            description: request.app_name,
            state: api::AppState::Deployed as i32,
            created_at: now,
            heartbeat_at: None,
            stopped_at: None,
            layout: Vec::new(),
            body: Vec::new(),
        };
        let reply = reply(self.app_metadata(&row).await?);
        self.commit(&context, vec![AppWrite::Put(row.clone()).into()], Grade::Synced, &reply).await?;
        self.insert_app(row, environment.name);
        Ok(reply)
    }

    async fn app_metadata(&self, row: &AppRow) -> Result<api::AppHandleMetadata, Status> {
        let mut metadata = api::AppHandleMetadata {
            description: row.description.clone(),
            app_id: row.id.to_string(),
            environment_name: self.environment_of(row),
            lifecycle: Some(self.lifecycle(row).await?),
            ..Default::default()
        };
        let live = self.registry.lock();
        for (tag, id) in read_layout(&row.layout).0 {
            let is_server = live.functions.get(&id).is_some_and(|f| f.definition.function.is_server);
            let group = if is_server { &mut metadata.servers } else { &mut metadata.functions };
            group.insert(tag, id.to_string());
        }
        Ok(metadata)
    }

    /// The name of an app's environment.
    pub(crate) fn environment_of(&self, row: &AppRow) -> String {
        let live = self.registry.lock();
        let mut environments = live.environments.values();
        environments.find(|e| e.id == row.environment_id).map_or_else(String::new, |e| e.name.clone())
    }

    pub(crate) async fn app_get_info(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetInfoRequest,
    ) -> Result<api::AppGetInfoResponse, Status> {
        let row = self.app_row(&request.app_id).await?;
        let info = self.app_metadata(&row).await?;
        let live = self.registry.lock();
        let mut summaries = BTreeMap::new();
        for id in read_layout(&row.layout).0.values() {
            let Some(function) = live.functions.get(id).map(|found| &found.definition.function) else {
                continue;
            };
            let gpus = function.resources.iter().filter_map(|resources| resources.gpu_config.clone());
            let summary = api::app_get_info_response::FunctionInfoSummary {
                gpu_config: gpus.filter(|gpu| !gpu.gpu_type.is_empty()).collect(),
                schedule: function.schedule.clone(),
                web_function: function.webhook_config.is_some(),
                ..Default::default()
            };
            summaries.insert(id.to_string(), summary);
        }
        Ok(api::AppGetInfoResponse { info: Some(info), function_info_summaries: summaries })
    }

    pub(crate) async fn app_get_tags(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetTagsRequest,
    ) -> Result<api::AppGetTagsResponse, Status> {
        Ok(api::AppGetTagsResponse { tags: self.app(&request.app_id)?.tags() })
    }

    pub(crate) async fn app_set_tags(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppSetTagsRequest,
    ) -> Result<(), Status> {
        let _turn = self.publishing.lock().await;
        let mut app = self.running_app(&request.app_id)?;
        app.set_tags(request.tags);
        self.commit(&context, vec![AppWrite::Put(app.row.clone()).into()], Grade::Synced, &()).await?;
        if let Some(entry) = self.registry.lock().apps.get_mut(&app.row.id) {
            entry.row.body = app.row.body;
        }
        Ok(())
    }

    pub(crate) async fn app_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppListRequest,
    ) -> Result<api::AppListResponse, Status> {
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
