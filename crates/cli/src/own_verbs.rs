//! What verbs of ours beneath a group of the official client have in common: which words are ours, what a running
//! server is asked, how its answer is shown.

use crate::data_folder::DataFolder;
use crate::local::{Reply, Request, ask};
use crate::stdout;
use anyhow::Result;
use clap::{Args, Parser};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Whom verbs ask, and how they show the answer.
#[derive(Debug, Args)]
pub(crate) struct Asking {
    /// The data folder of the server
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

impl Asking {
    /// Asks and writes the answer; `data` is the folder that was named before the verb.
    pub(crate) fn answered(
        &self,
        data: Option<&Path>,
        request: &Request,
        shown: impl FnOnce(&Value) -> String,
    ) -> Result<ExitCode> {
        answered(self.data.as_deref().or(data), request, self.json, shown)
    }
}

/// A text of an answer; empty where it has none.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Whether the words after `evoke` are a verb of ours beneath `group`.
pub(crate) fn is_ours(group: &str, ours: &[&str], words: &[OsString]) -> bool {
    let sub = words.get(1).and_then(|word| word.to_str());
    words.first().is_some_and(|word| word == group) && sub.is_some_and(|sub| ours.contains(&sub))
}

/// The words as `W` takes them. Help, and what is wrong with the words, are said and end the program.
pub(crate) fn parsed<W: Parser>(words: Vec<OsString>) -> W {
    W::try_parse_from(words).unwrap_or_else(|error| error.exit())
}

/// What the server of a data folder answers.
pub(crate) fn asked(data: &DataFolder, request: &Request) -> Result<Value> {
    match ask(data, request)? {
        Reply::Explanation(mut reply) => Ok(reply["answer"].take()),
        other => anyhow::bail!("unexpected reply from the server: {other:?}"),
    }
}

/// Asks the server of a data folder and writes its answer: as JSON, or as `shown` puts it for people.
pub(crate) fn answered(
    data: Option<&Path>,
    request: &Request,
    json: bool,
    shown: impl FnOnce(&Value) -> String,
) -> Result<ExitCode> {
    let answer = asked(&DataFolder::locate(data)?, request)?;
    match json {
        true => stdout::write(&format!("{answer:#}\n"))?,
        false => stdout::write(&shown(&answer))?,
    }
    Ok(ExitCode::SUCCESS)
}
