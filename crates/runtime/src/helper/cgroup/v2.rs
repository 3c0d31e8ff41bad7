//! Version 2: one hierarchy for all controllers.

use super::{SHARES_MAX, cores, read_field, read_number, shares, write, write_if_present};
use crate::helper::sys::{self, Step};
use crate::{Limits, RuntimeError, Usage};
use rustix::fs::OFlags;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The period over which a processor limit is counted, in microseconds.
const PERIOD_US: u64 = 100_000;
/// What must be there for containers to be limited by this version.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The largest weight that the kernel takes.
const WEIGHT_MAX: u64 = 10_000;
const ENABLE: &str = "+cpu +memory +pids";

/// The parent group.
#[derive(Debug)]
pub(super) struct Parent {
    path: PathBuf,
}

/// Whether the hierarchy at `root` has every controller that is needed (in a hybrid set-up it has none).
pub(super) fn is_complete(root: &Path) -> bool {
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let found: Vec<_> = controllers.split_whitespace().collect();
    CONTROLLERS.iter().all(|wanted| found.contains(wanted))
}

impl Parent {
    /// Makes the parent and lets its children have the controllers.
    pub(super) fn open(root: &Path, name: &str) -> Result<Self, RuntimeError> {
        if write(root, "cgroup.subtree_control", ENABLE).is_err() {
            // What is mounted is not the machine's root but a group with processes in it, as in a container
            // with a cgroup namespace. They move into a group of their own, so that this one may have children.
            move_processes(root)?;
            write(root, "cgroup.subtree_control", ENABLE)?;
        }
        let path = root.join(name);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::step(format!("making {}", path.display()), error));
            }
            _ => {}
        }
        write(&path, "cgroup.subtree_control", ENABLE)?;
        // All containers together against the rest of the machine: the weight of one ordinary group (100) on each
        // processor, not that of a single one.
        write(&path, "cpu.weight", &(cores() * 100).min(WEIGHT_MAX).to_string())?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn create(&self, id: &str, limits: &Limits) -> Result<OwnedFd, RuntimeError> {
        let group = self.path.join(id);
        match std::fs::create_dir(&group) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::step(format!("making {}", group.display()), error));
            }
            _ => {}
        }
        write(&group, "cpu.weight", &weight(limits.cpu_shares_milli).to_string())?;
        if let Some(milli) = limits.cpu_max_milli {
            let quota = (u64::from(milli) * PERIOD_US / 1000).max(1000);
            write(&group, "cpu.max", &format!("{quota} {PERIOD_US}"))?;
        }
        if let Some(bytes) = limits.memory_max {
            write(&group, "memory.max", &bytes.to_string())?;
            write_if_present(&group, "memory.swap.max", "0")?;
        }
        if limits.memory_low > 0 {
            write(&group, "memory.low", &limits.memory_low.to_string())?;
        }
        write(&group, "pids.max", &limits.pids_max.to_string())?;
        let path = group
            .to_str()
            .ok_or_else(|| RuntimeError::Refused("a cgroup path that is no text".to_owned()))?;
        sys::open(path, OFlags::RDONLY | OFlags::DIRECTORY).step(format!("opening {path}"))
    }

    pub(super) fn usage(&self, id: &str) -> Usage {
        let group = self.path.join(id);
        Usage {
            cpu_ns: read_field(&group, "cpu.stat", "usage_usec").saturating_mul(1000),
            memory_bytes: read_number(&group, "memory.current"),
            memory_peak_bytes: read_number(&group, "memory.peak"),
            oom_kills: read_field(&group, "memory.events", "oom_kill"),
        }
    }
}

/// Thousandths of a core as a weight, by the formula that systemd and the OCI runtimes use for shares.
fn weight(shares_milli: u32) -> u64 {
    1 + (shares(shares_milli) - 2) * (WEIGHT_MAX - 1) / (SHARES_MAX - 2)
}

fn move_processes(root: &Path) -> Result<(), RuntimeError> {
    let leaf = root.join("evoke-others");
    match std::fs::create_dir(&leaf) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(RuntimeError::step(format!("making {}", leaf.display()), error));
        }
        _ => {}
    }
    let pids =
        std::fs::read_to_string(root.join("cgroup.procs")).step("listing the processes of the root group")?;
    for pid in pids.lines() {
        // A process may end before it is moved; if others could not be moved, the caller's next step says so.
        let _ = write(&leaf, "cgroup.procs", pid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stay_in_the_kernels_range() {
        assert_eq!(weight(0), 1);
        assert_eq!(weight(1000), 39);
        assert_eq!(weight(u32::MAX), 10_000);
    }
}
