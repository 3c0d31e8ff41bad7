//! Secrets: looked up or made, sealed before they reach the store, opened only for the container they are
//! for. Values never appear in logs or errors.

use crate::{Control, named, names, parse_id, stored};
use evoke_core::{EnvironmentId, SecretId, UnixMs};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::vault::{Env, Sealed};
use evoke_store::{Answer, Grade, SecretRow, SecretWrite};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of one secret, names and values together.
const SECRET_BYTES_MAX: usize = 1 << 20;

impl Control {
    pub(crate) async fn secret_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::SecretGetOrCreateRequest,
    ) -> Result<api::SecretGetOrCreateResponse, Status> {
        use api::ObjectCreationType as Kind;
        let kind = request.object_creation_type();
        let environment = self.environment(&request.environment_name)?;
        if matches!(kind, Kind::AnonymousOwnedByApp | Kind::Ephemeral) {
            // An app that is deployed again brings the same secrets, and they stay the same.
            let _turn = self.anonymous_secrets.lock().await;
            if let Some(row) = self.same_of_app(&request).await? {
                return Ok(secret_reply(&row, &environment.name));
            }
            let mut row = self.seal_secret(&request, None, None)?;
            row.environment_id = Some(environment.id);
            return self.put_secret(&context, row, &environment.name).await;
        }
        let name = request.deployment_name.clone();
        let existing = self.store.secrets().by_name(environment.id, name.clone()).await.map_err(stored)?;
        match (kind, existing) {
            (Kind::CreateFailIfExists, Some(_)) => {
                Err(Status::new(Code::AlreadyExists, format!("There is a secret '{name}' already")))
            }
            (Kind::Unspecified | Kind::CreateIfMissing, Some(row)) => {
                let missing: Vec<_> =
                    request.required_keys.iter().filter(|key| !row.keys.contains(key)).cloned().collect();
                if !missing.is_empty() {
                    return Err(Status::invalid(format!(
                        "The secret '{name}' lacks the keys {}. Add them with: evoke secret create {name} --force …",
                        missing.join(", ")
                    )));
                }
                Ok(secret_reply(&row, &environment.name))
            }
            (Kind::Unspecified, None) => Err(Status::not_found(format!(
                "There is no secret '{name}' in environment '{}'. Create it with: evoke secret create {name} KEY=value",
                environment.name
            ))),
            (_, existing) => {
                names::check_object_name(&name, "Secret")?;
                let mut row = self.seal_secret(&request, Some(name.clone()), existing.as_ref())?;
                row.environment_id = Some(environment.id);
                match self.put_secret(&context, row, &environment.name).await {
                    // Somebody else was quicker.
                    Err(status) if status.code == Code::AlreadyExists && kind == Kind::CreateIfMissing => {
                        let found =
                            self.store.secrets().by_name(environment.id, name).await.map_err(stored)?;
                        found.map(|row| secret_reply(&row, &environment.name)).ok_or(status)
                    }
                    done => done,
                }
            }
        }
    }

    /// The secret without a name that an app has with exactly these variables.
    async fn same_of_app(
        &self,
        request: &api::SecretGetOrCreateRequest,
    ) -> Result<Option<SecretRow>, Status> {
        if request.app_id.is_empty() {
            return Ok(None);
        }
        let wanted: BTreeMap<String, String> = request.env_dict.clone().into_iter().collect();
        let rows = self.store.secrets().of_app(parse_id(&request.app_id)?).await.map_err(stored)?;
        for row in rows {
            if row.keys.iter().eq(wanted.keys()) && self.unseal(&row)? == wanted {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    fn seal_secret(
        &self,
        request: &api::SecretGetOrCreateRequest,
        name: Option<String>,
        previous: Option<&SecretRow>,
    ) -> Result<SecretRow, Status> {
        let variables: BTreeMap<String, String> = request.env_dict.clone().into_iter().collect();
        check_variables(&variables)?;
        let now = self.now();
        let id = previous.map_or_else(|| SecretId::new(now, &mut *self.entropy()), |row| row.id);
        let app_id = match (&name, request.app_id.as_str()) {
            (Some(_), _) | (None, "") => None,
            (None, app) => Some(parse_id(app)?),
        };
        Ok(SecretRow {
            id,
            environment_id: None,
            app_id,
            name,
            version: previous.map_or(1, |row| row.version + 1),
            keys: variables.keys().cloned().collect(),
            sealed: self.seal(id, variables)?,
            created_at: previous.map_or(now, |row| row.created_at),
            updated_at: now,
            created_by: previous.map_or_else(|| self.author(), |row| row.created_by.clone()),
            used_at: previous.and_then(|row| row.used_at),
        })
    }

    fn seal(&self, id: SecretId, variables: BTreeMap<String, String>) -> Result<Sealed, Status> {
        let sealed = self.vault.seal_env(&id.to_string(), &Env::new(variables));
        sealed.map_err(|error| Status::internal(error.to_string()))
    }

    async fn put_secret(
        &self,
        context: &CallContext,
        row: SecretRow,
        environment: &str,
    ) -> Result<api::SecretGetOrCreateResponse, Status> {
        let reply = secret_reply(&row, environment);
        self.commit(context, vec![SecretWrite::Put(row).into()], Grade::Synced, &reply).await?;
        Ok(reply)
    }

    pub(crate) async fn secret_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SecretListRequest,
    ) -> Result<api::SecretListResponse, Status> {
        let environment = self.environment(&request.environment_name)?;
        let mut rows = self.store.secrets().list(environment.id).await.map_err(stored)?;
        rows.sort_by_key(|row| std::cmp::Reverse(row.created_at));
        let page = named::page(rows, request.pagination, |row| row.created_at);
        let items = page.iter().map(|row| api::SecretListItem {
            label: row.name.clone().unwrap_or_default(),
            created_at: row.created_at.as_secs_f64(),
            last_used_at: row.used_at.map_or(0.0, UnixMs::as_secs_f64),
            environment_name: environment.name.clone(),
            secret_id: row.id.to_string(),
            metadata: secret_reply(row, &environment.name).metadata,
        });
        Ok(api::SecretListResponse { items: items.collect(), environment_name: environment.name.clone() })
    }

    pub(crate) async fn secret_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::SecretDeleteRequest,
    ) -> Result<(), Status> {
        let id: SecretId = parse_id(&request.secret_id)?;
        self.secret(&request.secret_id).await?;
        self.commit(&context, vec![SecretWrite::Delete { id }.into()], Grade::Synced, &()).await
    }

    pub(crate) async fn secret_get_info(
        self: Arc<Self>,
        _context: CallContext,
        request: api::SecretGetInfoRequest,
    ) -> Result<api::SecretGetInfoResponse, Status> {
        let row = self.secret(&request.secret_id).await?;
        let metadata = secret_reply(&row, &self.environment_name(row.environment_id)).metadata;
        Ok(api::SecretGetInfoResponse { metadata })
    }

    /// Sets and deletes variables; those that are not named stay.
    pub(crate) async fn secret_update(
        self: Arc<Self>,
        context: CallContext,
        request: api::SecretUpdateRequest,
    ) -> Result<(), Status> {
        loop {
            let mut row = self.secret(&request.secret_id).await?;
            let mut variables = self.unseal(&row)?;
            for update in &request.updates {
                match &update.value {
                    Some(value) => variables.insert(update.key.clone(), value.clone()),
                    None => variables.remove(&update.key),
                };
            }
            check_variables(&variables)?;
            row.keys = variables.keys().cloned().collect();
            row.sealed = self.seal(row.id, variables)?;
            row.version += 1;
            row.updated_at = self.now();
            let answer = Answer::new(self.keep(&context, |updated: &bool| updated.then(Vec::new)));
            let update = SecretWrite::Update { row, answer: answer.clone() };
            self.submit(vec![update.into()], Grade::Synced).await?;
            // Changed or deleted by somebody else meanwhile, it is looked at again.
            if answer.take() == Some(true) {
                return Ok(());
            }
        }
    }

    async fn secret(&self, id: &str) -> Result<SecretRow, Status> {
        let id: SecretId = parse_id(id)?;
        let row = self.store.secrets().by_id(id).await.map_err(stored)?;
        row.ok_or_else(|| {
            Status::not_found(format!("There is no secret {id}. List what there is with: evoke secret list"))
        })
    }

    pub(crate) fn environment_name(&self, id: Option<EnvironmentId>) -> String {
        let live = self.registry.lock();
        let found = live.environments.values().find(|environment| Some(environment.id) == id);
        found.map(|environment| environment.name.clone()).unwrap_or_default()
    }

    fn unseal(&self, row: &SecretRow) -> Result<BTreeMap<String, String>, Status> {
        let opened = self.vault.unseal_env(&row.id.to_string(), &row.sealed);
        let opened =
            opened.map_err(|error| Status::new(Code::DataLoss, format!("The secret {}: {error}", row.id)))?;
        Ok(opened.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    /// The variables of these secrets in order; later ones override earlier ones.
    pub(crate) async fn open_secrets(&self, ids: &[String]) -> Result<BTreeMap<String, String>, Status> {
        let mut variables = BTreeMap::new();
        for text in ids {
            let id: SecretId = parse_id(text)?;
            let row = self.store.secrets().by_id(id).await.map_err(stored)?;
            let row = row.ok_or_else(|| Status::not_found(format!("The secret {id} is gone")))?;
            variables.extend(self.unseal(&row)?);
            // Nobody waits for this; it is shown, and keeps what has no owner.
            let used = SecretWrite::Used { id, at: self.now() };
            drop(self.store.submit(vec![used.into()], Grade::Written));
        }
        Ok(variables)
    }
}

fn secret_reply(row: &SecretRow, environment: &str) -> api::SecretGetOrCreateResponse {
    api::SecretGetOrCreateResponse {
        secret_id: row.id.to_string(),
        metadata: Some(api::SecretMetadata {
            name: row.name.clone().unwrap_or_default(),
            creation_info: Some(api::CreationInfo {
                created_at: row.created_at.as_secs_f64(),
                created_by: row.created_by.clone(),
            }),
            keys: row.keys.clone(),
            environment_name: environment.to_string(),
            last_used_at: row.used_at.map_or(0.0, UnixMs::as_secs_f64),
            ..Default::default()
        }),
    }
}

fn check_variables(variables: &BTreeMap<String, String>) -> Result<(), Status> {
    let size: usize = variables.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > SECRET_BYTES_MAX {
        return Err(Status::invalid(format!(
            "The secret has {size} bytes; at most {SECRET_BYTES_MAX} are allowed"
        )));
    }
    if let Some(bad) = variables.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
        return Err(Status::invalid(format!("'{bad}' is not a name for an environment variable")));
    }
    if variables.values().any(|value| value.contains('\0')) {
        return Err(Status::invalid("A secret's value contains a NUL byte"));
    }
    Ok(())
}
