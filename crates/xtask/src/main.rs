//! Checks of this repository that no standard tool makes: `cargo xtask tidy`, `layers` and `coverage`.
//!
//! Each check returns a list of findings; one line per finding is printed and any finding fails the run.

mod coverage;
mod layers;
mod scan;
mod tidy;

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask <check>

  tidy                    file and function lengths, first comments, forbidden words, where `unsafe` may live
  layers                  which crate may depend on which
  coverage [--write] BIN  docs/protocol-coverage.md against what the evoke binary BIN says it serves
";

/// One thing that a check found wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Path inside the repository, with the line where there is one.
    pub place: String,
    /// What is wrong, and the mend where it is not plain.
    pub what: String,
}

impl Finding {
    pub(crate) fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            for finding in &findings {
                println!("{}: {}", finding.place, finding.what);
            }
            eprintln!("xtask: {} finding(s)", findings.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[String]) -> Result<Vec<Finding>> {
    let root = repository_root()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => tidy::check(&root),
        ["layers"] => layers::check(&root),
        ["coverage", binary] => coverage::check(&root, binary.as_ref(), false),
        ["coverage", "--write", binary] => coverage::check(&root, binary.as_ref(), true),
        _ => bail!("{USAGE}"),
    }
}

/// The repository is two folders above this crate's manifest.
fn repository_root() -> Result<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map(PathBuf::from).context("xtask lies in crates/xtask of the repository")
}
