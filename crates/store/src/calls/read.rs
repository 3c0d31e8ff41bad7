//! Reading calls: what a start needs, and what a request needs once it has left the engine's memory.

use super::explain;
use super::keys::{self, Parts};
use super::rows::{
    AttemptRow, CallRow, CallType, ChunkRow, Direction, InputRow, Invocation, Key, OutputRow, PendingUpdate,
    Recovered, RecoveredCall, RecoveredInput, ResultBody, ResultStatus,
};
use crate::sql;
use bytes::Bytes;
use evoke_core::id::{Id, Kind};
use evoke_core::{CallId, FunctionId, InputId, UnixMs};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

/// Column `index` through a conversion from its number.
pub(super) fn numbered<T>(row: &Row<'_>, index: usize, from: impl Fn(u8) -> Option<T>) -> Result<T> {
    let number: i64 = row.get(index)?;
    u8::try_from(number).ok().and_then(from).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(
            index,
            Type::Integer,
            format!("{number} is not a number of this column").into(),
        )
    })
}

/// The id made of the time, key and salt in these columns.
pub(super) fn keyed<K: Kind>(row: &Row<'_>, at: usize, key: usize, salt: usize) -> Result<Id<K>> {
    Ok(keys::join(Parts { at: sql::ms(row, at)?, key: row.get(key)?, salt: row.get(salt)? }))
}

fn bytes(row: &Row<'_>, index: usize) -> Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(index)?.as_blob()?))
}

pub(super) const CALL_COLUMNS: &str = "c.key, c.salt, c.function, c.app, c.call_type, c.invocation, c.parent_input, \
                            c.return_exceptions, c.created_ms";

pub(super) fn call_row(row: &Row<'_>) -> Result<CallRow> {
    Ok(CallRow {
        key: row.get(0)?,
        id: keyed(row, 8, 0, 1)?,
        function_id: sql::id(row, 2)?,
        app_id: sql::id(row, 3)?,
        call_type: numbered(row, 4, CallType::from_number)?,
        invocation: numbered(row, 5, Invocation::from_number)?,
        parent_input: sql::opt_id(row, 6)?,
        return_exceptions: row.get(7)?,
        created: sql::ms(row, 8)?,
    })
}

/// A call as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallView {
    /// The row.
    pub row: CallRow,
    /// How many inputs it has been given.
    pub inputs: u32,
    /// How many of those have not ended.
    pub unfinished: u32,
    /// Ended inputs per status.
    pub ended: Vec<(ResultStatus, u32)>,
    /// The last output's entry; 0 if there is none.
    pub last_entry: Key,
}

/// The call with this id, if it is stored.
pub fn call_by_id(db: &Connection, id: &CallId) -> Result<Option<CallView>> {
    let found = db
        .prepare_cached(&format!("SELECT {CALL_COLUMNS} FROM calls c WHERE c.key = ?1"))?
        .query_row([keys::split(id).key], call_row)
        .optional()?;
    match found {
        Some(row) if row.id == *id => view(db, row).map(Some),
        _ => Ok(None),
    }
}

/// The newest calls of a function, newest first.
pub fn calls_of_function(db: &Connection, function: &FunctionId, limit: u32) -> Result<Vec<CallView>> {
    let rows = db
        .prepare_cached(&format!(
            "SELECT {CALL_COLUMNS} FROM calls c WHERE c.function = ?1 ORDER BY c.key DESC LIMIT ?2"
        ))?
        .query_map(params![function.to_string(), limit], call_row)?
        .collect::<Result<Vec<_>>>()?;
    rows.into_iter().map(|row| view(db, row)).collect()
}

fn view(db: &Connection, row: CallRow) -> Result<CallView> {
    let inputs: u32 = db
        .prepare_cached("SELECT count(*) FROM inputs WHERE call = ?1")?
        .query_row([row.key], |r| r.get(0))?;
    let (ended, last_entry) = ended_of(db, row.key)?;
    let done: u32 = ended.iter().map(|(_, n)| n).sum();
    Ok(CallView { inputs, unfinished: inputs.saturating_sub(done), ended, last_entry, row })
}

fn ended_of(db: &Connection, call: Key) -> Result<(Vec<(ResultStatus, u32)>, Key)> {
    let rows = db
        .prepare_cached("SELECT status, count(*), max(entry) FROM outputs WHERE call = ?1 GROUP BY status")?
        .query_map([call], |row| {
            Ok((numbered(row, 0, ResultStatus::from_number)?, row.get::<_, u32>(1)?, row.get::<_, Key>(2)?))
        })?
        .collect::<Result<Vec<_>>>()?;
    let last = rows.iter().map(|(_, _, entry)| *entry).max().unwrap_or(0);
    Ok((rows.into_iter().map(|(status, n, _)| (status, n)).collect(), last))
}

/// Which outputs of a call are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputsQuery {
    /// The call.
    pub call: Key,
    /// Only entries after this one.
    pub after: Key,
    /// Only inputs with an index in this inclusive range.
    pub range: Option<(i32, i32)>,
    /// At most so many.
    pub max: u32,
}

/// Outputs of a call, in the order of their entries.
pub fn outputs(db: &Connection, query: &OutputsQuery) -> Result<Vec<OutputRow>> {
    let (low, high) = query.range.unwrap_or((i32::MIN, i32::MAX));
    db.prepare_cached(
        "SELECT o.entry, o.call, o.input, o.idx, o.status, o.retry_count, o.attempt, o.task, o.started_ms, \
         o.finished_ms, o.text, o.result, i.created_ms, i.salt \
         FROM outputs o JOIN inputs i ON i.key = o.input \
         WHERE o.call = ?1 AND o.entry > ?2 AND o.idx BETWEEN ?3 AND ?4 ORDER BY o.entry LIMIT ?5",
    )?
    .query_map(params![query.call, query.after, low, high, query.max], output_row)?
    .collect()
}

fn output_row(row: &Row<'_>) -> Result<OutputRow> {
    let body = match row.get::<_, Option<String>>(10)? {
        Some(text) => ResultBody::Synthesised(text),
        None => ResultBody::Container(bytes(row, 11)?),
    };
    Ok(OutputRow {
        entry: row.get(0)?,
        call: row.get(1)?,
        input: row.get(2)?,
        input_id: keyed(row, 12, 2, 13)?,
        idx: row.get(3)?,
        status: numbered(row, 4, ResultStatus::from_number)?,
        body,
        retry_count: row.get(5)?,
        attempt: row.get(6)?,
        task: sql::opt_id(row, 7)?,
        started: sql::opt_ms(row, 8)?,
        finished: sql::ms(row, 9)?,
    })
}

/// The payload of an input, if the input is stored.
pub fn input_payload(db: &Connection, id: &InputId) -> Result<Option<Bytes>> {
    let parts = keys::split(id);
    db.prepare_cached("SELECT payload FROM inputs WHERE key = ?1 AND salt = ?2 AND created_ms = ?3")?
        .query_row(params![parts.key, parts.salt, sql::int(parts.at)], |row| bytes(row, 0))
        .optional()
}

/// The payloads of several inputs, in the order asked for.
pub fn input_payloads(db: &Connection, ids: &[InputId]) -> Result<Vec<Option<Bytes>>> {
    ids.iter().map(|id| input_payload(db, id)).collect()
}

/// Chunks of one stream of a call after an index, in order.
pub fn chunks(
    db: &Connection,
    call: Key,
    direction: Direction,
    after: u64,
    max: u32,
) -> Result<Vec<ChunkRow>> {
    db.prepare_cached(
        "SELECT idx, body FROM chunks WHERE call = ?1 AND direction = ?2 AND idx > ?3 ORDER BY idx LIMIT ?4",
    )?
    .query_map(params![call, direction.number(), after as i64, max], |row| {
        Ok(ChunkRow { call, direction, index: row.get::<_, i64>(0)? as u64, body: bytes(row, 1)? })
    })?
    .collect()
}

/// Everything unfinished. Reads nothing of what has ended, apart from counts per open call.
pub fn recover(db: &Connection) -> Result<Recovered> {
    let inputs = pending_inputs(db)?;
    let calls = open_calls(db)?
        .into_iter()
        .map(|(row, open, declared_inputs)| {
            let (ended, last_entry) = ended_of(db, row.key)?;
            Ok(RecoveredCall {
                open,
                declared_inputs,
                ended,
                last_entry,
                last_out: last_chunk(db, row.key, Direction::Out)?,
                last_in: last_chunk(db, row.key, Direction::In)?,
                row,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Recovered { next_key: next_key(db)?, calls, inputs, tasks: explain::tasks_alive(db)? })
}

fn next_key(db: &Connection) -> Result<Key> {
    let largest: Option<Key> = db.query_row(
        "SELECT max(largest) FROM (SELECT max(key) AS largest FROM calls UNION ALL SELECT max(key) FROM inputs \
         UNION ALL SELECT max(key) FROM attempts UNION ALL SELECT max(claim) FROM (SELECT claim FROM attempts \
         ORDER BY key DESC LIMIT 1) UNION ALL SELECT max(entry) FROM outputs)",
        [],
        |row| row.get(0),
    )?;
    Ok(largest.unwrap_or(0) + 1)
}

fn open_calls(db: &Connection) -> Result<Vec<(CallRow, bool, Option<u32>)>> {
    db.prepare_cached(&format!(
        "SELECT {CALL_COLUMNS}, m.call IS NOT NULL, m.declared_inputs FROM calls c LEFT JOIN open_calls m ON m.call = c.key \
         WHERE c.key IN (SELECT i.call FROM pending p JOIN inputs i ON i.key = p.input \
         UNION SELECT call FROM open_calls) ORDER BY c.key"
    ))?
    .query_map([], |row| Ok((call_row(row)?, row.get(9)?, row.get(10)?)))?
    .collect()
}

fn last_chunk(db: &Connection, call: Key, direction: Direction) -> Result<u64> {
    db.prepare_cached("SELECT coalesce(max(idx), 0) FROM chunks WHERE call = ?1 AND direction = ?2")?
        .query_row(params![call, direction.number()], |row| row.get::<_, i64>(0))
        .map(|index| index as u64)
}

fn pending_inputs(db: &Connection) -> Result<Vec<RecoveredInput>> {
    db.prepare_cached(
        "SELECT i.key, i.salt, i.call, i.idx, i.grp, i.created_ms, p.retry_count, p.crashes, p.losses, \
         p.not_before_ms, p.cancelled_ms, a.key, a.task, a.retry_count, a.poll, a.claim, a.started_ms, a.ended_ms \
         FROM pending p JOIN inputs i ON i.key = p.input \
         LEFT JOIN attempts a ON a.key = (SELECT max(key) FROM attempts WHERE input = p.input) ORDER BY i.key",
    )?
    .query_map([], |row| {
        let key: Key = row.get(0)?;
        Ok(RecoveredInput {
            key,
            id: keyed(row, 5, 0, 1)?,
            call: row.get(2)?,
            idx: row.get(3)?,
            group: row.get(4)?,
            created: sql::ms(row, 5)?,
            pending: PendingUpdate {
                input: key,
                retry_count: row.get(6)?,
                crashes: row.get(7)?,
                losses: row.get(8)?,
                not_before: sql::opt_ms(row, 9)?,
                cancelled: sql::opt_ms(row, 10)?,
            },
            running: running_attempt(row, key)?,
        })
    })?
    .collect()
}

fn running_attempt(row: &Row<'_>, input: Key) -> Result<Option<AttemptRow>> {
    let (Some(key), None) = (row.get::<_, Option<Key>>(11)?, row.get::<_, Option<i64>>(17)?) else {
        return Ok(None);
    };
    Ok(Some(AttemptRow {
        key,
        input,
        task: sql::id(row, 12)?,
        retry_count: row.get(13)?,
        poll: row.get::<_, i64>(14)? as u64,
        claim: row.get(15)?,
        started: sql::ms(row, 16)?,
    }))
}

/// The stored form of an input, for tests and tools that replay.
pub(super) fn input_row(db: &Connection, key: Key) -> Result<Option<InputRow>> {
    db.prepare_cached("SELECT key, salt, call, idx, grp, created_ms, payload FROM inputs WHERE key = ?1")?
        .query_row([key], |row| {
            Ok(InputRow {
                key: row.get(0)?,
                id: keyed(row, 5, 0, 1)?,
                call: row.get(2)?,
                idx: row.get(3)?,
                group: row.get(4)?,
                created: UnixMs(row.get::<_, i64>(5)?.max(0) as u64),
                payload: bytes(row, 6)?,
            })
        })
        .optional()
}
