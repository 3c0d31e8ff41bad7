//! `evoke token approve`, `create`, `list` and `revoke`: who may use this server from other machines. The other
//! sub-verbs of `token` are the official CLI's own.

use crate::local::{Request, TokenQuestion};
use crate::own_verbs::{self, Asking, text};
use anyhow::Result;
use clap::{Parser, Subcommand};
use evoke_core::UnixMs;
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The sub-verbs that are ours.
const OURS: [&str; 4] = ["approve", "create", "list", "revoke"];

#[derive(Debug, Parser)]
#[command(
    name = "evoke token",
    about = "Tokens by which other machines use this server",
    disable_help_subcommand = true
)]
struct Words {
    #[command(flatten)]
    asking: Asking,
    #[command(subcommand)]
    verb: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Let in the client that shows this code: somebody ran `modal token new` or `modal setup` there
    Approve {
        /// The code, as that client printed it
        code: String,
        /// Whom the token is for
        #[arg(long)]
        name: Option<String>,
    },
    /// Make a token and print both its parts, for `modal token set`
    Create {
        /// Whom or what it is for
        #[arg(long)]
        name: String,
        /// It ends by itself after so many days
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
    },
    /// List the tokens
    List,
    /// End a token for good, at once
    Revoke {
        /// Its public part (ak-…)
        token: String,
    },
}

/// Whether the words after `evoke` are ours to answer.
pub(crate) fn is_ours(words: &[OsString]) -> bool {
    own_verbs::is_ours("token", &OURS, words)
}

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>, words: Vec<OsString>) -> Result<ExitCode> {
    let words: Words = own_verbs::parsed(words);
    let question = match words.verb {
        Sub::Approve { code, name } => TokenQuestion::Approve { code, name },
        Sub::Create { name, days } => TokenQuestion::Create { name, days },
        Sub::List => TokenQuestion::List,
        Sub::Revoke { token } => TokenQuestion::Revoke { token },
    };
    let shown = match &question {
        TokenQuestion::Approve { .. } => approved,
        TokenQuestion::Create { .. } => created,
        TokenQuestion::List => listed,
        TokenQuestion::Revoke { .. } => revoked,
    };
    words.asking.answered(data, &Request::Token { question }, shown)
}

fn time(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |ms| evoke_gateway::utc(UnixMs(ms)))
}

fn approved(answer: &Value) -> String {
    format!("{} is in: token {}\n", text(answer, "name"), text(answer, "id"))
}

fn created(answer: &Value) -> String {
    format!("modal token set --token-id {} --token-secret {}\n", text(answer, "id"), text(answer, "secret"))
}

fn revoked(_answer: &Value) -> String {
    "revoked\n".to_owned()
}

fn listed(answer: &Value) -> String {
    let tokens = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    if tokens.is_empty() {
        return "no tokens beside the server's own\n".to_owned();
    }
    let line = |token: &Value| {
        let state = if token["disabled"].as_bool() == Some(true) { "  disabled" } else { "" };
        let (made, ends) = (time(&token["created_ms"]), time(&token["expires_ms"]));
        format!("{}  {}  made {made}  ends {ends}{state}\n", text(token, "id"), text(token, "name"))
    };
    tokens.iter().map(line).collect()
}
