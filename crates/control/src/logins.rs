//! Tokens of people and programs beside the server's own, and the way to one from another machine: a client asks for
//! a login and waits, a person whom the server's machine knows approves it by the code that the client shows.

use crate::web::random;
use crate::{Control, WORKSPACE, stored};
use evoke_core::{Error, ErrorCode, Principal, UnixMs};
use evoke_proto::{CallContext, Code, Peer, Status, api};
use evoke_store::{Grade, TokenRow, TokenWrite};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Longest name of a token, in characters.
const NAME_CHARS_MAX: usize = 128;
/// Tokens that exist at a time.
const TOKENS_MAX: usize = 10_000;
/// How long a login may wait for its approval.
const LOGIN_MS_MAX: u64 = 15 * 60 * 1000;
/// Logins that wait at a time. Who asks for one needs no token.
const LOGINS_MAX: usize = 256;
/// Longest that one question of a client is held.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Letters of a code: no vowels, so that no words come out, and nothing that looks like something else.
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Letters of a code; it only has to tell logins apart, since a code alone opens nothing.
const CODE_LETTERS: usize = 8;

/// Tokens, and logins that wait.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    /// By their public part; few, and asked for with every request.
    tokens: Mutex<HashMap<String, TokenRow>>,
    waiting: Mutex<HashMap<String, Login>>,
}

#[derive(Debug)]
struct Login {
    code: String,
    /// SHA-256 of what its client shows to learn the token.
    secret_hash: Vec<u8>,
    from: String,
    asked_at: UnixMs,
    expires_in_seconds: u32,
    /// The token, once there is one.
    token: watch::Sender<Option<(String, String)>>,
}

/// A token, as people are told of it. The secret is shown once, when it is made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenOverview {
    /// Its public part.
    pub id: String,
    /// Whom or what it is for.
    pub name: String,
    /// When it was made.
    pub created_ms: u64,
    /// When it ends by itself.
    pub expires_ms: Option<u64>,
    /// Whether it is taken by nobody for the time being.
    pub disabled: bool,
    /// Its secret part, where it was made just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl Logins {
    fn tokens(&self) -> MutexGuard<'_, HashMap<String, TokenRow>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self, now: UnixMs) -> MutexGuard<'_, HashMap<String, Login>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, login| now.0 < login.asked_at.0 + LOGIN_MS_MAX);
        waiting
    }
}

impl Control {
    pub(crate) async fn load_logins(&self) -> Result<(), Status> {
        let rows = self.store.tokens().all().await.map_err(stored)?;
        *self.logins.tokens() = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
        Ok(())
    }

    /// Whether this is a token of a person or program, and good now.
    pub fn takes_token(&self, id: &str, secret: &str) -> bool {
        let now = self.now();
        self.logins.tokens().get(id).is_some_and(|token| token.accepts(secret, now))
    }

    /// All of them, the oldest first.
    pub fn token_list(&self) -> Vec<TokenOverview> {
        let mut tokens: Vec<TokenRow> = self.logins.tokens().values().cloned().collect();
        tokens.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        tokens.iter().map(overview).collect()
    }

    /// Makes a token, good until it is revoked, or for so many seconds.
    pub async fn token_create(&self, name: &str, seconds: Option<u64>) -> Result<TokenOverview, Error> {
        let (row, secret) = self.make_token(name, seconds).await?;
        Ok(TokenOverview { secret: Some(secret), ..overview(&row) })
    }

    /// Ends a token for good, at once.
    pub async fn token_revoke(&self, id: &str) -> Result<(), Error> {
        self.known_login(id)?;
        self.submit(vec![TokenWrite::Delete { id: id.to_owned() }.into()], Grade::Synced).await?;
        self.logins.tokens().remove(id);
        Ok(())
    }

    /// Gives the client that shows `code` a token of this name.
    pub async fn token_approve(&self, code: &str, name: Option<&str>) -> Result<TokenOverview, Error> {
        let code: String = code
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|letter| letter.to_ascii_uppercase())
            .collect();
        let found = self.logins.waiting(self.now()).values().find(|login| login.code == code).map(|login| {
            (
                login.from.clone(),
                login.expires_in_seconds,
                login.token.clone(),
                login.token.borrow().is_some(),
            )
        });
        let Some((from, seconds, told, false)) = found else {
            let text = format!("No login waits under the code {code}");
            let mend = "codes are good once and for 15 minutes; start again there: modal token new";
            return Err(Error::new(ErrorCode::NotFound, text).with_hint(mend));
        };
        let from = format!("login from {from}");
        let seconds = (seconds > 0).then_some(u64::from(seconds));
        let (row, secret) = self.make_token(name.unwrap_or(&from), seconds).await?;
        // A client that does not wait any more asks again.
        told.send_replace(Some((row.id.clone(), secret)));
        Ok(overview(&row))
    }

    async fn make_token(&self, name: &str, seconds: Option<u64>) -> Result<(TokenRow, String), Error> {
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
            return Err(Error::invalid(format!("A token's name has 1 to {NAME_CHARS_MAX} characters")));
        }
        if self.logins.tokens().len() >= TOKENS_MAX {
            let text = format!("There are {TOKENS_MAX} tokens already");
            return Err(Error::new(ErrorCode::ResourceExhausted, text).with_hint("evoke token revoke ID"));
        }
        let (id, secret) = {
            let mut entropy = self.entropy();
            (format!("ak-{}", random(&mut *entropy)), format!("as-{}", random(&mut *entropy)))
        };
        let now = self.now();
        let mut row = TokenRow::new(id, &secret, name.to_owned(), now);
        row.expires_at = seconds.map(|seconds| UnixMs(now.0.saturating_add(seconds.saturating_mul(1000))));
        self.submit(vec![TokenWrite::Put(row.clone()).into()], Grade::Synced).await?;
        self.logins.tokens().insert(row.id.clone(), row.clone());
        Ok((row, secret))
    }

    fn known_login(&self, id: &str) -> Result<TokenRow, Error> {
        self.logins.tokens().get(id).cloned().ok_or_else(|| {
            let text = format!("There is no token {id} that could be changed");
            let mend = "evoke token list shows them; the server's own is made anew when token.json is removed from \
                its data folder and it starts again";
            Error::new(ErrorCode::NotFound, text).with_hint(mend)
        })
    }

    pub(crate) async fn token_flow_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::TokenFlowCreateRequest,
    ) -> Result<api::TokenFlowCreateResponse, Status> {
        let now = self.now();
        let (id, wait_secret, code) = {
            let mut entropy = self.entropy();
            let code = code_of(&mut *entropy);
            (format!("tf-{}", random(&mut *entropy)), random(&mut *entropy), code)
        };
        let from = match context.peer {
            Peer::Net(address) => address.ip().to_string(),
            Peer::Unix | Peer::Local => "this machine".to_owned(),
        };
        let login = Login {
            code: code.clone(),
            secret_hash: Sha256::digest(wait_secret.as_bytes()).to_vec(),
            from,
            asked_at: now,
            expires_in_seconds: request.expires_in_seconds,
            token: watch::Sender::new(None),
        };
        let mut waiting = self.logins.waiting(now);
        if waiting.len() >= LOGINS_MAX {
            let why =
                format!("{LOGINS_MAX} logins wait for their approval already. Try again in some minutes");
            return Err(Status::new(Code::ResourceExhausted, why));
        }
        waiting.insert(id.clone(), login);
        let code = format!("{}-{}", &code[..CODE_LETTERS / 2], &code[CODE_LETTERS / 2..]);
        let web_url = format!("{}/login?code={code}", context.origin);
        Ok(api::TokenFlowCreateResponse { token_flow_id: id, web_url, code, wait_secret })
    }

    pub(crate) async fn token_flow_wait(
        self: Arc<Self>,
        _context: CallContext,
        request: api::TokenFlowWaitRequest,
    ) -> Result<api::TokenFlowWaitResponse, Status> {
        let hash = Sha256::digest(request.wait_secret.as_bytes());
        let mut token = {
            let waiting = self.logins.waiting(self.now());
            let login = waiting.get(&request.token_flow_id);
            let login = login.filter(|login| login.secret_hash == hash.as_slice()).ok_or_else(|| {
                Status::not_found(
                    "This login does not wait any more: its time was over, or the server was \
                    started again. Start it again with: modal token new",
                )
            })?;
            login.token.subscribe()
        };
        let most = Duration::try_from_secs_f32(request.timeout.max(0.0)).unwrap_or(WAIT_MAX).min(WAIT_MAX);
        let made = async { token.wait_for(Option::is_some).await.ok().and_then(|token| token.clone()) };
        let Ok(Some((token_id, token_secret))) = tokio::time::timeout(most, made).await else {
            return Ok(api::TokenFlowWaitResponse { timeout: true, ..Default::default() });
        };
        Ok(api::TokenFlowWaitResponse {
            token_id,
            token_secret,
            timeout: false,
            workspace_username: WORKSPACE.into(),
        })
    }

    pub(crate) async fn token_info_get(
        self: Arc<Self>,
        context: CallContext,
        _request: api::TokenInfoGetRequest,
    ) -> Result<api::TokenInfoGetResponse, Status> {
        let token_id = match context.principal {
            Principal::Client { token_id, .. } => token_id,
            _ => String::new(),
        };
        let row = self.logins.tokens().get(&token_id).cloned();
        let user = api::UserIdentity { user_id: WORKSPACE.into(), username: WORKSPACE.into() };
        let time = |at: UnixMs| prost_types::Timestamp {
            seconds: i64::try_from(at.0 / 1000).unwrap_or(i64::MAX),
            nanos: 0,
        };
        Ok(api::TokenInfoGetResponse {
            token_id,
            workspace_id: WORKSPACE.into(),
            workspace_name: WORKSPACE.into(),
            created_at: row.as_ref().map(|row| time(row.created_at)),
            expires_at: row.as_ref().and_then(|row| row.expires_at).map(time),
            token_name: row.map(|row| row.label).unwrap_or_default(),
            identity: Some(api::token_info_get_response::Identity::UserIdentity(user)),
        })
    }

    pub(crate) async fn tokens_list(
        self: Arc<Self>,
        _context: CallContext,
        _request: (),
    ) -> Result<api::TokensListResponse, Status> {
        let seconds = |ms: u64| UnixMs(ms).as_secs_f64();
        let tokens = self.token_list().into_iter().map(|token| api::tokens_list_response::Token {
            token_id: token.id,
            created_at: seconds(token.created_ms),
            workspace_id: WORKSPACE.into(),
            user_id: WORKSPACE.into(),
            member_id: WORKSPACE.into(),
            member_displayname: token.name.clone(),
            name: token.name,
            expires_at: token.expires_ms.map(seconds),
            disabled: token.disabled,
            ..Default::default()
        });
        Ok(api::TokensListResponse { tokens: tokens.collect() })
    }

    pub(crate) async fn token_delete(
        self: Arc<Self>,
        _context: CallContext,
        request: api::TokenDeleteRequest,
    ) -> Result<(), Status> {
        Ok(self.token_revoke(&request.token_id).await?)
    }

    pub(crate) async fn token_disable(
        self: Arc<Self>,
        _context: CallContext,
        request: api::TokenDisableRequest,
    ) -> Result<(), Status> {
        self.switch_tokens(&request.token_ids, Some(self.now())).await
    }

    pub(crate) async fn token_enable(
        self: Arc<Self>,
        _context: CallContext,
        request: api::TokenEnableRequest,
    ) -> Result<(), Status> {
        self.switch_tokens(&request.token_ids, None).await
    }

    async fn switch_tokens(&self, ids: &[String], revoked_at: Option<UnixMs>) -> Result<(), Status> {
        let mut rows = Vec::new();
        for id in ids {
            rows.push(TokenRow { revoked_at, ..self.known_login(id)? });
        }
        let writes = rows.iter().map(|row| TokenWrite::Put(row.clone()).into()).collect();
        self.submit(writes, Grade::Synced).await?;
        let mut tokens = self.logins.tokens();
        for row in rows {
            // One that was deleted meanwhile stays so in the store, too, when it is read again.
            if let Some(token) = tokens.get_mut(&row.id) {
                *token = row;
            }
        }
        Ok(())
    }
}

fn overview(row: &TokenRow) -> TokenOverview {
    TokenOverview {
        id: row.id.clone(),
        name: row.label.clone(),
        created_ms: row.created_at.0,
        expires_ms: row.expires_at.map(|at| at.0),
        disabled: row.revoked_at.is_some(),
        secret: None,
    }
}

/// Letters that no other login has, as good as certainly. A value that does not fill the alphabet evenly is drawn
/// again.
fn code_of(entropy: &mut impl evoke_core::Entropy) -> String {
    let even = 256 / LETTERS.len() * LETTERS.len();
    let mut code = String::new();
    while code.len() < CODE_LETTERS {
        let letters =
            entropy.next_u64().to_le_bytes().into_iter().map(usize::from).filter(|byte| *byte < even);
        code.extend(
            letters.take(CODE_LETTERS - code.len()).map(|byte| char::from(LETTERS[byte % LETTERS.len()])),
        );
    }
    code
}
