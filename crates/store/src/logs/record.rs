//! The bytes of one record in a segment.
//!
//! `length u32 | crc32 u32 | payload`, little-endian; the length and the checksum are the payload's. A
//! payload begins with its kind. An entry is `kind | flags | fd | time ns u64 | spool offset u64 | ids of 22
//! bytes each, as flagged | data`. A snapshot, the first record of every segment, is `kind | (task, fd,
//! offset u64)…`: how far the spools of the stream's tasks had been taken over when the segment began.

use super::{Cursor, Filter, LogEntry, NewEntry, lines};
use bytes::Bytes;
use evoke_core::id::{Id, Kind, SUFFIX_LEN};
use evoke_core::{FunctionId, TaskId};
use std::ops::Range;

/// Bytes before the payload.
pub(super) const FRAME: usize = 8;

/// Bytes of text in one entry; longer ones are split.
pub const ENTRY_DATA_MAX: usize = 1024 * 1024;

/// Bytes of a payload; anything that claims more is damaged.
const PAYLOAD_MAX: usize = ENTRY_DATA_MAX + 256;

const ENTRY: u8 = 1;
const SNAPSHOT: u8 = 2;

const HAS_SPOOL: u8 = 1;
const HAS_TASK: u8 = 2;
const HAS_FUNCTION: u8 = 4;
const HAS_CALL: u8 = 8;
const HAS_INPUT: u8 = 16;

/// Bytes of an entry before its ids.
const ENTRY_HEAD: usize = 3 + 8 + 8;
/// Bytes of one element of a snapshot.
const SNAPSHOT_ELEMENT: usize = SUFFIX_LEN + 1 + 8;

/// Spools that a snapshot holds at most; fits a payload.
pub(super) const SNAPSHOT_MAX: usize = PAYLOAD_MAX / SNAPSHOT_ELEMENT - 1;

/// How far one spool was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub task: TaskId,
    pub fd: u8,
    pub offset: u64,
}

/// Appends an entry with `data`, which is the part of the entry's that begins at `spool_offset`.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &NewEntry, spool_offset: Option<u64>, data: &[u8]) {
    put(out, |out| {
        let mut flags = 0;
        for (flag, present) in [
            (HAS_SPOOL, spool_offset.is_some()),
            (HAS_TASK, entry.task.is_some()),
            (HAS_FUNCTION, entry.function.is_some()),
            (HAS_CALL, entry.call.is_some()),
            (HAS_INPUT, entry.input.is_some()),
        ] {
            flags |= if present { flag } else { 0 };
        }
        out.extend_from_slice(&[ENTRY, flags, entry.fd]);
        out.extend_from_slice(&entry.at_ns.to_le_bytes());
        out.extend_from_slice(&spool_offset.unwrap_or(0).to_le_bytes());
        put_id(out, entry.task.as_ref());
        put_id(out, entry.function.as_ref());
        put_id(out, entry.call.as_ref());
        put_id(out, entry.input.as_ref());
        out.extend_from_slice(data);
    });
}

/// Appends a snapshot.
pub(super) fn put_snapshot(out: &mut Vec<u8>, taken: impl Iterator<Item = Taken>) {
    put(out, |out| {
        out.push(SNAPSHOT);
        for Taken { task, fd, offset } in taken.take(SNAPSHOT_MAX) {
            put_id(out, Some(&task));
            out.push(fd);
            out.extend_from_slice(&offset.to_le_bytes());
        }
    });
}

fn put(out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    payload(out);
    let length = (out.len() - start - FRAME) as u32;
    let crc = crc32fast::hash(&out[start + FRAME..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + FRAME].copy_from_slice(&crc.to_le_bytes());
}

fn put_id<K: Kind>(out: &mut Vec<u8>, id: Option<&Id<K>>) {
    if let Some(id) = id {
        out.extend_from_slice(id.suffix().as_bytes());
    }
}

/// What stands at the beginning of some bytes.
pub(super) enum Parsed<'a> {
    /// A whole record: its content, and how many bytes it takes.
    Record(Record<'a>, usize),
    /// The beginning of a record of this many bytes.
    Partial(usize),
    /// Not a record: torn or damaged.
    Damaged,
}

/// A record's content.
pub(super) enum Record<'a> {
    Entry(Entry<'a>),
    Snapshot(Vec<Taken>),
    /// Of a kind that this version does not know.
    Unknown,
}

/// Reads the record at the beginning of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let (Some(length), Some(crc)) = (u32_at(bytes, 0), u32_at(bytes, 4)) else {
        return Parsed::Partial(FRAME);
    };
    let length = length as usize;
    if length == 0 || length > PAYLOAD_MAX {
        return Parsed::Damaged;
    }
    let Some(payload) = bytes.get(FRAME..FRAME + length) else {
        return Parsed::Partial(FRAME + length);
    };
    if crc32fast::hash(payload) != crc {
        return Parsed::Damaged;
    }
    let record = match payload[0] {
        ENTRY => Entry::parse(payload).map(Record::Entry),
        SNAPSHOT => parse_snapshot(&payload[1..]).map(Record::Snapshot),
        _ => Some(Record::Unknown),
    };
    record.map_or(Parsed::Damaged, |record| Parsed::Record(record, FRAME + length))
}

fn parse_snapshot(bytes: &[u8]) -> Option<Vec<Taken>> {
    let mut taken = Vec::with_capacity(bytes.len() / SNAPSHOT_ELEMENT);
    for element in bytes.chunks(SNAPSHOT_ELEMENT) {
        let task = parse_id(element.get(..SUFFIX_LEN)?)?;
        taken.push(Taken { task, fd: *element.get(SUFFIX_LEN)?, offset: u64_at(element, SUFFIX_LEN + 1)? });
    }
    Some(taken)
}

/// An entry in the bytes that it was read from.
pub(super) struct Entry<'a> {
    payload: &'a [u8],
    ids: [Option<&'a [u8]>; 4],
    data: Range<usize>,
    pub at_ns: u64,
    pub fd: u8,
    pub spool_offset: Option<u64>,
}

impl<'a> Entry<'a> {
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let (flags, fd) = (*payload.get(1)?, *payload.get(2)?);
        let (at_ns, spool) = (u64_at(payload, 3)?, u64_at(payload, 11)?);
        let mut position = ENTRY_HEAD;
        let mut ids = [None; 4];
        for (slot, flag) in ids.iter_mut().zip([HAS_TASK, HAS_FUNCTION, HAS_CALL, HAS_INPUT]) {
            if flags & flag != 0 {
                *slot = Some(payload.get(position..position + SUFFIX_LEN)?);
                position += SUFFIX_LEN;
            }
        }
        let spool_offset = (flags & HAS_SPOOL != 0).then_some(spool);
        Some(Self { payload, ids, data: position..payload.len(), at_ns, fd, spool_offset })
    }

    pub(super) fn data(&self) -> &'a [u8] {
        &self.payload[self.data.clone()]
    }

    pub(super) fn task(&self) -> Option<TaskId> {
        self.ids[0].and_then(parse_id)
    }

    pub(super) fn matches(&self, filter: &Filter) -> bool {
        fn same<K: Kind>(wanted: &Option<Id<K>>, have: Option<&[u8]>) -> bool {
            wanted.is_none_or(|wanted| have == Some(wanted.suffix().as_bytes()))
        }
        let function = |id: &FunctionId| self.ids[1] == Some(id.suffix().as_bytes());
        same(&filter.task, self.ids[0])
            && (filter.functions.is_empty() || filter.functions.iter().any(function))
            && same(&filter.call, self.ids[2])
            && same(&filter.input, self.ids[3])
            && filter.fd.is_none_or(|fd| fd == self.fd)
            && filter.text.as_ref().is_none_or(|text| lines::has(self.data(), text))
    }

    /// The entry on its own; `next` is the place behind it.
    pub(super) fn to_owned(&self, next: Cursor) -> LogEntry {
        LogEntry {
            at_ns: self.at_ns,
            task: self.ids[0].and_then(parse_id),
            function: self.ids[1].and_then(parse_id),
            call: self.ids[2].and_then(parse_id),
            input: self.ids[3].and_then(parse_id),
            fd: self.fd,
            spool_offset: self.spool_offset,
            data: Bytes::copy_from_slice(self.data()),
            next,
        }
    }
}

fn parse_id<K: Kind>(suffix: &[u8]) -> Option<Id<K>> {
    format!("{}-{}", K::PREFIX, std::str::from_utf8(suffix).ok()?).parse().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::{CallId, SeededEntropy, UnixMs};
    use proptest::prelude::*;

    fn entry(data: &[u8]) -> NewEntry {
        let mut entropy = SeededEntropy::new(3);
        NewEntry {
            at_ns: 5,
            task: Some(TaskId::new(UnixMs(9), &mut entropy)),
            call: Some(CallId::new(UnixMs(9), &mut entropy)),
            fd: 2,
            spool_offset: Some(77),
            data: Bytes::copy_from_slice(data),
            ..NewEntry::default()
        }
    }

    proptest! {
        #[test]
        fn entries_survive_and_any_damage_is_seen(data in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let written = entry(&data);
            let mut bytes = Vec::new();
            put_entry(&mut bytes, &written, written.spool_offset, &data);
            let Parsed::Record(Record::Entry(read), size) = parse(&bytes) else { panic!("not read") };
            prop_assert_eq!(size, bytes.len());
            let read = read.to_owned(Cursor::START);
            prop_assert_eq!((read.task, read.function, read.call, read.input), (written.task, None, written.call, None));
            prop_assert_eq!((read.fd, read.at_ns, read.spool_offset), (2, 5, Some(77)));
            prop_assert_eq!(&read.data[..], &data[..]);

            let cut = at.index(bytes.len());
            prop_assert!(matches!(parse(&bytes[..cut]), Parsed::Partial(_)));
            bytes[cut] ^= 1u8 << bit;
            prop_assert!(!matches!(parse(&bytes), Parsed::Record(..)));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn zeroes_are_damage() {
        assert!(matches!(parse(&[0; 64]), Parsed::Damaged));
    }

    #[test]
    fn a_full_snapshot_can_be_read_back() {
        let mut entropy = SeededEntropy::new(3);
        let task = TaskId::new(UnixMs(9), &mut entropy);
        let mut bytes = Vec::new();
        put_snapshot(&mut bytes, std::iter::repeat_n(Taken { task, fd: 1, offset: 3 }, SNAPSHOT_MAX + 10));
        let Parsed::Record(Record::Snapshot(taken), _) = parse(&bytes) else { panic!("not read") };
        assert_eq!(taken.len(), SNAPSHOT_MAX);
        assert_eq!(taken[0], Taken { task, fd: 1, offset: 3 });
    }
}
