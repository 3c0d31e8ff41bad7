//! The workspace itself: its name, its settings, and names that may have been meant.

use crate::{Control, WORKSPACE};
use evoke_proto::{CallContext, Status, api};
use std::sync::Arc;

/// Suggestions in one answer.
const SUGGESTIONS_MAX: usize = 20;
/// Letters by which a name may differ from what was asked for, as a share of its length: a third.
const DISTANCE_SHARE: usize = 3;

impl Control {
    pub(crate) async fn workspace_name_lookup(
        self: Arc<Self>,
        _context: CallContext,
        _request: (),
    ) -> Result<api::WorkspaceNameLookupResponse, Status> {
        Ok(api::WorkspaceNameLookupResponse { username: WORKSPACE.into(), ..Default::default() })
    }

    pub(crate) async fn workspace_settings(
        self: Arc<Self>,
        _context: CallContext,
        _request: (),
    ) -> Result<api::WorkspaceSettingsResponse, Status> {
        Ok(api::WorkspaceSettingsResponse {
            default_environment_name: self.environment("")?.name,
            image_builder_version: self.config.builder_version.clone(),
        })
    }

    pub(crate) async fn workspace_dashboard_url_get(
        self: Arc<Self>,
        context: CallContext,
        request: api::WorkspaceDashboardUrlRequest,
    ) -> Result<api::WorkspaceDashboardUrlResponse, Status> {
        self.environment(&request.environment_name)?;
        Ok(api::WorkspaceDashboardUrlResponse { url: self.urls.home(&context.origin) })
    }

    /// Names near one that was not found.
    pub(crate) async fn object_suggest(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ObjectSuggestRequest,
    ) -> Result<api::ObjectSuggestResponse, Status> {
        use api::object_suggest_request::ObjectSuggestKind as Kind;
        let environment = self.environment(&request.environment_name)?;
        let query = request.query.to_lowercase();
        let live = self.registry.lock();
        let apps = live.apps.values().filter(|app| app.row.environment_id == environment.id && !app.stopping);
        let mut near: Vec<(usize, api::ObjectSuggestion)> = Vec::new();
        let mut look = |app_name: &str, object_name: &str| {
            let full =
                if app_name.is_empty() { object_name.into() } else { format!("{app_name}/{object_name}") };
            // The object alone may have been meant, too.
            let distance = [full.as_str(), object_name].map(|name| distance(&query, &name.to_lowercase()));
            let best = distance.into_iter().min().unwrap_or(usize::MAX);
            if best <= query.chars().count().div_ceil(DISTANCE_SHARE) || full.to_lowercase().contains(&query)
            {
                let found =
                    api::ObjectSuggestion { app_name: app_name.into(), object_name: object_name.into() };
                near.push((best, found));
            }
        };
        for app in apps {
            let Some(name) = app.row.name.as_deref() else { continue };
            match request.kind() {
                Kind::App => look("", name),
                Kind::Function => app.functions.keys().for_each(|tag| look(name, tag)),
                _ => {}
            }
        }
        near.sort_by(|(a, one), (b, other)| (a, &one.object_name).cmp(&(b, &other.object_name)));
        let most = (request.limit as usize).clamp(1, SUGGESTIONS_MAX);
        let suggestions = near.into_iter().take(most).map(|(_, found)| found).collect();
        Ok(api::ObjectSuggestResponse { suggestions })
    }
}

/// How many letters must be put in, taken out or changed to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_differ_by_letters() {
        for (one, other, expected) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
