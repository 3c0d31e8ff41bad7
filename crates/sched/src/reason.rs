//! Why a decision was taken, with the numbers it was taken on.

use crate::limits::Limited;
use std::fmt;

/// A reason, kept for `evoke explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are named in the texts below.
pub enum Reason {
    /// More containers, because inputs wait.
    Backlog { waiting: u32, running: u32, containers: u32, target: u32 },
    /// More containers, to keep the minimum.
    Minimum { min: u32, containers: u32 },
    /// More containers, to keep the buffer while there is work.
    Buffer { buffer: u32, containers: u32, target: u32 },
    /// No more containers: what waits is done sooner than a container starts.
    DrainsSoon { waiting: u32, typical_run_ms: u64, typical_start_ms: u64, containers: u32 },
    /// No more containers: the function's maximum is reached.
    Maximum { max: u32, waiting: u32 },
    /// No start yet, because the last ones failed.
    BackOff { failed_starts: u32, wait_ms: u64 },
    /// A container is stopped, because it was idle for long.
    Idle { idle_ms: u64, window_ms: u64 },
    /// A container is stopped, because there are more than the maximum.
    AboveMaximum { containers: u32, max: u32 },
    /// No place: no machine has joined.
    NoWorkers { waiting: u32 },
    /// No place: the machines are full.
    Full { waiting: u32, waited_ms: u64 },
    /// No place: the environment has as many containers or GPUs as it may, or nearly.
    EnvironmentLimit { of: Limited, max: u32, taken: u32, waiting: u32 },
    /// No start yet: as many containers are starting as the machines may start at the same time.
    StartsBusy { waiting: u32 },
    /// No machine could ever hold it.
    NeverFits { milli_cpu: u32, memory_mib: u32, gpus: u32 },
    /// Started beyond the machine's room, because nothing moved for so long.
    Overcommit { waited_ms: u64 },
    /// An idle container is stopped to make room for another function's inputs.
    GaveRoom { idle_ms: u64 },
    /// A working container takes no more inputs, to make room for a function that has waited.
    GaveTurn { containers: u32, waited_ms: u64 },
    /// A container of an older definition or generation is replaced.
    Replaced { generation: u64, current: u64 },
    /// The app was stopped.
    AppStopped,
    /// A container has taken as many inputs as it may.
    InputsUsedUp { taken: u32 },
    /// An input ran out of time.
    InputTimeout { timeout_ms: u64 },
    /// A cancelled input did not end within the grace.
    CancelGrace { grace_ms: u64 },
    /// A cancelled call's containers are stopped, as the client asked for.
    CancelTerminates,
    /// The container did not become ready in time.
    StartupTimeout { timeout_ms: u64 },
    /// Somebody asked for the container to be stopped.
    Asked,
    /// The container was told to stop and is still there.
    Overdue { waited_ms: u64 },
    /// It takes nothing more and has finished what it had.
    Drained,
    /// So many starts failed in a row that the waiting inputs failed.
    CrashLoop { failed_starts: u32, inputs: u32 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Reason::Backlog { waiting, running, containers, target } => write!(
                f,
                "{waiting} inputs wait and {running} run on {containers} containers; {target} are wanted"
            ),
            Reason::Minimum { min, containers } => {
                write!(f, "min_containers is {min}, there are {containers}")
            }
            Reason::Buffer { buffer, containers, target } => write!(
                f,
                "buffer_containers is {buffer} while there is work; there are {containers} of {target}"
            ),
            Reason::DrainsSoon { waiting, typical_run_ms, typical_start_ms, containers } => write!(
                f,
                "{waiting} inputs wait, but at {typical_run_ms} ms each {containers} containers are done with them \
                 sooner than more would pay for their start of {typical_start_ms} ms"
            ),
            Reason::Maximum { max, waiting } => write!(f, "{waiting} inputs wait; max_containers is {max}"),
            Reason::BackOff { failed_starts, wait_ms } => {
                write!(f, "{failed_starts} starts in a row failed; the next one is in {wait_ms} ms")
            }
            Reason::Idle { idle_ms, window_ms } => {
                write!(f, "idle for {idle_ms} of {window_ms} ms scaledown_window")
            }
            Reason::AboveMaximum { containers, max } => {
                write!(f, "there are {containers} containers and max_containers is {max}")
            }
            Reason::NoWorkers { waiting } => write!(f, "{waiting} inputs wait and no machine has joined"),
            Reason::Full { waiting, waited_ms } => {
                write!(f, "{waiting} inputs wait, for {waited_ms} ms, and the machines are full")
            }
            Reason::EnvironmentLimit { of, max, taken, waiting } => of.say(f, max, taken, waiting),
            Reason::StartsBusy { waiting } => {
                write!(f, "{waiting} inputs wait; as many containers are starting as may at the same time")
            }
            Reason::NeverFits { milli_cpu, memory_mib, gpus } => {
                let cores = f64::from(milli_cpu) / 1000.0;
                write!(f, "no machine can hold {cores:.3} cores, {memory_mib} MiB and {gpus} GPUs")
            }
            Reason::Overcommit { waited_ms } => {
                write!(f, "started beyond the machine's room: nothing moved for {waited_ms} ms")
            }
            Reason::GaveRoom { idle_ms } => write!(f, "idle for {idle_ms} ms; another function needs room"),
            Reason::GaveTurn { containers, waited_ms } => write!(
                f,
                "one of {containers} containers; another function has waited for room for {waited_ms} ms"
            ),
            Reason::Replaced { generation, current } => {
                write!(f, "it is of generation {generation} and the current one is {current}")
            }
            Reason::AppStopped => f.write_str("the app was stopped"),
            Reason::InputsUsedUp { taken } => write!(f, "it has taken the {taken} inputs that it may take"),
            Reason::InputTimeout { timeout_ms } => {
                write!(f, "an input ran over its timeout of {timeout_ms} ms")
            }
            Reason::CancelGrace { grace_ms } => write!(f, "a cancelled input still ran after {grace_ms} ms"),
            Reason::CancelTerminates => f.write_str("a call was cancelled together with its containers"),
            Reason::StartupTimeout { timeout_ms } => write!(f, "it was not ready within {timeout_ms} ms"),
            Reason::Asked => f.write_str("a request asked for it"),
            Reason::Drained => write!(f, "it takes nothing more and has finished what it had"),
            Reason::Overdue { waited_ms } => write!(f, "it was told to stop {waited_ms} ms ago"),
            Reason::CrashLoop { failed_starts, inputs } => {
                write!(f, "{failed_starts} starts in a row failed; {inputs} waiting inputs fail with them")
            }
        }
    }
}
