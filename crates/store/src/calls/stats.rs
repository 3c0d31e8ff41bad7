//! What functions did in a span of time: inputs and containers, counted and listed.

use super::read::{keyed, numbered};
use super::rows::{Key, ResultStatus, StopState};
use super::write::phase_number;
use crate::sql;
use evoke_core::{AppId, CallId, FunctionId, Phase, TaskId, UnixMs};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Result, Row, params};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Keys rise with time but for what clocks do; so far around a span are rows looked at.
const CLOCK_SLACK_MS: u64 = 60_000;

/// From a time on, up to and without another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub since: UnixMs,
    /// Its end, which is not part of it.
    pub until: UnixMs,
}

impl Span {
    fn has(&self, at: UnixMs) -> bool {
        at >= self.since && at < self.until
    }
}

/// What became of a function's inputs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputStats {
    /// Inputs that ended in the span, by how.
    pub ended: HashMap<ResultStatus, u64>,
    /// Inputs that containers had at the end of the span.
    pub running_at_end: u64,
    /// How long the last attempt at each input that ended took.
    pub execution_ms: Vec<u64>,
    /// How long each took from when it was accepted.
    pub latency_ms: Vec<u64>,
}

/// A container as the statistics see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpan {
    /// Its id.
    pub id: TaskId,
    /// Its function.
    pub function: FunctionId,
    /// When it was decided that it should exist.
    pub queued: UnixMs,
    /// When it asked for its first input.
    pub ready: Option<UnixMs>,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// Whether it ended by a fault: of its own accord with anything but success, or out of memory.
    pub failed: bool,
    /// Processor time that it used.
    pub cpu_ms: u64,
    /// The most memory that it used.
    pub memory_peak_bytes: u64,
}

/// An input as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastInput {
    /// Its call.
    pub call: CallId,
    /// Its function.
    pub function: FunctionId,
    /// Its batch group, which tells methods apart.
    pub group: u32,
    /// When it was accepted.
    pub created: UnixMs,
    /// When its last attempt began, and where.
    pub attempt: Option<(UnixMs, TaskId)>,
    /// From when on that attempt's container was awaited, and when it was ready.
    pub start: Option<(UnixMs, UnixMs)>,
    /// Whether a container has it now.
    pub running: bool,
    /// How it ended, and when.
    pub end: Option<(ResultStatus, UnixMs)>,
}

/// Which inputs a listing shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// The newest so many, newest first.
    Newest(u32),
    /// Those accepted in a span of time, oldest first, at most so many.
    Within(Span, u32),
}

/// The first key at or after which nothing is older than `at`, give or take [`CLOCK_SLACK_MS`].
fn first_key(db: &Connection, look_up: &str, at: UnixMs) -> Result<Key> {
    let mut statement = db.prepare_cached(look_up)?;
    let (mut low, mut high) = (0, super::keys::KEY_MAX);
    while low < high {
        let middle = low + (high - low) / 2;
        let found =
            statement.query_row([middle], |row| Ok((row.get::<_, Key>(0)?, sql::ms(row, 1)?))).optional()?;
        match found {
            Some((key, time)) if time < at => low = key + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// The keys among which everything of the span is.
fn keys_of(db: &Connection, look_up: &str, span: Span) -> Result<(Key, Key)> {
    let since = UnixMs(span.since.0.saturating_sub(CLOCK_SLACK_MS));
    let until = UnixMs(span.until.0.saturating_add(CLOCK_SLACK_MS));
    Ok((first_key(db, look_up, since)?, first_key(db, look_up, until)?))
}

const INPUT_AT: &str = "SELECT key, created_ms FROM inputs WHERE key >= ?1 ORDER BY key LIMIT 1";
const OUTPUT_AT: &str = "SELECT entry, finished_ms FROM outputs WHERE entry >= ?1 ORDER BY entry LIMIT 1";

/// The functions as the rows name them.
struct Wanted<'a>(HashMap<String, &'a FunctionId>);

impl<'a> Wanted<'a> {
    fn new(functions: &'a [FunctionId]) -> Self {
        Self(functions.iter().map(|id| (id.to_string(), id)).collect())
    }

    fn function(&self, row: &Row<'_>, index: usize) -> Result<Option<FunctionId>> {
        let ValueRef::Text(text) = row.get_ref(index)? else { return Ok(None) };
        Ok(std::str::from_utf8(text).ok().and_then(|text| self.0.get(text)).map(|id| **id))
    }
}

/// What became of the inputs of these functions; of one container's alone, if one is named.
pub fn input_stats(
    db: &Connection,
    functions: &[FunctionId],
    span: Span,
    task: Option<TaskId>,
) -> Result<HashMap<FunctionId, InputStats>> {
    let wanted = Wanted::new(functions);
    let task = task.map(|task| task.to_string());
    let mut found: HashMap<FunctionId, InputStats> = HashMap::new();
    let (first, end) = keys_of(db, OUTPUT_AT, span)?;
    // The order of the joins is said because the planner does not know how short the span is.
    let mut statement = db.prepare_cached(
        "SELECT c.function, o.status, o.started_ms, o.finished_ms, i.created_ms \
         FROM outputs o CROSS JOIN calls c ON c.key = o.call CROSS JOIN inputs i ON i.key = o.input \
         WHERE o.entry >= ?1 AND o.entry < ?2 AND (?3 IS NULL OR o.task = ?3)",
    )?;
    let mut rows = statement.query(params![first, end, task])?;
    while let Some(row) = rows.next()? {
        let finished = sql::ms(row, 3)?;
        let Some(function) = wanted.function(row, 0)?.filter(|_| span.has(finished)) else { continue };
        let stats = found.entry(function).or_default();
        *stats.ended.entry(numbered(row, 1, ResultStatus::from_number)?).or_default() += 1;
        if let Some(started) = sql::opt_ms(row, 2)? {
            stats.execution_ms.push(finished.since(started));
        }
        stats.latency_ms.push(finished.since(sql::ms(row, 4)?));
    }
    // With a container at the end of the span: what still is, and what ended after it.
    let mut statement = db.prepare_cached(
        "SELECT c.function, a.started_ms FROM pending p \
         CROSS JOIN attempts a ON a.key = (SELECT max(key) FROM attempts WHERE input = p.input) \
         CROSS JOIN inputs i ON i.key = p.input CROSS JOIN calls c ON c.key = i.call \
         WHERE a.ended_ms IS NULL AND a.started_ms < ?2 AND (?3 IS NULL OR a.task = ?3) \
         UNION ALL SELECT c.function, a.started_ms FROM outputs o CROSS JOIN calls c ON c.key = o.call \
         CROSS JOIN attempts a ON a.key = o.attempt \
         WHERE o.entry >= ?1 AND o.finished_ms >= ?2 AND a.started_ms < ?2 AND (?3 IS NULL OR o.task = ?3)",
    )?;
    let after = UnixMs(span.until.0.saturating_sub(CLOCK_SLACK_MS));
    let after = first_key(db, OUTPUT_AT, after)?;
    let mut rows = statement.query(params![after, sql::int(span.until), task])?;
    while let Some(row) = rows.next()? {
        if let Some(function) = wanted.function(row, 0)? {
            found.entry(function).or_default().running_at_end += 1;
        }
    }
    Ok(found)
}

/// The containers of an app that existed in the span.
pub fn tasks_within(db: &Connection, app: &AppId, span: Span) -> Result<Vec<TaskSpan>> {
    let mut statement = db.prepare_cached(
        "SELECT t.id, t.function, t.stop, t.ended_ms, t.exit_code, t.exit_signal, t.oom, t.cpu_ms, \
         t.memory_peak_bytes, (SELECT min(at_ms) FROM task_phases WHERE task = t.id), r.at_ms \
         FROM tasks t LEFT JOIN task_phases r ON r.task = t.id AND r.phase = ?3 \
         WHERE t.app = ?1 AND (t.ended_ms IS NULL OR t.ended_ms >= ?2)",
    )?;
    let parameters = params![app.to_string(), sql::int(span.since), phase_number(Phase::Ready)];
    let rows = statement.query_map(parameters, task_span)?;
    rows.filter(|row| row.as_ref().map_or(true, |task| task.queued < span.until)).collect()
}

fn task_span(row: &Row<'_>) -> Result<TaskSpan> {
    let (ended, ready) = (sql::opt_ms(row, 3)?, sql::opt_ms(row, 10)?);
    // What is told to stop may be killed for it, which is no fault of its own.
    let told = numbered(row, 2, StopState::from_number)? != StopState::Serving;
    let unclean = row.get::<_, Option<i32>>(4)? != Some(0) || row.get::<_, Option<i32>>(5)?.is_some();
    let oom = row.get::<_, Option<bool>>(6)?.unwrap_or_default();
    Ok(TaskSpan {
        id: sql::id(row, 0)?,
        function: sql::id(row, 1)?,
        queued: sql::opt_ms(row, 9)?.or(ready).or(ended).unwrap_or_default(),
        ready,
        ended,
        failed: ended.is_some() && (oom || !told && unclean),
        cpu_ms: row.get::<_, i64>(7)?.max(0) as u64,
        memory_peak_bytes: row.get::<_, i64>(8)?.max(0) as u64,
    })
}

/// How many inputs of these functions were accepted in the span, by pieces of so many milliseconds since the
/// epoch; pieces without any are left out.
pub fn count_inputs(
    db: &Connection,
    functions: &[FunctionId],
    span: Span,
    piece_ms: u64,
) -> Result<BTreeMap<u64, u64>> {
    let wanted = Wanted::new(functions);
    let (first, end) = keys_of(db, INPUT_AT, span)?;
    let mut statement = db.prepare_cached(
        "SELECT c.function, i.created_ms FROM inputs i CROSS JOIN calls c ON c.key = i.call \
         WHERE i.key >= ?1 AND i.key < ?2",
    )?;
    let mut rows = statement.query([first, end])?;
    let mut pieces = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let created = sql::ms(row, 1)?;
        if span.has(created) && wanted.function(row, 0)?.is_some() {
            *pieces.entry(created.0 / piece_ms.max(1)).or_default() += 1;
        }
    }
    Ok(pieces)
}

/// Inputs of these functions.
pub fn past_inputs(db: &Connection, functions: &[FunctionId], listed: Listed) -> Result<Vec<PastInput>> {
    let keys = match listed {
        Listed::Newest(count) => newest_keys(db, functions, count as usize)?,
        Listed::Within(span, limit) => keys_within(db, functions, span, limit as usize)?,
    };
    let mut statement = db.prepare_cached(
        "SELECT c.key, c.salt, c.created_ms, c.function, i.grp, i.created_ms, a.started_ms, a.task, a.ended_ms, \
         (SELECT min(at_ms) FROM task_phases WHERE task = a.task), r.at_ms \
         FROM inputs i JOIN calls c ON c.key = i.call \
         LEFT JOIN attempts a ON a.key = (SELECT max(key) FROM attempts WHERE input = i.key) \
         LEFT JOIN task_phases r ON r.task = a.task AND r.phase = ?2 WHERE i.key = ?1",
    )?;
    let mut inputs = Vec::with_capacity(keys.len());
    let mut calls: HashMap<Key, Vec<(Key, usize)>> = HashMap::new();
    for key in keys {
        let read = |row: &Row<'_>| Ok((row.get::<_, Key>(0)?, past_input(row)?));
        let found = statement.query_row(params![key, phase_number(Phase::Ready)], read).optional()?;
        if let Some((call, input)) = found {
            calls.entry(call).or_default().push((key, inputs.len()));
            inputs.push(input);
        }
    }
    for (call, wanted) in calls {
        let ends = ends_of(db, call, wanted.iter().map(|(key, _)| *key).min().unwrap_or(0))?;
        for (key, index) in wanted {
            inputs[index].end = ends.get(&key).copied();
            inputs[index].running &= inputs[index].end.is_none();
        }
    }
    Ok(inputs)
}

/// How the inputs of a call from a key on ended, and when. Outputs cannot be looked up by their inputs, so
/// those of a call are read at once.
pub(super) fn ends_of(
    db: &Connection,
    call: Key,
    first_input: Key,
) -> Result<HashMap<Key, (ResultStatus, UnixMs)>> {
    // An output is younger than its input, and so is its key.
    db.prepare_cached("SELECT input, status, finished_ms FROM outputs WHERE call = ?1 AND entry > ?2")?
        .query_map([call, first_input], |row| {
            Ok((row.get(0)?, (numbered(row, 1, ResultStatus::from_number)?, sql::ms(row, 2)?)))
        })?
        .collect()
}

fn past_input(row: &Row<'_>) -> Result<PastInput> {
    let attempt = match (sql::opt_ms(row, 6)?, sql::opt_id(row, 7)?) {
        (Some(at), Some(task)) => Some((at, task)),
        _ => None,
    };
    let created = sql::ms(row, 5)?;
    // A container that was ready before cost the input nothing.
    let start = match (sql::opt_ms(row, 9)?, sql::opt_ms(row, 10)?) {
        (Some(queued), Some(ready)) if ready > created => Some((queued.max(created), ready)),
        _ => None,
    };
    Ok(PastInput {
        call: keyed(row, 2, 0, 1)?,
        function: sql::id(row, 3)?,
        group: row.get(4)?,
        created,
        running: attempt.is_some() && sql::opt_ms(row, 8)?.is_none(),
        attempt,
        start,
        end: None,
    })
}

/// Touches indexes only.
fn newest_keys(db: &Connection, functions: &[FunctionId], count: usize) -> Result<Vec<Key>> {
    let mut statement = db.prepare_cached(
        "SELECT i.key FROM calls c CROSS JOIN inputs i ON i.call = c.key WHERE c.function = ?1 \
         ORDER BY i.key DESC LIMIT ?2",
    )?;
    let mut keys = Vec::new();
    for function in functions.iter().collect::<HashSet<_>>() {
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        for key in statement.query_map(params![function.to_string(), limit], |row| row.get::<_, Key>(0))? {
            keys.push(key?);
        }
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys.truncate(count);
    Ok(keys)
}

fn keys_within(db: &Connection, functions: &[FunctionId], span: Span, limit: usize) -> Result<Vec<Key>> {
    let wanted = Wanted::new(functions);
    let (first, end) = keys_of(db, INPUT_AT, span)?;
    let mut statement = db.prepare_cached(
        "SELECT c.function, i.created_ms, i.key FROM inputs i CROSS JOIN calls c ON c.key = i.call \
         WHERE i.key >= ?1 AND i.key < ?2 ORDER BY i.key",
    )?;
    let mut rows = statement.query([first, end])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        if keys.len() >= limit {
            break;
        }
        if span.has(sql::ms(row, 1)?) && wanted.function(row, 0)?.is_some() {
            keys.push(row.get(2)?);
        }
    }
    Ok(keys)
}
