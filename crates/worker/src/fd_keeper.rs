//! The store of descriptors that outlive this process, and the names under which a container's lie there.

use evoke_core::{Error, ErrorCode, TaskId};
use evoke_runtime::fdstore::FdStoreClient;
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Keeps descriptors beyond the life of this process. What it keeps is handed to the next one at its start.
#[async_trait::async_trait]
pub trait FdKeeper: Send + Sync {
    /// Keeps a duplicate of `fd` under `name`, replacing what was there; it is safe once this returns.
    async fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error>;
    /// Closes what is kept under `name`; absent is fine.
    async fn remove(&self, name: &str) -> Result<(), Error>;
}

#[async_trait::async_trait]
impl FdKeeper for FdStoreClient {
    async fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        FdStoreClient::put(self, name, fd).await.map_err(unavailable)
    }
    async fn remove(&self, name: &str) -> Result<(), Error> {
        FdStoreClient::remove(self, name).await.map_err(unavailable)
    }
}

fn unavailable(error: evoke_runtime::fdstore::FdStoreError) -> Error {
    Error::new(ErrorCode::Unavailable, error.to_string())
}

/// Which descriptor of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Pidfd,
    Control,
    Stdout,
    Stderr,
    Http,
    Unix,
}

impl Part {
    pub(crate) const ALL: [Part; 6] =
        [Part::Pidfd, Part::Control, Part::Stdout, Part::Stderr, Part::Http, Part::Unix];

    fn word(self) -> &'static str {
        match self {
            Part::Pidfd => "pidfd",
            Part::Control => "control",
            Part::Stdout => "stdout",
            Part::Stderr => "stderr",
            Part::Http => "http",
            Part::Unix => "unix",
        }
    }

    /// The name under which it is kept.
    pub(crate) fn name(self, task: TaskId) -> String {
        format!("task/{task}/{}", self.word())
    }
}

/// Descriptors of containers by container; names that are not of this form are somebody else's and left out.
pub(crate) fn by_task(kept: Vec<(String, OwnedFd)>) -> HashMap<TaskId, HashMap<Part, OwnedFd>> {
    let mut tasks: HashMap<TaskId, HashMap<Part, OwnedFd>> = HashMap::new();
    for (name, fd) in kept {
        let Some((task, word)) = name.strip_prefix("task/").and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        let part = Part::ALL.into_iter().find(|part| part.word() == word);
        if let (Ok(task), Some(part)) = (task.parse(), part) {
            tasks.entry(task).or_default().insert(part, fd);
        }
    }
    tasks
}
