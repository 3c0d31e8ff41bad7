//! What a container holds, on disk, so that a later helper finds it again: `containers/<id>/record`.

use super::ids::Range;
use crate::gpus::Edits;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

const NAME: &str = "record";
/// Bytes of a record at most.
const SIZE_MAX: u64 = 256 * 1024;

/// One container's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its range of host ids.
    pub(super) range: u32,
    /// The number of its address on the bridge.
    pub(super) address: Option<u32>,
    /// Its init, once it was started.
    pub(super) process: Option<Process>,
    /// The names of the GPUs that are its own.
    #[serde(default)]
    pub(super) gpus: Vec<String>,
    /// The project that counts what it writes.
    #[serde(default)]
    pub(super) project: Option<u32>,
    /// What its root has of them.
    #[serde(default)]
    pub(super) devices: Edits,
}

/// A process that can be recognised later: numbers are reused, a number with its start time in one run of the
/// machine is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    started: u64,
    boot: String,
}

impl Record {
    pub(super) fn range(&self) -> Range {
        Range(self.range)
    }

    /// Writes the record into a container's folder. Losing it with the machine is fine: what it describes is
    /// lost as well.
    pub(super) fn write(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let temporary = format!("{NAME}.new");
        let file = rustix::fs::openat(folder, &*temporary, flags, Mode::from_raw_mode(0o600))?;
        std::fs::File::from(file).write_all(&serde_json::to_vec(self)?)?;
        Ok(rustix::fs::renameat(folder, &*temporary, folder, NAME)?)
    }

    /// Reads the record of a container's folder, if it got so far as to have one.
    pub(super) fn read(folder: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(folder, NAME, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(SIZE_MAX).read_to_end(&mut bytes)?;
        // One that a full disk cut short says nothing.
        Ok(serde_json::from_slice(&bytes).ok())
    }
}

impl Process {
    /// Describes a process that runs now.
    pub(super) fn describe(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, started: started(pid)?, boot: boot()? })
    }

    /// A descriptor of the process, if it still runs.
    pub(super) fn open(&self) -> Option<(i32, OwnedFd)> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after it was opened, so that the number cannot change hands in between.
        let same = Self::describe(self.pid).is_ok_and(|now| now == *self);
        same.then_some((self.pid, pidfd))
    }
}

/// When a process was started, in clock ticks since the machine was.
fn started(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets, which may hold anything.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let field = rest.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::other("a process's state is malformed"))
}

fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_record_is_found_again_and_a_dead_process_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(folder.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert!(Record::read(fd.as_fd()).unwrap().is_none());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::describe(child.id() as i32).unwrap();
        let record = Record {
            range: 7,
            address: Some(3),
            process: Some(process),
            gpus: vec!["0".into()],
            project: None,
            devices: Edits::default(),
        };
        record.write(fd.as_fd()).unwrap();
        let read = Record::read(fd.as_fd()).unwrap().unwrap();
        assert_eq!(read.process, record.process);
        assert!(read.process.as_ref().unwrap().open().is_some());
        let other = Process { started: 1, ..read.process.clone().unwrap() };
        assert!(other.open().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(read.process.unwrap().open().is_none());
    }
}
