//! What the holder tells each server it starts: everything that only root or the person who started it knows.

use crate::config::Config;
use crate::names;
use anyhow::{Context, Result};
use evoke_files::HostEnv;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Names in the descriptor store.
pub(crate) const PUBLIC_LISTENER: &str = "listener/public";
/// The local socket's listener.
pub(crate) const LOCAL_LISTENER: &str = "listener/local";
/// The server's end of the socket to the privileged helper; fresh for each server.
pub(crate) const HELPER_SOCKET: &str = "helper";
/// What the server writes to its stdout, once, when it serves.
pub(crate) const READY_LINE: &[u8] = b"ready\n";

/// The message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// The data folder.
    pub data: PathBuf,
    /// The configuration, as read when the holder started.
    pub config: Config,
    /// `http://host:port` as clients reach it.
    pub address: String,
    /// The holder, whose end is the server's end.
    pub holder_pid: u32,
    /// Users that get the token, beside root and the members of group `evoke`.
    pub users: Vec<u32>,
    /// Package indexes, proxies and certificates as the person who started it has them.
    pub host_env: HostEnv,
    /// Servers started before this one.
    pub generation: u64,
}

impl Launch {
    /// As the holder puts it into a server's environment.
    pub(crate) fn to_variable(&self) -> Result<String> {
        serde_json::to_string(self).context("writing the server's launch message")
    }

    /// As the server finds it.
    pub(crate) fn from_environment() -> Result<Self> {
        let text = names::read(names::EVOKE_LAUNCH).context(
            "this verb is started by `evoke up` only; a server of your own is one `evoke up` away",
        )?;
        serde_json::from_str(&text).context("reading the server's launch message")
    }
}
