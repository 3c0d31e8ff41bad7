//! Who called whom: the tree of inputs and calls that a call is part of.

use super::keys;
use super::read::{CALL_COLUMNS, call_row, keyed};
use super::rows::{CallRow, Key, ResultStatus};
use super::stats::ends_of;
use crate::sql;
use evoke_core::{CallId, InputId, TaskId};
use rusqlite::{Connection, OptionalExtension, Result, params};
use std::collections::{BTreeSet, VecDeque};

/// Calls between a call and the one that no input made; more than any program nests.
const DEPTH_MAX: usize = 256;

/// An input in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphInput {
    /// Its id.
    pub id: InputId,
    /// Its call.
    pub call: CallId,
    /// Its batch group, which tells methods apart.
    pub group: u32,
    /// The container of its last attempt.
    pub task: Option<TaskId>,
    /// How it ended, if it has.
    pub status: Option<ResultStatus>,
}

/// The tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallGraph {
    /// The calls, from the root on.
    pub calls: Vec<CallRow>,
    /// Their inputs.
    pub inputs: Vec<GraphInput>,
    /// There is more than was asked for.
    pub truncated: bool,
}

/// The tree that a call is part of, with at most `inputs_max` inputs; nothing if the call is not stored.
pub fn call_graph(db: &Connection, id: &CallId, inputs_max: usize) -> Result<Option<CallGraph>> {
    let Some(call) = call_of(db, keys::split(id).key)?.filter(|row| row.id == *id) else { return Ok(None) };
    let mut graph = CallGraph::default();
    let mut seen = BTreeSet::new();
    let mut open = VecDeque::from([root_of(db, call)?]);
    while let Some(call) = open.pop_front() {
        if !seen.insert(call.key) {
            continue;
        }
        let room = inputs_max.saturating_sub(graph.inputs.len());
        let mut inputs = inputs_of(db, &call, room + 1)?;
        if inputs.len() > room {
            inputs.truncate(room);
            graph.truncated = true;
        }
        for input in &inputs {
            open.extend(children_of(db, &input.id)?);
        }
        graph.calls.push(call);
        graph.inputs.extend(inputs);
        if graph.truncated {
            break;
        }
    }
    Ok(Some(graph))
}

fn call_of(db: &Connection, key: Key) -> Result<Option<CallRow>> {
    db.prepare_cached(&format!("SELECT {CALL_COLUMNS} FROM calls c WHERE c.key = ?1"))?
        .query_row([key], call_row)
        .optional()
}

/// Goes up as long as what made the call is still stored.
fn root_of(db: &Connection, mut call: CallRow) -> Result<CallRow> {
    for _ in 0..DEPTH_MAX {
        let Some(parent) = call.parent_input else { break };
        let above: Option<Key> = db
            .prepare_cached("SELECT call FROM inputs WHERE key = ?1")?
            .query_row([keys::split(&parent).key], |row| row.get(0))
            .optional()?;
        let Some(above) = above.map(|key| call_of(db, key)).transpose()?.flatten() else { break };
        call = above;
    }
    Ok(call)
}

fn children_of(db: &Connection, input: &InputId) -> Result<Vec<CallRow>> {
    db.prepare_cached(&format!(
        "SELECT {CALL_COLUMNS} FROM calls c WHERE c.parent_input = ?1 ORDER BY c.key"
    ))?
    .query_map([input.to_string()], call_row)?
    .collect()
}

fn inputs_of(db: &Connection, call: &CallRow, max: usize) -> Result<Vec<GraphInput>> {
    let ends = ends_of(db, call.key, 0)?;
    db.prepare_cached(
        "SELECT i.key, i.salt, i.created_ms, i.grp, \
         (SELECT a.task FROM attempts a WHERE a.input = i.key ORDER BY a.key DESC LIMIT 1) \
         FROM inputs i WHERE i.call = ?1 ORDER BY i.key LIMIT ?2",
    )?
    .query_map(params![call.key, max as i64], |row| {
        Ok(GraphInput {
            id: keyed(row, 2, 0, 1)?,
            call: call.id,
            group: row.get(3)?,
            task: sql::opt_id(row, 4)?,
            status: ends.get(&row.get::<_, Key>(0)?).map(|(status, _)| *status),
        })
    })?
    .collect()
}
