//! What must hold, while it runs and at the end.

use crate::script::Behaviour;
use crate::world::World;
use bytes::Bytes;
use evoke_core::InputId;
use evoke_engine::ResultStatus;
use evoke_store::calls::{self, Key, OutputRow, OutputsQuery, ResultBody};
use std::collections::BTreeMap;

/// Attempts at one input, at most, in any of these worlds.
const ATTEMPTS_MAX: u64 = 100;

/// A timeout that a few lost answers do not reach.
const LONG_TIMEOUT_MS: u64 = 10_000;

impl World {
    /// No pool has more serving containers than its maximum, nor all together more than their environment may.
    pub(crate) fn check_pools(&self) -> Result<(), String> {
        let Some(engine) = &self.engine else { return Ok(()) };
        let limits = self.script.limits;
        let (containers, gpus) = (engine.sizes().2, engine.gpus_held());
        if limits.containers_max.is_some_and(|max| containers > max as usize) {
            return Err(format!("{containers} containers in an environment with {limits:?}"));
        }
        if limits.gpus_max.is_some_and(|max| gpus > max) {
            return Err(format!("{gpus} GPUs in an environment with {limits:?}"));
        }
        for function in &self.script.functions {
            let Some(info) = engine.pool_info(function.conf.id) else { continue };
            if let Some(max) = function.conf.autoscaler.max {
                if info.containers > max.max(1) {
                    return Err(format!("{} containers of {max}", info.containers));
                }
            }
        }
        Ok(())
    }

    /// Whether nothing is left to do: everything ended, and only minimums remain.
    pub(crate) fn all_quiet(&self) -> bool {
        let Some(engine) = &self.engine else { return false };
        let (calls, inputs, tasks) = engine.sizes();
        let least: u32 = if self.app_stopped {
            0
        } else {
            self.script.functions.iter().map(|f| f.conf.autoscaler.min).sum()
        };
        self.uncommitted.is_empty()
            && self.lost_workers.is_empty()
            && self.clients.iter().all(|client| client.is_done())
            && inputs == 0
            && calls <= self.script.conf.ended_calls_kept
            && tasks <= least as usize
            && self.count("SELECT count(*) FROM open_calls").is_ok_and(|open| open == 0)
    }

    /// For the message when that does not come.
    pub(crate) fn what_is_left(&self) -> String {
        let clients: Vec<_> = self.clients.iter().filter(|c| !c.is_done()).collect();
        let engine = self.engine.as_ref();
        let sizes = engine.map(|e| e.sizes());
        let pools: Vec<_> = self
            .script
            .functions
            .iter()
            .map(|f| {
                (
                    engine.and_then(|e| e.pool_info(f.conf.id)),
                    engine.map(|e| e.reasons(f.conf.id).into_iter().rev().take(5).collect::<Vec<_>>()),
                )
            })
            .collect();
        format!("calls, inputs, tasks: {sizes:?}; pools: {pools:?}; clients: {clients:?}")
    }

    fn count(&self, sql: &str) -> Result<u64, String> {
        self.db
            .connection()
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map(|n| n as u64)
            .map_err(|error| format!("{sql}: {error}"))
    }

    pub(crate) fn check_end(&self) -> Result<(), String> {
        for (sql, what) in [
            ("SELECT count(*) FROM pending", "inputs are pending"),
            ("SELECT count(*) FROM open_calls", "calls are open"),
            (
                "SELECT count(*) FROM inputs i WHERE (SELECT count(*) FROM outputs o WHERE o.input = i.key) <> 1",
                "inputs have no output or several",
            ),
            (
                "SELECT count(*) FROM attempts a WHERE a.ended_ms IS NULL AND NOT EXISTS \
                 (SELECT 1 FROM outputs o WHERE o.attempt = a.key)",
                "attempts have no end",
            ),
        ] {
            let n = self.count(sql)?;
            if n > 0 {
                return Err(format!("at the end {n} {what}"));
            }
        }
        let most = self
            .count("SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM attempts GROUP BY input)")?;
        if most > ATTEMPTS_MAX {
            return Err(format!("an input was tried {most} times"));
        }
        for client in &self.clients {
            self.check_client(client)?;
        }
        Ok(())
    }

    fn check_client(&self, client: &crate::clients::Client) -> Result<(), String> {
        let Some(call) = client.call else { return Ok(()) };
        let key = calls::keys::split(&call).key;
        let query = OutputsQuery { call: key, after: 0, range: None, max: u32::MAX };
        let rows = calls::outputs(self.db.connection(), &query).map_err(|e| e.to_string())?;
        let by_input: BTreeMap<InputId, _> = rows.iter().map(|row| (row.input_id, row)).collect();
        let retries = self.script.functions[client.function].conf.retry.retries;
        for input in client.inputs.keys() {
            let row =
                by_input.get(input).ok_or_else(|| format!("{input} was acknowledged and has no output"))?;
            if row.retry_count > retries {
                return Err(format!("{input} was retried {} times of {retries}", row.retry_count));
            }
            if let ResultBody::Container(result) = &row.body {
                self.check_ran(*input, row, result)?;
            }
            self.check_timeout(client.function, row)?;
        }
        for (input, (entry, status)) in &client.outputs {
            let stored = by_input.get(input).map(|row| (row.entry, row.status));
            if stored != Some((*entry as Key, *status)) {
                return Err(format!("a client saw {entry} {status:?} of {input}, and {stored:?} is stored"));
            }
        }
        Ok(())
    }

    /// A container's result comes from the very attempt that it is published for. (Results that a container
    /// reported about its start belong to no attempt.)
    fn check_ran(&self, input: InputId, row: &OutputRow, result: &Bytes) -> Result<(), String> {
        let Some(task) = row.task else { return Ok(()) };
        let ran = self.runs.get(&input).is_some_and(|runs| runs.contains(&(task, row.retry_count)));
        let wanted = format!("{task} {}", row.retry_count);
        if ran && result.as_ref() == wanted.as_bytes() {
            return Ok(());
        }
        Err(format!("{input} is published as of \"{wanted}\" (ran: {ran}) with the result of {result:?}"))
    }

    /// Only inputs that hang run out of time. Not checked where the clock jumps, or where a few lost answers
    /// take longer than the timeout.
    fn check_timeout(&self, function: usize, row: &OutputRow) -> Result<(), String> {
        let timeout_ms = self.script.functions[function].conf.timeout_ms;
        let hangs = self.behaviours.get(&row.input_id) == Some(&Behaviour::Hangs);
        let timed_out = row.status == ResultStatus::Timeout && row.attempt.is_some();
        if timed_out && !hangs && self.script.jumps == 0 && timeout_ms >= LONG_TIMEOUT_MS {
            return Err(format!("{} ran out of {timeout_ms} ms, and is quick", row.input_id));
        }
        Ok(())
    }
}
