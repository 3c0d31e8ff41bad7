//! Calls, their inputs, attempts, outputs and chunks, and the containers that run them.
//!
//! What never changes (a call, an input with its payload, an output, a chunk) is inserted once. What does
//! change is small and short-lived: one row in `pending` for each input that has not ended. A start reads
//! only `pending` and the open maps, so its time does not depend on how much history there is.
//!
//! Rows have integer keys from one rising sequence. An id holds its row's key (see [`keys`]), so that
//! looking up an id needs no index, and every insert lands at the right-hand edge of its tree.
//!
//! Writes are data ([`CallWrite`]), produced by `evoke-engine` and applied by the store's writer.

mod explain;
mod graph;
pub mod keys;
mod read;
mod retention;
mod rows;
mod schema;
mod stats;
mod write;

pub use explain::{AttemptView, InputView, attempts_of, input_view, task_by_id, tasks_of_app};
pub use graph::{CallGraph, GraphInput, call_graph};
pub use read::{
    CallView, OutputsQuery, call_by_id, calls_of_function, chunks, input_payload, input_payloads, outputs,
    recover,
};
pub use retention::{Deleted, delete_before, delete_over_bytes};
pub use rows::{
    AttemptEnd, AttemptRow, CallRow, CallType, ChunkRow, Direction, InputRow, Invocation, Key, OutputRow,
    PendingUpdate, Recovered, RecoveredCall, RecoveredInput, ResultBody, ResultStatus, StopState, TaskEnd,
    TaskRow, TaskUsage,
};
pub use schema::{PARENT_INDEX, SCHEMA, TASK_GPUS};
pub use stats::{
    InputStats, Listed, PastInput, Span, TaskSpan, count_inputs, input_stats, past_inputs, tasks_within,
};
pub use write::CallWrite;

#[cfg(test)]
mod tests;
