//! `evoke explain`: where the time of a call, input, container or app went, and why.

use crate::data_folder::DataFolder;
use crate::local::{Reply, Request, ask};
use anyhow::Result;
use evoke_core::Error;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// Columns of the bar that shows a phase's share.
const BAR_COLUMNS: usize = 24;

/// The life of one object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Explanation {
    /// Its id.
    pub id: String,
    /// What it is: `call`, `input`, `container`, `app`.
    pub kind: String,
    /// One line: what it is of, and how it ended.
    pub summary: String,
    /// From its beginning to its end, or to now, in milliseconds.
    pub wall_ms: f64,
    /// What the time went to; the phases follow each other without gaps, so they sum to the wall time.
    pub phases: Vec<ExplainedPhase>,
    /// Decisions about it with the numbers they were made on, oldest first.
    pub reasons: Vec<ExplainedReason>,
    /// Ids that lead on: its call, inputs, containers.
    pub related: Vec<String>,
}

/// A stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExplainedPhase {
    /// Its name: `queued`, `image`, `start`, `run`, …
    pub name: String,
    /// When it began, milliseconds from the object's beginning.
    pub from_ms: f64,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// What was waited for, where that is known.
    pub note: Option<String>,
}

/// A decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExplainedReason {
    /// When, milliseconds from the object's beginning; negative for what was decided before.
    pub at_ms: f64,
    /// What was decided, and on which numbers.
    pub text: String,
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
        println!("{}", serde_json::to_string_pretty(&explanation)?);
    } else {
        print!("{}", render(&explanation));
    }
    Ok(ExitCode::SUCCESS)
}

/// For people: a table of phases with their shares, then the reasons.
fn render(it: &Explanation) -> String {
    let mut out = String::new();
    // Writing into a String does not fail.
    let _ = writeln!(out, "{} {}: {}", it.kind, it.id, it.summary);
    let _ = writeln!(out, "\n{:<14}{:>12}  {:>6}", "phase", "time", "share");
    let name_columns = it.phases.iter().map(|p| p.name.chars().count()).max().unwrap_or(0).max(13);
    for phase in &it.phases {
        let share = if it.wall_ms > 0.0 { (phase.ms / it.wall_ms).clamp(0.0, 1.0) } else { 0.0 };
        let bar = "▇".repeat((share * BAR_COLUMNS as f64).round() as usize);
        let note = phase.note.as_deref().unwrap_or_default();
        let line = format!(
            "{:<name_columns$} {:>12}  {:>5.1}%  {bar} {note}",
            phase.name,
            duration(phase.ms),
            share * 100.0
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(out, "{:<name_columns$} {:>12}", "in all", duration(it.wall_ms));
    if !it.reasons.is_empty() {
        let _ = writeln!(out, "\nwhy");
        for reason in &it.reasons {
            let _ = writeln!(out, "{:>12}  {}", format!("+{}", duration(reason.at_ms)), reason.text);
        }
    }
    if !it.related.is_empty() {
        let _ = writeln!(out, "\nsee also: {}", it.related.join(" "));
    }
    out
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
        let phase = |name: &str, from_ms, ms, note: Option<&str>| ExplainedPhase {
            name: name.into(),
            from_ms,
            ms,
            note: note.map(Into::into),
        };
        let text = render(&Explanation {
            id: "fc-1".into(),
            kind: "call".into(),
            summary: "of `square`, succeeded".into(),
            wall_ms: 1_000.0,
            phases: vec![
                phase("start", 0.0, 750.0, Some("no container was idle")),
                phase("run", 750.0, 250.0, None),
            ],
            reasons: vec![ExplainedReason { at_ms: 2.0, text: "started 1 container: 1 input waits".into() }],
            related: vec!["ta-1".into()],
        });
        assert!(text.contains("start"), "{text}");
        assert!(text.contains("75.0%") && text.contains("no container was idle"), "{text}");
        assert!(text.contains("+2.0 ms  started 1 container"), "{text}");
        assert!(text.contains("see also: ta-1"), "{text}");
    }
}
