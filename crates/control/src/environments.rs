//! Environments: namespaces of apps and named objects. One of them is meant where a client names none.

use crate::registry::Environment;
use crate::{Control, WORKSPACE, blocking, names, stored};
use evoke_core::{EnvironmentId, Error, QueueId};
use evoke_engine::Limits;
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::{
    EnvironmentRow, EnvironmentWrite, Grade, SettingWrite, SharedVolumeWrite, VolumeWrite, Write,
};
use prost::Message;
use std::sync::Arc;

/// The name of the environment that is made at the first start.
const FIRST_ENVIRONMENT: &str = "main";
/// The setting that holds the id of the environment which is meant where a client names none.
const DEFAULT_SETTING: &str = "default_environment";
/// The image builder versions that the official client knows.
const BUILDER_VERSIONS: [&str; 6] = ["2023.12", "2024.04", "2024.10", "2025.06", "2026.10", "PREVIEW"];

impl Control {
    /// The environment of this name; the default one for an empty name.
    pub(crate) fn environment(&self, name: &str) -> Result<Environment, Status> {
        let live = self.registry.lock();
        let found = match name {
            "" => live.environments.values().find(|environment| Some(environment.id) == live.default),
            name => live.environments.get(name),
        };
        found.cloned().ok_or_else(|| {
            Status::not_found(format!(
                "There is no environment '{name}'. List what there is with: evoke environment list, or create it \
                 with: evoke environment create {name}"
            ))
        })
    }

    /// Takes the environments out of the store; makes the first one at the first start.
    pub(crate) async fn load_environments(&self) -> Result<(), Status> {
        let rows = self.store.environments().list(WORKSPACE.into()).await.map_err(stored)?;
        let setting = self.store.settings().get(DEFAULT_SETTING.into()).await.map_err(stored)?;
        let chosen = setting.and_then(|id| String::from_utf8(id).ok()?.parse::<EnvironmentId>().ok());
        let first = rows.iter().find(|row| row.name == FIRST_ENVIRONMENT).or(rows.first()).map(|row| row.id);
        let default = chosen.filter(|id| rows.iter().any(|row| row.id == *id)).or(first);
        for row in rows {
            let settings = api::EnvironmentSettings::decode(row.body.as_slice()).unwrap_or_default();
            self.registry.lock().put_environment(Environment {
                id: row.id,
                name: row.name,
                created_at: row.created_at,
                settings,
            });
        }
        let default = match default {
            Some(id) => id,
            None => {
                let first = self.new_environment(FIRST_ENVIRONMENT, String::new());
                self.submit(vec![self.put_environment(&first)], Grade::Synced).await?;
                self.registry.lock().put_environment(first.clone());
                first.id
            }
        };
        self.registry.lock().default = Some(default);
        if chosen == Some(default) {
            return Ok(());
        }
        self.submit(vec![default_setting(default)], Grade::Synced).await
    }

    fn new_environment(&self, name: &str, webhook_suffix: String) -> Environment {
        let now = self.now();
        let id = EnvironmentId::new(now, &mut *self.entropy());
        let settings = api::EnvironmentSettings { webhook_suffix, ..Default::default() };
        Environment { id, name: name.into(), created_at: now, settings }
    }

    fn put_environment(&self, environment: &Environment) -> Write {
        EnvironmentWrite::Put(EnvironmentRow {
            id: environment.id,
            workspace: WORKSPACE.into(),
            name: environment.name.clone(),
            created_at: environment.created_at,
            deleted_at: None,
            body: environment.settings.encode_to_vec(),
        })
        .into()
    }

    pub(crate) async fn environment_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::EnvironmentGetOrCreateRequest,
    ) -> Result<api::EnvironmentGetOrCreateResponse, Status> {
        use api::ObjectCreationType as Creation;
        let name = &request.deployment_name;
        let environment = match (self.environment(name), request.object_creation_type()) {
            (Ok(_), Creation::CreateFailIfExists) => return Err(taken(name)),
            (Ok(found), _) => found,
            (Err(missing), Creation::Unspecified) => return Err(missing),
            (Err(_), _) => match self.create_environment(&context, name, Default::default()).await {
                Err(status) if status.code == Code::AlreadyExists => self.environment(name)?,
                created => created?,
            },
        };
        Ok(api::EnvironmentGetOrCreateResponse {
            environment_id: environment.id.to_string(),
            metadata: Some(self.environment_metadata(&environment)),
        })
    }

    pub(crate) async fn environment_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::EnvironmentCreateRequest,
    ) -> Result<(), Status> {
        if request.is_managed || !request.default_member_role_str.is_empty() {
            return Err(Status::invalid(
                "This server has one user, so an environment cannot be restricted. Create it without --restricted",
            ));
        }
        if self.environment(&request.name).is_ok() {
            return Err(taken(&request.name));
        }
        let settings = request.settings.unwrap_or_default();
        self.create_environment(&context, &request.name, settings).await.map(drop)
    }

    async fn create_environment(
        &self,
        context: &CallContext,
        name: &str,
        settings: api::EnvironmentSettings,
    ) -> Result<Environment, Status> {
        names::check_environment_name(name)?;
        let mut environment = self.new_environment(name, self.free_suffix(name));
        check_builder_version(&settings.image_builder_version)?;
        names::check_web_suffix(&settings.webhook_suffix)?;
        if settings != api::EnvironmentSettings::default() {
            environment.settings = settings;
        }
        // Not kept for a repeated request: the replies differ, and a second environment cannot come of it.
        let stored = self.submit(vec![self.put_environment(&environment)], Grade::Synced).await;
        stored.map_err(|status| if status.code == Code::AlreadyExists { taken(name) } else { status })?;
        tracing::debug!(environment = name, rpc = context.rpc.name, "environment created");
        self.registry.lock().put_environment(environment.clone());
        self.put_limits(environment.id, limits_of(&environment)).await?;
        Ok(environment)
    }

    /// A web suffix for a new environment that no other one has; none where its name gives none.
    fn free_suffix(&self, name: &str) -> String {
        let suffix = names::web_suffix_of(name);
        let live = self.registry.lock();
        let used = live.environments.values().any(|other| other.settings.webhook_suffix == suffix);
        if used { String::new() } else { suffix }
    }

    fn environment_metadata(&self, environment: &Environment) -> api::EnvironmentMetadata {
        let mut settings = environment.settings.clone();
        if settings.image_builder_version.is_empty() {
            settings.image_builder_version.clone_from(&self.config.builder_version);
        }
        api::EnvironmentMetadata {
            name: environment.name.clone(),
            settings: Some(settings),
            ..Default::default()
        }
    }

    pub(crate) async fn environment_list(
        self: Arc<Self>,
        _context: CallContext,
        _request: (),
    ) -> Result<api::EnvironmentListResponse, Status> {
        let live = self.registry.lock();
        let items = live.environments.values().map(|environment| {
            let settings = &environment.settings;
            let version = Some(settings.image_builder_version.clone()).filter(|version| !version.is_empty());
            api::EnvironmentListItem {
                name: environment.name.clone(),
                webhook_suffix: settings.webhook_suffix.clone(),
                created_at: environment.created_at.as_secs_f64(),
                environment_id: environment.id.to_string(),
                default: Some(environment.id) == live.default,
                max_concurrent_tasks: settings.max_concurrent_tasks,
                max_concurrent_gpus: settings.max_concurrent_gpus,
                image_builder_version: version,
                ..Default::default()
            }
        });
        Ok(api::EnvironmentListResponse { items: items.collect() })
    }

    pub(crate) async fn environment_update(
        self: Arc<Self>,
        context: CallContext,
        request: api::EnvironmentUpdateRequest,
    ) -> Result<api::EnvironmentListItem, Status> {
        let old = self.environment(&request.current_name)?;
        let mut new = old.clone();
        if let Some(name) = request.name.filter(|name| *name != old.name) {
            names::check_environment_name(&name)?;
            if self.environment(&name).is_ok() {
                return Err(taken(&name));
            }
            new.name = name;
        }
        if let Some(suffix) = request.web_suffix {
            names::check_web_suffix(&suffix)?;
            let live = self.registry.lock();
            let mut others = live.environments.values().filter(|other| other.id != old.id);
            if let Some(other) = others.find(|other| other.settings.webhook_suffix == suffix) {
                let text = format!("The environment '{}' has the web suffix '{suffix}' already", other.name);
                return Err(Status::new(Code::AlreadyExists, text));
            }
            new.settings.webhook_suffix = suffix;
        }
        if let Some(version) = request.image_builder_version {
            check_builder_version(&version)?;
            new.settings.image_builder_version = version;
        }
        let limit = |asked: Option<i32>, kept| asked.map_or(kept, |max| (max >= 0).then_some(max));
        new.settings.max_concurrent_tasks =
            limit(request.max_concurrent_tasks, new.settings.max_concurrent_tasks);
        new.settings.max_concurrent_gpus =
            limit(request.max_concurrent_gpus, new.settings.max_concurrent_gpus);
        let item = api::EnvironmentListItem {
            name: new.name.clone(),
            webhook_suffix: new.settings.webhook_suffix.clone(),
            created_at: new.created_at.as_secs_f64(),
            environment_id: new.id.to_string(),
            max_concurrent_tasks: new.settings.max_concurrent_tasks,
            max_concurrent_gpus: new.settings.max_concurrent_gpus,
            ..Default::default()
        };
        self.commit(&context, vec![self.put_environment(&new)], Grade::Synced, &item).await?;
        let (id, limits) = (new.id, limits_of(&new));
        {
            let mut live = self.registry.lock();
            live.environments.remove(&old.name);
            for app in live.apps.values_mut().filter(|app| app.row.environment_id == new.id) {
                app.environment.clone_from(&new.name);
            }
            live.put_environment(new);
        }
        self.put_limits(id, limits).await?;
        Ok(item)
    }

    /// What each environment may have.
    pub(crate) fn all_limits(&self) -> Vec<(EnvironmentId, Limits)> {
        let live = self.registry.lock();
        live.environments.values().map(|environment| (environment.id, limits_of(environment))).collect()
    }

    /// The scheduler keeps to these from now on.
    async fn put_limits(&self, environment: EnvironmentId, limits: Limits) -> Result<(), Status> {
        self.calls.apply(self, |engine, now| Ok(engine.put_limits(environment, limits, now))).await
    }

    pub(crate) async fn environment_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::EnvironmentDeleteRequest,
    ) -> Result<(), Status> {
        if request.name.is_empty() {
            return Err(Status::invalid("The environment to delete is not named"));
        }
        let environment = self.environment(&request.name)?;
        if self.registry.lock().default == Some(environment.id) {
            return Err(Status::new(
                Code::FailedPrecondition,
                format!(
                    "'{}' is the default environment and cannot be deleted. Make another one the default first, \
                     with: evoke workspace settings set default-environment NAME",
                    environment.name
                ),
            ));
        }
        // From now on nothing new comes into it.
        self.registry.lock().environments.remove(&environment.name);
        let emptied = self.empty_environment(&context, &environment).await;
        if emptied.is_err() {
            self.registry.lock().put_environment(environment);
        }
        emptied
    }

    async fn empty_environment(
        &self,
        context: &CallContext,
        environment: &Environment,
    ) -> Result<(), Status> {
        let apps: Vec<_> = {
            let live = self.registry.lock();
            let inside = live.apps.values().filter(|app| app.row.environment_id == environment.id);
            inside.map(|app| app.row.id).collect()
        };
        for app in apps {
            self.stop_app(app, "its environment was deleted").await?;
        }
        let queues: Vec<QueueId> = self.store.objects().ids_in(environment.id).await.map_err(stored)?;
        let volumes = self.store.volumes().list(environment.id).await.map_err(stored)?;
        let shared = self.store.shared_volumes().list(environment.id).await.map_err(stored)?;
        let mut writes: Vec<Write> =
            vec![EnvironmentWrite::Delete { id: environment.id, at: self.now() }.into()];
        writes.extend(volumes.iter().map(|row| VolumeWrite::Delete { id: row.id }.into()));
        writes.extend(shared.iter().map(|row| SharedVolumeWrite::Delete { id: row.id }.into()));
        self.commit(context, writes, Grade::Synced, &()).await?;
        for volume in volumes {
            self.forget_volume(volume.id);
        }
        let folders = self.shared_folders.clone();
        blocking(move || {
            shared.iter().try_for_each(|row| folders.remove_folder(row.id)).map_err(Error::from)
        })
        .await?;
        for queue in queues {
            self.queue_gone(queue);
        }
        self.sweep.notify_one();
        self.put_limits(environment.id, Limits::default()).await
    }

    /// Makes another environment the one that is meant where a client names none.
    pub(crate) async fn workspace_set_default_environment(
        self: Arc<Self>,
        context: CallContext,
        request: api::WorkspaceSetDefaultEnvironmentRequest,
    ) -> Result<(), Status> {
        if request.environment_name.is_empty() {
            return Err(Status::invalid("The environment that shall be the default is not named"));
        }
        let environment = self.environment(&request.environment_name)?;
        self.commit(&context, vec![default_setting(environment.id)], Grade::Synced, &()).await?;
        self.registry.lock().default = Some(environment.id);
        Ok(())
    }
}

fn limits_of(environment: &Environment) -> Limits {
    let limit = |max: Option<i32>| max.and_then(|max| u32::try_from(max).ok());
    Limits {
        containers_max: limit(environment.settings.max_concurrent_tasks),
        gpus_max: limit(environment.settings.max_concurrent_gpus),
    }
}

fn default_setting(id: EnvironmentId) -> Write {
    SettingWrite::Put { key: DEFAULT_SETTING.into(), value: id.to_string().into_bytes() }.into()
}

fn taken(name: &str) -> Status {
    Status::new(Code::AlreadyExists, format!("There is an environment '{name}' already"))
}

fn check_builder_version(version: &str) -> Result<(), Status> {
    if version.is_empty() || BUILDER_VERSIONS.contains(&version) {
        return Ok(());
    }
    let known = BUILDER_VERSIONS.join(", ");
    Err(Status::invalid(format!("'{version}' is not an image builder version; there are {known}")))
}
