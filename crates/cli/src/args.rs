//! What may stand on the command line, and the help that teaches it.

use crate::names;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

const ABOUT: &str = "Run Modal programs on your own machines, unchanged.";

const EXAMPLES: &str = "\
\x1b[1mFirst steps\x1b[0m
  sudo evoke up                      start a server and keep it in the foreground
  evoke run app.py                   run an app's entrypoint on it
  evoke run app.py::train --lr 0.1   one function, with arguments
  evoke deploy app.py                keep an app running

\x1b[1mAny official client\x1b[0m
  eval \"$(evoke env)\"                point this shell at the server
  modal run app.py                   the official CLI and the SDKs work as they are

\x1b[1mWhen something is not as it should be\x1b[0m
  evoke doctor                       what this machine lacks, and the mend for each
  evoke explain fc-…                 where a call's time went, and why
  evoke image show im-…              what each layer of an image brought
  evoke bisect APP --good v3 --bad v9 -- COMMAND
                                     which version broke an app
  evoke diff APP v3 v5               what two versions of an app differ in

Every other verb (run, deploy, serve, shell, app, container, image, secret, volume, …) is the
official CLI's own, run by your interpreter: the active environment, then ./.venv, then python3.
`evoke help VERB` shows its help.

The data folder is --data, else $EVOKE_DATA, else /var/lib/evoke.
";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "evoke", version, about = ABOUT, after_help = EXAMPLES, disable_help_subcommand = true)]
#[command(arg_required_else_help = true, subcommand_required = true, allow_external_subcommands = true)]
pub(crate) struct Cli {
    /// The data folder of the server
    #[arg(long, global = true, value_name = "DIR", env = names::EVOKE_DATA, hide_env_values = true)]
    pub data: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs that are ours, and one for all others.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start a server and keep it in the foreground until Ctrl-C
    Up(UpOptions),
    /// Stop the server of the data folder, its containers first
    Down,
    /// Show whether a server is up, its address and its processes
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the lines that point any official client at the server
    #[command(after_help = "Example:\n  eval \"$(evoke env)\"\n  modal run app.py")]
    Env,
    /// Check what this machine offers, with the mend for what it lacks
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show where the time of a call, input, container or app went, and why
    #[command(
        after_help = "Examples:\n  evoke explain fc-01J…   a call\n  evoke explain ta-01J…   a container"
    )]
    Explain {
        /// An id, as the client and the logs print them (fc-…, in-…, ta-…, ap-…)
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Find the version of a deployed app that broke it, by a command that tells good from bad
    Bisect(BisectOptions),
    /// Show what two versions of a deployed app differ in: code, functions, settings, images, packages
    Diff(DiffOptions),
    /// Show the help of a verb
    #[command(hide = true)]
    Help {
        /// The verb and its sub-verbs
        verb: Vec<OsString>,
    },
    /// The server process; started by the holder.
    #[command(name = "__server", hide = true)]
    Server,
    /// The privileged helper; started by the holder.
    #[command(name = "__helper", hide = true)]
    Helper,
    /// Print the list of RPCs that are served, as Markdown.
    #[command(name = "__coverage", hide = true)]
    Coverage,
    /// A verb of the official CLI with its arguments.
    #[command(external_subcommand)]
    Official(Vec<OsString>),
}

/// Options of `evoke up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo evoke up
  sudo evoke up --data /srv/evoke --listen 127.0.0.1:8000
  sudo evoke up --detach        return once it is ready; stop it with `evoke down`")]
pub(crate) struct UpOptions {
    /// Where clients reach the server [default: 127.0.0.1:7350]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Return once the server is ready and leave it in the background
    #[arg(long)]
    pub detach: bool,
    /// Take a free port where the default one is in use (for servers started in the background).
    #[arg(long, hide = true)]
    pub any_port: bool,
}

/// Options of `evoke bisect`.
#[derive(Debug, Args)]
#[command(after_help = "\
COMMAND runs once for each version that is tried, about as often as the number of versions has bits.
It ends with 0 where the version is good, with 125 where that cannot be told, else it is bad; from 128
on the search ends. Lookups of APP find the version that is tried, in an unmodified program too; whoever
else calls APP goes on with the live one. Volumes, Dicts, Queues and secrets are those of the live app.

COMMAND finds in its environment:
  MODAL_SERVER_URL, MODAL_TOKEN_ID, MODAL_TOKEN_SECRET   for any official client
  EVOKE_VERSION        the number of the version
  EVOKE_URL_NAME       where its web function NAME is (letters and digits as capitals, else _)

Examples:
  evoke bisect APP --good v3 --bad v9 -- python check.py
  evoke bisect APP --good v3 --bad v9 -- sh -c 'curl -sf $EVOKE_URL_HEALTH'
  evoke bisect APP --good v3 --bad v9 --runs 5 -- pytest test_app.py   a failure that comes and goes")]
pub(crate) struct BisectOptions {
    /// Name or id of the app
    pub app: String,
    /// A version that is good
    #[arg(long, value_name = "VERSION", value_parser = crate::diff::version)]
    pub good: u32,
    /// A later version that is bad
    #[arg(long, value_name = "VERSION", value_parser = crate::diff::version)]
    pub bad: u32,
    /// Run the command so often for each version, which is bad where one of them fails
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// The environment of the app
    #[arg(short, long, default_value = "")]
    pub env: String,
    /// Print JSON; what the command prints goes to stderr
    #[arg(long)]
    pub json: bool,
    /// The command that tells good from bad
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Options of `evoke diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each deployment of an app is a version: `evoke app history APP` lists them.

Examples:
  evoke diff APP                what the last deployment changed
  evoke diff APP v3             from v3 to what is live
  evoke diff APP v3 v5          from v3 to v5
  evoke diff APP v5 v3 --json   the other way round, for a script

Lines with + are new, with - gone, with ~ changed. Files are shown as `diff -u` shows them.")]
pub(crate) struct DiffOptions {
    /// Name or id of the app
    pub app: String,
    /// The earlier version [default: the one before the live one]
    #[arg(value_name = "FROM", value_parser = crate::diff::version)]
    pub from: Option<u32>,
    /// The later version [default: the live one]
    #[arg(value_name = "TO", value_parser = crate::diff::version)]
    pub to: Option<u32>,
    /// The environment of the app
    #[arg(short, long, default_value = "")]
    pub env: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn other_verbs_pass_through_with_all_their_words() {
        let cli =
            Cli::try_parse_from(["evoke", "--data", "/d", "run", "--detach", "a.py::f", "--help"]).unwrap();
        assert_eq!(cli.data, Some(PathBuf::from("/d")));
        let Verb::Official(words) = cli.verb else { panic!("{:?}", cli.verb) };
        assert_eq!(words, ["run", "--detach", "a.py::f", "--help"].map(OsString::from));
    }

    #[test]
    fn the_data_folder_may_follow_our_verbs() {
        let cli = Cli::try_parse_from(["evoke", "up", "--data", "/d", "--listen", "127.0.0.1:0"]).unwrap();
        assert_eq!(cli.data, Some(PathBuf::from("/d")));
        assert!(matches!(cli.verb, Verb::Up(UpOptions { listen: Some(_), detach: false, any_port: false })));
    }

    #[test]
    fn no_official_verb_is_shadowed() {
        let official = [
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
            "profile",
            "config",
            "token",
            "skills",
            "setup",
            "billing",
            "changelog",
            "dashboard",
            "launch",
        ];
        for verb in official {
            let cli = Cli::try_parse_from(["evoke", verb, "x"]).unwrap();
            assert!(matches!(cli.verb, Verb::Official(_)), "{verb}");
        }
    }
}
