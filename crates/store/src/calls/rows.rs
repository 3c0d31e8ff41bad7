//! The rows of calls as plain data.

use bytes::Bytes;
use evoke_core::{AppId, CallId, DefinitionId, FunctionId, InputId, Phase, StartPath, TaskId, UnixMs};

/// Key of a row in any of the tables here; one rising sequence for all of them.
pub type Key = i64;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)* }
        impl $name {
            /// The number under which it is stored.
            pub fn number(self) -> u8 {
                self as u8
            }
            /// The value with this number.
            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

numbered! {
    /// Whether a call has one input or many (the protocol's numbers).
    CallType {
        /// One input, sent with the call or right after it.
        Unary = 1,
        /// Inputs arrive for as long as the client likes.
        Map = 2,
        /// One request of somebody who waits at a connection of this very server (our own number): its body
        /// passes by once, so that it is never tried again, and it is over when the connection is.
        Web = 100,
    }
}

numbered! {
    /// How the caller waits (the protocol's numbers).
    Invocation {
        /// A connected client waits.
        SyncLegacy = 1,
        /// Nobody holds a connection; both input and output are put on stable storage.
        Async = 3,
        /// A connected client waits.
        Sync = 4,
    }
}

numbered! {
    /// How an attempt or an input ended (the protocol's numbers).
    ResultStatus {
        /// A result.
        Success = 1,
        /// User code raised.
        Failure = 2,
        /// Cancelled.
        Terminated = 3,
        /// Ran longer than its timeout.
        Timeout = 4,
        /// The container never became ready.
        InitFailure = 5,
        /// The container was lost, or a defect of ours.
        InternalFailure = 6,
        /// Over its memory limit.
        Oom = 10,
    }
}

numbered! {
    /// How one attempt at an input ended, where it did not give the input's output.
    AttemptEnd {
        /// It failed and the input is tried again under its retry policy.
        Retried = 1,
        /// Its container ended under it; the input is tried again without counting.
        ContainerDied = 2,
        /// Its machine or server went away; the input is tried again without counting.
        Lost = 3,
        /// Its container was stopped for another reason; the input is tried again without counting.
        Interrupted = 4,
        /// It ran out of time.
        TimedOut = 5,
    }
}

numbered! {
    /// Which stream of a call's chunks.
    Direction {
        /// From the container to the caller.
        Out = 0,
        /// From the caller to the container.
        In = 1,
    }
}

numbered! {
    /// Whether a container is on its way out.
    StopState {
        /// It takes inputs.
        Serving = 0,
        /// It finishes what it has and takes nothing more.
        Draining = 1,
        /// It was told to stop and holds no inputs.
        Stopping = 2,
    }
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRow {
    /// Its key.
    pub key: Key,
    /// Its id, which holds the key.
    pub id: CallId,
    /// The function.
    pub function_id: FunctionId,
    /// The function's app.
    pub app_id: AppId,
    /// One input or many.
    pub call_type: CallType,
    /// How the caller waits.
    pub invocation: Invocation,
    /// The input whose code made the call.
    pub parent_input: Option<InputId>,
    /// Whether failures are results to the caller (`map(return_exceptions=True)`).
    pub return_exceptions: bool,
    /// When it was accepted.
    pub created: UnixMs,
}

/// One input with its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRow {
    /// Its key.
    pub key: Key,
    /// Its id, which holds the key.
    pub id: InputId,
    /// Its call.
    pub call: Key,
    /// Its place in the call, as the client numbered it.
    pub idx: i32,
    /// Inputs of one batch have equal groups.
    pub group: u32,
    /// When it was accepted.
    pub created: UnixMs,
    /// What the container gets: protobuf bytes, opaque here.
    pub payload: Bytes,
}

/// One hand-out of an input to a container. What it runs with (definition, image, mounts, secret versions)
/// is that container's, in its [`TaskRow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Its key.
    pub key: Key,
    /// The input.
    pub input: Key,
    /// The container.
    pub task: TaskId,
    /// Counted failures before this attempt.
    pub retry_count: u32,
    /// The poll that it was handed out to, so that a repeated poll gets it again.
    pub poll: u64,
    /// Attempts handed out together (a batch) have equal claims.
    pub claim: Key,
    /// When it was handed out.
    pub started: UnixMs,
}

/// The state of an input that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PendingUpdate {
    /// The input.
    pub input: Key,
    /// Counted failures.
    pub retry_count: u32,
    /// Containers that died under it.
    pub crashes: u32,
    /// Machines and servers that went away under it.
    pub losses: u32,
    /// Not to be tried before this time.
    pub not_before: Option<UnixMs>,
    /// When its cancellation was asked for.
    pub cancelled: Option<UnixMs>,
}

/// What an output consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultBody {
    /// The container's answer: protobuf bytes, opaque here.
    Container(Bytes),
    /// Made by the server; the status says what happened and this is the text for the user.
    Synthesised(String),
}

/// The one published output of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRow {
    /// Its key, which orders a call's outputs and serves as the cursor.
    pub entry: Key,
    /// The call.
    pub call: Key,
    /// The input.
    pub input: Key,
    /// The input's id.
    pub input_id: InputId,
    /// The input's place in the call.
    pub idx: i32,
    /// How it ended.
    pub status: ResultStatus,
    /// The result.
    pub body: ResultBody,
    /// Counted failures before the attempt that gave it. On the wire this must be 0 where the server does
    /// the retries, because a client that counts none drops outputs that do.
    pub retry_count: u32,
    /// The attempt that gave it; none where the input never ran.
    pub attempt: Option<Key>,
    /// That attempt's container.
    pub task: Option<TaskId>,
    /// When that attempt started, by the container's clock where it said so.
    pub started: Option<UnixMs>,
    /// When it was published.
    pub finished: UnixMs,
}

/// One piece of a streamed result or request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRow {
    /// The call.
    pub call: Key,
    /// Which way.
    pub direction: Direction,
    /// Counted from 1.
    pub index: u64,
    /// Protobuf bytes, opaque here.
    pub body: Bytes,
}

/// One container, from the decision to start it until it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRow {
    /// Its id.
    pub id: TaskId,
    /// The function it serves.
    pub function_id: FunctionId,
    /// The function's app.
    pub app_id: AppId,
    /// The definition it was started from.
    pub definition_id: DefinitionId,
    /// The function's generation at that time.
    pub generation: u64,
    /// The machine it was placed on.
    pub worker: u32,
    /// Why it was started, with the numbers.
    pub reason: String,
    /// Which way it was started.
    pub start_path: StartPath,
    /// What it runs with, as control encodes it (image, mounts, secret versions).
    pub with: Bytes,
    /// The names of the GPUs that are its own until it is gone.
    pub gpus: Vec<String>,
    /// Whether it is on its way out.
    pub stop: StopState,
    /// When each phase was reached.
    pub phases: Vec<(Phase, UnixMs)>,
    /// How it ended, once it has.
    pub end: Option<TaskEnd>,
    /// What it used, as last reported.
    pub usage: TaskUsage,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// When.
    pub at: UnixMs,
    /// In words.
    pub text: String,
    /// The exit code of its main program.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel ended it for its memory limit.
    pub oom: bool,
}

/// What a container used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskUsage {
    /// Processor time in milliseconds.
    pub cpu_ms: u64,
    /// Highest memory use in bytes.
    pub memory_peak_bytes: u64,
}

/// Everything unfinished, as read at a start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Larger than every key in use.
    pub next_key: Key,
    /// Calls with unfinished inputs, and maps that may get more.
    pub calls: Vec<RecoveredCall>,
    /// Inputs that have not ended, by key.
    pub inputs: Vec<RecoveredInput>,
    /// Containers not known to have ended.
    pub tasks: Vec<TaskRow>,
}

/// A call at a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredCall {
    /// The row.
    pub row: CallRow,
    /// Whether more inputs may come.
    pub open: bool,
    /// How many inputs the client said there are, if it did.
    pub declared_inputs: Option<u32>,
    /// Ended inputs per status.
    pub ended: Vec<(ResultStatus, u32)>,
    /// The last output's entry; 0 if there is none.
    pub last_entry: Key,
    /// The last chunk from the container; 0 if there is none.
    pub last_out: u64,
    /// The last chunk to the container; 0 if there is none.
    pub last_in: u64,
}

/// An input at a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredInput {
    /// Its key.
    pub key: Key,
    /// Its id.
    pub id: InputId,
    /// Its call.
    pub call: Key,
    /// Its place in the call.
    pub idx: i32,
    /// Its batch group.
    pub group: u32,
    /// When it was accepted.
    pub created: UnixMs,
    /// Its state.
    pub pending: PendingUpdate,
    /// The attempt that was running.
    pub running: Option<AttemptRow>,
}
