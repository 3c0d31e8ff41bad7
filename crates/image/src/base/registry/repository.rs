//! One repository at one address: challenges and their answers, documents, layers.

use super::login::Credentials;
use super::{DOCUMENT_MAX, INDEX_DEPTH_MAX};
use crate::base::manifest::{self, Descriptor, Either, Manifest};
use crate::digest::sha256;
use crate::error::{ImageError, Result};
use base64::Engine as _;
use evoke_files::ContentHash;
use evoke_files::fetch::{Download, FetchError, Fetcher, Progress, Reply, redact_url};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A repository at one address.
pub(super) struct Repository {
    fetcher: Fetcher,
    /// `https://host`
    base: String,
    /// `https://host/v2/library/python`
    url: String,
    name: String,
    /// Nothing is known of the logins of a mirror.
    mirror: bool,
    credentials: Option<Credentials>,
    /// The Authorization header that worked last.
    authorization: Mutex<Option<String>>,
}

impl Repository {
    pub(super) fn new(
        fetcher: Fetcher,
        base: &str,
        name: &str,
        mirror: bool,
        credentials: Option<Credentials>,
    ) -> Self {
        Self {
            fetcher,
            base: base.to_owned(),
            url: format!("{base}/v2/{name}"),
            name: name.to_owned(),
            mirror,
            credentials,
            authorization: Mutex::new(None),
        }
    }

    fn get(&self, path: &str, accept: &str) -> Result<Reply> {
        let url = format!("{}/{path}", self.url);
        let mut reply = self.send(&url, accept)?;
        if reply.status == 401 {
            self.authorize(&reply)?;
            drop(reply);
            reply = self.send(&url, accept)?;
        }
        match reply.status {
            200 => Ok(reply),
            404 => Err(ImageError::fetch(&url, "the registry has no such image (404)")),
            401 | 403 => Err(self.denied(&url, reply.status)),
            429 => {
                Err(ImageError::fetch(&url, "too many requests (429): log in, use a mirror, or try later"))
            }
            status => Err(ImageError::fetch(&url, format!("status {status}"))),
        }
    }

    fn send(&self, url: &str, accept: &str) -> Result<Reply> {
        let authorization = self.header();
        let mut headers = vec![("accept", accept), ("accept-encoding", "identity")];
        if let Some(value) = &authorization {
            headers.push(("authorization", value));
        }
        Ok(self.fetcher.get(url, &headers)?)
    }

    fn header(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The registry, or its token service, said no.
    fn denied(&self, url: &str, status: u16) -> ImageError {
        if self.mirror {
            return ImageError::fetch(url, format!("access refused ({status})"));
        }
        let (message, mend) = match self.credentials {
            Some(_) => (
                format!("the registry refused the credentials of the registry's Secret ({status})"),
                "Check the Secret's values, and that they may pull this image (a 403 can also mean that it does \
                 not exist)",
            ),
            None => (
                format!("access refused ({status}): the image does not exist, or it is private"),
                "If it is private, pass credentials: modal.Image.from_registry(..., secret=...), or registry_secret= \
                 of from_dockerfile, with a Secret that has REGISTRY_USERNAME and REGISTRY_PASSWORD \
                 (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION for ECR; SERVICE_ACCOUNT_JSON for Google)",
            ),
        };
        ImageError::Denied { url: redact_url(url), message, mend: mend.into() }
    }

    /// Answers the challenge of a 401: by the registry's own token service, or with a plain password.
    fn authorize(&self, reply: &Reply) -> Result<()> {
        let url = reply.url.as_str();
        // A host that the registry redirects to may not say where the registry's password goes.
        if !url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/')) {
            return Err(self.denied(url, reply.status));
        }
        let challenge = reply.header("www-authenticate").unwrap_or_default();
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let basic = self.credentials.as_ref().map(|c| {
            let text = format!("{}:{}", c.username, c.password);
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        });
        let header = if scheme.eq_ignore_ascii_case("basic") {
            basic.ok_or_else(|| self.denied(url, reply.status))?
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let address = self.token_address(url, rest)?;
            format!("Bearer {}", self.token(&address, basic.as_deref())?)
        } else if scheme.is_empty() {
            return Err(self.denied(url, reply.status));
        } else {
            return Err(ImageError::fetch(
                url,
                format!("the registry asks for {scheme:?}, which is not supported"),
            ));
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
        Ok(())
    }

    /// Where the token of a challenge is had.
    fn token_address(&self, url: &str, challenge: &str) -> Result<String> {
        let fields = challenge_fields(challenge);
        let realm = fields
            .get("realm")
            .ok_or_else(|| ImageError::fetch(url, "the registry's challenge names no token service"))?;
        if self.base.starts_with("https://") && !realm.starts_with("https://") {
            let message = "the registry's token service is not reached by https, so it gets no password";
            return Err(ImageError::fetch(url, message));
        }
        let scope = match fields.get("scope") {
            Some(scope) => scope.clone(),
            None => format!("repository:{}:pull", self.name),
        };
        let sign = if realm.contains('?') { '&' } else { '?' };
        let mut address = format!("{realm}{sign}scope={}", escape(&scope));
        if let Some(service) = fields.get("service") {
            address.push_str(&format!("&service={}", escape(service)));
        }
        Ok(address)
    }

    fn token(&self, address: &str, basic: Option<&str>) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let mut headers = vec![("accept", "application/json")];
        if let Some(basic) = basic {
            headers.push(("authorization", basic));
        }
        let reply = self.fetcher.get(address, &headers)?;
        match reply.status {
            200 => {}
            400 | 401 | 403 => return Err(self.denied(address, reply.status)),
            status => return Err(ImageError::fetch(address, format!("no token: status {status}"))),
        }
        let bytes = reply.bytes(DOCUMENT_MAX)?;
        // The parser's own words could quote the token.
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| ImageError::fetch(address, "the token service's answer does not read"))?;
        token
            .token
            .or(token.access_token)
            .ok_or_else(|| ImageError::fetch(address, "the token service's answer holds no token"))
    }

    /// A document by tag or digest; one asked for by digest must have it.
    pub(super) fn document(&self, path: &str, digest: Option<&str>) -> Result<Vec<u8>> {
        let bytes = self.get(path, manifest::ACCEPT)?.bytes(DOCUMENT_MAX)?;
        if let Some(digest) = digest {
            let hex = manifest::check_digest(path, digest)?;
            let got = sha256(&bytes);
            if got != hex {
                return Err(ImageError::Digest {
                    what: format!("{}/{path}", self.url),
                    expected: hex.to_owned(),
                    got,
                });
            }
        }
        Ok(bytes)
    }

    /// The manifest of this machine's platform.
    pub(super) fn manifest(&self, version: &str) -> Result<Manifest> {
        let mut version = version.to_owned();
        for _ in 0..INDEX_DEPTH_MAX {
            let digest = version.contains(':').then_some(version.as_str());
            let path = format!("manifests/{version}");
            let bytes = self.document(&path, digest)?;
            let what = format!("{}/{path}", self.url);
            match manifest::read(&what, &bytes)? {
                Either::Manifest(manifest) => return Ok(manifest),
                Either::Index(list) => {
                    let chosen = manifest::choose(&what, &list)?;
                    manifest::check_digest(&what, &chosen.digest)?;
                    version.clone_from(&chosen.digest);
                }
            }
        }
        Err(ImageError::malformed(&self.url, "indexes within indexes"))
    }

    /// Brings a layer to a file, resumed where it stopped, checked against its size and digest.
    pub(super) fn layer(&self, layer: &Descriptor, target: &Path, progress: Progress<'_>) -> Result<()> {
        let hex = manifest::check_digest(&self.url, &layer.digest)?;
        let url = format!("{}/blobs/{}", self.url, layer.digest);
        let hash: ContentHash = hex.parse().map_err(|_| ImageError::malformed(&url, "not a digest"))?;
        let fetch = || {
            let authorization = self.header();
            let headers: Vec<(&str, &str)> =
                authorization.iter().map(|v| ("authorization", v.as_str())).collect();
            let download = Download {
                url: &url,
                headers: &headers,
                sha256: Some(hash),
                length: Some(layer.size),
                passing: true,
                progress: Some(progress),
            };
            self.fetcher.download(&download, target)
        };
        match fetch() {
            // The token of the manifest has ended, or is for manifests alone. What is there of the layer stays.
            Err(FetchError::Status { status: 401, .. }) => {
                let reply = self.send(&url, "*/*")?;
                if reply.status == 401 {
                    self.authorize(&reply)?;
                }
                drop(reply);
                match fetch() {
                    Err(FetchError::Status { status: status @ (401 | 403), .. }) => {
                        return Err(self.denied(&url, status));
                    }
                    other => other?,
                }
            }
            Err(FetchError::Status { status: 403, .. }) => return Err(self.denied(&url, 403)),
            other => other?,
        };
        Ok(())
    }
}

/// `key="value",key=value` of a challenge.
fn challenge_fields(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        fields.insert(key, value.to_owned());
        rest = tail.trim_start_matches([' ', ',']);
    }
    fields
}

fn escape(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~/".contains(b);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let fields = challenge_fields(r#"realm="https://a/b?c=d",service=x, scope="repository:a:pull,push""#);
        assert_eq!(fields["realm"], "https://a/b?c=d");
        assert_eq!(fields["service"], "x");
        assert_eq!(fields["scope"], "repository:a:pull,push");
    }
}
