//! `evoke down`: ends the server of a data folder and sweeps what a killed one left behind.

use crate::data_folder::DataFolder;
use crate::local::{Reply, Request, ask, is_no_server, no_server};
use crate::sweep;
use anyhow::{Context, Result};
use evoke_core::{Error, ErrorCode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::path::Path;
use std::process::ExitCode;

/// How long containers, server and helper may take; the holder's own bounds are shorter.
const END_MAX_SECONDS: i64 = 150;

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>) -> Result<ExitCode> {
    let data = DataFolder::locate(data)?;
    match ask(&data, &Request::Stop) {
        Ok(Reply::Stopping { holder_pid }) => {
            wait_for_end(holder_pid)?;
            eprintln!("evoke: the server on {} has ended", data.path().display());
            if rustix::process::geteuid().is_root() {
                sweep::leftovers(&data)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Ok(other) => anyhow::bail!("unexpected reply from the server: {other:?}"),
        Err(error)
            if is_no_server(&error) && rustix::process::geteuid().is_root() && data.path().exists() =>
        {
            let swept = sweep::leftovers(&data)?;
            if swept == 0 {
                return Err(no_server(&data).into());
            }
            eprintln!("evoke: no server was up; removed what {swept} container(s) had left");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error),
    }
}

/// Waits until the process has ended.
fn wait_for_end(pid: u32) -> Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the holder's pid")?;
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context("watching the holder"),
    };
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let bound = Timespec { tv_sec: END_MAX_SECONDS, tv_nsec: 0 };
    if poll(&mut fds, Some(&bound)).context("waiting for the holder")? == 0 {
        let what = format!("the server did not end within {END_MAX_SECONDS} s");
        let hint = format!("end it at once: sudo kill -9 {pid}; sudo evoke down");
        return Err(Error::new(ErrorCode::DeadlineExceeded, what).with_hint(hint).into());
    }
    Ok(())
}
