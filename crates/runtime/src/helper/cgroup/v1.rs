//! Version 1: one hierarchy per controller, or several controllers in one.

use super::{SHARES_MAX, cores, mounted, read_field, read_number, shares, write, write_if_present};
use crate::helper::sys::Step;
use crate::{Limits, RuntimeError, Usage};
use std::path::{Path, PathBuf};

/// The period over which a processor limit is counted, in microseconds.
const PERIOD_US: u64 = 100_000;
/// The controllers that matter here.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

/// The parent group in each hierarchy.
#[derive(Debug)]
pub(super) struct Parents {
    /// By controller; several may share a path.
    groups: Vec<(&'static str, PathBuf)>,
}

impl Parents {
    /// Finds the hierarchies and makes the parent in each; `None` if there is not one.
    pub(super) fn open(mounts: &str, own: &str, name: &str) -> Result<Option<Self>, RuntimeError> {
        let mut groups = Vec::new();
        for controller in CONTROLLERS {
            let has = |options: &str| options.split(',').any(|option| option == controller);
            let Some((mount, _)) = mounted(mounts, "cgroup").find(|(_, options)| has(options)) else {
                continue;
            };
            let group = own_group(own, controller).trim_start_matches('/');
            let inside = mount.join(group);
            let parent = if inside.is_dir() { inside } else { mount };
            let group = parent.join(name);
            match std::fs::create_dir(&group) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(RuntimeError::step(format!("making {}", group.display()), error));
                }
                _ => groups.push((controller, group)),
            }
        }
        let parents = Self { groups };
        if let Some(cpu) = parents.parent("cpu") {
            // All containers together against the rest of the machine: the share of one ordinary program on each
            // processor, not that of a single program.
            let shares = (cores() * 1024).min(SHARES_MAX);
            write(cpu, "cpu.shares", &shares.to_string())?;
        }
        Ok(if parents.groups.is_empty() { None } else { Some(parents) })
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.groups.iter().map(|(_, path)| path.as_path())
    }

    pub(super) fn describe(&self) -> (bool, String) {
        let found: Vec<_> = self.groups.iter().map(|(controller, _)| *controller).collect();
        (found.len() == CONTROLLERS.len(), format!("version 1 with {}", found.join(", ")))
    }

    fn parent(&self, controller: &str) -> Option<&Path> {
        self.groups.iter().find(|(name, _)| *name == controller).map(|(_, path)| path.as_path())
    }

    fn group(&self, controller: &str, id: &str) -> Option<PathBuf> {
        self.parent(controller).map(|path| path.join(id))
    }

    pub(super) fn create(&self, id: &str, limits: &Limits) -> Result<(), RuntimeError> {
        for path in self.paths() {
            let group = path.join(id);
            match std::fs::create_dir(&group) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(RuntimeError::step(format!("making {}", group.display()), error));
                }
                _ => {}
            }
        }
        if let Some(cpu) = self.group("cpu", id) {
            write(&cpu, "cpu.shares", &shares(limits.cpu_shares_milli).to_string())?;
            if let Some(milli) = limits.cpu_max_milli {
                let quota = (u64::from(milli) * PERIOD_US / 1000).max(1000);
                write(&cpu, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
                write(&cpu, "cpu.cfs_quota_us", &quota.to_string())?;
            }
        }
        if let Some(memory) = self.group("memory", id) {
            if let Some(bytes) = limits.memory_max {
                write(&memory, "memory.limit_in_bytes", &bytes.to_string())?;
                // With swap counted the limit is the same; where swap is not counted there is no such file.
                write_if_present(&memory, "memory.memsw.limit_in_bytes", &bytes.to_string())?;
            }
            if limits.memory_low > 0 {
                write_if_present(&memory, "memory.soft_limit_in_bytes", &limits.memory_low.to_string())?;
            }
        }
        if let Some(pids) = self.group("pids", id) {
            write(&pids, "pids.max", &limits.pids_max.to_string())?;
        }
        Ok(())
    }

    pub(super) fn join(&self, id: &str, pid: i32) -> Result<(), RuntimeError> {
        let mut joined: Vec<&Path> = Vec::new();
        for path in self.paths() {
            if !joined.contains(&path) {
                joined.push(path);
                let file = path.join(id).join("cgroup.procs");
                std::fs::write(&file, pid.to_string()).step(format!("joining {}", file.display()))?;
            }
        }
        Ok(())
    }

    pub(super) fn usage(&self, id: &str) -> Usage {
        let mut usage = Usage::default();
        if let Some(group) = self.group("cpuacct", id) {
            usage.cpu_ns = read_number(&group, "cpuacct.usage");
        }
        if let Some(group) = self.group("memory", id) {
            usage.memory_bytes = read_number(&group, "memory.usage_in_bytes");
            usage.memory_peak_bytes = read_number(&group, "memory.max_usage_in_bytes");
            usage.oom_kills = read_field(&group, "memory.oom_control", "oom_kill");
        }
        usage
    }
}

/// The path of this process's group in a controller's hierarchy.
fn own_group<'a>(own: &'a str, controller: &str) -> &'a str {
    let mut lines = own.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    let found = lines.find(|(controllers, _)| controllers.split(',').any(|name| name == controller));
    found.map_or("/", |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_own_group_by_controller() {
        let own = "9:name=systemd:/a\n4:memory:/jobs/1\n2:cpu,cpuacct:/x\n0::/u\n";
        assert_eq!(own_group(own, "memory"), "/jobs/1");
        assert_eq!(own_group(own, "cpuacct"), "/x");
        assert_eq!(own_group(own, "pids"), "/");
    }
}
