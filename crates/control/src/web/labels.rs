//! Names of web functions in their addresses. Pure.
//!
//! The official form, which the user's own programs may rely on, is `<workspace>[-<environment>]--<label>`, with
//! `<app>-<function>` as the label where the author chose none and `-dev` behind it while the app is ephemeral
//! (<https://modal.com/docs/guide/webhook-urls>). All of it is one DNS label, of at most 63 characters.

use evoke_proto::api;
use sha2::{Digest, Sha256};

/// Longest DNS label (RFC 1035).
const LABEL_LEN_MAX: usize = 63;
/// Characters of the digest that tells shortened labels apart.
const DIGEST_LEN: usize = 7;
/// What an ephemeral app's labels end with, if its author has not configured another word.
const EPHEMERAL: &str = "dev";

/// Where a web function stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    /// The workspace.
    pub workspace: &'a str,
    /// What its environment adds to names; empty for nothing.
    pub environment: &'a str,
    /// The app's name.
    pub app: &'a str,
    /// Whether the app ends with its client.
    pub ephemeral: bool,
    /// The version of the app, where it is not the live one that is meant.
    pub version: Option<u32>,
}

/// A name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// The name.
    pub text: String,
    /// Whether it had to be shortened.
    pub truncated: bool,
}

/// The name of `function` (for a method, `Class.method`).
pub(crate) fn label(standing: Standing<'_>, function: &str, config: &Wanted<'_>) -> Label {
    let Standing { workspace, environment, app, ephemeral, version } = standing;
    let dash = if environment.is_empty() { "" } else { "-" };
    let own = match config.label {
        "" => format!("{app}-{function}"),
        wanted => wanted.to_owned(),
    };
    let version = version.map(|number| format!("-v{number}")).unwrap_or_default();
    let dev = match (ephemeral, config.ephemeral_suffix) {
        (false, _) => String::new(),
        (true, "") => format!("-{EPHEMERAL}"),
        (true, suffix) => format!("-{suffix}"),
    };
    let source = format!("{}{dash}{}--", plain(workspace), plain(environment));
    let (own, dev) = (plain(&own), plain(&dev) + &version);
    let whole = format!("{source}{own}{dev}");
    if whole.len() <= LABEL_LEN_MAX {
        return Label { text: whole, truncated: false };
    }
    let digest = evoke_core::hex(&Sha256::digest(whole.as_bytes()));
    let tail = format!("-{}{dev}", &digest[..DIGEST_LEN]);
    let room = LABEL_LEN_MAX.saturating_sub(source.len() + tail.len());
    let own = own[..own.len().min(room)].trim_end_matches('-');
    let mut text = format!("{source}{own}{tail}");
    text.truncate(LABEL_LEN_MAX);
    Label { text, truncated: true }
}

/// What the author of a web function wants of its name.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted<'a> {
    /// The label that was chosen; empty for none.
    pub label: &'a str,
    /// The word for ephemeral apps that was configured; empty for none.
    pub ephemeral_suffix: &'a str,
}

impl<'a> From<&'a api::WebhookConfig> for Wanted<'a> {
    fn from(config: &'a api::WebhookConfig) -> Self {
        Self { label: &config.requested_suffix, ephemeral_suffix: &config.ephemeral_suffix }
    }
}

/// Only what a DNS label may have, as the client itself replaces the rest.
fn plain(text: &str) -> String {
    let lower = text.chars().map(|c| c.to_ascii_lowercase());
    lower.map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Standing<'_> =
        Standing { workspace: "main", environment: "", app: "My_App", ephemeral: false, version: None };

    #[test]
    fn names_follow_the_documented_form() {
        let none = Wanted::default();
        let chosen = Wanted { label: "mine", ephemeral_suffix: "bob" };
        let dev = Standing { ephemeral: true, environment: "test", ..HERE };
        let cases = [
            (HERE, "hello", none, "main--my-app-hello"),
            (HERE, "Model.predict", none, "main--my-app-model-predict"),
            (HERE, "hello", chosen, "main--mine"),
            (dev, "hello", none, "main-test--my-app-hello-dev"),
            (dev, "hello", chosen, "main-test--mine-bob"),
            (Standing { version: Some(3), ..HERE }, "hello", chosen, "main--mine-v3"),
        ];
        for (standing, function, wanted, expected) in cases {
            let found = label(standing, function, &wanted);
            assert_eq!((found.text.as_str(), found.truncated), (expected, false));
        }
    }

    #[test]
    fn long_names_are_shortened_and_stay_different() {
        let long = "a".repeat(80);
        let dev = Standing { ephemeral: true, ..HERE };
        let [one, two] = [format!("{long}1"), format!("{long}2")].map(|f| label(dev, &f, &Wanted::default()));
        assert!(one.truncated && one.text.len() <= LABEL_LEN_MAX && one.text.ends_with("-dev"), "{one:?}");
        assert_ne!(one, two);
    }
}
