//! Looks at what this machine can do, by doing it.

use super::sys::Step;
use super::{Helper, folders, ids, rootfs};
use crate::{Finding, FindingState, RuntimeError};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};

/// The oldest kernel with everything that containers stand on (overlays over id-mapped layers).
const KERNEL_MIN: (u32, u32) = (5, 19);

fn finding(subject: &str, state: FindingState, detail: impl Into<String>, mend: &str) -> Finding {
    let mend = if mend.is_empty() { None } else { Some(mend.to_owned()) };
    Finding { subject: subject.to_owned(), state, detail: detail.into(), mend }
}

impl Helper {
    /// Everything that `doctor` wants to know from the side of root.
    pub(super) fn probe(&mut self) -> Vec<Finding> {
        let mut findings = vec![kernel(), self.roots(), proc(), seccomp()];
        let (complete, found) = self.cgroups.describe();
        findings.push(if complete {
            finding("control groups", FindingState::Fine, found, "")
        } else {
            let mend = "Mount the cpu, memory and pids controllers; limits that need the missing ones have no effect.";
            finding("control groups", FindingState::Degraded, found, mend)
        });
        findings.push(dynamic_modifications());
        findings.extend(self.networks.findings());
        findings.push(user_namespaces());
        findings
    }

    /// Makes an overlay over an id-mapped folder of the data folder, as a container's start does.
    fn roots(&mut self) -> Finding {
        match self.try_root() {
            Ok(()) => {
                finding("root file systems", FindingState::Fine, "overlay over id-mapped layers works", "")
            }
            Err(error) => {
                let mend = "Put the data folder on ext4, xfs or btrfs: network file systems, and an overlay as in \
                            a container, cannot be id-mapped.";
                finding("root file systems", FindingState::Broken, error.to_string(), mend)
            }
        }
    }

    fn try_root(&mut self) -> Result<(), RuntimeError> {
        self.sequence += 1;
        let name = format!("probe-{}", self.sequence);
        let parent = self.folders.unpacking.as_fd();
        let folder = folders::new_folder(parent, &name, 0o700).step("making a folder")?;
        let made = self.try_overlay(&folder);
        let cleared =
            std::ffi::CString::new(name).map(|name| evoke_guest::tree::remove(parent_of(self), &name));
        made.and(cleared.map_err(std::io::Error::from).and_then(|cleared| cleared).step("removing a folder"))
    }

    fn try_overlay(&mut self, folder: &OwnedFd) -> Result<(), RuntimeError> {
        for name in ["upper", "work", "lower"] {
            folders::new_folder(folder.as_fd(), name, 0o755).step("making a folder")?;
        }
        let range = self.ids.lease()?;
        let made = (|| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let lower = rustix::fs::openat(folder, "lower", flags, Mode::empty()).step("opening a folder")?;
            let user = self.ids.single(range, (0, 0))?;
            let lower = rootfs::mapped_clone(lower.as_fd(), user, true)?;
            let upper = rootfs::mapped_clone(folder.as_fd(), user, false)?;
            self.stage.overlay(&[lower], &upper, range.base()).map(drop)
        })();
        self.ids.release(range);
        made
    }
}

fn parent_of(helper: &Helper) -> std::os::fd::BorrowedFd<'_> {
    helper.folders.unpacking.as_fd()
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        finding("kernel", FindingState::Fine, release, "")
    } else {
        finding("kernel", FindingState::Broken, release, "Use Linux 5.19 or newer.")
    }
}

/// Inside another container, /proc is often masked, and the kernel then refuses a new one to containers.
fn proc() -> Finding {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let masks =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| path.starts_with("/proc/"));
    let masks: Vec<_> = masks.filter(|path| *path != "/proc/sys/fs/binfmt_misc").collect();
    if masks.is_empty() {
        finding("proc", FindingState::Fine, "not masked", "")
    } else {
        let mend = "Give the container that Evoke runs in an unmasked /proc (Docker: --security-opt systempaths=unconfined).";
        finding("proc", FindingState::Broken, format!("masked at {}", masks.join(", ")), mend)
    }
}

fn seccomp() -> Finding {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        finding("seccomp", FindingState::Fine, "filters work", "")
    } else {
        finding("seccomp", FindingState::Broken, "no filters", "Use a kernel with CONFIG_SECCOMP_FILTER.")
    }
}

fn dynamic_modifications() -> Finding {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.contains(" cgroup2 ") && line.contains("favordynmods")) {
        finding("cgroup changes", FindingState::Fine, "favordynmods is on", "")
    } else {
        let mend =
            "Mount cgroup2 with the option favordynmods: starts on an idle machine get some 10 ms faster.";
        finding("cgroup changes", FindingState::Degraded, "favordynmods is off or refused", mend)
    }
}

fn user_namespaces() -> Finding {
    match ids::user_namespace_works() {
        Ok(()) => finding("user namespaces", FindingState::Fine, "work", ""),
        Err(error) => {
            let mend = "Raise user.max_user_namespaces by sysctl.";
            finding("user namespaces", FindingState::Broken, error.to_string(), mend)
        }
    }
}
