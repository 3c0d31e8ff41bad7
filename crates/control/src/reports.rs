//! What workers tell: phases of containers, their ends, their output.

use crate::Control;
use evoke_core::{Error, FunctionId, Phase, TaskId, UnixMs, VolumeId};
use evoke_engine::{ContainerEvent, ContainerExit, ExitCause, TaskUsage};
use evoke_proto::worker::{
    CommittedLayer, Control as ControlPort, Exit, LogChunk, Usage, VolumeChange, VolumeView, WorkerEvent,
};
use evoke_proto::{CallContext, Reply, Service, Status, api};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;

type Committed = Result<String, Error>;

/// Image builds that wait for the container of their build function to commit its layer.
#[derive(Default)]
pub(crate) struct Commits(Mutex<HashMap<FunctionId, oneshot::Sender<Committed>>>);

impl Commits {
    /// Waits for the layer that the next container of `function` commits.
    pub(crate) fn expect(&self, function: FunctionId) -> oneshot::Receiver<Committed> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(function, sender);
        receiver
    }

    fn tell(&self, function: FunctionId, outcome: Committed) {
        if let Some(waiting) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&function) {
            // A build that was given up does not wait any more.
            let _ = waiting.send(outcome);
        }
    }
}

impl Control {
    async fn take_event(&self, event: WorkerEvent) -> Result<(), Status> {
        match event {
            WorkerEvent::Phase { task, phase, at } => {
                self.show_state(task, phase, at);
                let event = ContainerEvent::Phase(phase, at);
                self.calls.apply(self, |engine, now| Ok(engine.container_event(task, event, now))).await
            }
            WorkerEvent::Path { task, path } => {
                self.calls.apply(self, |engine, _| Ok(engine.task_path(task, path))).await
            }
            WorkerEvent::StartFailed { task, error, at } => {
                self.show_state(task, Phase::Exited, at);
                self.start_failed(task, &error.to_string()).await
            }
            WorkerEvent::Exited { task, exit, usage, committed, at } => {
                self.show_state(task, Phase::Exited, at);
                self.take_exit(task, exit, usage, committed).await
            }
        }
    }

    async fn take_exit(
        &self,
        task: TaskId,
        exit: Exit,
        usage: Usage,
        committed: Option<Result<CommittedLayer, Error>>,
    ) -> Result<(), Status> {
        let function = self.calls.look(|engine| engine.task_info(task)).map(|info| info.function_id);
        if let (Some(function), Some(outcome)) = (function, committed) {
            self.commits.tell(function, outcome.map(|_| crate::launch::layer_name(task)));
        }
        if let Some(app) = self.calls.look(|engine| engine.task_info(task)).map(|info| info.app_id) {
            // All its output is shipped: its offsets will not be asked for again.
            self.logs.forget_task(&app.into(), task);
        }
        let used = TaskUsage { cpu_ms: usage.cpu_ns / 1_000_000, memory_peak_bytes: usage.memory_peak_bytes };
        self.end_tunnels(task).await;
        self.calls.apply(self, |engine, _| Ok(engine.task_usage(task, used))).await?;
        let end = ContainerExit {
            oom: exit.oom,
            code: exit.code,
            signal: exit.signal,
            cause: ExitCause::Program,
            text: if exit.oom { self.oom_text(task, function) } else { exit_text(&exit) },
        };
        self.calls
            .apply(self, |engine, now| Ok(engine.container_event(task, ContainerEvent::Exited(end), now)))
            .await
    }

    fn oom_text(&self, task: TaskId, function: Option<FunctionId>) -> String {
        let limit = function
            .and_then(|id| self.registry.function(id))
            .and_then(|found| found.definition.function.resources.as_ref().map(|asked| asked.memory_mb_max))
            .filter(|mib| *mib > 0);
        let over =
            limit.map_or_else(|| "the machine has left".to_string(), |mib| format!("its limit of {mib} MiB"));
        format!(
            "The container {task} used more memory than {over} and was killed. Raise the limit in memory=(request, limit), or use less"
        )
    }

    /// Tells clients that follow the app how the container does.
    fn show_state(&self, task: TaskId, phase: Phase, at: UnixMs) {
        use api::TaskState as State;
        let state = match phase {
            Phase::Queued => State::Queued,
            Phase::Placed => State::WorkerAssigned,
            Phase::Root => State::LoadingImage,
            Phase::Slot | Phase::Exec | Phase::Hello => State::CreatingContainer,
            Phase::Ready => State::Active,
            Phase::Exited | Phase::Removed => State::Completed,
            Phase::Stopping => return,
        };
        let Some(info) = self.calls.look(|engine| engine.task_info(task)) else { return };
        self.app_events.task_state(info.app_id, info.function_id.to_string(), task, state, at);
    }
}

fn exit_text(exit: &Exit) -> String {
    match exit {
        Exit { code: Some(code), .. } => format!("it exited with status {code}"),
        Exit { signal: Some(signal), killed_by_us: true, .. } => {
            format!("it was stopped with signal {signal}")
        }
        Exit { signal: Some(signal), .. } => format!("it was killed by signal {signal}"),
        _ => "it ended".into(),
    }
}

#[async_trait::async_trait]
impl Service for Control {
    async fn call(&self, context: CallContext, body: bytes::Bytes) -> Result<Reply, Status> {
        self.serve(context, body).await
    }
}

#[async_trait::async_trait]
impl ControlPort for Control {
    async fn report(&self, event: WorkerEvent) {
        if let Err(status) = self.take_event(event).await {
            tracing::error!(%status, "an event of a container could not be recorded");
        }
    }

    async fn append_logs(&self, chunks: Vec<LogChunk>) -> Result<(), Error> {
        self.take_logs(chunks).await
    }

    async fn merge_volume(
        &self,
        volume: VolumeId,
        base: u64,
        changes: Vec<VolumeChange>,
        author: String,
    ) -> Result<u64, Error> {
        self.merge_changes(volume, base, changes, &author).await.map_err(Error::from)
    }

    async fn volume_view(&self, volume: VolumeId) -> Result<VolumeView, Error> {
        self.view_of(volume).await.map_err(Error::from)
    }

    async fn log_offsets(&self, task: TaskId) -> (u64, u64) {
        let Some(info) = self.calls.look(|engine| engine.task_info(task)) else { return (0, 0) };
        let (logs, app) = (self.logs.clone(), info.app_id);
        let offsets = crate::blocking(move || logs.taken_over(&app.into(), task).map_err(Error::from)).await;
        offsets.unwrap_or_else(|status| {
            tracing::error!(%task, %status, "cannot tell how far the container's output was taken over");
            (0, 0)
        })
    }
}
