//! `cargo xtask coverage`: docs/protocol-coverage.md is what the binary itself says it serves.

use crate::Finding;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// The generated document.
const DOCUMENT: &str = "docs/protocol-coverage.md";

/// Compares the document with `binary __coverage`, or writes it.
pub(crate) fn check(root: &Path, binary: &Path, write: bool) -> Result<Vec<Finding>> {
    let output = Command::new(binary)
        .arg("__coverage")
        .output()
        .with_context(|| format!("running {} __coverage", binary.display()))?;
    anyhow::ensure!(output.status.success(), "{} __coverage failed: {}", binary.display(), output.status);
    let served = String::from_utf8(output.stdout).context("the coverage list is text")?;
    let path = root.join(DOCUMENT);
    if write {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, served).with_context(|| format!("writing {}", path.display()))?;
        return Ok(Vec::new());
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    if written == served {
        return Ok(Vec::new());
    }
    let mend = format!(
        "differs from what the binary serves; run `cargo xtask coverage --write {}`",
        binary.display()
    );
    Ok(vec![Finding::new(DOCUMENT, mend)])
}
