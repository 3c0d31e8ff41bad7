//! The privileged helper's process: the only one that keeps root.
//!
//! The holder starts it before it gives up root, and gives it the end of a fresh socket for each server. It
//! ends when the holder's socket closes.

use crate::config::Config;
use crate::data_folder::{DataFolder, ServiceUser};
use crate::names;
use anyhow::{Context, Result};
use evoke_image::BaseSource;
use evoke_runtime::gpus::GpuConfig;
use evoke_runtime::{GuestBinary, HelperConfig, fds};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// The static program that is PID 1 of every container.
static GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evoke-guest"));

/// Folders of programs and libraries, and the authorities that they trust; nothing of people.
const HOST_ROOTS: [&str; 10] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt/cuda",
    "/etc/ssl/certs",
    "/etc/alternatives",
    "/etc/ld.so.conf.d",
];

/// The running helper, as its starter sees it.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    pidfd: OwnedFd,
    control: OwnedFd,
}

/// Starts the helper. Needs root.
pub(crate) fn start(data: &DataFolder, user: ServiceUser, config: &Config) -> Result<Helper> {
    let (control, theirs) = fds::pair().context("making the helper's socket")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("evoke")
        .arg("__helper")
        .stdin(theirs)
        .stdout(Stdio::null())
        .process_group(0)
        .current_dir("/");
    let orders = Orders {
        data: data.path().to_path_buf(),
        uid: user.uid,
        gid: user.gid,
        read_only_roots: host_roots(config),
        gpus: config.gpu.devices(),
    };
    command.env(names::EVOKE_HELPER, serde_json::to_string(&orders)?);
    let child = command.spawn().context("starting the privileged helper")?;
    let pidfd =
        pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("watching the privileged helper")?;
    Ok(Helper { child, pidfd, control })
}

/// What the `host` base shows of this machine, only where the configuration allows that base at all.
fn host_roots(config: &Config) -> Vec<PathBuf> {
    if !config.images.order.contains(&BaseSource::Host) {
        return Vec::new();
    }
    let interpreters = config.images.host.python.iter().filter_map(|python| python.ancestors().nth(2));
    let more = config.images.host.extra.iter().map(PathBuf::as_path);
    let all = HOST_ROOTS.iter().map(Path::new).chain(interpreters).chain(more);
    all.filter(|root| root.is_dir() && root.parent().is_some()).map(Path::to_path_buf).collect()
}

impl Helper {
    /// Readable once it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Gives the helper one end of a fresh socket and returns the other, for a server.
    pub(crate) fn attach(&mut self) -> Result<OwnedFd> {
        let (ours, theirs) = fds::pair()?;
        fds::send(self.control.as_fd(), b"{}", &[theirs.as_fd()], false).context("talking to the helper")?;
        Ok(ours)
    }

    /// Tells it to end by closing its socket, and waits up to `bound`.
    pub(crate) fn stop(mut self, bound: Duration) -> Result<()> {
        drop(self.control);
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let timeout = Timespec { tv_sec: bound.as_secs() as i64, tv_nsec: i64::from(bound.subsec_nanos()) };
        if poll(&mut fds, Some(&timeout)).context("waiting for the privileged helper")? == 0 {
            eprintln!("evoke: the privileged helper still cleans up (pid {})", self.child.id());
            return Ok(());
        }
        let status = self.child.wait().context("reaping the privileged helper")?;
        if !status.success() {
            eprintln!("evoke: the privileged helper ended with {status}");
        }
        Ok(())
    }
}

/// What the holder tells the helper: it alone decides what the helper may touch, no server can.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    data: PathBuf,
    uid: u32,
    gid: u32,
    read_only_roots: Vec<PathBuf>,
    gpus: GpuConfig,
}

/// Runs the verb.
pub(crate) fn run() -> Result<ExitCode> {
    let text = names::read(names::EVOKE_HELPER).context("the helper is started by `evoke up` only")?;
    let orders: Orders = serde_json::from_str(&text).context("reading the helper's orders")?;
    rustix::thread::set_name(c"evoke-helper").context("naming the process")?;
    let control = std::io::stdin().as_fd().try_clone_to_owned().context("taking over the holder's socket")?;
    let mut config = HelperConfig::new(orders.data, orders.uid, orders.gid, GuestBinary::Embedded(GUEST));
    config.read_only_roots = orders.read_only_roots;
    config.gpus = orders.gpus;
    evoke_runtime::helper::main(control, config)
}
