//! The spool file of one stream: filled by splice, read at offsets, given back by punching holes.

use evoke_core::TaskId;
use evoke_proto::worker::OutputFd;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Shipped bytes are given back to the file system in steps of at least this many.
const PUNCH_BYTES_MIN: u64 = 1024 * 1024;
/// Holes are made of whole blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// Where the spool of a stream of `task` lies below `folder`.
pub(crate) fn spool_path(folder: &Path, task: TaskId, fd: OutputFd) -> PathBuf {
    let number = match fd {
        OutputFd::Stdout => 1,
        OutputFd::Stderr => 2,
    };
    folder.join(format!("{task}.{number}"))
}

/// What one splice did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spliced {
    /// So many bytes went from the pipe to the end of the spool.
    Bytes(u64),
    /// The pipe is empty and somebody may still write into it.
    Empty,
    /// The pipe is empty and nobody can write into it any more.
    Ended,
}

/// The open spool of one stream. Its length is the number of bytes that ever left the pipe.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    path: PathBuf,
    written: u64,
    /// Bytes before this offset were given back.
    punched: u64,
    can_punch: bool,
}

impl Spool {
    /// Opens the spool at `path`, making an empty one where there is none.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        // Not in append mode: splice refuses that, and the offset is ours to say.
        let file =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { file, path, written, punched: 0, can_punch: true })
    }

    /// Bytes that ever came out of the pipe.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Moves up to `max` bytes from `pipe` (in non-blocking mode) to the end of the spool. The kernel takes
    /// from the pipe exactly what it put into the file, also when this process is killed in the middle.
    pub(crate) fn splice_from(&mut self, pipe: impl AsFd, max: usize) -> io::Result<Spliced> {
        let mut offset = self.written;
        loop {
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            match rustix::pipe::splice(&pipe, None, &self.file, Some(&mut offset), max, flags) {
                Ok(0) => return Ok(Spliced::Ended),
                Ok(n) => {
                    self.written += n as u64;
                    return Ok(Spliced::Bytes(n as u64));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Spliced::Empty),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The bytes at `offset`, at most `max` of them and none beyond what was written.
    pub(crate) fn read(&self, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let there = self.written.saturating_sub(offset).min(max as u64) as usize;
        let mut bytes = vec![0; there];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Gives the space of everything before `shipped` back to the file system, in large steps. The length
    /// stays, so that offsets keep their meaning.
    pub(crate) fn give_back(&mut self, shipped: u64) {
        let until = shipped - shipped % BLOCK_BYTES;
        if !self.can_punch || until < self.punched + PUNCH_BYTES_MIN {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, self.punched, until - self.punched) {
            Ok(()) => self.punched = until,
            Err(errno) => {
                self.can_punch = false;
                tracing::warn!(spool = %self.path.display(), %errno,
                    "spool space cannot be given back before its container ends: no holes on this file system");
            }
        }
    }

    /// Removes the file; to be called when everything in it is shipped.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
