//! `evoke explain`: where the time of a call, an input or a container went, and why.

use crate::{Control, parse_id, stored};
use evoke_core::{AppId, CallId, InputId, Phase, TaskId, UnixMs};
use evoke_proto::Status;
use evoke_store::calls::{self, TaskRow};
use serde_json::{Value, json};

/// Inputs of a call that are told one by one.
const INPUTS_MAX: u32 = 20;

impl Control {
    /// Explains whatever `id` names, as JSON: `kind`, `phases` with milliseconds, `reasons`.
    pub async fn explain(&self, id: &str) -> Result<Value, Status> {
        self.calls.settled().await?;
        match id.split('-').next().unwrap_or_default() {
            "fc" => self.explain_call(parse_id(id)?).await,
            "in" => self.explain_input(parse_id(id)?).await,
            "ta" => self.explain_task(parse_id(id)?).await,
            "ap" => self.explain_app(parse_id(id)?).await,
            _ => Err(Status::invalid(format!(
                "'{id}' is not an id that can be explained. Give a call (fc-…), an input (in-…), a container (ta-…) or an app (ap-…)"
            ))),
        }
    }

    async fn explain_call(&self, id: CallId) -> Result<Value, Status> {
        let view = self.call_view(id).await?;
        let query = calls::OutputsQuery { call: view.row.key, after: 0, range: None, max: INPUTS_MAX };
        let outputs = self.store.read(move |db| Ok(calls::outputs(db, &query)?)).await.map_err(stored)?;
        let mut inputs = Vec::new();
        for output in outputs {
            inputs.push(self.explain_input(output.input_id).await?);
        }
        let reasons = self.calls.look(|engine| engine.reasons(view.row.function_id));
        Ok(json!({
            "kind": "call",
            "id": id.to_string(),
            "app": view.row.app_id.to_string(),
            "function": view.row.function_id.to_string(),
            "created_ms": view.row.created.0,
            "inputs": view.inputs,
            "unfinished": view.unfinished,
            "ended": view.ended.iter().map(|(status, n)| json!({"status": format!("{status:?}"), "inputs": n})).collect::<Vec<_>>(),
            "explained_inputs": inputs,
            "reasons": reasons.iter().map(|noted| noted.reason.to_string()).collect::<Vec<_>>(),
        }))
    }

    async fn explain_input(&self, id: InputId) -> Result<Value, Status> {
        let view = self.store.read(move |db| Ok(calls::input_view(db, &id)?)).await.map_err(stored)?;
        let view = view.ok_or_else(|| Status::not_found(format!("There is no input {id}")))?;
        let created = view.row.created;
        let finished = view.output.as_ref().map(|output| output.finished);
        let end = finished.unwrap_or_else(|| self.now());
        let mut phases = Vec::new();
        let mut at = created;
        for attempt in &view.attempts {
            let task = attempt.row.task;
            let row = self.store.read(move |db| Ok(calls::task_by_id(db, &task)?)).await.map_err(stored)?;
            phases.extend(waiting_phases(at, attempt.row.started, row.as_ref()));
            let (until, how) = match attempt.ended {
                Some((until, how)) => (until, format!("in {task}, ended as {how:?}")),
                None => (end, format!("in {task}")),
            };
            phases.push(phase("running", attempt.row.started, until, &how));
            at = until;
        }
        if at < end {
            phases.push(phase("queued", at, end, "no container has taken it"));
        }
        Ok(json!({
            "kind": "input",
            "id": id.to_string(),
            "call": view.call.to_string(),
            "status": view.output.as_ref().map(|output| format!("{:?}", output.status)),
            "wall_ms": end.since(created),
            "phases": phases,
            "attempts": view.attempts.len(),
        }))
    }

    async fn explain_task(&self, id: TaskId) -> Result<Value, Status> {
        let row = self.store.read(move |db| Ok(calls::task_by_id(db, &id)?)).await.map_err(stored)?;
        let row = row.ok_or_else(|| Status::not_found(format!("There is no container {id}")))?;
        let mut reached = row.phases.clone();
        reached.sort_by_key(|(phase, at)| (*at, *phase));
        let phases: Vec<Value> = reached
            .windows(2)
            .map(|pair| {
                phase(&format!("{:?} to {:?}", pair[0].0, pair[1].0).to_lowercase(), pair[0].1, pair[1].1, "")
            })
            .collect();
        let wall = reached.last().map_or(0, |(_, end)| end.since(reached[0].1));
        Ok(json!({
            "kind": "container",
            "id": id.to_string(),
            "function": row.function_id.to_string(),
            "reason": row.reason,
            "start_path": row.start_path,
            "wall_ms": wall,
            "phases": phases,
            "cpu_ms": row.usage.cpu_ms,
            "memory_peak_bytes": row.usage.memory_peak_bytes,
            "end": row.end.as_ref().map(|end| end.text.clone()),
            "runs_with": serde_json::from_slice::<Value>(&row.with).unwrap_or(Value::Null),
        }))
    }

    async fn explain_app(&self, id: AppId) -> Result<Value, Status> {
        let app = self.app_overview(id).await?;
        let functions = self.function_overviews(id).await?;
        let described = functions.iter().map(|function| {
            let reasons = self.calls.look(|engine| engine.reasons(function.id));
            let schedule = self.schedules.overview(function.id, self.now());
            json!({
                "schedule": schedule.map(|times| json!({
                    "next_due_ms": times.next.map(|at| at.0),
                    "last_due_ms": times.last.map(|at| at.0),
                    "text": times.to_string(),
                })),
                "function": function.name,
                "containers": function.containers,
                "queued": function.queued,
                "running": function.running,
                "reasons": reasons.iter().map(|noted| noted.reason.to_string()).collect::<Vec<_>>(),
            })
        });
        Ok(json!({
            "kind": "app",
            "id": id.to_string(),
            "name": app.name,
            "state": app.state,
            "created_ms": app.created.0,
            "containers": app.containers,
            "functions": described.collect::<Vec<_>>(),
        }))
    }
}

/// What an input waited for before an attempt: for the container's start, as far as that fell into the wait,
/// phase by phase; else for a container to be free.
fn waiting_phases(since: UnixMs, until: UnixMs, task: Option<&TaskRow>) -> Vec<Value> {
    let mut phases = Vec::new();
    let mut at = since;
    if let Some(task) = task {
        let mut reached = task.phases.clone();
        reached.sort_by_key(|(phase, at)| (*at, *phase));
        for (name, when) in reached {
            if name > Phase::Ready || when <= at || when > until {
                continue;
            }
            let label = format!("waiting for container: {name:?}").to_lowercase();
            phases.push(phase(&label, at, when, &task.reason));
            at = when;
        }
    }
    if at < until {
        phases.push(phase("queued", at, until, "for a free container"));
    }
    phases
}

fn phase(name: &str, from: UnixMs, to: UnixMs, note: &str) -> Value {
    json!({"phase": name, "ms": to.since(from), "note": note})
}
