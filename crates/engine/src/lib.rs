//! The durable call engine: calls, inputs, attempts, containers and pools of containers.
//!
//! Pure: no clock, no I/O, no async. Every method is told what happened and when, changes the state in memory,
//! and returns a [`Step`]: the reply, what must be stored, and what must be done. The shell around it
//!
//! 1. holds the engine in a mutex, calls one method, and submits the step's writes to the store *before* it
//!    unlocks, so that the order of submission is the order of decisions;
//! 2. waits until the writes are stored to the step's grade;
//! 3. answers, and runs the effects. Effects that only wake somebody may be run before 2.
//!
//! Methods without writes answer from a state that may not be stored yet. Their answers, too, wait until all
//! that was submitted before is stored (`Store::committed(Store::last_submitted())`): a result that a client
//! has seen must not be lost. If a submission fails, memory is ahead of the store: the engine is dropped and
//! made again with [`Engine::recover`] and [`Engine::adopt`].
//!
//! After a start: [`Engine::put_worker`], [`Engine::put_function`] for every function, [`Engine::recover`],
//! [`Engine::adopt`]; until `adopt`, containers that live on may poll and answer, and nothing is started.
//!
//! What is kept true, and checked by the simulation in `evoke-sim`:
//! * an accepted input ends, and with exactly one output;
//! * an input is with at most one container, and only that container's answer to the current attempt counts;
//! * a container has no more inputs than its function allows;
//! * no two containers have one GPU;
//! * counted retries, containers that died under an input, and failed starts in a row are bounded.

mod cache;
mod calls;
mod cancel;
mod claim;
mod client;
mod conf;
mod data;
mod devices;
mod engine;
mod explain;
mod leases;
mod limits;
mod outputs;
mod planning;
mod pool;
mod recover;
mod request;
mod step;
mod tasks;
mod tick;
mod timers;

pub use conf::{Autoscaler, EngineConf, FunctionConf, RetryPolicy};
pub use devices::Gpu;
pub use engine::Engine;
pub use evoke_sched::{Limited, Limits, WorkerCapacity, WorkerId};
pub use evoke_store::Grade;
pub use explain::{Noted, Reason};
pub use leases::{LeaseEnd, LeaseId};
pub use request::{
    CallInfo, CallType, ChunksPoll, Claim, Claimed, ContainerEvent, ContainerExit, Direction, ExitCause,
    Invocation, Key, MapReply, MapRequest, NewInput, NewOutput, OutputFate, OutputRef, OutputsPoll,
    OutputsQuery, PollRequest, PoolInfo, ResultStatus, TaskInfo, TaskUsage,
};
pub use step::{Effect, Step, StopHow};
