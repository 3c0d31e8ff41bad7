//! Secrets: looked up or made, sealed before they reach the store, opened only for the container they are
//! for. Values never appear in logs or errors.

use crate::{Control, parse_id, stored};
use evoke_core::SecretId;
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::vault::Env;
use evoke_store::{Grade, SecretRow, SecretWrite};
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
        if kind == Kind::AnonymousOwnedByApp {
            let row = self.seal_secret(&request, None, None)?;
            return self.put_secret(&context, row, &request.environment_name).await;
        }
        let environment = self.environment(&request.environment_name)?;
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
                let mut row = self.seal_secret(&request, Some(name), existing.as_ref())?;
                row.environment_id = Some(environment.id);
                self.put_secret(&context, row, &environment.name).await
            }
        }
    }

    fn seal_secret(
        &self,
        request: &api::SecretGetOrCreateRequest,
        name: Option<String>,
        previous: Option<&SecretRow>,
    ) -> Result<SecretRow, Status> {
        let variables: BTreeMap<String, String> = request.env_dict.clone().into_iter().collect();
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
            sealed: self
                .vault
                .seal_env(&id.to_string(), &Env::new(variables))
                .map_err(|error| Status::internal(error.to_string()))?,
            created_at: previous.map_or(now, |row| row.created_at),
            updated_at: now,
        })
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
        let page = request.pagination.unwrap_or_default();
        let before = page.created_before;
        let most = usize::try_from(page.max_objects).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
        let asked = rows.iter().filter(|row| before <= 0.0 || row.created_at.as_secs_f64() < before);
        let items = asked.take(most).map(|row| api::SecretListItem {
            label: row.name.clone().unwrap_or_default(),
            created_at: row.created_at.as_secs_f64(),
            environment_name: environment.name.clone(),
            secret_id: row.id.to_string(),
            metadata: secret_reply(row, &environment.name).metadata,
            ..Default::default()
        });
        Ok(api::SecretListResponse { items: items.collect(), environment_name: environment.name.clone() })
    }

    pub(crate) async fn secret_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::SecretDeleteRequest,
    ) -> Result<(), Status> {
        let id: SecretId = parse_id(&request.secret_id)?;
        if self.store.secrets().by_id(id).await.map_err(stored)?.is_none() {
            return Err(Status::not_found(format!("There is no secret {id}")));
        }
        self.commit(&context, vec![SecretWrite::Delete { id }.into()], Grade::Synced, &()).await
    }

    /// The variables of these secrets in order; later ones override earlier ones.
    pub(crate) async fn open_secrets(&self, ids: &[String]) -> Result<BTreeMap<String, String>, Status> {
        let mut variables = BTreeMap::new();
        for text in ids {
            let id: SecretId = parse_id(text)?;
            let row = self.store.secrets().by_id(id).await.map_err(stored)?;
            let row = row.ok_or_else(|| Status::not_found(format!("The secret {id} is gone")))?;
            let opened = self.vault.unseal_env(&id.to_string(), &row.sealed);
            let opened =
                opened.map_err(|error| Status::new(Code::DataLoss, format!("The secret {id}: {error}")))?;
            variables.extend(opened.iter().map(|(key, value)| (key.to_string(), value.to_string())));
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
                ..Default::default()
            }),
            keys: row.keys.clone(),
            environment_name: environment.to_string(),
            ..Default::default()
        }),
    }
}
