//! Short-lived tokens that say who a caller is. The JavaScript and Go clients ask for one before anything else
//! and send it beside what they are known by, which is what counts here.

use crate::Control;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evoke_core::{Error, Principal};
use evoke_proto::{CallContext, Status, api};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// How long a token is good, in seconds. Clients fetch another one after half of it.
const TOKEN_SECS: u64 = 20 * 60;
/// What a token's seal is bound to.
const OWNER: &str = "auth token";

impl Control {
    pub(crate) async fn auth_token_get(
        self: Arc<Self>,
        context: CallContext,
        _request: api::AuthTokenGetRequest,
    ) -> Result<api::AuthTokenGetResponse, Status> {
        let whose = match &context.principal {
            Principal::Client { token_id, .. } => token_id.clone(),
            Principal::Container(task) => task.to_string(),
            Principal::Anonymous => String::new(),
        };
        let now = self.now().0 / 1000;
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let header = part(serde_json::json!({"typ": "JWT", "alg": "XC20P"}));
        let claims = part(serde_json::json!({"sub": whose, "iat": now, "exp": now + TOKEN_SECS}));
        let signed = format!("{header}.{claims}");
        let sealed = self.vault.seal(OWNER, &Sha256::digest(&signed)).map_err(Error::from)?;
        let seal = URL_SAFE_NO_PAD.encode([sealed.nonce, sealed.ciphertext].concat());
        Ok(api::AuthTokenGetResponse { token: format!("{signed}.{seal}") })
    }
}
