//! Buckets of object stores that a function's containers have mounted.

use crate::Control;
use evoke_proto::worker::{BucketCredentials, BucketMount};
use evoke_proto::{Status, api};
use std::collections::BTreeMap;

/// Where Google's store speaks the protocol of S3.
const GOOGLE: &str = "https://storage.googleapis.com";

/// Why a container can never have a bucket as it is asked for, where that is so.
pub(crate) fn refusal(mounts: &[api::CloudBucketMount]) -> Option<String> {
    mounts.iter().find_map(|mount| {
        let name = &mount.bucket_name;
        if mount.oidc_auth_role_arn.as_ref().is_some_and(|role| !role.is_empty()) {
            return Some(format!(
                "the bucket '{name}' is asked for by oidc_auth_role_arn=, and this server gives out no identity tokens. \
                 Use a secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ));
        }
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
        if !plain(name) {
            return Some(format!("'{}' is no name of a bucket", name.escape_debug()));
        }
        let prefix = mount.key_prefix.as_deref().unwrap_or_default();
        if prefix.split('/').any(|part| part == "..") || prefix.starts_with('/') || prefix.contains('\0') {
            return Some(format!("'{}' cannot be the key_prefix of a bucket", prefix.escape_debug()));
        }
        let endpoint = mount.bucket_endpoint_url.as_deref().unwrap_or_default();
        let web = endpoint.starts_with("http://") || endpoint.starts_with("https://");
        (!endpoint.is_empty() && !web).then(|| {
            format!("'{}' is no bucket_endpoint_url: it begins with https:// or http://", endpoint.escape_debug())
        })
    })
}

/// What a secret says of who asks.
fn credentials(name: &str, secret: &BTreeMap<String, String>) -> Result<BucketCredentials, Status> {
    let first =
        |keys: &[&str]| keys.iter().find_map(|key| secret.get(*key).cloned()).filter(|v| !v.is_empty());
    let key_id = first(&["AWS_ACCESS_KEY_ID", "GOOGLE_ACCESS_KEY_ID"]);
    let hidden = first(&["AWS_SECRET_ACCESS_KEY", "GOOGLE_ACCESS_KEY_SECRET"]);
    let (Some(key_id), Some(hidden)) = (key_id, hidden) else {
        return Err(Status::invalid(format!(
            "The secret of the bucket '{name}' lacks AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
             (GOOGLE_ACCESS_KEY_ID and GOOGLE_ACCESS_KEY_SECRET for Google's store)"
        )));
    };
    Ok(BucketCredentials {
        key_id,
        secret: hidden,
        session: first(&["AWS_SESSION_TOKEN"]),
        region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
    })
}

impl Control {
    /// The buckets that a container has mounted, with its credentials for them.
    pub(crate) async fn bucket_mounts(
        &self,
        asked: &[api::CloudBucketMount],
    ) -> Result<Vec<BucketMount>, Status> {
        if let Some(why) = refusal(asked) {
            return Err(Status::invalid(why));
        }
        let mut mounts = Vec::with_capacity(asked.len());
        for mount in asked {
            let ids: Vec<String> =
                [mount.credentials_secret_id.clone()].into_iter().filter(|id| !id.is_empty()).collect();
            let secret = self.open_secrets(&ids).await?;
            let credentials =
                if ids.is_empty() { None } else { Some(credentials(&mount.bucket_name, &secret)?) };
            let of_google = mount.bucket_type() == api::cloud_bucket_mount::BucketType::Gcp;
            let endpoint = mount.bucket_endpoint_url.clone().filter(|url| !url.is_empty());
            mounts.push(BucketMount {
                target: mount.mount_path.clone(),
                bucket: mount.bucket_name.clone(),
                prefix: mount.key_prefix.clone().unwrap_or_default(),
                endpoint: endpoint.or_else(|| of_google.then(|| GOOGLE.to_owned())),
                read_only: mount.read_only,
                requester_pays: mount.requester_pays,
                path_style: mount.force_path_style,
                credentials,
            });
        }
        Ok(mounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(change: impl FnOnce(&mut api::CloudBucketMount)) -> Vec<api::CloudBucketMount> {
        let mut mount = api::CloudBucketMount { bucket_name: "data.x-1".into(), ..Default::default() };
        change(&mut mount);
        vec![mount]
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        assert_eq!(refusal(&mount(|m| m.key_prefix = Some("a/b/".into()))), None);
        assert_eq!(refusal(&mount(|m| m.bucket_endpoint_url = Some("http://h:1".into()))), None);
        for (broken, words) in [
            (mount(|m| m.oidc_auth_role_arn = Some("arn:x".into())), "oidc"),
            (mount(|m| m.bucket_name = "a:b".into()), "name of a bucket"),
            (mount(|m| m.bucket_name.clear()), "name of a bucket"),
            (mount(|m| m.key_prefix = Some("a/../".into())), "key_prefix"),
            (mount(|m| m.bucket_endpoint_url = Some("file:///etc".into())), "bucket_endpoint_url"),
        ] {
            let why = refusal(&broken).unwrap();
            assert!(why.contains(words), "{why}");
        }
    }

    #[test]
    fn credentials_have_the_names_of_either_store() {
        let secret = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let aws = secret(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_REGION", "eu")]);
        let found = credentials("x", &aws).unwrap();
        assert_eq!((found.key_id.as_str(), found.region.as_deref()), ("a", Some("eu")));
        let google = secret(&[("GOOGLE_ACCESS_KEY_ID", "a"), ("GOOGLE_ACCESS_KEY_SECRET", "b")]);
        assert_eq!(credentials("x", &google).unwrap().secret, "b");
        assert!(credentials("x", &secret(&[("AWS_ACCESS_KEY_ID", "a")])).is_err());
    }
}
