//! `evoke env`: the lines that point any official client at the server of a data folder.

use crate::data_folder::DataFolder;
use crate::local::access;
use crate::names;
use crate::stdout;
use anyhow::Result;
use std::path::Path;
use std::process::ExitCode;

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>) -> Result<ExitCode> {
    let access = access(&DataFolder::locate(data)?)?;
    let mut lines = vec![
        (names::MODAL_SERVER_URL, access.address.clone()),
        (names::MODAL_TOKEN_ID, access.token_id()),
        (names::MODAL_TOKEN_SECRET, access.token.token_secret),
    ];
    if names::PROXIES.iter().any(|name| names::read(name).is_some()) {
        lines.push((names::MODAL_DISABLE_API_PROXY, "1".to_owned()));
    }
    let text: String =
        lines.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
    stdout::write(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// `value` as one word of a POSIX shell.
pub(crate) fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,=".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_one_word_for_the_shell() {
        for (given, wanted) in [
            ("http://127.0.0.1:7350", "http://127.0.0.1:7350"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quoted(given), wanted);
        }
    }
}
