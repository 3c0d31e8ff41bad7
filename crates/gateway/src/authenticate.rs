//! Who asks, on the public listener.

use evoke_core::{Principal, View};
use http::{HeaderMap, HeaderName};
use subtle::ConstantTimeEq;

const TOKEN_ID: HeaderName = HeaderName::from_static("x-modal-token-id");
const TOKEN_SECRET: HeaderName = HeaderName::from_static("x-modal-token-secret");

/// Stands between a token's public part and the [`View`] of who shows it.
const VIEW_SIGN: char = '+';

/// Knows the tokens that clients may show.
pub trait Authenticator: Send + Sync {
    /// The client that a token belongs to; none for a wrong one. Takes the same time for every wrong secret.
    fn authenticate(&self, token_id: &str, token_secret: &str) -> Option<Principal>;
}

/// The one token of a workspace.
#[derive(Clone)]
pub struct WorkspaceToken {
    token_id: String,
    token_secret: String,
}

impl WorkspaceToken {
    /// The token with these two parts.
    pub fn new(token_id: impl Into<String>, token_secret: impl Into<String>) -> Self {
        Self { token_id: token_id.into(), token_secret: token_secret.into() }
    }
}

impl Authenticator for WorkspaceToken {
    fn authenticate(&self, token_id: &str, token_secret: &str) -> Option<Principal> {
        let same_id = self.token_id.as_bytes().ct_eq(token_id.as_bytes());
        let same_secret = self.token_secret.as_bytes().ct_eq(token_secret.as_bytes());
        let valid: bool = (same_id & same_secret).into();
        valid.then(|| Principal::Client { token_id: self.token_id.clone(), view: None })
    }
}

/// Who asks, by the token in the headers. The secret is taken out of them: nothing behind the gateway needs
/// it, and so nothing can log it.
pub(crate) fn principal(authenticator: &dyn Authenticator, headers: &mut HeaderMap) -> Principal {
    let secret = headers.remove(TOKEN_SECRET);
    let text = |value: Option<&http::HeaderValue>| value.and_then(|v| v.to_str().ok()).map(str::to_owned);
    match (text(headers.get(TOKEN_ID)), text(secret.as_ref())) {
        (Some(id), Some(secret)) => viewer(authenticator, &id, &secret).unwrap_or(Principal::Anonymous),
        _ => Principal::Anonymous,
    }
}

/// The client that a token belongs to, whose public part may name a view.
fn viewer(authenticator: &dyn Authenticator, token_id: &str, token_secret: &str) -> Option<Principal> {
    let Some((token_id, view)) = token_id.split_once(VIEW_SIGN) else {
        return authenticator.authenticate(token_id, token_secret);
    };
    let seen = view.parse::<View>().ok()?;
    match authenticator.authenticate(token_id, token_secret)? {
        Principal::Client { token_id, .. } => Some(Principal::Client { token_id, view: Some(seen) }),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_changes_what_is_seen_and_not_who_sees_it() {
        let token = WorkspaceToken::new("ak-1", "as-1");
        let view = View { app: evoke_core::AppId::from_bits(1), version: 3 };
        let found = viewer(&token, &format!("ak-1+{view}"), "as-1");
        assert_eq!(found, Some(Principal::Client { token_id: "ak-1".into(), view: Some(view) }));
        for (id, secret) in
            [(format!("ak-1+{view}"), "as-2"), ("ak-1+x".into(), "as-1"), (format!("ak-2+{view}"), "as-1")]
        {
            assert_eq!(viewer(&token, &id, secret), None, "{id}");
        }
    }

    #[test]
    fn only_the_whole_token_is_a_client() {
        let token = WorkspaceToken::new("ak-1", "as-1");
        let cases = [
            (Some("ak-1"), Some("as-1"), true),
            (Some("ak-1"), Some("as-2"), false),
            (Some("ak-2"), Some("as-1"), false),
            (Some("ak-1"), Some(""), false),
            (Some("ak-1"), None, false),
            (None, Some("as-1"), false),
            (None, None, false),
        ];
        for (id, secret, valid) in cases {
            let mut headers = HeaderMap::new();
            if let Some(id) = id {
                headers.insert(TOKEN_ID, id.parse().unwrap());
            }
            if let Some(secret) = secret {
                headers.insert(TOKEN_SECRET, secret.parse().unwrap());
            }
            let found = principal(&token, &mut headers);
            assert_eq!(found == Principal::Client { token_id: "ak-1".into(), view: None }, valid);
            assert_eq!(found == Principal::Anonymous, !valid);
            assert!(!headers.contains_key(TOKEN_SECRET));
        }
    }
}
