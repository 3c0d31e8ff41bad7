//! Host ids for containers: each container that lives has 65536 of its own.
//!
//! Several installations may run on one machine, so ids are leased in blocks by locking files that all of
//! them share. A block stays with the data folder that has it until the machine restarts or the folder is gone,
//! because containers outlive the helper that started them.

use super::folders::own_folder;
use super::sys::{self, Step};
use crate::RuntimeError;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The first host id used; below it lie the ranges of users, subordinate ids and systemd.
const FIRST_ID: u32 = 0x7000_0000;
/// Ids of one container.
pub(super) const IDS_PER_CONTAINER: u32 = 65_536;
/// Containers in one block.
const BLOCK: u32 = 256;
/// Blocks on a machine.
const BLOCKS: u32 = 64;
/// User namespaces kept per range for translating single owners.
const SINGLES_MAX: usize = 8;

/// The ranges of this installation.
#[derive(Debug)]
pub(super) struct Ids {
    data: PathBuf,
    /// Locked for as long as the helper lives.
    blocks: BTreeMap<u32, std::fs::File>,
    /// The blocks' lock files, in `/run/evoke/ids`: cleared when the machine restarts.
    folder: Option<OwnedFd>,
    used: BTreeSet<u32>,
    ranges: HashMap<u32, HashMap<(u32, u32), OwnedFd>>,
}

/// One container's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range(pub(super) u32);

impl Range {
    /// The host id of the container's root.
    pub(super) fn base(self) -> u32 {
        FIRST_ID + self.0 * IDS_PER_CONTAINER
    }
}

impl Ids {
    pub(super) fn new(data: &Path) -> Self {
        let data = data.to_owned();
        Self { data, blocks: BTreeMap::new(), folder: None, used: BTreeSet::new(), ranges: HashMap::new() }
    }

    /// Makes the folder of lock files.
    fn prepare(&mut self) -> Result<(), RuntimeError> {
        if self.folder.is_none() {
            let run = sys::open("/run", OFlags::RDONLY | OFlags::DIRECTORY).step("opening /run")?;
            let ours = own_folder(run.as_fd(), "evoke", 0o755).step("making /run/evoke")?;
            self.folder = Some(own_folder(ours.as_fd(), "ids", 0o700).step("making /run/evoke/ids")?);
        }
        Ok(())
    }

    /// Marks a range as used by a container that an earlier helper started.
    pub(super) fn adopt(&mut self, range: Range) {
        self.used.insert(range.0);
        if range.0 < BLOCK * BLOCKS {
            // It was this installation's, so the lock is free or nobody else may have it. Failing to get it
            // leaves the range marked all the same.
            if let Ok(Some(file)) = self.lock_block(range.0 / BLOCK) {
                self.blocks.insert(range.0 / BLOCK, file);
            }
        }
    }

    /// A range that no living container has.
    pub(super) fn lease(&mut self) -> Result<Range, RuntimeError> {
        self.prepare()?;
        loop {
            let free = self.blocks.keys().flat_map(|block| block * BLOCK..(block + 1) * BLOCK);
            let free = free.into_iter().find(|index| !self.used.contains(index));
            if let Some(index) = free {
                self.used.insert(index);
                return Ok(Range(index));
            }
            self.lease_block()?;
        }
    }

    /// Gives a range back once nothing runs under its ids.
    pub(super) fn release(&mut self, range: Range) {
        self.used.remove(&range.0);
    }

    fn lease_block(&mut self) -> Result<(), RuntimeError> {
        for block in (0..BLOCKS).filter(|block| !self.blocks.contains_key(block)).collect::<Vec<_>>() {
            if let Some(file) = self.lock_block(block).step("leasing host ids")? {
                self.blocks.insert(block, file);
                return Ok(());
            }
        }
        Err(RuntimeError::Exhausted(
            "every range of host ids on this machine is taken by containers".to_owned(),
        ))
    }

    /// Locks a block if it is free or was this data folder's before.
    fn lock_block(&self, block: u32) -> io::Result<Option<std::fs::File>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = std::fs::File::from(rustix::fs::openat(
            folder,
            block.to_string(),
            flags,
            Mode::from_raw_mode(0o600),
        )?);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut owner = Vec::new();
        file.read_to_end(&mut owner)?;
        let ours = self.data.as_os_str().as_bytes();
        if owner != ours {
            if !owner.is_empty() && has_containers(Path::new(std::ffi::OsStr::from_bytes(&owner))) {
                return Ok(None);
            }
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(ours)?;
        }
        Ok(Some(file))
    }

    /// A user namespace whose map makes `ids` of the host the root of `range`, for id-mapped mounts.
    pub(super) fn single(&mut self, range: Range, ids: (u32, u32)) -> Result<BorrowedFd<'_>, RuntimeError> {
        let singles = self.ranges.entry(range.0).or_default();
        if !singles.contains_key(&ids) {
            if singles.len() >= SINGLES_MAX {
                singles.clear();
            }
            let made = mapping_namespace(ids, range.base())
                .step("making a user namespace for translating owners")?;
            singles.insert(ids, made);
        }
        singles.get(&ids).map(AsFd::as_fd).ok_or(RuntimeError::HelperGone)
    }
}

/// The map of a user namespace in which others are made: its own range first, then one for each of those.
pub(super) fn map_around(own: Range, inner: &[Range]) -> String {
    let all = [own].into_iter().chain(inner.iter().copied()).enumerate();
    let line = |(index, range): (usize, Range)| {
        format!("{} {} {IDS_PER_CONTAINER}\n", index as u32 * IDS_PER_CONTAINER, range.base())
    };
    all.map(line).collect()
}

/// The map of a user namespace inside of one that [`map_around`] describes, for the inner range of this number.
pub(super) fn map_inside(index: usize) -> String {
    format!("0 {} {IDS_PER_CONTAINER}", (index as u32 + 1) * IDS_PER_CONTAINER)
}

/// Whether another installation still has containers of its own under its ids.
fn has_containers(data: &Path) -> bool {
    let entries = std::fs::read_dir(data.join("containers"));
    entries.is_ok_and(|entries| {
        entries.flatten().any(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
    })
}

/// Writes the maps of a process's user namespace.
pub(super) fn write_maps(pid: i32, uid: &str, gid: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/uid_map"), uid)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), gid)
}

/// Tries to make a user namespace with maps.
pub(super) fn user_namespace_works() -> io::Result<()> {
    mapping_namespace((0, 0), FIRST_ID).map(drop)
}

fn mapping_namespace(ids: (u32, u32), base: u32) -> io::Result<OwnedFd> {
    let child = sys::fork_with(libc::CLONE_NEWUSER as u64, None, || {
        sys::die_with_parent();
        loop {
            // SAFETY: waits for the signal that ends this child.
            unsafe { libc::pause() };
        }
    })?;
    let made = write_maps(child.pid, &format!("{} {base} 1", ids.0), &format!("{} {base} 1", ids.1))
        .and_then(|()| sys::open(&format!("/proc/{}/ns/user", child.pid), OFlags::RDONLY));
    sys::kill(child.pidfd.as_fd());
    sys::wait(child.pid);
    made
}
