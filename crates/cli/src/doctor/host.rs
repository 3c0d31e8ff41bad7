//! The machine around the kernel: disk and memory.

use super::Check;
use super::containers::existing_parent;
use crate::data_folder::DataFolder;

const GIB: u64 = 1 << 30;
/// A base image with a few packages and some layers fits.
const DISK_MIN: u64 = 2 * GIB;
/// Room for a few images with machine learning packages.
const DISK_GOOD: u64 = 20 * GIB;
/// The server with one small container.
const MEMORY_MIN: u64 = GIB / 2;
/// Room for a few containers.
const MEMORY_GOOD: u64 = 2 * GIB;

/// All checks of this file.
pub(super) fn checks(data: &DataFolder) -> Vec<Check> {
    vec![disk(data), disk_bounds(data), memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())]
}

fn disk(data: &DataFolder) -> Check {
    let place = if data.path().is_dir() { data.path().to_path_buf() } else { existing_parent(data.path()) };
    let mend = "free some space, or put the data folder on a larger disk: evoke up --data DIR";
    match rustix::fs::statvfs(&place) {
        Ok(about) => {
            let free = about.f_bavail.saturating_mul(about.f_frsize);
            let detail = format!("{} free for {}", amount(free), data.path().display());
            grade("disk", free, DISK_MIN, DISK_GOOD, detail, mend)
        }
        Err(error) => Check::fail("disk", format!("{}: {error}", place.display()), mend),
    }
}

/// Whether a container can be kept from filling the disk.
fn disk_bounds(data: &DataFolder) -> Check {
    const SUBJECT: &str = "disk bounds";
    let place = if data.path().is_dir() { data.path().to_path_buf() } else { existing_parent(data.path()) };
    if evoke_runtime::quota::is_kept(&place) {
        return Check::ok(SUBJECT, "ephemeral_disk= and limits.disk_mib are enforced by project quotas");
    }
    let detail = "none: the data folder's file system keeps no project quotas, so a container may fill the disk. To \
                  have them, put the data folder on ext4 (tune2fs -O quota,project while it is not mounted) or XFS, \
                  mounted with prjquota";
    Check::ok(SUBJECT, detail)
}

fn memory(meminfo: &str) -> Check {
    let kib = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    let mend = "end other programs, or use a machine with more memory";
    match kib {
        Some(kib) => {
            let bytes = kib.saturating_mul(1024);
            grade("memory", bytes, MEMORY_MIN, MEMORY_GOOD, format!("{} available", amount(bytes)), mend)
        }
        None => Check::warn("memory", "unknown: /proc/meminfo does not say", "mount /proc"),
    }
}

fn grade(subject: &str, value: u64, least: u64, good: u64, detail: String, mend: &str) -> Check {
    match value {
        v if v < least => Check::fail(subject, detail, mend),
        v if v < good => Check::warn(subject, detail, mend),
        _ => Check::ok(subject, detail),
    }
}

fn amount(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn memory_is_graded() {
        for (kib, level) in [(100, Level::Fail), (1_000_000, Level::Warn), (9_000_000, Level::Ok)] {
            assert_eq!(memory(&format!("MemTotal: 1 kB\nMemAvailable:   {kib} kB\n")).level, level);
        }
        assert_eq!(memory("").level, Level::Warn);
    }
}
