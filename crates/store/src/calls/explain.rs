//! What happened to an input and on which containers, for `evoke explain`.

use super::read::{input_row, keyed, numbered};
use super::rows::{AttemptEnd, AttemptRow, InputRow, Key, OutputRow, StopState, TaskEnd, TaskRow, TaskUsage};
use super::{OutputsQuery, keys, outputs, write};
use crate::sql;
use bytes::Bytes;
use evoke_core::{AppId, CallId, InputId, Phase, TaskId, UnixMs};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

/// One attempt with its end, if it ended without giving the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptView {
    /// The attempt.
    pub row: AttemptRow,
    /// When and how it ended; none for a running attempt and for the one that gave the output.
    pub ended: Option<(UnixMs, AttemptEnd)>,
}

/// An input with all that happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputView {
    /// The input.
    pub row: InputRow,
    /// Its call.
    pub call: CallId,
    /// Its attempts, oldest first.
    pub attempts: Vec<AttemptView>,
    /// Its output, once it has one.
    pub output: Option<OutputRow>,
}

/// The input with this id, if it is stored.
pub fn input_view(db: &Connection, id: &InputId) -> Result<Option<InputView>> {
    let Some(row) = input_row(db, keys::split(id).key)?.filter(|row| row.id == *id) else {
        return Ok(None);
    };
    let call = db
        .prepare_cached("SELECT key, salt, created_ms FROM calls WHERE key = ?1")?
        .query_row([row.call], |r| keyed(r, 2, 0, 1))
        .optional()?;
    let Some(call) = call else { return Ok(None) };
    let query =
        OutputsQuery { call: row.call, after: 0, range: Some((row.idx, row.idx)), max: MAX_SAME_INDEX };
    let output = outputs(db, &query)?.into_iter().find(|output| output.input == row.key);
    let attempts = attempts_of(db, row.key)?;
    Ok(Some(InputView { call, attempts, output, row }))
}

/// A client numbers its inputs; so many of one call may carry the same number before the search gives up.
const MAX_SAME_INDEX: u32 = 64;

/// The attempts at an input, oldest first.
pub fn attempts_of(db: &Connection, input: Key) -> Result<Vec<AttemptView>> {
    db.prepare_cached(
        "SELECT key, task, retry_count, poll, claim, started_ms, ended_ms, ended_as FROM attempts \
         WHERE input = ?1 ORDER BY key",
    )?
    .query_map([input], |row| {
        let ended = match sql::opt_ms(row, 6)? {
            Some(at) => Some((at, numbered(row, 7, AttemptEnd::from_number)?)),
            None => None,
        };
        Ok(AttemptView {
            row: AttemptRow {
                key: row.get(0)?,
                input,
                task: sql::id(row, 1)?,
                retry_count: row.get(2)?,
                poll: row.get::<_, i64>(3)? as u64,
                claim: row.get(4)?,
                started: sql::ms(row, 5)?,
            },
            ended,
        })
    })?
    .collect()
}

const TASK_COLUMNS: &str = "id, function, app, definition, generation, worker, reason, start_path, runs_with, \
                            stop, ended_ms, end_text, exit_code, exit_signal, oom, cpu_ms, memory_peak_bytes, \
                            gpus";

/// The container with this id, if it is stored.
pub fn task_by_id(db: &Connection, id: &TaskId) -> Result<Option<TaskRow>> {
    let found = db
        .prepare_cached(&format!("SELECT {TASK_COLUMNS} FROM tasks WHERE id = ?1"))?
        .query_row([id.to_string()], task_row)
        .optional()?;
    found.map(|row| with_phases(db, row)).transpose()
}

/// The newest containers of an app, newest first.
pub fn tasks_of_app(db: &Connection, app: &AppId, limit: u32) -> Result<Vec<TaskRow>> {
    let rows = db
        .prepare_cached(&format!(
            "SELECT {TASK_COLUMNS} FROM tasks WHERE app = ?1 ORDER BY id DESC LIMIT ?2"
        ))?
        .query_map(params![app.to_string(), limit], task_row)?
        .collect::<Result<Vec<_>>>()?;
    rows.into_iter().map(|row| with_phases(db, row)).collect()
}

/// Containers not known to have ended.
pub(super) fn tasks_alive(db: &Connection) -> Result<Vec<TaskRow>> {
    let rows = db
        .prepare_cached(&format!("SELECT {TASK_COLUMNS} FROM tasks WHERE ended_ms IS NULL ORDER BY id"))?
        .query_map([], task_row)?
        .collect::<Result<Vec<_>>>()?;
    rows.into_iter().map(|row| with_phases(db, row)).collect()
}

fn with_phases(db: &Connection, mut task: TaskRow) -> Result<TaskRow> {
    task.phases = db
        .prepare_cached("SELECT phase, at_ms FROM task_phases WHERE task = ?1 ORDER BY phase")?
        .query_map([task.id.to_string()], |row| {
            let phase = write::phase_from_number(row.get(0)?).ok_or_else(|| unknown(0, "phase"))?;
            Ok((phase, sql::ms(row, 1)?))
        })?
        .collect::<Result<Vec<(Phase, UnixMs)>>>()?;
    Ok(task)
}

fn unknown(index: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, Type::Integer, format!("unknown {what}").into())
}

fn task_row(row: &Row<'_>) -> Result<TaskRow> {
    let end = match sql::opt_ms(row, 10)? {
        Some(at) => Some(TaskEnd {
            at,
            text: row.get::<_, Option<String>>(11)?.unwrap_or_default(),
            exit_code: row.get(12)?,
            signal: row.get(13)?,
            oom: row.get::<_, Option<bool>>(14)?.unwrap_or_default(),
        }),
        None => None,
    };
    Ok(TaskRow {
        id: sql::id(row, 0)?,
        function_id: sql::id(row, 1)?,
        app_id: sql::id(row, 2)?,
        definition_id: sql::id(row, 3)?,
        generation: row.get::<_, i64>(4)? as u64,
        worker: row.get(5)?,
        reason: row.get(6)?,
        start_path: write::start_path_from_number(row.get(7)?).ok_or_else(|| unknown(7, "start path"))?,
        with: Bytes::copy_from_slice(row.get_ref(8)?.as_blob()?),
        gpus: row.get_ref(17)?.as_str()?.split_whitespace().map(str::to_owned).collect(),
        stop: numbered(row, 9, StopState::from_number)?,
        phases: Vec::new(),
        end,
        usage: TaskUsage {
            cpu_ms: row.get::<_, i64>(15)? as u64,
            memory_peak_bytes: row.get::<_, i64>(16)? as u64,
        },
    })
}
