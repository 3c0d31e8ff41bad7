//! Environments: namespaces of apps and named objects.

use crate::registry::Environment;
use crate::{Control, WORKSPACE};
use evoke_core::EnvironmentId;
use evoke_proto::{CallContext, Status, api};
use evoke_store::{EnvironmentRow, EnvironmentWrite, Grade, Write};
use std::sync::Arc;

/// The environment that is meant where a client names none.
pub(crate) const DEFAULT_ENVIRONMENT: &str = "main";

impl Control {
    /// The environment of this name; the default one for an empty name.
    pub(crate) fn environment(&self, name: &str) -> Result<Environment, Status> {
        let name = if name.is_empty() { DEFAULT_ENVIRONMENT } else { name };
        self.registry.lock().environments.get(name).cloned().ok_or_else(|| {
            Status::not_found(format!(
                "There is no environment '{name}'. Create it with: evoke environment create {name}"
            ))
        })
    }

    pub(crate) async fn environment_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::EnvironmentGetOrCreateRequest,
    ) -> Result<api::EnvironmentGetOrCreateResponse, Status> {
        let create = request.object_creation_type() != api::ObjectCreationType::Unspecified;
        let environment = match self.environment(&request.deployment_name) {
            Ok(found) => found,
            Err(missing) if !create => return Err(missing),
            Err(_) => self.create_environment(&context, &request.deployment_name).await?,
        };
        Ok(api::EnvironmentGetOrCreateResponse {
            environment_id: environment.id.to_string(),
            metadata: Some(self.environment_metadata(&environment)),
        })
    }

    async fn create_environment(&self, context: &CallContext, name: &str) -> Result<Environment, Status> {
        if name.is_empty() || name.starts_with("en-") || name.len() > 64 {
            return Err(Status::invalid(format!("'{name}' is not a name for an environment")));
        }
        let (environment, write) = self.new_environment(name);
        self.commit(context, vec![write], Grade::Synced, &()).await?;
        self.registry.lock().environments.insert(name.into(), environment.clone());
        Ok(environment)
    }

    /// Makes the environment that is meant where a client names none, at the first start.
    pub(crate) async fn create_default_environment(&self) -> Result<(), Status> {
        let (environment, write) = self.new_environment(DEFAULT_ENVIRONMENT);
        self.submit(vec![write], Grade::Synced).await?;
        self.registry.lock().environments.insert(DEFAULT_ENVIRONMENT.into(), environment);
        Ok(())
    }

    fn new_environment(&self, name: &str) -> (Environment, Write) {
        let now = self.now();
        let id = EnvironmentId::new(now, &mut *self.entropy());
        let row = EnvironmentRow {
            id,
            workspace: WORKSPACE.into(),
            name: name.into(),
            created_at: now,
            deleted_at: None,
            body: Vec::new(),
        };
        (Environment { id, name: name.into() }, EnvironmentWrite::Put(row).into())
    }

    fn environment_metadata(&self, environment: &Environment) -> api::EnvironmentMetadata {
        api::EnvironmentMetadata {
            name: environment.name.clone(),
            settings: Some(api::EnvironmentSettings {
                image_builder_version: self.config.builder_version.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn environment_list(
        self: Arc<Self>,
        _context: CallContext,
        _request: (),
    ) -> Result<api::EnvironmentListResponse, Status> {
        let live = self.registry.lock();
        let items = live.environments.values().map(|environment| api::EnvironmentListItem {
            name: environment.name.clone(),
            environment_id: environment.id.to_string(),
            default: environment.name == DEFAULT_ENVIRONMENT,
            image_builder_version: Some(self.config.builder_version.clone()),
            ..Default::default()
        });
        Ok(api::EnvironmentListResponse { items: items.collect() })
    }
}
