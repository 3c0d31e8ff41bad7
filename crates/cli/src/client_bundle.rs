//! Evoke's own copy of the official client, for interpreters that have none or another version of it.

use crate::interpreter::Interpreter;
use anyhow::Result;
use std::path::PathBuf;

/// The folders to put on `PYTHONPATH`, made from the package index at first use.
pub(crate) fn folders(interpreter: &Interpreter) -> Result<Vec<PathBuf>> {
    anyhow::bail!("there is no bundle for Python {}.{}", interpreter.major, interpreter.minor)
}
