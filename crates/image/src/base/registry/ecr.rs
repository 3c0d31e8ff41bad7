//! Amazon's registry: AWS keys are exchanged for a name and password by one signed request.

use super::login::Credentials;
use super::sigv4::{Request, sign};
use crate::base::Reference;
use crate::error::{ImageError, Result};
use base64::Engine as _;
use evoke_core::UnixMs;
use evoke_files::fetch::{FetchError, Fetcher, redact_url};
use serde::Deserialize;

/// Bytes of the answer at most.
const ANSWER_MAX: u64 = 1024 * 1024;
/// Characters of AWS's own words that are passed on.
const WORDS_MAX: usize = 300;
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";

/// Keys of an AWS user or role.
#[derive(Clone, PartialEq, Eq)]
pub struct AwsKeys {
    /// The key's name.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: String,
    /// Goes with keys that end.
    pub session_token: Option<String>,
    /// Where the registry is, if its host name does not say it.
    pub region: Option<String>,
    /// Where ECR's API is, if not at its public address.
    pub endpoint: Option<String>,
}

impl std::fmt::Debug for AwsKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsKeys").field("region", &self.region).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: Vec<Token>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    authorization_token: String,
    proxy_endpoint: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "__type")]
    kind: Option<String>,
    #[serde(alias = "Message")]
    message: Option<String>,
}

/// The name and password that ECR gives for these keys. Blocks.
pub(super) fn exchange(
    fetcher: &Fetcher,
    keys: &AwsKeys,
    endpoint: Option<&str>,
    reference: &Reference,
    now: UnixMs,
) -> Result<Credentials> {
    let region = region_of(&reference.registry).map(str::to_owned).or_else(|| keys.region.clone());
    let region = region.ok_or_else(|| {
        ImageError::Login(
            "The registry's Secret has no AWS_REGION, and the registry's name does not tell the region"
                .into(),
        )
    })?;
    if !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(ImageError::Login("AWS_REGION is not a region's name, such as us-east-1".into()));
    }
    let overridden = keys.endpoint.as_deref().or(endpoint);
    let url = match overridden {
        Some(url) => format!("{}/", url.trim_end_matches('/')),
        None => format!("https://api.ecr.{region}.{}/", domain(&region)),
    };
    let headers = sign(&Request {
        url: &url,
        headers: &[("content-type", CONTENT_TYPE), ("x-amz-target", TARGET)],
        body: b"{}",
        keys,
        region: &region,
        service: "ecr",
        now,
    })?;
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let reply = fetcher.send(http::Method::POST, &url, &headers, Some(b"{}"))?;
    let status = reply.status;
    let body = reply.bytes(ANSWER_MAX)?;
    if (400..500).contains(&status) && status != 429 {
        return Err(refused(keys, &url, status, &body));
    }
    if status != 200 {
        return Err(FetchError::Status { url: redact_url(&url), status }.into());
    }
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|_| ImageError::malformed(redact_url(&url), "the answer holds no authorization data"))?;
    let token = answer
        .authorization_data
        .first()
        .ok_or_else(|| ImageError::malformed(redact_url(&url), "the answer holds no token"))?;
    // Whoever is given it can pull as these keys can: it goes to Amazon alone, or where it says itself.
    let own =
        token.proxy_endpoint.as_deref().and_then(|e| e.split("://").nth(1)).map(|h| h.trim_end_matches('/'));
    if overridden.is_none() && region_of(&reference.registry).is_none() && own != Some(&reference.registry) {
        return Err(ImageError::Login(format!(
            "{} is not a registry of ECR, so it is not given a token of ECR. Use the image's full name, \
             such as 000000000000.dkr.ecr.{region}.amazonaws.com/name:tag",
            reference.registry
        )));
    }
    decode(&token.authorization_token)
        .ok_or_else(|| ImageError::malformed(redact_url(&url), "the answer's token does not read"))
}

fn decode(token: &str) -> Option<Credentials> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(token).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credentials { username: username.to_owned(), password: password.to_owned() })
}

fn refused(keys: &AwsKeys, url: &str, status: u16, body: &[u8]) -> ImageError {
    let said = serde_json::from_slice::<Refusal>(body).ok();
    let kind = said.as_ref().and_then(|s| s.kind.as_deref()).and_then(|k| k.rsplit('#').next());
    // Where a signature is wrong AWS quotes the request, with the session token in it, from its second line on.
    let secrets = [Some(&keys.secret_access_key), keys.session_token.as_ref(), Some(&keys.access_key_id)];
    let words = said
        .as_ref()
        .and_then(|s| s.message.as_deref()?.lines().next())
        .filter(|line| !secrets.into_iter().flatten().any(|secret| line.contains(secret.as_str())))
        .map(|line| line.chars().take(WORDS_MAX).collect::<String>());
    let words: Vec<String> = kind.map(str::to_owned).into_iter().chain(words).collect();
    let words = if words.is_empty() { format!("status {status}") } else { words.join(": ") };
    ImageError::Denied {
        url: redact_url(url),
        message: format!("AWS refused the keys of the registry's Secret ({words})"),
        mend: "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for temporary keys, \
               AWS_SESSION_TOKEN; their owner needs the permission ecr:GetAuthorizationToken"
            .into(),
    }
}

/// The region in a host name of ECR (`000000000000.dkr.ecr.us-east-1.amazonaws.com`), if it is one.
fn region_of(registry: &str) -> Option<&str> {
    let (account, rest) =
        registry.split_once(".dkr.ecr.").or_else(|| registry.split_once(".dkr.ecr-fips."))?;
    let region = rest.strip_suffix(".amazonaws.com").or_else(|| rest.strip_suffix(".amazonaws.com.cn"))?;
    let plain = account.bytes().all(|b| b.is_ascii_digit()) && !region.contains('.');
    plain.then_some(region)
}

fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_hosts() {
        for (registry, region) in [
            ("000000000000.dkr.ecr.us-east-1.amazonaws.com", Some("us-east-1")),
            ("000000000000.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("000000000000.dkr.ecr.us-east-1.amazonaws.com.evil.example", None),
            ("evil.example.dkr.ecr.us-east-1.amazonaws.com", None),
            ("000000000000.dkr.ecr.x.evil.amazonaws.com", None),
            ("ghcr.io", None),
        ] {
            assert_eq!(region_of(registry), region, "{registry}");
        }
    }
}
