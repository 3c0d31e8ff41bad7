//! Verbs of the official CLI: the same CLI, run by the user's interpreter, pointed at this machine's server.
//!
//! The interpreter replaces this process, so that signals, the terminal and the exit code are the client's own.

use crate::background;
use crate::client_bundle::{self, ClientBundle};
use crate::data_folder::DataFolder;
use crate::interpreter::{CLIENT_VERSION, Client, Interpreter};
use crate::local::{Access, access, is_no_server, no_server};
use crate::names;
use crate::nearest::nearest;
use anyhow::{Context, Result};
use clap::Parser;
use evoke_core::Error;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Verbs of the official CLI that talk to a server, for which one is started where none is up.
const NEED_SERVER: [&str; 20] = [
    "run",
    "serve",
    "deploy",
    "shell",
    "curl",
    "app",
    "container",
    "endpoint",
    "function",
    "server",
    "image",
    "dict",
    "nfs",
    "secret",
    "queue",
    "volume",
    "workspace",
    "environment",
    "dashboard",
    "billing",
];
/// Verbs of the official CLI that work without one.
const NEED_NONE: [&str; 6] = ["profile", "config", "token", "skills", "setup", "changelog"];
/// Our verbs that a person may mean.
const OURS: [&str; 8] = ["up", "down", "status", "env", "doctor", "explain", "diff", "bisect"];

/// Runs the official CLI as `python -m modal` does, but under our name, so that its usage lines are right.
const ENTRY: &str = "from modal.__main__ import main; main()";

/// Runs the official verb `words[0]` with its arguments.
pub(crate) fn run(data: Option<&Path>, words: Vec<OsString>) -> Result<ExitCode> {
    let verb = words.first().and_then(|w| w.to_str()).unwrap_or_default().to_owned();
    refuse_misspelt(&verb)?;
    let data = DataFolder::locate(data)?;
    let folder = std::env::current_dir().context("reading the working directory")?;
    let interpreter = Interpreter::find(&folder)?;
    let client = interpreter.client()?;
    let access = access_for(&data, &verb, &words)?;
    let bundle = client_bundle(&interpreter, &client)?;
    let mut command = Command::new(&interpreter.executable);
    command.arg("-c").arg(program(bundle.as_ref())).args(&words);
    set_environment(&mut command, access.as_ref(), bundle.as_ref())?;
    let error = command.exec();
    Err(error).with_context(|| format!("running {}", interpreter.executable.display()))
}

/// What the interpreter runs. The bundle's dependencies go to the end of its path, so that whatever the
/// person installed is found first.
fn program(bundle: Option<&ClientBundle>) -> String {
    let mut lines = "import sys; sys.argv[0] = 'evoke'; ".to_owned();
    if let Some(bundle) = bundle {
        // A JSON string is a Python string, too.
        let folder = serde_json::Value::from(bundle.last.to_string_lossy());
        lines.push_str(&format!("sys.path.append({folder}); "));
    }
    lines + ENTRY
}

/// `evoke help VERB`: our own help, or the official CLI's.
pub(crate) fn help(data: Option<&Path>, words: &[OsString]) -> Result<ExitCode> {
    let verb = words.first().and_then(|w| w.to_str()).unwrap_or_default();
    let mut words = words.to_vec();
    words.push("--help".into());
    if !verb.is_empty() && !OURS.contains(&verb) {
        return run(data, words);
    }
    words.insert(0, "evoke".into());
    // Asking for help is an "error" to the parser: the help itself.
    if let Err(help) = crate::args::Cli::try_parse_from(words) {
        help.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A verb that nobody has, but that is close to one that somebody has, is not handed on.
fn refuse_misspelt(verb: &str) -> Result<()> {
    let known = NEED_SERVER.iter().chain(&NEED_NONE).chain(&OURS).copied();
    if verb.starts_with('-') || known.clone().any(|k| k == verb) {
        return Ok(());
    }
    match nearest(verb, known) {
        Some(near) => Err(Error::invalid(format!("no verb `{verb}`"))
            .with_hint(format!("did you mean `evoke {near}`? `evoke --help` lists the verbs"))
            .into()),
        None => Ok(()),
    }
}

/// Address and token for the verb; a server is started if the verb needs one and none is up.
fn access_for(data: &DataFolder, verb: &str, words: &[OsString]) -> Result<Option<Access>> {
    match access(data) {
        Ok(access) => Ok(Some(access)),
        Err(error) if !is_no_server(&error) => Err(error),
        Err(_) if !NEED_SERVER.contains(&verb) || asks_for_help(words) => Ok(None),
        Err(_) if !rustix::process::geteuid().is_root() => {
            let mut error = no_server(data);
            error.hint = Some(format!(
                "starting one needs root: sudo evoke up --detach{}\n(what runs in its containers has no rights on \
                 this machine); then run this again: evoke {}",
                data.option(),
                words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
            ));
            Err(error.into())
        }
        Err(_) => background::start(data).map(Some),
    }
}

fn asks_for_help(words: &[OsString]) -> bool {
    words.iter().take_while(|w| *w != "--").any(|w| w == "--help" || w == "-h")
}

/// Evoke's client bundle, if the interpreter's own client is not used.
fn client_bundle(interpreter: &Interpreter, client: &Client) -> Result<Option<ClientBundle>> {
    let python = interpreter.executable.display();
    match client {
        Client::Own => return Ok(None),
        Client::Bundle => {}
        Client::BundleInsteadOf(version) => {
            eprintln!(
                "evoke: {python} has client {version}, which this server does not know; using {CLIENT_VERSION}"
            );
        }
    }
    match client_bundle::obtain(interpreter) {
        Ok(bundle) => Ok(Some(bundle)),
        Err(error) => {
            let what = format!(
                "{python} has no usable client package, and Evoke's own could not be made: {error:#}"
            );
            let mend = format!("install it yourself: {python} -m pip install modal=={CLIENT_VERSION}");
            Err(Error::precondition(what).with_hint(mend).into())
        }
    }
}

/// The client's environment: the server and its token, and nothing of a Modal account beside it.
fn set_environment(
    command: &mut Command,
    access: Option<&Access>,
    bundle: Option<&ClientBundle>,
) -> Result<()> {
    if let Some(access) = access {
        command.env(names::MODAL_SERVER_URL, &access.address);
        command.env(names::MODAL_TOKEN_ID, access.token_id());
        command.env(names::MODAL_TOKEN_SECRET, &access.token.token_secret);
        command.env(names::MODAL_DISABLE_API_PROXY, "1");
        for name in names::MODAL_OAUTH {
            command.env_remove(name);
        }
    }
    if names::read(names::MODAL_CONFIG_PATH).is_none() {
        if let Some(file) = own_client_settings() {
            command.env(names::MODAL_CONFIG_PATH, file);
        }
    }
    if let Some(bundle) = bundle {
        let given = std::env::var_os(names::PYTHONPATH).filter(|p| !p.is_empty());
        let rest = given.iter().flat_map(|paths| std::env::split_paths(paths).collect::<Vec<_>>());
        let joined = std::env::join_paths(std::iter::once(bundle.first.clone()).chain(rest))
            .context("a folder on PYTHONPATH or of the client bundle has a colon in its name")?;
        command.env(names::PYTHONPATH, joined);
    }
    Ok(())
}

/// `modal.toml` among the user's settings for Evoke. Kept apart from `~/.modal.toml`, whose active profile and
/// environment are those of an account elsewhere.
fn own_client_settings() -> Option<PathBuf> {
    let base = names::read(names::XDG_CONFIG_HOME)
        .map(PathBuf::from)
        .or_else(|| names::read(names::HOME).map(|home| Path::new(&home).join(".config")))?;
    let folder = base.join("evoke");
    // Only `config` and `token` write there; if it cannot be made, they say so themselves.
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("modal.toml"))
}

/// For tests and messages: whether `word` is handed to the official CLI.
#[cfg(test)]
fn is_official(word: &std::ffi::OsStr) -> bool {
    NEED_SERVER.iter().chain(&NEED_NONE).any(|known| word == *known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_is_caught_before_anything_starts() {
        assert!(refuse_misspelt("stauts").unwrap_err().to_string().contains("stauts"));
        assert!(refuse_misspelt("deplyo").is_err());
        for fine in ["run", "changelog", "--version", "somethingelse"] {
            assert!(refuse_misspelt(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn help_starts_no_server() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(asks_for_help(&words(&["run", "--help"])));
        assert!(!asks_for_help(&words(&["run", "a.py", "--", "--help"])));
    }

    #[test]
    fn ours_and_theirs_do_not_meet() {
        assert!(OURS.iter().all(|verb| !is_official(std::ffi::OsStr::new(verb))));
    }
}
