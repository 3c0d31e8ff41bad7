//! What a decision gives back: a reply, what must be stored, and what must be done.

use crate::leases::LeaseId;
use evoke_core::{AppId, CallId, DefinitionId, FunctionId, InputId, TaskId};
pub use evoke_sched::WorkerId;
use evoke_store::Grade;
use evoke_store::calls::CallWrite;

/// The outcome of one decision.
#[derive(Debug)]
#[must_use]
pub struct Step<T> {
    /// The answer to whoever asked; not to be given before the writes have reached `grade`.
    pub reply: T,
    /// What must be stored, in this order, together.
    pub writes: Vec<CallWrite>,
    /// What must be done once it is stored. [`Effect::is_wake`] ones may be done at once.
    pub effects: Vec<Effect>,
    /// How safely it must be stored before the answer.
    pub grade: Grade,
}

impl<T> Step<T> {
    /// The same step with another reply.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Step<U> {
        Step { reply: f(self.reply), writes: self.writes, effects: self.effects, grade: self.grade }
    }
}

/// Something to be done outside. Doing one twice, or after the world moved on, is harmless: containers are
/// fenced by their ids, and whoever is woken asks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start a container.
    StartContainer {
        /// Its id.
        task: TaskId,
        /// The function.
        function_id: FunctionId,
        /// What it runs.
        definition_id: DefinitionId,
        /// On which machine.
        worker: WorkerId,
        /// The names of the GPUs there that are its own.
        gpus: Vec<String>,
        /// Why.
        reason: String,
    },
    /// Stop a container.
    StopContainer {
        /// Which.
        task: TaskId,
        /// How.
        how: StopHow,
        /// Why.
        reason: String,
    },
    /// Outputs or chunks of this call arrived, or it ended: whoever waits polls again.
    WakeCall(CallId),
    /// The container's waiting poll asks again.
    WakeTask(TaskId),
    /// The container's heartbeat is answered now: there is something to cancel.
    WakeHeartbeat(TaskId),
    /// What the container's output belongs to; none where that is not certain.
    CurrentInput {
        /// The container.
        task: TaskId,
        /// The one input that it works on.
        current: Option<(CallId, InputId)>,
    },
    /// A request that waited has a container, or never will, for this reason.
    Leased {
        /// Which.
        lease: LeaseId,
        /// The container.
        to: Result<TaskId, String>,
    },
    /// The last container of this app is gone.
    AppIdle(AppId),
    /// The number or state of a function's containers or waiting inputs changed.
    PoolChanged(FunctionId),
}

impl Effect {
    /// Whether it only makes somebody ask again, and so may happen before the writes are stored: the answer
    /// to that question waits for its own writes, which are stored after these.
    pub fn is_wake(&self) -> bool {
        !matches!(self, Effect::StartContainer { .. } | Effect::StopContainer { .. })
    }
}

/// How a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopHow {
    /// SIGINT, and SIGKILL if it is still there after the grace.
    Interrupt {
        /// The grace in milliseconds.
        grace_ms: u64,
    },
    /// SIGKILL.
    Kill,
}
