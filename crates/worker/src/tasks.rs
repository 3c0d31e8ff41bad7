//! The one place where this crate spawns tasks. Each has a kind, and the kind says what its end means.

use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use tokio::task::JoinHandle;
use tracing::Instrument;

/// What a task is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Drives one container. Ends when the container is gone.
    Container,
    /// Ships one stream of output. Ends when all of it is shipped, or the rest is left in its spool.
    Capture,
    /// Serves one listener of one container. Ends after the container did.
    Listener,
    /// Commits what one container writes to its volumes. Ends before the container is removed.
    Volumes,
    /// Makes, watches or takes down one template.
    Template,
    /// Looks at what containers use. Ends with the worker.
    Usage,
}

/// A task ended by a panic: a defect of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Runs `work`; a panic in it is logged and is the result.
pub(crate) async fn guard<T>(kind: TaskKind, work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!(?kind, "a task panicked: {text}");
        Panicked
    })
}

/// Spawns `work` for `name`, which its log lines carry.
pub(crate) fn spawn(
    kind: TaskKind,
    name: impl std::fmt::Display,
    work: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let span = tracing::info_span!("task", ?kind, %name);
    let guarded = async move {
        // Logged there; nobody waits for the result of a task.
        let _ = guard(kind, work).await;
    };
    tokio::task::spawn(guarded.instrument(span))
}
