//! Proxy tokens: keys of web functions that are not for everybody, made and withdrawn by the workspace's owner.

use crate::{Control, WORKSPACE, parse_id};
use evoke_core::{Entropy, EnvironmentId};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{Grade, WebTokenRow, WebWrite};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest name of a token, in characters.
const NAME_CHARS_MAX: usize = 128;

/// All tokens: few, and asked for with every request.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<Vec<WebTokenRow>>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, Vec<WebTokenRow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn replace(&self, rows: Vec<WebTokenRow>) {
        *self.lock() = rows;
    }

    /// Whether this pair opens what is in an environment.
    pub(crate) fn open(&self, key: &str, secret: &str, environment: EnvironmentId) -> bool {
        self.lock().iter().any(|token| token.id == key && token.opens(secret, environment))
    }
}

impl Control {
    pub(crate) async fn webhook_token_create(
        self: Arc<Self>,
        _context: CallContext,
        request: api::WebhookTokenCreateRequest,
    ) -> Result<api::TokenCreateResponse, Status> {
        check_name(&request.name)?;
        let (id, secret) = {
            let mut entropy = self.entropy();
            (format!("wk-{}", random(&mut *entropy)), format!("ws-{}", random(&mut *entropy)))
        };
        let row = WebTokenRow::new(id.clone(), &secret, request.name, request.scoped, self.now());
        let reply = api::TokenCreateResponse { token_id: id, token_secret: secret };
        // Not kept for a repeated request: the secret must not lie in the store.
        self.submit(vec![WebWrite::Token(row.clone()).into()], Grade::Synced).await?;
        self.web.tokens.lock().push(row);
        Ok(reply)
    }

    pub(crate) async fn webhook_token_update(
        self: Arc<Self>,
        context: CallContext,
        request: api::WebhookTokenUpdateRequest,
    ) -> Result<api::WebhookToken, Status> {
        let mut token = self.known_token(&request.token_id)?;
        if let Some(name) = request.name {
            check_name(&name)?;
            token.name.clone_from(&name);
            let rename = WebWrite::RenameToken { id: request.token_id.clone(), name: name.clone() };
            self.commit(&context, vec![rename.into()], Grade::Synced, &shown(&token)).await?;
            self.change_token(&request.token_id, |token| token.name = name);
        }
        Ok(shown(&token))
    }

    pub(crate) async fn webhook_token_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::TokenDeleteRequest,
    ) -> Result<(), Status> {
        self.known_token(&request.token_id)?;
        let delete = WebWrite::DeleteToken { id: request.token_id.clone() };
        self.commit(&context, vec![delete.into()], Grade::Synced, &()).await?;
        self.web.tokens.lock().retain(|token| token.id != request.token_id);
        Ok(())
    }

    pub(crate) async fn webhook_token_list(
        self: Arc<Self>,
        _context: CallContext,
        _request: (),
    ) -> Result<api::WebhookTokenListResponse, Status> {
        let tokens = self.web.tokens.lock().iter().map(shown).collect();
        Ok(api::WebhookTokenListResponse { tokens })
    }

    pub(crate) async fn webhook_token_list_for_environment(
        self: Arc<Self>,
        _context: CallContext,
        request: api::WebhookTokenListForEnvironmentRequest,
    ) -> Result<api::WebhookTokenListResponse, Status> {
        let environment = self.environment(&request.environment_name)?.id;
        let tokens = self.web.tokens.lock();
        let open = tokens.iter().filter(|token| !token.scoped || token.environments.contains(&environment));
        Ok(api::WebhookTokenListResponse { tokens: open.map(shown).collect() })
    }

    pub(crate) async fn webhook_token_environment_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::WebhookTokenEnvironmentListRequest,
    ) -> Result<api::WebhookTokenEnvironmentListResponse, Status> {
        let token = self.known_token(&request.token_id)?;
        let environment_ids = token.environments.iter().map(ToString::to_string).collect();
        Ok(api::WebhookTokenEnvironmentListResponse { environment_ids })
    }

    pub(crate) async fn webhook_token_environment_add(
        self: Arc<Self>,
        context: CallContext,
        request: api::WebhookTokenEnvironmentAddRequest,
    ) -> Result<(), Status> {
        self.known_token(&request.token_id)?;
        let environment = self.environment_by_id(parse_id(&request.environment_id)?)?;
        let allow = WebWrite::Allow { token: request.token_id.clone(), environment };
        self.commit(&context, vec![allow.into()], Grade::Synced, &()).await?;
        self.change_token(&request.token_id, |token| {
            if !token.environments.contains(&environment) {
                token.environments.push(environment);
            }
        });
        Ok(())
    }

    pub(crate) async fn webhook_token_environment_remove(
        self: Arc<Self>,
        context: CallContext,
        request: api::WebhookTokenEnvironmentRemoveRequest,
    ) -> Result<(), Status> {
        self.known_token(&request.token_id)?;
        let environment = parse_id(&request.environment_id)?;
        let forbid = WebWrite::Forbid { token: request.token_id.clone(), environment };
        self.commit(&context, vec![forbid.into()], Grade::Synced, &()).await?;
        self.change_token(&request.token_id, |token| token.environments.retain(|id| *id != environment));
        Ok(())
    }

    fn known_token(&self, id: &str) -> Result<WebTokenRow, Status> {
        let known = self.web.tokens.lock().iter().find(|token| token.id == id).cloned();
        known.ok_or_else(|| Status::not_found(format!("There is no proxy token {id}")))
    }

    fn change_token(&self, id: &str, change: impl FnOnce(&mut WebTokenRow)) {
        if let Some(token) = self.web.tokens.lock().iter_mut().find(|token| token.id == id) {
            change(token);
        }
    }

    fn environment_by_id(&self, id: EnvironmentId) -> Result<EnvironmentId, Status> {
        let live = self.registry.lock();
        match live.environments.values().any(|environment| environment.id == id) {
            true => Ok(id),
            false => Err(Status::not_found(format!("There is no environment {id}"))),
        }
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    match name.chars().count() > NAME_CHARS_MAX {
        true => Err(Status::invalid(format!("A token's name has at most {NAME_CHARS_MAX} characters"))),
        false => Ok(()),
    }
}

fn shown(token: &WebTokenRow) -> api::WebhookToken {
    api::WebhookToken {
        token_id: token.id.clone(),
        created_at: token.created_at.as_secs_f64(),
        scoped: token.scoped,
        name: token.name.clone(),
        created_by: Some(api::UserIdentity { user_id: WORKSPACE.to_owned(), username: WORKSPACE.to_owned() }),
    }
}

/// 128 random bits as text.
pub(crate) fn random(entropy: &mut impl Entropy) -> String {
    format!("{:016x}{:016x}", entropy.next_u64(), entropy.next_u64())
}
