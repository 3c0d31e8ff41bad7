//! The `evoke` binary: its verbs, its configuration, and the processes of `evoke up`.
//!
//! A verb that is not ours is the official CLI's verb, run by the user's own interpreter (`delegate`). `up` is
//! the holder (`holder`, `supervise`): it starts the privileged helper, gives up root, and keeps a server
//! (`server`, whose roles `serve` assembles) running. Verbs talk to a running server over the local socket in
//! its data folder (`local`).

mod args;
mod background;
mod bisect;
mod client_bundle;
mod config;
mod data_folder;
mod delegate;
mod diff;
mod doctor;
mod down;
mod env;
mod explain;
mod fusermount;
mod hand_out;
mod helper;
mod holder;
mod image;
mod interpreter;
mod launch;
mod local;
mod names;
mod nearest;
mod own_verbs;
mod privileges;
mod serve;
mod server;
mod status;
mod stdout;
mod supervise;
mod sweep;
mod token;
mod token_verbs;
mod up;
mod volume;

use args::{Cli, Verb};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = fusermount::run_if_called_so() {
        return code;
    }
    if std::env::args_os().len() == 1 {
        // Said here and not left to the parser, for which EVOKE_DATA in the environment counts as an argument.
        eprint!("{}", Cli::command().render_help());
        return ExitCode::from(2);
    }
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            exit_code_of(&error)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let data = cli.data.as_deref();
    match cli.verb {
        Verb::Up(options) => up::run(data, &options),
        Verb::Down => down::run(data),
        Verb::Status { json } => status::run(data, json),
        Verb::Env => env::run(data),
        Verb::Doctor { json } => doctor::run(data, json),
        Verb::Explain { id, json } => explain::run(data, &id, json),
        Verb::Bisect(options) => bisect::run(data, options),
        Verb::Diff(options) => diff::run(data, options),
        Verb::Help { verb } => delegate::help(data, &verb),
        Verb::Server => server::run(),
        Verb::Helper => helper::run(),
        Verb::Coverage => serve::print_coverage(),
        Verb::Official(words) if volume::is_ours(&words) => volume::run(data, words),
        Verb::Official(words) if image::is_ours(&words) => image::run(data, words),
        Verb::Official(words) if token_verbs::is_ours(&words) => token_verbs::run(data, words),
        Verb::Official(words) => delegate::run(data, words),
    }
}

/// Says what failed, why, and the mend, on stderr.
fn report(error: &anyhow::Error) {
    let mut first = true;
    let mut hints = Vec::new();
    for cause in error.chain() {
        let ours = cause.downcast_ref::<evoke_core::Error>();
        let text = ours.map_or_else(|| cause.to_string(), |e| e.message.clone());
        eprintln!("{}{text}", if first { "evoke: " } else { "  because: " });
        hints.extend(ours.and_then(|e| e.hint.clone()));
        first = false;
    }
    for hint in hints {
        for line in hint.lines() {
            eprintln!("  {line}");
        }
    }
}

/// Wrong use is 2, a server that is not there 3, everything else 1.
fn exit_code_of(error: &anyhow::Error) -> ExitCode {
    use evoke_core::ErrorCode;
    let code = error.chain().find_map(|e| e.downcast_ref::<evoke_core::Error>()).map(|e| e.code);
    match code {
        Some(ErrorCode::InvalidArgument) => ExitCode::from(2),
        Some(ErrorCode::Unavailable) => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}
