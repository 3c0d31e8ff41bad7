//! `evoke doctor`: what this machine offers, and the mend for what it lacks.
//!
//! What can be tried for real is tried (by the privileged helper where it needs root), not guessed from
//! version numbers.

mod buckets;
mod client;
mod containers;
mod gpu;
mod host;
mod kernel;

use crate::data_folder::DataFolder;
use crate::stdout;
use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works, with less than there could be.
    Warn,
    /// Something that was promised does not work.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub subject: String,
    /// How it went.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Check {
    pub(crate) fn ok(subject: &str, detail: impl Into<String>) -> Self {
        Self { subject: subject.to_owned(), level: Level::Ok, detail: detail.into(), mend: None }
    }
    pub(crate) fn warn(subject: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        let mend = Some(mend.into());
        Self { subject: subject.to_owned(), level: Level::Warn, detail: detail.into(), mend }
    }
    pub(crate) fn fail(subject: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        let mend = Some(mend.into());
        Self { subject: subject.to_owned(), level: Level::Fail, detail: detail.into(), mend }
    }
}

/// Runs the verb. Fails where a check fails; warnings are fine.
pub(crate) fn run(data: Option<&Path>, json: bool) -> Result<ExitCode> {
    let data = DataFolder::locate(data)?;
    let mut checks = containers::checks(&data);
    if checks.len() <= 1 {
        // Nothing could be tried: at least what the kernel says of itself.
        let tried = std::mem::replace(&mut checks, kernel::checks());
        checks.extend(tried);
    }
    checks.extend(host::checks(&data));
    checks.extend(client::checks());
    checks.extend(gpu::checks(&data));
    checks.push(buckets::check());
    if json {
        stdout::write(&(serde_json::to_string_pretty(&checks)? + "\n"))?;
    } else {
        stdout::write(&render(&checks))?;
    }
    let failed = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(checks: &[Check]) -> String {
    let columns = checks.iter().map(|c| c.subject.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let word = match check.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        out.push_str(&format!("{word}  {:<columns$}  {}\n", check.subject, check.detail));
        for line in check.mend.iter().flat_map(|mend| mend.lines()) {
            out.push_str(&format!("      {:<columns$}  → {line}\n", ""));
        }
    }
    let count = |level| checks.iter().filter(|c| c.level == level).count();
    out.push_str(&match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => "\nThis machine is fit to run Evoke.\n".to_owned(),
        (0, warnings) => {
            format!("\nThis machine is fit to run Evoke; {warnings} thing(s) could be better.\n")
        }
        (failures, _) => format!("\n{failures} thing(s) must be mended first.\n"),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_not_fine_has_its_mend_below() {
        let text =
            render(&[Check::ok("kernel", "6.1"), Check::fail("overlayfs", "missing", "modprobe overlay")]);
        assert!(text.contains("ok    kernel     6.1\n"), "{text}");
        assert!(text.contains("FAIL  overlayfs  missing\n                 → modprobe overlay\n"), "{text}");
        assert!(text.ends_with("1 thing(s) must be mended first.\n"), "{text}");
    }
}
