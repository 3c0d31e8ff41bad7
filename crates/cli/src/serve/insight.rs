//! What the local socket tells about the roles.

use crate::local::{AppQuestion, ImageQuestion, TokenQuestion, VolumeQuestion};
use async_trait::async_trait;
use evoke_control::Control;
use evoke_core::Error;
use std::sync::Arc;

const DAY_SECONDS: u64 = 24 * 3600;

/// Answers `evoke status` and `evoke explain`.
#[async_trait]
pub(crate) trait Insight: Send + Sync {
    /// Counts for `evoke status`.
    async fn counts(&self) -> Result<Counts, Error>;
    /// Where the time of `id` went.
    async fn explain(&self, id: &str) -> Result<serde_json::Value, Error>;
    /// The versions of a volume.
    async fn volume(
        &self,
        environment: &str,
        volume: &str,
        question: VolumeQuestion,
    ) -> Result<serde_json::Value, Error>;
    /// Images and their layers.
    async fn image(&self, question: ImageQuestion) -> Result<serde_json::Value, Error>;
    /// A deployed app and its versions; `origin` is the address by which clients reach this server.
    async fn app(
        &self,
        environment: &str,
        app: &str,
        origin: &str,
        question: AppQuestion,
    ) -> Result<serde_json::Value, Error>;
    /// Tokens of other machines.
    async fn token(&self, question: TokenQuestion) -> Result<serde_json::Value, Error>;
}

/// For `evoke status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Apps that are not stopped.
    pub apps: u64,
    /// Containers that exist.
    pub containers: u64,
}

/// From the control plane of this process.
pub(super) struct OfControl(pub Arc<Control>);

#[async_trait]
impl Insight for OfControl {
    async fn counts(&self) -> Result<Counts, Error> {
        let apps = self.0.app_overviews().await.map_err(Error::from)?;
        let live = apps.iter().filter(|app| app.stopped.is_none()).count() as u64;
        Ok(Counts { apps: live, containers: apps.iter().map(|app| app.containers).sum() })
    }
    async fn explain(&self, id: &str) -> Result<serde_json::Value, Error> {
        self.0.explain(id).await.map_err(Error::from)
    }
    async fn volume(
        &self,
        environment: &str,
        volume: &str,
        question: VolumeQuestion,
    ) -> Result<serde_json::Value, Error> {
        use serde_json::json;
        // A reply is an object on the wire.
        let answer: serde_json::Value = match question {
            VolumeQuestion::Log => {
                let versions = self.0.volume_log(environment, volume).await?;
                let lines = versions.into_iter().map(|version| {
                    json!({
                        "version": version.number,
                        "created": evoke_gateway::utc(version.created),
                        "author": version.author,
                        "added_or_changed": version.puts,
                        "removed": version.removes,
                    })
                });
                lines.collect()
            }
            VolumeQuestion::Diff { from, to } => {
                let changes = self.0.volume_diff(environment, volume, from, to).await?;
                let line = |change: evoke_control::VolumeChangeOverview| json!({ "path": change.path, "removed": change.removed, "size": change.size });
                changes.into_iter().map(line).collect()
            }
            VolumeQuestion::Restore { version } => {
                json!(self.0.volume_restore(environment, volume, version).await?)
            }
        };
        Ok(json!({ "answer": answer }))
    }
    async fn token(&self, question: TokenQuestion) -> Result<serde_json::Value, Error> {
        use serde_json::json;
        let answer = match question {
            TokenQuestion::Approve { code, name } => {
                json!(self.0.token_approve(&code, name.as_deref()).await?)
            }
            TokenQuestion::Create { name, days } => {
                let seconds = days.map(|days| u64::from(days) * DAY_SECONDS);
                json!(self.0.token_create(&name, seconds).await?)
            }
            TokenQuestion::List => json!(self.0.token_list()),
            TokenQuestion::Revoke { token } => json!(self.0.token_revoke(&token).await?),
        };
        Ok(json!({ "answer": answer }))
    }
    async fn image(&self, question: ImageQuestion) -> Result<serde_json::Value, Error> {
        use serde_json::json;
        let answer: serde_json::Value = match question {
            ImageQuestion::List => self.0.image_list().await?.into_iter().map(image_line).collect(),
            ImageQuestion::Prune { unused_ms, dry_run } => json!(self.0.collect(unused_ms, dry_run).await?),
            ImageQuestion::Show { id } => {
                let (image, layers) = self.0.image_show(&id).await?;
                let mut shown = image_line(image);
                shown["layers"] = json!(layers);
                shown
            }
        };
        Ok(json!({ "answer": answer }))
    }
    async fn app(
        &self,
        environment: &str,
        app: &str,
        origin: &str,
        question: AppQuestion,
    ) -> Result<serde_json::Value, Error> {
        use serde_json::json;
        let answer = match question {
            AppQuestion::Diff { from, to } => {
                let (from, to, diff) = self.0.version_diff(environment, app, from, to).await?;
                let mut answer = json!(diff);
                answer["from"] = version_line(&from);
                answer["to"] = version_line(&to);
                answer
            }
            AppQuestion::Versions => {
                let versions = self.0.versions(environment, app).await?;
                let line = |version: &evoke_control::VersionOverview| {
                    let mut line = version_line(&version.facts);
                    line["staged"] = json!(version.staged);
                    line["content"] = json!(version.content);
                    line
                };
                versions.iter().map(line).collect()
            }
            AppQuestion::Show { version } => {
                let shown = self.0.show_version(environment, app, version, origin).await?;
                json!({ "view": shown.view.to_string(), "urls": shown.urls })
            }
        };
        Ok(json!({ "answer": answer }))
    }
}

/// An image of a list; `layers` is their number.
fn image_line(image: evoke_control::ImageOverview) -> serde_json::Value {
    serde_json::json!({
        "id": image.id.to_string(),
        "state": image.state,
        "created": evoke_gateway::utc(image.created),
        "used": evoke_gateway::utc(image.used),
        "names": image.names,
        "layers": image.layers,
        "bytes": image.bytes,
        "python": image.python,
        "step": image.step,
        "error": image.error,
    })
}

/// A version of an app.
fn version_line(version: &evoke_control::VersionFacts) -> serde_json::Value {
    serde_json::json!({
        "version": version.version,
        "deployed": evoke_gateway::utc(version.deployed),
        "deployed_by": version.deployed_by,
        "tag": version.tag,
        "commit": version.commit,
        "branch": version.branch,
        "dirty": version.dirty,
    })
}
