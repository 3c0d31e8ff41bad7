//! The kernel: its version, control groups, and what it forbids.

use super::Check;
use std::path::Path;

/// Id-mapped mounts of an overlay's layers need it.
const KERNEL_MIN: (u32, u32) = (5, 19);
/// The controllers that limits and accounting use.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// All checks of this file.
pub(super) fn checks() -> Vec<Check> {
    let mounts = read("/proc/self/mounts");
    let mut checks = vec![version(&read("/proc/sys/kernel/osrelease")), control_groups(&mounts)];
    checks.extend(favordynmods(&mounts));
    checks.push(user_namespaces(
        &read("/proc/sys/user/max_user_namespaces"),
        &read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    ));
    checks
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn version(release: &str) -> Check {
    let mut parts = release.split(['.', '-']).map(|part| part.trim().parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => Check::ok("kernel", release.trim()),
        _ => Check::fail(
            "kernel",
            format!("{}, older than {}.{}", release.trim(), KERNEL_MIN.0, KERNEL_MIN.1),
            "upgrade to a newer kernel (Debian 12, Ubuntu 22.10 and later have one)",
        ),
    }
}

/// Pure v2, or v1 with what we need of it.
fn control_groups(mounts: &str) -> Check {
    let mounted: Vec<(&str, &str, &str)> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, place, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some((place, kind, options))
        })
        .collect();
    let unified = mounted.iter().find(|(place, kind, _)| *kind == "cgroup2" && *place == "/sys/fs/cgroup");
    let (version, present): (&str, Vec<String>) = if let Some((place, ..)) = unified {
        let file = Path::new(place).join("cgroup.controllers");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        ("v2", text.split_whitespace().map(str::to_owned).collect())
    } else {
        let v1 = mounted.iter().filter(|(_, kind, _)| *kind == "cgroup");
        ("v1", v1.flat_map(|(_, _, options)| options.split(',').map(str::to_owned)).collect())
    };
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|c| !present.iter().any(|p| p == c)).collect();
    if missing.is_empty() {
        return Check::ok("control groups", format!("{version} with {}", CONTROLLERS.join(", ")));
    }
    let mend = match version {
        "v2" => {
            "enable them for the root group: echo '+cpu +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control"
        }
        _ => "mount them, or start the kernel with cgroup_enable=memory systemd.unified_cgroup_hierarchy=1",
    };
    Check::fail("control groups", format!("{version} without {}", missing.join(", ")), mend)
}

/// Joining a control group on an idle machine takes 12 ms without it.
fn favordynmods(mounts: &str) -> Option<Check> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    if line.contains("favordynmods") {
        return Some(Check::ok("fast group joins", "cgroup2 is mounted with favordynmods"));
    }
    let place = line.split(' ').nth(1)?;
    Some(Check::warn(
        "fast group joins",
        "off: a container start on an idle machine takes about 12 ms longer",
        format!("the server turns it on where it may; by hand: mount -o remount,favordynmods {place}"),
    ))
}

fn user_namespaces(most: &str, apparmor: &str) -> Check {
    if most.trim() == "0" {
        let mend = "allow them: sysctl -w user.max_user_namespaces=65536";
        return Check::fail("user namespaces", "forbidden (user.max_user_namespaces is 0)", mend);
    }
    if apparmor.trim() == "1" {
        let note = "allowed; AppArmor restricts those of unprivileged programs, which the helper is not";
        return Check::ok("user namespaces", note);
    }
    Check::ok("user namespaces", "allowed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn kernels_are_compared_as_numbers() {
        for (release, level) in [
            ("5.19.0-1-amd64", Level::Ok),
            ("6.1.0", Level::Ok),
            ("5.4.0-99", Level::Fail),
            ("", Level::Fail),
        ] {
            assert_eq!(version(release).level, level, "{release}");
        }
    }

    #[test]
    fn version_one_needs_every_controller() {
        let all = "cgroup /c/cpu cgroup rw,cpu 0 0\ncgroup /c/memory cgroup rw,memory 0 0\ncgroup /c/pids cgroup rw,pids 0 0\n";
        assert_eq!(control_groups(all).level, Level::Ok);
        let check = control_groups("cgroup /c/cpu cgroup rw,cpu 0 0\n");
        assert_eq!((check.level, check.detail.as_str()), (Level::Fail, "v1 without memory, pids"));
    }

    #[test]
    fn forbidden_namespaces_fail() {
        assert_eq!(user_namespaces("0\n", "").level, Level::Fail);
        assert_eq!(user_namespaces("1000\n", "1\n").level, Level::Ok);
    }
}
