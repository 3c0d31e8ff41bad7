//! Control groups of containers: limits, membership, usage, removal. Version 1 hierarchies, version 2, and
//! machines that have both are one [`Cgroups`] to the rest of the helper.
//!
//! Version 1 groups are made below the helper's own group, so that limits put on Evoke hold for its containers
//! as well. Version 2 does not allow groups below one that has processes, so there they hang off the root.

mod v1;
mod v2;

use super::sys::Step;
use crate::{Limits, RuntimeError, Usage};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The file of a group that lists its processes, and takes more.
const PROCS: &str = "cgroup.procs";

/// The control groups of this installation.
#[derive(Debug)]
pub(super) struct Cgroups {
    version: Version,
    /// Parent groups that earlier helpers used, which may still have children.
    former: BTreeSet<PathBuf>,
}

#[derive(Debug)]
enum Version {
    One(v1::Parents),
    Two(v2::Parent),
    /// The kernel or the environment has none; containers then have no limits, which `doctor` says.
    None,
}

impl Cgroups {
    /// Finds the hierarchies and makes the parent groups, called `evoke-<tag>`.
    pub(super) fn open(tag: &str, former: BTreeSet<PathBuf>) -> Result<Self, RuntimeError> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").step("reading the mounts")?;
        let own = std::fs::read_to_string("/proc/self/cgroup").step("reading the helper's cgroup")?;
        let name = format!("evoke-{tag}");
        let unified = mounted(&mounts, "cgroup2").next();
        if let Some((_, options)) = &unified {
            favor_dynamic_modifications(options);
        }
        let unified = unified.map(|(path, _)| path);
        let version = match &unified {
            Some(root) if v2::is_complete(root) => Version::Two(v2::Parent::open(root, &name)?),
            _ => match v1::Parents::open(&mounts, &own, &name)? {
                Some(parents) => Version::One(parents),
                None => Version::None,
            },
        };
        Ok(Self { version, former })
    }

    /// The parent groups, to be remembered for later helpers.
    pub(super) fn parents(&self) -> BTreeSet<PathBuf> {
        let mut parents = self.former.clone();
        match &self.version {
            Version::One(groups) => parents.extend(groups.paths().map(Path::to_owned)),
            Version::Two(group) => drop(parents.insert(group.path().to_owned())),
            Version::None => {}
        }
        parents
    }

    /// One line on what was found, and whether it is complete.
    pub(super) fn describe(&self) -> (bool, String) {
        match &self.version {
            Version::One(groups) => groups.describe(),
            Version::Two(_) => (true, "version 2 with cpu, memory and pids".to_owned()),
            Version::None => (false, "no cpu, memory or pids controller can be used".to_owned()),
        }
    }

    /// Makes a container's groups with its limits. For version 2 returns the folder to be born in.
    pub(super) fn create(&self, id: &str, limits: &Limits) -> Result<Option<OwnedFd>, RuntimeError> {
        match &self.version {
            Version::One(groups) => groups.create(id, limits).map(|()| None),
            Version::Two(group) => group.create(id, limits).map(Some),
            Version::None => Ok(None),
        }
    }

    /// Moves a process into a container's groups, where it was not born there.
    pub(super) fn join(&self, id: &str, pid: i32) -> Result<(), RuntimeError> {
        match &self.version {
            Version::One(groups) => groups.join(id, pid),
            Version::Two(_) | Version::None => Ok(()),
        }
    }

    /// Moves a process into a container's groups, also where others are born there.
    pub(super) fn move_in(&self, id: &str, pid: i32) -> Result<(), RuntimeError> {
        match &self.version {
            Version::One(groups) => groups.join(id, pid),
            Version::Two(group) => write(&group.path().join(id), PROCS, &pid.to_string()),
            Version::None => Ok(()),
        }
    }

    /// The files of a container's groups by which whoever has them moves processes in: only such as it can name.
    pub(super) fn doors(&self, id: &str) -> Result<Vec<OwnedFd>, RuntimeError> {
        let parents: BTreeSet<&Path> = match &self.version {
            Version::One(groups) => groups.paths().collect(),
            Version::Two(group) => [group.path()].into(),
            Version::None => BTreeSet::new(),
        };
        let open = |parent: &Path| {
            let path = parent.join(id).join(PROCS);
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            file.map(OwnedFd::from).step(format!("opening {}", path.display()))
        };
        parents.into_iter().map(open).collect()
    }

    /// What a container has used. Zeros where nothing counts.
    pub(super) fn usage(&self, id: &str) -> Usage {
        match &self.version {
            Version::One(groups) => groups.usage(id),
            Version::Two(group) => group.usage(id),
            Version::None => Usage::default(),
        }
    }

    /// Kills every process in the groups of a container.
    pub(super) fn kill(&self, id: &str) {
        for parent in self.parents() {
            // A group that is gone has no processes.
            let Ok(pids) = std::fs::read_to_string(parent.join(id).join("cgroup.procs")) else { continue };
            for pid in pids.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 1) {
                // SAFETY: a plain system call. The group is root's to fill, so all in it is the container's.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }

    /// Removes a container's groups; `false` while something in them still ends.
    pub(super) fn remove(&self, id: &str) -> io::Result<bool> {
        let mut gone = true;
        for parent in self.parents() {
            gone &= remove_group(&parent.join(id))?;
        }
        Ok(gone)
    }

    /// The ids of all containers that have a group.
    pub(super) fn list(&self) -> BTreeSet<String> {
        let parents = self.parents();
        let folders = parents.iter().filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten();
        let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Removes the parent groups when the last container is gone. Failure leaves an empty group behind.
    pub(super) fn remove_parents(&self) {
        for parent in self.parents() {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

/// Removes one group with the groups that its container may have made in it.
fn remove_group(path: &Path) -> io::Result<bool> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            if let Ok(entries) = std::fs::read_dir(path) {
                let inner =
                    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                for entry in inner {
                    remove_group(&entry.path())?;
                }
            }
            match std::fs::remove_dir(path) {
                Ok(()) => Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Mounts of a kind in `mountinfo`: mount point and the file system's own options.
fn mounted<'a>(mounts: &'a str, kind: &'a str) -> impl Iterator<Item = (PathBuf, &'a str)> {
    mounts.lines().filter_map(move |line| {
        let (place, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        if system.next()? != kind {
            return None;
        }
        let options = system.nth(1)?;
        Some((PathBuf::from(place.split(' ').nth(4)?), options))
    })
}

/// Makes joining a group quick on an idle machine: 12 ms become 0.1. Refused on some kernels, which is fine.
fn favor_dynamic_modifications(options: &str) {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag};
    /// Options of the hierarchy that a mount without them would switch off.
    const KEPT: [&str; 4] =
        ["nsdelegate", "memory_localevents", "memory_recursiveprot", "memory_hugetlb_accounting"];
    const WANTED: &str = "favordynmods";
    let present: Vec<_> = options.split(',').collect();
    if present.contains(&WANTED) {
        return;
    }
    let attempt = || -> rustix::io::Result<()> {
        let context = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for option in KEPT.iter().filter(|option| present.contains(option)) {
            fsconfig_set_flag(&context, *option)?;
        }
        fsconfig_set_flag(&context, WANTED)?;
        fsconfig_create(&context)?;
        // The option is the hierarchy's, not this mount's, which goes away again at once.
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
    };
    // `doctor` looks at the mounts and says whether it is on.
    let _ = attempt();
}

/// The most shares that the kernel takes.
const SHARES_MAX: u64 = 262_144;

/// Thousandths of a core as shares, of which a core has 1024.
fn shares(milli: u32) -> u64 {
    (u64::from(milli) * 1024 / 1000).clamp(2, SHARES_MAX)
}

/// The processors of this machine.
fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// Writes a control file.
fn write(group: &Path, file: &str, value: &str) -> Result<(), RuntimeError> {
    let path = group.join(file);
    let opened = std::fs::OpenOptions::new().write(true).open(&path);
    let written = opened.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.step(format!("writing {value} to {}", path.display()))
}

/// Writes a control file that not every kernel has.
fn write_if_present(group: &Path, file: &str, value: &str) -> Result<(), RuntimeError> {
    if group.join(file).exists() { write(group, file, value) } else { Ok(()) }
}

fn read_number(group: &Path, file: &str) -> u64 {
    std::fs::read_to_string(group.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// A value of a file with lines of a name and a number.
fn read_field(group: &Path, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    let mut fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hierarchies_among_the_mounts() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            39 30 0:35 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let one: Vec<_> = mounted(mounts, "cgroup").collect();
        assert_eq!(one, [(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"), "rw,cpu,cpuacct")]);
        let two: Vec<_> = mounted(mounts, "cgroup2").map(|(path, _)| path).collect();
        assert_eq!(two, [PathBuf::from("/sys/fs/cgroup/unified")]);
    }
}
