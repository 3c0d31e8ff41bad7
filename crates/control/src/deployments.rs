//! The versions of deployed apps: their history, and going back to one, making a staged one live, or starting
//! the present one afresh. Each of these is a publication and so a new version; and what one version had can be
//! looked up for good.

use crate::functions::function_row;
use crate::publish::Release;
use crate::registry::{App, Function, PinnedVersion, read_layout};
use crate::variants::{bound_id, variant_key};
use crate::{Control, stored};
use evoke_core::{FunctionId, ImageId, UnixMs};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::{DeploymentRow, FunctionWrite, Grade};
use prost::Message;
use std::sync::Arc;

/// Most versions that one history shows, the newest.
const VERSIONS_MAX: u32 = 1_000;
/// The version that stands for the one before the present one.
const PREVIOUS: i32 = -1;

impl Control {
    pub(crate) async fn app_deployment_history(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppDeploymentHistoryRequest,
    ) -> Result<api::AppDeploymentHistoryResponse, Status> {
        let row = self.app_row(&request.app_id).await?;
        let rows = self.store.apps().deployments(row.id, VERSIONS_MAX).await.map_err(stored)?;
        let production = rows.iter().find(|version| !version.is_staged()).map_or(0, |row| row.version);
        let deployed = row.state == api::AppState::Deployed as i32;
        let entries = rows.into_iter().map(|version| {
            let published = published(&version);
            api::AppDeploymentHistory {
                app_id: version.app_id.to_string(),
                version: version.version,
                client_version: published.client_version,
                deployed_at: version.deployed_at.as_secs_f64(),
                rollback_allowed: deployed && version.version != production && !version.is_staged(),
                deployed_by: version.deployed_by,
                tag: published.deployment_tag,
                rollback_version: published.rollback_version,
                commit_info: published.commit_info,
                deployment_type: version.kind,
                ..Default::default()
            }
        });
        Ok(api::AppDeploymentHistoryResponse {
            app_deployment_histories: entries.collect(),
            production_app_version: production,
        })
    }

    pub(crate) async fn app_rollback(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppRollbackRequest,
    ) -> Result<api::AppRollbackResponse, Status> {
        let app = self.deployed_app(&request.app_id)?;
        let production = self.present_version(&app).await?;
        let target = match request.version {
            PREVIOUS => {
                let before = self.store.apps().deployment_before(app.row.id, production.version).await;
                before.map_err(stored)?.ok_or_else(|| {
                    precondition(format!(
                        "App '{}' has no version before v{} to go back to",
                        app.row.description, production.version
                    ))
                })?
            }
            version => self.version(&app, version).await?,
        };
        if target.version == production.version {
            return Err(precondition(format!(
                "v{} is what is deployed already. `evoke app rollover` gives it new containers",
                target.version
            )));
        }
        if target.is_staged() {
            return Err(precondition(format!(
                "v{} is staged and was never live. Make it live with: evoke app promote {} v{}",
                target.version, app.row.description, target.version
            )));
        }
        let url = self.urls.app(&context.origin, app.row.id);
        let reply = |at: UnixMs| api::AppRollbackResponse {
            url,
            deployed_at: at.as_secs_f64(),
            ..Default::default()
        };
        self.publish_again(&context, &app, &target, api::DeploymentType::Rollback, reply).await
    }

    pub(crate) async fn app_promote(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppPromoteRequest,
    ) -> Result<api::AppPromoteResponse, Status> {
        let app = self.deployed_app(&request.app_id)?;
        let target = self.version(&app, request.version).await?;
        if !target.is_staged() {
            return Err(precondition(format!(
                "v{} is not a staged version. Go back to it with: evoke app rollback {} v{}",
                target.version, app.row.description, target.version
            )));
        }
        let url = self.urls.app(&context.origin, app.row.id);
        let reply =
            |at: UnixMs| api::AppPromoteResponse { url, deployed_at: at.as_secs_f64(), ..Default::default() };
        self.publish_again(&context, &app, &target, api::DeploymentType::Promotion, reply).await
    }

    pub(crate) async fn app_rollover(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppRolloverRequest,
    ) -> Result<api::AppRolloverResponse, Status> {
        let app = self.deployed_app(&request.app_id)?;
        let target = self.present_version(&app).await?;
        let url = self.urls.app(&context.origin, app.row.id);
        let reply = |at: UnixMs| api::AppRolloverResponse {
            url,
            deployed_at: at.as_secs_f64(),
            ..Default::default()
        };
        self.publish_again(&context, &app, &target, api::DeploymentType::Rollover, reply).await
    }

    /// Publishes what a version had as the next version.
    async fn publish_again<R: Message>(
        &self,
        context: &CallContext,
        app: &App,
        target: &DeploymentRow,
        kind: api::DeploymentType,
        reply: impl FnOnce(UnixMs) -> R,
    ) -> Result<R, Status> {
        let mut request = published(target);
        request.rollback_version = match kind {
            api::DeploymentType::Rollover => 0,
            _ => target.version,
        };
        request.staged = false;
        request.set_deployment_type(kind);
        request.set_app_state(api::AppState::Deployed);
        request.name = app.row.name.clone().unwrap_or_default();
        let mut release = Release::of(request)?;
        release.fresh = kind == api::DeploymentType::Rollover;
        self.still_runs(&release, target).await?;
        self.publish(context, app.row.id, release, reply).await
    }

    /// Refuses a version that could not start any more, before anything is changed.
    pub(crate) async fn still_runs(&self, release: &Release, target: &DeploymentRow) -> Result<(), Status> {
        for (tag, id) in &release.functions {
            let definition = match release.definition(*id) {
                Some(definition) => self.kept_definition(tag, *id, definition).await?,
                None => continue,
            };
            let Ok(image) = definition.function.image_id.parse::<ImageId>() else { continue };
            self.built_image(image).await.map_err(|gone| {
                precondition(format!(
                    "v{} cannot run any more: the image {image} of its function '{tag}' is gone ({}). Deploy the app again instead",
                    target.version, gone.message
                ))
            })?;
        }
        Ok(())
    }

    fn deployed_app(&self, id: &str) -> Result<App, Status> {
        let app = self.running_app(id)?;
        if app.state() != api::AppState::Deployed {
            return Err(precondition(format!("The app {id} is not deployed")));
        }
        Ok(app)
    }

    pub(crate) async fn present_version(&self, app: &App) -> Result<DeploymentRow, Status> {
        self.production(app.row.id)
            .await?
            .ok_or_else(|| precondition(format!("Nothing was deployed to App '{}' yet", app.row.description)))
    }

    pub(crate) async fn version(&self, app: &App, version: i32) -> Result<DeploymentRow, Status> {
        let number = u32::try_from(version).ok().filter(|number| *number > 0);
        let row = match number {
            Some(number) => self.store.apps().deployment(app.row.id, number).await.map_err(stored)?,
            None => None,
        };
        row.ok_or_else(|| {
            let name = app.row.name.as_ref().unwrap_or(&app.row.description);
            Status::not_found(format!("App '{name}' has no version {version}. See: evoke app history {name}"))
        })
    }

    /// What a version of an app had.
    pub(crate) async fn pinned_version(&self, app: &App, version: i32) -> Result<PinnedVersion, Status> {
        let row = self.version(app, version).await?;
        let (functions, classes) = read_layout(&row.layout);
        Ok(PinnedVersion { version: row.version, functions, classes })
    }

    /// A function as a version had it: a function of its own, with containers of its own.
    pub(crate) async fn pin(
        &self,
        base: FunctionId,
        version: &PinnedVersion,
    ) -> Result<Arc<Function>, Status> {
        let request = pinned_request(base, version.version as i32);
        let variant = variant_key(&request);
        let id = bound_id(base, &variant);
        if let Some(found) = self.registry.function(id) {
            return Ok(found);
        }
        let base = self
            .registry
            .function(base)
            .ok_or_else(|| Status::not_found(format!("The function {base} does not exist on this server")))?;
        let function = self.load_pinned(&base, version.version as i32).await?;
        let row = function_row(&function, Some(variant), request.encode_to_vec(), self.now());
        self.submit(vec![FunctionWrite::Put(row).into()], Grade::Synced).await?;
        let function = Arc::new(function);
        self.registry.lock().functions.insert(id, function.clone());
        self.make_live(id).await?;
        self.sync_web().await;
        Ok(function)
    }

    /// Makes a function held to a version out of what is stored.
    pub(crate) async fn load_pinned(&self, base: &Function, version: i32) -> Result<Function, Status> {
        let number = u32::try_from(version).unwrap_or(0);
        let row = self.store.apps().deployment(base.app_id, number).await.map_err(stored)?;
        let row = row.ok_or_else(|| Status::not_found(format!("There is no version {version} any more")))?;
        let (functions, classes) = read_layout(&row.layout);
        let release = Release::of(published(&row))?;
        let definition_id = release.definition(base.id).unwrap_or(base.definition_id);
        let definition = self.kept_definition(&base.tag, base.id, definition_id).await?;
        let mut metadata = definition.metadata(base.app_id, definition_id);
        metadata.base_function_id = base.id.to_string();
        let request = pinned_request(base.id, version);
        Ok(Function {
            id: bound_id(base.id, &variant_key(&request)),
            definition_id,
            generation: 1,
            metadata,
            base: Some(base.id),
            options: Arc::new(request.function_options.unwrap_or_default()),
            scaling: api::AutoscalerConfiguration::default(),
            pinned: Some(Arc::new(PinnedVersion { version: number, functions, classes })),
            removed: false,
            fit: self.machine.fit(&definition)?,
            definition: Arc::new(definition),
            ..base.clone()
        })
    }
}

/// What was published as a version.
pub(crate) fn published(version: &DeploymentRow) -> api::AppPublishRequest {
    api::AppPublishRequest::decode(version.body.as_slice()).unwrap_or_default()
}

fn pinned_request(base: FunctionId, version: i32) -> api::FunctionBindParamsRequest {
    api::FunctionBindParamsRequest {
        function_id: base.to_string(),
        function_options: Some(api::FunctionOptions {
            pinned_app_version: Some(version),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn precondition(text: String) -> Status {
    Status::new(Code::FailedPrecondition, text)
}
