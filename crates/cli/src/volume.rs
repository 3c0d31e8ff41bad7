//! `evoke volume log`, `diff` and `restore`: the versions of a volume. Its other sub-verbs are the official CLI's.

use crate::local::{Request, VolumeQuestion};
use crate::own_verbs;
use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The sub-verbs that are ours.
const OURS: [&str; 3] = ["log", "diff", "restore"];

#[derive(Debug, Parser)]
#[command(name = "evoke volume", about = "The versions of a volume", disable_help_subcommand = true)]
struct Words {
    /// The environment of the volume
    #[arg(short, long, global = true, default_value = "")]
    env: String,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// List the versions of a volume, newest first
    Log {
        /// Name or id of the volume
        volume: String,
    },
    /// Show in which files two versions differ
    Diff {
        /// Name or id of the volume
        volume: String,
        /// The earlier version
        from: u64,
        /// The later version; the newest one if it is not given
        to: Option<u64>,
    },
    /// Make a new version that holds what an earlier one held
    Restore {
        /// Name or id of the volume
        volume: String,
        /// The earlier version
        version: u64,
    },
}

/// Whether the words after `evoke` are ours to answer.
pub(crate) fn is_ours(words: &[OsString]) -> bool {
    own_verbs::is_ours("volume", &OURS, words)
}

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>, words: Vec<OsString>) -> Result<ExitCode> {
    let words: Words = own_verbs::parsed(words);
    let (volume, question) = match words.verb {
        Sub::Log { volume } => (volume, VolumeQuestion::Log),
        Sub::Diff { volume, from, to } => (volume, VolumeQuestion::Diff { from, to }),
        Sub::Restore { volume, version } => (volume, VolumeQuestion::Restore { version }),
    };
    let request = Request::Volume { environment: words.env, volume, question };
    own_verbs::answered(data, &request, words.json, shown)
}

/// The answer for people: a line for each version or file, or the sentence.
fn shown(answer: &Value) -> String {
    let Some(lines) = answer.as_array() else {
        return format!("version {answer} holds what it held\n");
    };
    let number = |line: &Value, key: &str| line[key].as_u64().unwrap_or_default();
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let line = |line: &Value| match line.get("version") {
        Some(_) => format!(
            "{:>6}  {}  +{} -{}  {}\n",
            number(line, "version"),
            text(line, "created"),
            number(line, "added_or_changed"),
            number(line, "removed"),
            text(line, "author")
        ),
        None if line["removed"] == true => format!("- {}\n", text(line, "path")),
        None => format!("+ {} ({} bytes)\n", text(line, "path"), number(line, "size")),
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_sub_verbs_are_taken_from_the_official_group() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(is_ours(&words(&["volume", "log", "x"])));
        for theirs in [&["volume", "ls", "x"][..], &["volume"], &["run", "log"], &[]] {
            assert!(!is_ours(&words(theirs)), "{theirs:?}");
        }
    }

    #[test]
    fn versions_and_files_are_shown_in_lines() {
        let answer = serde_json::json!([
            { "version": 2, "created": "2026-01-01T00:00:00Z", "author": "upload", "added_or_changed": 1, "removed": 0 },
            { "path": "a", "removed": true, "size": 0 },
            { "path": "b", "removed": false, "size": 7 },
        ]);
        assert_eq!(shown(&answer), "     2  2026-01-01T00:00:00Z  +1 -0  upload\n- a\n+ b (7 bytes)\n");
    }
}
