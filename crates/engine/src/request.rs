//! What clients and containers ask, and what they are told.

use bytes::Bytes;
use evoke_core::{AppId, CallId, DefinitionId, FunctionId, InputId, Phase, TaskId, UnixMs};
use evoke_store::calls::OutputRow;
pub use evoke_store::calls::{CallType, Direction, Invocation, Key, OutputsQuery, ResultStatus, TaskUsage};
use std::sync::Arc;

/// A new call.
#[derive(Debug, Clone)]
pub struct MapRequest {
    /// The function.
    pub function_id: FunctionId,
    /// One input or many.
    pub call_type: CallType,
    /// How the caller waits.
    pub invocation: Invocation,
    /// The input whose code makes the call.
    pub parent_input: Option<InputId>,
    /// The inputs that come with the call.
    pub inputs: Vec<NewInput>,
    /// Whether failures are results to the caller.
    pub return_exceptions: bool,
}

/// A new input.
#[derive(Debug, Clone)]
pub struct NewInput {
    /// Its place in the call.
    pub idx: i32,
    /// Only inputs of one group go into one batch (control makes it from the method's name); 0 where that
    /// does not matter.
    pub group: u32,
    /// What the container gets: protobuf bytes, opaque here.
    pub input: Bytes,
}

/// The answer to a new call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapReply {
    /// Its id.
    pub call_id: CallId,
    /// The ids of its inputs, with their places.
    pub inputs: Vec<(i32, InputId)>,
}

/// Outputs of a call after a cursor.
#[derive(Debug, Clone, Default)]
pub struct OutputsPoll {
    /// Outputs in the order of their entries.
    pub outputs: Vec<OutputRef>,
    /// Set where memory does not reach back far enough: read these from the store instead; `outputs` is
    /// empty then.
    pub load: Option<OutputsQuery>,
    /// The cursor for the next poll when all of `outputs` are answered.
    pub last_entry: Key,
    /// Inputs that have not ended.
    pub unfinished: u32,
}

/// One output.
#[derive(Debug, Clone)]
pub struct OutputRef {
    /// Its entry.
    pub entry: Key,
    /// Its input's place in the call.
    pub idx: i32,
    /// The output if it is still in memory; else it is read from the store by its entry
    /// (`OutputsQuery { after: entry - 1, max: 1, .. }`).
    pub row: Option<Arc<OutputRow>>,
}

/// Chunks of a call after an index.
#[derive(Debug, Clone, Default)]
pub struct ChunksPoll {
    /// The call's key, for reading chunks from the store.
    pub call: Key,
    /// The last chunk that has arrived.
    pub last_index: u64,
    /// The chunks right after the index asked for that are in memory, in order. Where the first one wanted
    /// (index + 1, if `last_index` is not below) is missing, it and those after it are read from the store.
    pub chunks: Vec<(u64, Bytes)>,
    /// Whether the call has ended, so that no more will arrive.
    pub ended: bool,
}

/// A container's question for inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollRequest {
    /// The container.
    pub task: TaskId,
    /// Equal for repetitions of one question (a hash of the idempotency key): such a repetition means that the
    /// answer was lost, and gets it again. 0 where that is not known.
    pub key: u64,
    /// At most so many inputs; at least 1.
    pub max: u32,
}

/// The answer to a container's question for inputs.
#[derive(Debug, Clone)]
pub enum Claim {
    /// Work on these.
    Inputs(Vec<Claimed>),
    /// Nothing now: ask again when woken ([`crate::Effect::WakeTask`]).
    Wait {
        /// Or at this time, where a batch is being collected.
        until: Option<UnixMs>,
    },
    /// Take no more and shut down.
    KillSwitch,
}

/// An input handed to a container.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The call.
    pub call_id: CallId,
    /// The input.
    pub input_id: InputId,
    /// Its place in the call.
    pub idx: i32,
    /// Counted failures so far.
    pub retry_count: u32,
    /// How the caller waits.
    pub invocation: Invocation,
    /// The payload; none where it must be read from the store (`calls::input_payload`).
    pub input: Option<Bytes>,
}

/// A container's answer for one input.
#[derive(Debug, Clone)]
pub struct NewOutput {
    /// The input.
    pub input_id: InputId,
    /// How it ended, from the result.
    pub status: ResultStatus,
    /// The result as control wants it back: protobuf bytes, opaque here.
    pub result: Bytes,
    /// The count that came with the input.
    pub retry_count: u32,
    /// When the container started on it, if it said so.
    pub started: Option<UnixMs>,
}

/// What became of a container's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFate {
    /// Published.
    Published,
    /// A failure that is tried again.
    Retried,
    /// Dropped: the input has ended, or is not this container's any more, or another attempt runs.
    Stale,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerExit {
    /// Whether the kernel ended it for its memory limit.
    pub oom: bool,
    /// The exit code of its main program.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Who is at fault.
    pub cause: ExitCause,
    /// In words.
    pub text: String,
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    /// Its program ended, on its own or because it was told to.
    Program,
    /// It could not be started: the machine's fault or the image's, not the program's.
    StartFailed,
    /// Its machine went away.
    WorkerLost,
}

/// News of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// It reached a phase at a time.
    Phase(Phase, UnixMs),
    /// Its processes are gone.
    Exited(ContainerExit),
}

/// A call's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallInfo {
    /// The app.
    pub app_id: AppId,
    /// The function.
    pub function_id: FunctionId,
    /// How the caller waits.
    pub invocation: Invocation,
    /// One input or many.
    pub call_type: CallType,
    /// Whether failures are results to the caller.
    pub return_exceptions: bool,
    /// When it was accepted.
    pub created: UnixMs,
    /// Inputs accepted.
    pub inputs: u32,
    /// Inputs that no container has (queued or backing off).
    pub waiting: u32,
    /// Inputs that a container has.
    pub running: u32,
    /// Ended inputs per status.
    pub ended: Vec<(ResultStatus, u32)>,
    /// Whether it was cancelled.
    pub cancelled: bool,
}

/// A function's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolInfo {
    /// Inputs waiting for a container.
    pub backlog: u32,
    /// Inputs that containers have.
    pub running_inputs: u32,
    /// Containers that serve or start, without those on their way out.
    pub containers: u32,
    /// Of those, the ones that have asked for their first input.
    pub ready: u32,
    /// Inputs that these could take at once.
    pub headroom: u32,
}

/// A container as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInfo {
    /// Its id.
    pub task: TaskId,
    /// The function.
    pub function_id: FunctionId,
    /// The app.
    pub app_id: AppId,
    /// What it runs.
    pub definition_id: DefinitionId,
    /// The function's generation when it was started.
    pub generation: u64,
    /// When the decision to start it was made.
    pub queued: UnixMs,
    /// When it asked for its first input.
    pub ready: Option<UnixMs>,
    /// The inputs that it has.
    pub inputs: Vec<InputId>,
    /// Whether it is on its way out.
    pub stopping: bool,
}
