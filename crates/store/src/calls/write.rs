//! Writes of calls as data, and how each is applied.

use super::keys;
use super::rows::{
    AttemptEnd, AttemptRow, CallRow, ChunkRow, InputRow, Key, OutputRow, PendingUpdate, ResultBody,
    StopState, TaskEnd, TaskRow, TaskUsage,
};
use bytes::Bytes;
use evoke_core::{Phase, StartPath, TaskId, UnixMs};
use rusqlite::{Connection, Result, params};

/// One change to the tables of calls. Applying the same list of changes to the same state gives the same
/// state; a change to a row that is gone (its app was deleted meanwhile) does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallWrite {
    /// A call was accepted.
    Call {
        /// The call.
        row: CallRow,
        /// Whether more inputs may come than those accepted with it.
        open: bool,
    },
    /// An input was accepted; it is pending from now on.
    Input(InputRow),
    /// An input was handed to a container.
    Attempt(AttemptRow),
    /// An attempt ended without giving the input's output.
    AttemptEnded {
        /// The attempt.
        attempt: Key,
        /// When.
        at: UnixMs,
        /// How.
        end: AttemptEnd,
    },
    /// The state of a pending input changed.
    Pending(PendingUpdate),
    /// An input ended with this output; it is not pending any more.
    Output(OutputRow),
    /// The client said how many inputs a map has.
    DeclaredInputs {
        /// The call.
        call: Key,
        /// How many.
        inputs: u32,
    },
    /// A call takes no more inputs.
    CallClosed {
        /// The call.
        call: Key,
    },
    /// A piece of a stream arrived.
    Chunk(ChunkRow),
    /// A container is to be started.
    Task(TaskRow),
    /// A container reached a phase.
    TaskPhase {
        /// The container.
        task: TaskId,
        /// The phase.
        phase: Phase,
        /// When.
        at: UnixMs,
    },
    /// What a container runs with and which way it was started became known.
    TaskWith {
        /// The container.
        task: TaskId,
        /// As control encodes it.
        with: Bytes,
        /// Which way it was started.
        path: StartPath,
    },
    /// Which way a container was started turned out to be another one.
    TaskPath {
        /// The container.
        task: TaskId,
        /// Which way it was started.
        path: StartPath,
    },
    /// A container is on its way out.
    TaskStop {
        /// The container.
        task: TaskId,
        /// How far.
        stop: StopState,
    },
    /// What a container used so far.
    TaskUsage {
        /// The container.
        task: TaskId,
        /// The amounts.
        usage: TaskUsage,
    },
    /// A container is gone.
    TaskEnded {
        /// The container.
        task: TaskId,
        /// How.
        end: TaskEnd,
    },
}

impl CallWrite {
    /// Bytes of what it carries for others.
    pub(crate) fn payload_bytes(&self) -> usize {
        match self {
            CallWrite::Input(row) => row.payload.len(),
            CallWrite::Chunk(row) => row.body.len(),
            CallWrite::TaskWith { with, .. } => with.len(),
            CallWrite::Task(row) => row.with.len(),
            CallWrite::Output(OutputRow { body: ResultBody::Container(bytes), .. }) => bytes.len(),
            CallWrite::Output(OutputRow { body: ResultBody::Synthesised(text), .. }) => text.len(),
            _ => 0,
        }
    }

    /// Makes the change; the caller holds the transaction.
    pub fn apply(&self, db: &Connection) -> Result<()> {
        match self {
            CallWrite::Call { row, open } => insert_call(db, row, *open),
            CallWrite::Input(row) => insert_input(db, row),
            CallWrite::Attempt(row) => insert_attempt(db, row),
            CallWrite::AttemptEnded { attempt, at, end } => db
                .prepare_cached("UPDATE attempts SET ended_ms = ?2, ended_as = ?3 WHERE key = ?1")?
                .execute(params![attempt, at.0 as i64, end.number()])
                .map(drop),
            CallWrite::Pending(update) => update_pending(db, update),
            CallWrite::Output(row) => insert_output(db, row),
            CallWrite::DeclaredInputs { call, inputs } => db
                .prepare_cached("UPDATE open_calls SET declared_inputs = ?2 WHERE call = ?1")?
                .execute(params![call, inputs])
                .map(drop),
            CallWrite::CallClosed { call } => {
                db.prepare_cached("DELETE FROM open_calls WHERE call = ?1")?.execute([call]).map(drop)
            }
            CallWrite::Chunk(row) => insert_chunk(db, row),
            CallWrite::Task(row) => insert_task(db, row),
            CallWrite::TaskPhase { task, phase, at } => insert_phase(db, task, *phase, *at),
            CallWrite::TaskWith { task, with, path } => db
                .prepare_cached("UPDATE tasks SET runs_with = ?2, start_path = ?3 WHERE id = ?1")?
                .execute(params![task.to_string(), with.as_ref(), start_path_number(*path)])
                .map(drop),
            CallWrite::TaskPath { task, path } => db
                .prepare_cached("UPDATE tasks SET start_path = ?2 WHERE id = ?1")?
                .execute(params![task.to_string(), start_path_number(*path)])
                .map(drop),
            CallWrite::TaskStop { task, stop } => db
                .prepare_cached("UPDATE tasks SET stop = ?2 WHERE id = ?1")?
                .execute(params![task.to_string(), stop.number()])
                .map(drop),
            CallWrite::TaskUsage { task, usage } => db
                .prepare_cached("UPDATE tasks SET cpu_ms = ?2, memory_peak_bytes = ?3 WHERE id = ?1")?
                .execute(params![task.to_string(), usage.cpu_ms as i64, usage.memory_peak_bytes as i64])
                .map(drop),
            CallWrite::TaskEnded { task, end } => end_task(db, task, end),
        }
    }
}

fn insert_call(db: &Connection, row: &CallRow, open: bool) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO calls (key, salt, function, app, call_type, invocation, parent_input, return_exceptions, \
         created_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        row.key,
        keys::split(&row.id).salt,
        row.function_id.to_string(),
        row.app_id.to_string(),
        row.call_type.number(),
        row.invocation.number(),
        row.parent_input.map(|id| id.to_string()),
        row.return_exceptions,
        row.created.0 as i64,
    ])?;
    if open {
        db.prepare_cached("INSERT INTO open_calls (call) VALUES (?1)")?.execute([row.key])?;
    }
    Ok(())
}

fn insert_input(db: &Connection, row: &InputRow) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO inputs (key, salt, call, idx, grp, created_ms, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        row.key,
        keys::split(&row.id).salt,
        row.call,
        row.idx,
        row.group,
        row.created.0 as i64,
        row.payload.as_ref(),
    ])?;
    db.prepare_cached("INSERT INTO pending (input) VALUES (?1)")?.execute([row.key]).map(drop)
}

fn insert_attempt(db: &Connection, row: &AttemptRow) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO attempts (key, input, task, retry_count, poll, claim, started_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        row.key,
        row.input,
        row.task.to_string(),
        row.retry_count,
        row.poll as i64,
        row.claim,
        row.started.0 as i64,
    ])
    .map(drop)
}

fn update_pending(db: &Connection, update: &PendingUpdate) -> Result<()> {
    db.prepare_cached(
        "UPDATE pending SET retry_count = ?2, crashes = ?3, losses = ?4, not_before_ms = ?5, cancelled_ms = ?6 \
         WHERE input = ?1",
    )?
    .execute(params![
        update.input,
        update.retry_count,
        update.crashes,
        update.losses,
        update.not_before.map(|at| at.0 as i64),
        update.cancelled.map(|at| at.0 as i64),
    ])
    .map(drop)
}

fn insert_output(db: &Connection, row: &OutputRow) -> Result<()> {
    // The pending row is what makes "one output per input" hold in the store too: without it there is
    // nothing to publish for.
    let pending = db.prepare_cached("DELETE FROM pending WHERE input = ?1")?.execute([row.input])?;
    if pending == 0 {
        return Ok(());
    }
    let (text, result) = match &row.body {
        ResultBody::Container(bytes) => (None, Some(bytes.as_ref())),
        ResultBody::Synthesised(text) => (Some(text.as_str()), None),
    };
    db.prepare_cached(
        "INSERT INTO outputs (entry, call, input, idx, status, retry_count, attempt, task, started_ms, \
         finished_ms, text, result) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        row.entry,
        row.call,
        row.input,
        row.idx,
        row.status.number(),
        row.retry_count,
        row.attempt,
        row.task.map(|id| id.to_string()),
        row.started.map(|at| at.0 as i64),
        row.finished.0 as i64,
        text,
        result,
    ])
    .map(drop)
}

fn insert_chunk(db: &Connection, row: &ChunkRow) -> Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO chunks (call, direction, idx, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![row.call, row.direction.number(), row.index as i64, row.body.as_ref()])
        .map(drop)
}

fn insert_task(db: &Connection, row: &TaskRow) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO tasks (id, function, app, definition, generation, worker, reason, start_path, runs_with, \
         stop, gpus) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        row.id.to_string(),
        row.function_id.to_string(),
        row.app_id.to_string(),
        row.definition_id.to_string(),
        row.generation as i64,
        row.worker,
        row.reason,
        start_path_number(row.start_path),
        row.with.as_ref(),
        row.stop.number(),
        row.gpus.join(" "),
    ])?;
    for (phase, at) in &row.phases {
        insert_phase(db, &row.id, *phase, *at)?;
    }
    Ok(())
}

fn insert_phase(db: &Connection, task: &TaskId, phase: Phase, at: UnixMs) -> Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO task_phases (task, phase, at_ms) VALUES (?1, ?2, ?3)")?
        .execute(params![task.to_string(), phase_number(phase), at.0 as i64])
        .map(drop)
}

fn end_task(db: &Connection, task: &TaskId, end: &TaskEnd) -> Result<()> {
    db.prepare_cached(
        "UPDATE tasks SET ended_ms = ?2, end_text = ?3, exit_code = ?4, exit_signal = ?5, oom = ?6 WHERE id = ?1",
    )?
    .execute(params![task.to_string(), end.at.0 as i64, end.text, end.exit_code, end.signal, end.oom])
    .map(drop)
}

const PHASES: [Phase; 10] = [
    Phase::Queued,
    Phase::Placed,
    Phase::Root,
    Phase::Slot,
    Phase::Exec,
    Phase::Hello,
    Phase::Ready,
    Phase::Stopping,
    Phase::Exited,
    Phase::Removed,
];

pub(super) fn phase_number(phase: Phase) -> i64 {
    PHASES.iter().position(|p| *p == phase).unwrap_or(PHASES.len()) as i64
}

pub(super) fn phase_from_number(number: i64) -> Option<Phase> {
    usize::try_from(number).ok().and_then(|n| PHASES.get(n)).copied()
}

fn start_path_number(path: StartPath) -> i64 {
    match path {
        StartPath::Plain => 0,
        StartPath::Fork => 1,
    }
}

pub(super) fn start_path_from_number(number: i64) -> Option<StartPath> {
    match number {
        0 => Some(StartPath::Plain),
        1 => Some(StartPath::Fork),
        _ => None,
    }
}
