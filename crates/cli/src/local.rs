//! The local socket: what is said over `evoke.sock`, and the side that asks.
//!
//! One request and one reply per connection, each one line of JSON. Who asks is known by peer credentials, so
//! nothing secret is sent to get the token. The holder keeps the listener open while a server restarts, so a
//! request then waits instead of failing; the bound on that wait is [`REPLY_WAIT_MAX`].

use crate::data_folder::DataFolder;
use crate::names;
use crate::token::Token;
use anyhow::{Context, Result};
use evoke_core::{Error, ErrorCode};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a verb waits for the removal of what nothing needs.
const PRUNE_WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a verb waits for a server that is starting or restarting.
const REPLY_WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of a request line.
pub(crate) const REQUEST_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of a reply line; explanations of long calls are the largest.
const REPLY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Address and token, for running a client.
    Access,
    /// Processes and counts.
    Status,
    /// Where the time of `id` went.
    Explain {
        /// Any id of a call, input, container or app.
        id: String,
    },
    /// The versions of a volume.
    Volume {
        /// The environment's name; the default one if empty.
        environment: String,
        /// The volume's name or id.
        volume: String,
        /// What is wanted of them.
        question: VolumeQuestion,
    },
    /// Images and their layers.
    Image {
        /// What is wanted of them.
        question: ImageQuestion,
    },
    /// A deployed app and its versions.
    App {
        /// The environment's name; the default one if empty.
        environment: String,
        /// The app's name or id.
        app: String,
        /// What is wanted of it.
        question: AppQuestion,
    },
    /// Tokens of other machines.
    Token {
        /// What is wanted of them.
        question: TokenQuestion,
    },
    /// End the server, its containers by their grace rules first.
    Stop,
}

/// What is wanted of the versions of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VolumeQuestion {
    /// A list of them.
    Log,
    /// What two differ in.
    Diff {
        /// The earlier one.
        from: u64,
        /// The later one; the newest if none.
        to: Option<u64>,
    },
    /// A new version that holds what this one held.
    Restore {
        /// Which.
        version: u64,
    },
}

/// What is wanted of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImageQuestion {
    /// A list of them.
    List,
    /// One with its layers.
    Show {
        /// Its id.
        id: String,
    },
    /// Removal of what nothing needs.
    Prune {
        /// What was used within so many milliseconds stays.
        unused_ms: u64,
        /// Only count.
        dry_run: bool,
    },
}

/// What is wanted of a deployed app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AppQuestion {
    /// What two versions differ in.
    Diff {
        /// The earlier one; the one before the live one if none.
        from: Option<u32>,
        /// The later one; the live one if none.
        to: Option<u32>,
    },
    /// A list of the versions.
    Versions,
    /// A version made callable beside the live one.
    Show {
        /// Which.
        version: u32,
    },
}

/// What is wanted of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokenQuestion {
    /// One for the client that shows this code.
    Approve {
        /// The code.
        code: String,
        /// Whom it is for.
        name: Option<String>,
    },
    /// A new one.
    Create {
        /// Whom or what it is for.
        name: String,
        /// When it ends by itself.
        days: Option<u32>,
    },
    /// A list of them.
    List,
    /// The end of one.
    Revoke {
        /// Its public part.
        token: String,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To [`Request::Access`].
    Access(Access),
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Explain`], [`Request::Volume`], [`Request::Image`] and [`Request::App`].
    Explanation(serde_json::Value),
    /// To [`Request::Stop`]: accepted; the holder's end is the end.
    Stopping {
        /// The process whose end means that everything has ended.
        holder_pid: u32,
    },
    /// Refused or failed.
    Failed {
        /// Whether the asker may not do this, as opposed to anything else.
        denied: bool,
        /// What failed.
        message: String,
        /// The mend.
        hint: Option<String>,
    },
}

/// What a client needs to use the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Access {
    /// `http://host:port`.
    pub address: String,
    /// The token to show.
    pub token: Token,
}

impl Access {
    /// The token's public part, with the view that this process was given.
    pub(crate) fn token_id(&self) -> String {
        match names::read(names::EVOKE_VIEW) {
            Some(view) => self.token_id_with(&view),
            None => self.token.token_id.clone(),
        }
    }

    /// The token's public part for who is to see a version of an app, which `view` names.
    pub(crate) fn token_id_with(&self, view: &str) -> String {
        format!("{}+{view}", self.token.token_id)
    }
}

/// What `evoke status` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// `http://host:port`.
    pub address: String,
    /// The data folder.
    pub data: String,
    /// Version of the running server.
    pub version: String,
    /// The process that holds listeners and descriptors.
    pub holder_pid: u32,
    /// The server process; another one after a restart.
    pub server_pid: u32,
    /// How long this server process has been up.
    pub server_uptime_ms: u64,
    /// Apps that are not stopped.
    pub apps: u64,
    /// Containers that exist.
    pub containers: u64,
}

/// Asks the server of `data`. No server there is an [`ErrorCode::Unavailable`] error.
pub(crate) fn ask(data: &DataFolder, request: &Request) -> Result<Reply> {
    let mut stream = connect(data)?;
    let wait = match request {
        Request::Image { question: ImageQuestion::Prune { .. } } => PRUNE_WAIT_MAX,
        _ => REPLY_WAIT_MAX,
    };
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(REPLY_WAIT_MAX))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let answered = stream.write_all(&line).and_then(|()| {
        let mut reply = String::new();
        BufReader::new((&stream).take(REPLY_BYTES_MAX)).read_line(&mut reply)?;
        Ok(reply)
    });
    let reply = match answered {
        Ok(reply) if reply.is_empty() => return Err(gone(data).into()),
        Ok(reply) => reply,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            let what = format!("the server on {} did not answer within {wait:?}", data.path().display());
            let hint = "see what it says where it was started, or end it with `evoke down`";
            return Err(Error::new(ErrorCode::DeadlineExceeded, what).with_hint(hint).into());
        }
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            return Err(gone(data).into());
        }
        Err(error) => return Err(error).context("talking to the server over its local socket"),
    };
    match serde_json::from_str(&reply).context("the server's reply")? {
        Reply::Failed { denied, message, hint } => {
            let code = if denied { ErrorCode::PermissionDenied } else { ErrorCode::FailedPrecondition };
            Err(Error { code, message, hint }.into())
        }
        reply => Ok(reply),
    }
}

/// Connects by way of the opened folder, since a socket's path may have 107 letters only.
fn connect(data: &DataFolder) -> Result<UnixStream> {
    let folder = match rustix::fs::open(
        data.path(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(folder) => folder,
        Err(rustix::io::Errno::NOENT) => return Err(no_server(data).into()),
        Err(error) => return Err(error).with_context(|| format!("opening {}", data.path().display())),
    };
    let short = format!("/proc/self/fd/{}/evoke.sock", folder.as_raw_fd());
    match UnixStream::connect(short) {
        Ok(stream) => Ok(stream),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            Err(no_server(data).into())
        }
        Err(error) => Err(error).with_context(|| format!("connecting to {}", data.socket().display())),
    }
}

/// The error for "nothing runs there", with the way to start it.
pub(crate) fn no_server(data: &DataFolder) -> Error {
    let what = format!("no server is up on {}", data.path().display());
    let sudo = if rustix::process::geteuid().is_root() { "" } else { "sudo " };
    Error::new(ErrorCode::Unavailable, what).with_hint(format!("start one: {sudo}evoke up{}", data.option()))
}

fn gone(data: &DataFolder) -> Error {
    let what = format!("the server on {} ended while it was asked", data.path().display());
    Error::new(ErrorCode::Unavailable, what).with_hint("ask again; `evoke status` says whether it is up")
}

/// Whether the error only says that no server is up.
pub(crate) fn is_no_server(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<Error>()).any(|e| e.code == ErrorCode::Unavailable)
}

/// Address and token of the server of `data`.
pub(crate) fn access(data: &DataFolder) -> Result<Access> {
    match ask(data, &Request::Access)? {
        Reply::Access(access) => Ok(access),
        other => anyhow::bail!("unexpected reply from the server: {other:?}"),
    }
}

/// Processes and counts of the server of `data`.
pub(crate) fn status(data: &DataFolder) -> Result<Status> {
    match ask(data, &Request::Status)? {
        Reply::Status(status) => Ok(status),
        other => anyhow::bail!("unexpected reply from the server: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_server_says_how_to_start_one() {
        let folder = tempfile::tempdir().unwrap();
        for data in [DataFolder::at(folder.path()), DataFolder::at(folder.path().join("none"))] {
            let error = access(&data).unwrap_err();
            assert!(is_no_server(&error), "{error:#}");
            assert!(error.downcast_ref::<Error>().unwrap().hint.as_ref().unwrap().contains("evoke up"));
        }
    }

    #[test]
    fn requests_and_replies_survive_the_wire() {
        let request = Request::Explain { id: "fc-1".into() };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"ask":"explain","id":"fc-1"}"#);
        let reply = Reply::Failed { denied: true, message: "no".into(), hint: None };
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
    }
}
