//! The answering side of the local socket: who may ask is decided by peer credentials.

use crate::data_folder::SERVICE_NAME;
use crate::launch::Launch;
use crate::local::{Access, REQUEST_BYTES_MAX, Reply, Request, Status};
use crate::serve::Insight;
use crate::token::Token;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

/// Connections served at the same time; more wait.
const CONNECTIONS_MAX: usize = 64;
/// How long a peer may take to send its request or to take the reply.
const PEER_WAIT_MAX: Duration = Duration::from_secs(10);

/// What the socket answers from.
pub(crate) struct HandOut {
    launch: Launch,
    token: Token,
    insight: Arc<dyn Insight>,
    stop: Arc<Notify>,
    since: Instant,
}

impl HandOut {
    /// `stop` is notified when someone asks the server to end.
    pub(crate) fn new(launch: Launch, token: Token, insight: Arc<dyn Insight>, stop: Arc<Notify>) -> Self {
        Self { launch, token, insight, stop, since: Instant::now() }
    }

    async fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Access => {
                Reply::Access(Access { address: self.launch.address.clone(), token: self.token.clone() })
            }
            Request::Status => {
                let counts = match self.insight.counts().await {
                    Ok(counts) => counts,
                    Err(error) => return refused(error),
                };
                Reply::Status(Status {
                    address: self.launch.address.clone(),
                    data: self.launch.data.display().to_string(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    holder_pid: self.launch.holder_pid,
                    server_pid: std::process::id(),
                    server_uptime_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                    apps: counts.apps,
                    containers: counts.containers,
                })
            }
            Request::Explain { id } => match self.insight.explain(&id).await {
                Ok(explanation) => Reply::Explanation(explanation),
                Err(error) => refused(error),
            },
            Request::Volume { environment, volume, question } => {
                match self.insight.volume(&environment, &volume, question).await {
                    Ok(answer) => Reply::Explanation(answer),
                    Err(error) => refused(error),
                }
            }
            Request::Image { question } => match self.insight.image(question).await {
                Ok(answer) => Reply::Explanation(answer),
                Err(error) => refused(error),
            },
            Request::App { environment, app, question } => {
                match self.insight.app(&environment, &app, &self.launch.address, question).await {
                    Ok(answer) => Reply::Explanation(answer),
                    Err(error) => refused(error),
                }
            }
            Request::Token { question } => match self.insight.token(question).await {
                Ok(answer) => Reply::Explanation(answer),
                Err(error) => refused(error),
            },
            Request::Stop => {
                self.stop.notify_one();
                Reply::Stopping { holder_pid: self.launch.holder_pid }
            }
        }
    }

    /// Root, the service user, who started it, and members of the group `evoke`.
    fn allows(&self, uid: u32, gid: u32) -> bool {
        if self.launch.users.contains(&uid) {
            return true;
        }
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        in_service_group(uid, gid, &read("/etc/group"), &read("/etc/passwd"))
    }
}

fn refused(error: evoke_core::Error) -> Reply {
    Reply::Failed { denied: false, message: error.message, hint: error.hint }
}

/// Serves `listener` until the task is aborted.
pub(crate) fn listen(
    listener: std::os::unix::net::UnixListener,
    hand_out: HandOut,
) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener).context("serving the local socket")?;
    let hand_out = Arc::new(hand_out);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    Ok(tokio::spawn(async move {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let hand_out = Arc::clone(&hand_out);
                    tokio::spawn(async move {
                        let _permit = permit;
                        if let Err(error) = converse(&hand_out, stream).await {
                            tracing::debug!("a conversation on the local socket ended: {error:#}");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others must end first.
                    tracing::warn!("the local socket cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }))
}

async fn converse(hand_out: &HandOut, stream: UnixStream) -> Result<()> {
    let peer = stream.peer_cred().context("reading who asks")?;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(REQUEST_BYTES_MAX));
    tokio::time::timeout(PEER_WAIT_MAX, reader.read_line(&mut line))
        .await
        .context("waiting for the request")??;
    let reply = if !hand_out.allows(peer.uid(), peer.gid()) {
        Reply::Failed {
            denied: true,
            message: format!("user {} may not use this server", peer.uid()),
            hint: Some(format!(
                "a member of group `{SERVICE_NAME}` may: sudo groupadd -f {SERVICE_NAME} && sudo usermod -aG \
                 {SERVICE_NAME} $USER, then log in again (or run this with sudo)"
            )),
        }
    } else {
        match serde_json::from_str(&line) {
            Ok(request) => hand_out.answer(request).await,
            Err(error) => Reply::Failed {
                denied: false,
                message: format!("the server does not understand this request: {error}"),
                hint: Some("is it of another version? Restart it: evoke down, then evoke up".to_owned()),
            },
        }
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    tokio::time::timeout(PEER_WAIT_MAX, write.write_all(&text)).await.context("sending the reply")??;
    Ok(())
}

/// Whether the user belongs to the service group: by the peer's group, or by the machine's files.
fn in_service_group(uid: u32, gid: u32, groups: &str, users: &str) -> bool {
    let Some(group) = groups.lines().find(|line| line.split(':').next() == Some(SERVICE_NAME)) else {
        return false;
    };
    let mut fields = group.split(':').skip(2);
    if fields.next().and_then(|id| id.parse::<u32>().ok()) == Some(gid) {
        return true;
    }
    let members: Vec<&str> = fields.next().unwrap_or_default().split(',').filter(|m| !m.is_empty()).collect();
    users.lines().any(|line| {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        members.contains(&name) && fields.nth(1).and_then(|id| id.parse::<u32>().ok()) == Some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_the_group_are_known_by_gid_or_by_name() {
        let groups = "users:x:100:ann\nevoke:x:990:bob,eve\n";
        let users = "ann:x:1000:100::/:\nbob:x:1001:100::/:\n";
        for (uid, gid, wanted) in
            [(1000, 100, false), (1001, 100, true), (1000, 990, true), (1002, 100, false)]
        {
            assert_eq!(in_service_group(uid, gid, groups, users), wanted, "{uid} {gid}");
        }
        assert!(!in_service_group(1001, 100, "", users));
    }
}
