//! Starts a server in the background for a data folder and waits until it is ready.
//!
//! The wait is for an event: the holder's ready line on a pipe, or the pipe's end if it could not start. Of
//! several verbs that start one at the same time, one does and the others wait for it.

use crate::data_folder::DataFolder;
use crate::local::{Access, access, is_no_server};
use anyhow::{Context, Result};
use evoke_core::Error;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Bytes of the log of servers in the background; what is older is dropped at the next start.
const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Lines of the log that are shown when the server could not start.
const LOG_LINES_SHOWN: usize = 12;

/// Starts a server for `data`, says so on stderr, and gives what a client needs. Needs root.
pub(crate) fn start(data: &DataFolder) -> Result<Access> {
    let _only_one = start_lock(data)?;
    match access(data) {
        Ok(access) => return Ok(access),
        Err(error) if is_no_server(&error) => {}
        Err(error) => return Err(error),
    }
    let ready = launch(data, &["--any-port"])?;
    let stop = format!("evoke down{}", data.option());
    eprintln!("{ready} in the background; `{stop}` ends it");
    access(data)
}

/// Runs `evoke up` with `options` as a daemon and gives its ready line.
pub(crate) fn launch(data: &DataFolder, options: &[&str]) -> Result<String> {
    let exe = std::env::current_exe().context("finding the evoke binary")?;
    let mut log = open_log(data)?;
    let from = log.seek(SeekFrom::End(0))?;
    let mut command = Command::new("setsid");
    command.arg("--fork").arg(exe).arg("--data").arg(data.path()).arg("up").args(options);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .process_group(0)
        .current_dir("/");
    let mut child = command.spawn().context("starting a server in the background")?;
    let out = child.stdout.take().context("the server's ready line has a pipe")?;
    let mut ready = String::new();
    BufReader::new(out).read_line(&mut ready).context("waiting for the server to be ready")?;
    child.wait().context("waiting for setsid")?;
    if ready.is_empty() {
        let text = std::fs::read(data.background_log()).unwrap_or_default();
        let new = String::from_utf8_lossy(text.get(from as usize..).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = new.lines().collect();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        let what = format!("the server could not start; it said:\n{shown}");
        let hint = format!(
            "`evoke doctor` checks this machine; all it said is in {}",
            data.background_log().display()
        );
        return Err(Error::precondition(what).with_hint(hint).into());
    }
    Ok(ready.trim_end().to_owned())
}

/// Waits for others that start a server for the same folder.
fn start_lock(data: &DataFolder) -> Result<std::fs::File> {
    data.prepare()?;
    let path = data.start_lock_file();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .with_context(|| format!("opening {}", path.display()))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(std::fs::File::from(file))
}

/// The log to append to; emptied where it has grown over its bound.
fn open_log(data: &DataFolder) -> Result<std::fs::File> {
    let path = data.background_log();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .with_context(|| format!("opening {}", path.display()))?;
    let mut file = std::fs::File::from(file);
    if file.metadata()?.len() > LOG_BYTES_MAX {
        file.set_len(0)?;
        writeln!(file, "(older lines were dropped)")?;
    }
    Ok(file)
}
