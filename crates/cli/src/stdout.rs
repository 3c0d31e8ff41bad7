//! Data for stdout. A reader that has gone away, as `head` does, ends the program quietly.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};

/// Writes all of `text`.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("writing to stdout"),
    }
}
