//! Versions of an app beside the live one: which there are, and one made callable whole, so that whoever has a
//! [`View`] of it finds its functions where others find the live ones.

use crate::deployments::published;
use crate::publish::Release;
use crate::registry::read_layout;
use crate::version_diff::{VersionFacts, facts};
use crate::{Control, stored};
use evoke_core::View;
use evoke_proto::Status;
use evoke_store::DeploymentRow;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Most versions that are listed, the newest.
const VERSIONS_MAX: u32 = 10_000;

/// A version in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionOverview {
    /// What tells it from others.
    pub facts: VersionFacts,
    /// Whether it was published without becoming live.
    pub staged: bool,
    /// The same for versions that run the same.
    pub content: String,
}

/// A version that can be called beside the live one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownVersion {
    /// What its callers see.
    pub view: View,
    /// Where its web functions are, by function, or by class and method.
    pub urls: BTreeMap<String, String>,
}

impl Control {
    /// The versions of an app, oldest first.
    pub async fn versions(&self, environment: &str, app: &str) -> Result<Vec<VersionOverview>, Status> {
        let app = self.named_app(environment, app)?;
        let rows = self.store.apps().deployments(app.row.id, VERSIONS_MAX).await.map_err(stored)?;
        let overview = |row: &DeploymentRow| VersionOverview {
            facts: facts(row),
            staged: row.is_staged(),
            content: content_of(row),
        };
        Ok(rows.iter().rev().map(overview).collect())
    }

    /// Makes all functions of a version callable beside the live ones. `origin` is the address by which their callers
    /// reach this server.
    pub async fn show_version(
        &self,
        environment: &str,
        app: &str,
        version: u32,
        origin: &str,
    ) -> Result<ShownVersion, Status> {
        let app = self.named_app(environment, app)?;
        let row = self.version(&app, i32::try_from(version).unwrap_or(i32::MAX)).await?;
        self.still_runs(&Release::of(published(&row))?, &row).await?;
        let pinned = self.pinned_version(&app, row.version as i32).await?;
        let mut urls = BTreeMap::new();
        for id in read_layout(&row.layout).0.into_values() {
            let function = self.pin(id, &pinned).await?;
            let handle = self.handle(&self.registry.lock(), origin, &function);
            let methods =
                handle.method_handle_metadata.values().map(|method| (&method.function_name, &method.web_url));
            let own = std::iter::once((&handle.function_name, &handle.web_url));
            let servers = handle.experimental_flash_urls.iter().map(|url| (&handle.function_name, url));
            let found = methods.chain(own).chain(servers).filter(|(_, url)| !url.is_empty());
            urls.extend(found.map(|(name, url)| (name.clone(), url.clone())));
        }
        Ok(ShownVersion { view: View { app: app.row.id, version: row.version }, urls })
    }
}

/// A digest of the definitions that a version runs.
fn content_of(row: &DeploymentRow) -> String {
    let mut hash = Sha256::new();
    for (function, definition) in published(row).definition_ids {
        hash.update(format!("{function} {definition}\n"));
    }
    evoke_core::hex(&hash.finalize())
}
