//! `evoke explain`: where the time of a call, input, container or app went, and why.

use crate::data_folder::DataFolder;
use crate::local::{Reply, Request, ask};
use crate::stdout;
use anyhow::{Context, Result};
use evoke_core::Error;
use serde::Deserialize;
use std::path::Path;
use std::process::ExitCode;

/// Columns of the bar that shows a phase's share.
const BAR_COLUMNS: usize = 24;

/// The life of one object, as the server tells it; what it does not tell is empty. `--json` prints what came.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Explanation {
    /// What it is: `call`, `input`, `container`, `app`.
    kind: String,
    id: String,
    name: Option<String>,
    function: Option<String>,
    state: Option<String>,
    status: Option<String>,
    end: Option<String>,
    /// From its beginning to its end, or to now.
    wall_ms: Option<f64>,
    /// What the time went to; they follow each other without gaps, so they sum to the wall time.
    phases: Vec<Phase>,
    /// The decision that made it.
    reason: Option<String>,
    /// Decisions about it with the numbers they were made on, oldest first.
    reasons: Vec<String>,
    inputs: Option<u64>,
    unfinished: Option<u64>,
    containers: Option<u64>,
    /// Of a call: its inputs, as far as they are told one by one.
    explained_inputs: Vec<Explanation>,
    /// Of an app.
    functions: Vec<Explanation>,
    /// Of a function that runs by itself.
    schedule: Option<Schedule>,
}

/// When a function runs by itself.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Schedule {
    text: String,
}

/// A stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Phase {
    phase: String,
    ms: f64,
    /// What was waited for, where that is known.
    note: String,
}

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>, id: &str, json: bool) -> Result<ExitCode> {
    let known = ["fc-", "in-", "ta-", "ap-"];
    if !known.iter().any(|prefix| id.starts_with(prefix)) {
        return Err(Error::invalid(format!("`{id}` is not an id that can be explained"))
            .with_hint("give the id of a call (fc-…), an input (in-…), a container (ta-…) or an app (ap-…)")
            .into());
    }
    let reply = ask(&DataFolder::locate(data)?, &Request::Explain { id: id.to_owned() })?;
    let Reply::Explanation(explanation) = reply else {
        anyhow::bail!("unexpected reply from the server: {reply:?}");
    };
    if json {
        stdout::write(&(serde_json::to_string_pretty(&explanation)? + "\n"))?;
    } else {
        let explanation = serde_json::from_value(explanation).context("the server's explanation")?;
        stdout::write(&render(&explanation))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// For people: what it is, a table of phases with their shares, then the reasons.
fn render(it: &Explanation) -> String {
    let mut out = heading(it);
    out.push_str(&phases(it));
    for input in &it.explained_inputs {
        out.push_str(&format!("\n{}{}", heading(input), phases(input)));
    }
    let told = it.explained_inputs.len() as u64;
    if it.inputs.is_some_and(|all| all > told) && told > 0 {
        out.push_str(&format!(
            "\n(the first {told} inputs that ended; `evoke explain in-…` tells of any other)\n"
        ));
    }
    for function in &it.functions {
        out.push_str(&format!("\n{}", heading(function)));
        if let Some(schedule) = &function.schedule {
            out.push_str(&format!("  {}\n", schedule.text));
        }
        out.push_str(&reasons(function));
    }
    out.push_str(&reasons(it));
    out
}

/// `container ta-1 of fu-2: exited` and what else is known in a line.
fn heading(it: &Explanation) -> String {
    let mut out = format!("{} {}", it.kind, it.id).trim().to_owned();
    if let Some(name) = it.name.as_ref().or(it.function.as_ref()) {
        out.push_str(&if out.is_empty() { format!("function {name}") } else { format!(" of {name}") });
    }
    let ended = [&it.state, &it.status, &it.end].into_iter().flatten().filter(|text| !text.is_empty());
    let counts = [("inputs", it.inputs), ("unfinished", it.unfinished), ("containers", it.containers)];
    let counted = counts.iter().filter_map(|(what, number)| Some(format!("{what} {}", number.as_ref()?)));
    let rest: Vec<String> = ended.cloned().chain(counted).collect();
    if !rest.is_empty() {
        out.push_str(&format!(": {}", rest.join(", ")));
    }
    out.push('\n');
    out
}

fn phases(it: &Explanation) -> String {
    if it.phases.is_empty() {
        return String::new();
    }
    let wall = it.wall_ms.unwrap_or_else(|| it.phases.iter().map(|p| p.ms).sum());
    let columns = it.phases.iter().map(|p| p.phase.chars().count()).max().unwrap_or(0).max("in all".len());
    let mut out = String::new();
    for phase in &it.phases {
        let share = if wall > 0.0 { (phase.ms / wall).clamp(0.0, 1.0) } else { 0.0 };
        let bar = "▇".repeat((share * BAR_COLUMNS as f64).round() as usize);
        let (time, percent) = (duration(phase.ms), share * 100.0);
        let line = format!(
            "  {:<columns$}  {time:>10}  {percent:>5.1}%  {bar:<BAR_COLUMNS$}  {}",
            phase.phase, phase.note
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push_str(&format!("  {:<columns$}  {:>10}\n", "in all", duration(wall)));
    out
}

fn reasons(it: &Explanation) -> String {
    let all: Vec<&String> = it.reason.iter().chain(&it.reasons).collect();
    if all.is_empty() {
        return String::new();
    }
    let lines: String = all.iter().map(|reason| format!("  {reason}\n")).collect();
    format!("why\n{lines}")
}

fn duration(ms: f64) -> String {
    match ms.abs() {
        m if m < 1.0 => format!("{ms:.2} ms"),
        m if m < 1_000.0 => format!("{ms:.1} ms"),
        m if m < 120_000.0 => format!("{:.2} s", ms / 1_000.0),
        _ => format!("{:.1} min", ms / 60_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_reads_well() {
        let told = serde_json::json!({
            "kind": "call", "id": "fc-1", "inputs": 2, "unfinished": 1, "new_field": [1],
            "explained_inputs": [{
                "kind": "input", "id": "in-1", "status": "Success", "wall_ms": 1000,
                "phases": [
                    {"phase": "queued", "ms": 750, "note": "for a free container"},
                    {"phase": "running", "ms": 250, "note": ""},
                ],
            }],
            "reasons": ["started 1 container: 1 input waits"],
        });
        let text = render(&serde_json::from_value(told).unwrap());
        assert!(text.starts_with("call fc-1: inputs 2, unfinished 1\n"), "{text}");
        assert!(text.contains("input in-1: Success\n"), "{text}");
        assert!(text.contains("75.0%") && text.contains("for a free container"), "{text}");
        assert!(text.contains("why\n  started 1 container: 1 input waits"), "{text}");
        assert!(text.contains("the first 1 inputs"), "{text}");
    }
}
