//! What a registry is told about who asks: read from the variables of a secret, as the client names them.

use super::ecr::AwsKeys;
use crate::error::{ImageError, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The name under which Google's registries take the key of a service account as a password.
const GOOGLE_KEY_NAME: &str = "_json_key";

/// A name and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// Which kind of login a secret holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginKind {
    /// Whichever its variables tell.
    Any,
    /// A name and a password.
    Password,
    /// The key of a Google service account.
    Google,
    /// AWS keys, for which ECR gives a password.
    Aws,
}

/// How to log in to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password as they stand.
    Password(Credentials),
    /// AWS keys, for which ECR gives a password.
    Aws(AwsKeys),
}

impl Login {
    /// Reads the variables of a secret. Errors name variables and never what is in them.
    pub fn from_secret(kind: LoginKind, values: &BTreeMap<String, String>) -> Result<Self> {
        let given = |name: &str| values.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        let kind = match kind {
            LoginKind::Any if given("SERVICE_ACCOUNT_JSON").is_some() => LoginKind::Google,
            LoginKind::Any if given("AWS_ACCESS_KEY_ID").or(given("AWS_ROLE_ARN")).is_some() => {
                LoginKind::Aws
            }
            LoginKind::Any => LoginKind::Password,
            kind => kind,
        };
        let needed = |name: &str| {
            given(name).map(str::to_owned).ok_or_else(|| {
                let has: Vec<&str> = values.keys().map(String::as_str).collect();
                let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
                ImageError::Login(format!(
                    "The registry's Secret has no {name}. {} Its keys are: {has}",
                    needs(kind)
                ))
            })
        };
        match kind {
            LoginKind::Google => {
                let key = needed("SERVICE_ACCOUNT_JSON")?;
                check_google_key(&key)?;
                Ok(Self::Password(Credentials { username: GOOGLE_KEY_NAME.into(), password: key }))
            }
            LoginKind::Aws => {
                if given("AWS_ACCESS_KEY_ID").is_none() && given("AWS_ROLE_ARN").is_some() {
                    return Err(ImageError::Login(
                        "The registry's Secret asks for the role of AWS_ROLE_ARN, which AWS gives to holders of \
                         identity tokens of Modal's cloud; this server issues none. Put AWS_ACCESS_KEY_ID, \
                         AWS_SECRET_ACCESS_KEY and AWS_REGION into the Secret (AWS_SESSION_TOKEN too, if the keys \
                         are temporary: `aws sts assume-role` gives such keys for a role)"
                            .into(),
                    ));
                }
                Ok(Self::Aws(AwsKeys {
                    access_key_id: needed("AWS_ACCESS_KEY_ID")?,
                    secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
                    session_token: given("AWS_SESSION_TOKEN").map(str::to_owned),
                    region: given("AWS_REGION").or(given("AWS_DEFAULT_REGION")).map(str::to_owned),
                    endpoint: given("AWS_ENDPOINT_URL_ECR").or(given("AWS_ENDPOINT_URL")).map(str::to_owned),
                }))
            }
            LoginKind::Password | LoginKind::Any => Ok(Self::Password(Credentials {
                username: needed("REGISTRY_USERNAME")?,
                password: needed("REGISTRY_PASSWORD")?,
            })),
        }
    }
}

fn needs(kind: LoginKind) -> &'static str {
    match kind {
        LoginKind::Google => "Google's registries need SERVICE_ACCOUNT_JSON, the key file's content.",
        LoginKind::Aws => "ECR needs AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION.",
        LoginKind::Password | LoginKind::Any => "It needs REGISTRY_USERNAME and REGISTRY_PASSWORD.",
    }
}

/// A path or a cut-off paste instead of the key is told here: the registry would only say that it is wrong.
fn check_google_key(key: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Key {
        client_email: Option<String>,
        private_key: Option<String>,
    }
    let mend = "Put the whole content of the service account's key file there";
    let read: std::result::Result<Key, _> = serde_json::from_str(key);
    match read {
        Ok(Key { client_email: Some(_), private_key: Some(_) }) => Ok(()),
        Ok(_) => Err(ImageError::Login(format!(
            "SERVICE_ACCOUNT_JSON is no service account's key: it lacks client_email or private_key. {mend}"
        ))),
        // The parser's own words could quote the value.
        Err(_) => Err(ImageError::Login(format!("SERVICE_ACCOUNT_JSON is not a JSON object. {mend}"))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn secret(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn reads_every_kind() {
        let password = |username: &str, password: &str| {
            Login::Password(Credentials { username: username.into(), password: password.into() })
        };
        let of = |kind, pairs: &[(&str, &str)]| Login::from_secret(kind, &secret(pairs)).unwrap();
        let plain = [("REGISTRY_USERNAME", "me"), ("REGISTRY_PASSWORD", "pw\n")];
        assert_eq!(of(LoginKind::Password, &plain), password("me", "pw"));
        assert_eq!(of(LoginKind::Any, &plain), password("me", "pw"));
        let key = r#"{"client_email":"a@b","private_key":"k"}"#;
        let google = [("SERVICE_ACCOUNT_JSON", key)];
        assert_eq!(of(LoginKind::Google, &google), password("_json_key", key));
        assert_eq!(of(LoginKind::Any, &google), password("_json_key", key));
        let aws = [("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "SK"), ("AWS_REGION", "eu-west-1")];
        for kind in [LoginKind::Aws, LoginKind::Any] {
            let Login::Aws(keys) = of(kind, &aws) else { panic!("{kind:?}") };
            assert_eq!((keys.region.as_deref(), keys.session_token), (Some("eu-west-1"), None));
        }
    }

    #[test]
    fn says_what_is_missing_and_tells_no_value() {
        for (kind, pairs, part) in [
            (LoginKind::Password, vec![("REGISTRY_USERNAME", "hush")], "has no REGISTRY_PASSWORD"),
            (LoginKind::Password, vec![("USER", "hush"), ("PASS", "hush")], "Its keys are: PASS, USER"),
            (LoginKind::Aws, vec![("AWS_ACCESS_KEY_ID", "hush")], "has no AWS_SECRET_ACCESS_KEY"),
            (LoginKind::Aws, vec![("AWS_ROLE_ARN", "hush"), ("AWS_REGION", "hush")], "identity tokens"),
            (LoginKind::Google, vec![], "Its keys are: none"),
            (LoginKind::Google, vec![("SERVICE_ACCOUNT_JSON", "/hush.json")], "not a JSON object"),
            (LoginKind::Google, vec![("SERVICE_ACCOUNT_JSON", r#"{"private_key":"hush"}"#)], "client_email"),
        ] {
            let error = Login::from_secret(kind, &secret(&pairs)).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("hush"), "{error}");
        }
    }
}
