//! One segment: a file of records. Knows its name, its header, and how to be read through.

use super::block_index::BlockIndex;
use super::record::{self, FRAME, Parsed, Record, Taken};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// First bytes of every segment: what it is, and the version of its format.
pub(super) const HEADER: &[u8; 16] = b"EVOKELOG\x01\0\0\0\0\0\0\0";

/// Bytes read at a time. At least a whole record fits what grows from it.
const READ_BYTES: usize = 256 * 1024;

pub(super) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.log"))
}

pub(super) fn index_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.idx"))
}

/// The numbers of the segments in a folder, rising; none where there is no folder.
pub(super) fn list(folder: &Path) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".log"));
        numbers.extend(stem.and_then(|stem| stem.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Deletes a segment with its index.
pub(super) fn remove(folder: &Path, number: u32) -> io::Result<()> {
    for path in [index_path(folder, number), path(folder, number)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether to go on reading.
pub(super) enum Go {
    On,
    Stop,
}

/// Reads the records between two offsets one after the other: `each` gets a record, the offset at which it
/// begins and the one behind it. Returns the offset behind the last whole record that was read; it is less
/// than `to` where `each` stopped it or the bytes there are damaged or missing.
pub(super) fn walk(
    file: &File,
    from: u64,
    to: u64,
    mut each: impl FnMut(Record<'_>, u64, u64) -> Go,
) -> io::Result<u64> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut at = from;
    let mut wanted = FRAME;
    loop {
        // `buffer` begins at `at`; read on until a whole record is in it.
        let have = at + buffer.len() as u64;
        let ask = wanted.saturating_sub(buffer.len()).max(READ_BYTES).min((to - have.min(to)) as usize);
        let filled = buffer.len();
        buffer.resize(filled + ask, 0);
        let read = read_up_to(file, &mut buffer[filled..], have)?;
        buffer.truncate(filled + read);
        let mut used = 0;
        let ended = loop {
            match record::parse(&buffer[used..]) {
                Parsed::Record(record, size) => {
                    let start = at + used as u64;
                    used += size;
                    if let Go::Stop = each(record, start, start + size as u64) {
                        break true;
                    }
                }
                Parsed::Partial(size) => {
                    wanted = size;
                    break read == 0;
                }
                Parsed::Damaged => break true,
            }
        };
        at += used as u64;
        if ended {
            return Ok(at);
        }
        buffer.drain(..used);
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], mut at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at) {
            Ok(0) => break,
            Ok(read) => {
                filled += read;
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What reading a segment through tells.
pub(super) struct Scanned {
    /// The offset behind the last whole record.
    pub end: u64,
    pub index: BlockIndex,
    /// How far each spool was taken over, in the order of the records.
    pub taken: Vec<Taken>,
}

/// Reads a segment through; `None` if it does not begin as a segment must, that is if it was being made
/// when the machine or the process died.
pub(super) fn scan(file: &File) -> io::Result<Option<Scanned>> {
    let size = file.metadata()?.len();
    let mut header = [0u8; HEADER.len()];
    if read_up_to(file, &mut header, 0)? < HEADER.len() || header != *HEADER {
        return Ok(None);
    }
    let mut index = BlockIndex::default();
    let mut taken: Vec<Taken> = Vec::new();
    let mut begun = false;
    let end = walk(file, HEADER.len() as u64, size, |record, start, _| {
        match record {
            Record::Snapshot(snapshot) => {
                begun = true;
                taken.extend(snapshot);
            }
            Record::Entry(entry) if begun => {
                index.add(start, entry.at_ns);
                if let (Some(task), Some(offset)) = (entry.task(), entry.spool_offset) {
                    let end = offset + entry.data().len() as u64;
                    match taken.last_mut() {
                        Some(last) if last.task == task && last.fd == entry.fd => last.offset = end,
                        _ => taken.push(Taken { task, fd: entry.fd, offset: end }),
                    }
                }
            }
            Record::Entry(_) => return Go::Stop,
            Record::Unknown => {}
        }
        Go::On
    })?;
    Ok(begun.then_some(Scanned { end, index, taken }))
}
