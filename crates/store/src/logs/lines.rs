//! Lines out of entries. Output is stored as it was written: an entry may hold many lines, and a line may lie in
//! several entries. Whoever reads the past thinks in lines.

use super::LogEntry;
use bytes::{Bytes, BytesMut};
use evoke_core::TaskId;
use memchr::{memchr2, memmem};
use std::collections::HashMap;

/// Whether bytes have a text in them.
pub(super) fn has(data: &[u8], text: &str) -> bool {
    memmem::find(data, text.as_bytes()).is_some()
}

/// How many lines there are in `data`: all, or those with a text in them. A beginning or end of a line counts
/// as one.
pub(super) fn count(data: &[u8], text: Option<&str>) -> usize {
    pieces(data).filter(|line| text.is_none_or(|text| has(line, text))).count()
}

/// How many lines end in `data`: what is left without an end goes with what comes after it. Of those with a
/// text in them, each piece counts.
pub(super) fn whole(data: &[u8], text: Option<&str>) -> usize {
    pieces(data).filter(|line| text.map_or(is_whole(line), |text| has(line, text))).count()
}

/// Entries of one line each, out of entries in the order of time. Lines that lie in several entries are put
/// together, unless only those with a text are wanted.
pub(super) fn split(entries: Vec<LogEntry>, text: Option<&str>) -> Vec<LogEntry> {
    let mut lines: Vec<LogEntry> = Vec::with_capacity(entries.len());
    // The line that each writer has begun, and what there is of it.
    let mut begun: HashMap<(Option<TaskId>, u8), (usize, BytesMut)> = HashMap::new();
    for entry in entries {
        let writer = (entry.task, entry.fd);
        for piece in pieces(&entry.data) {
            if text.is_some() || (is_whole(piece) && !begun.contains_key(&writer)) {
                if text.is_none_or(|text| has(piece, text)) {
                    lines.push(LogEntry { data: entry.data.slice_ref(piece), ..entry.clone() });
                }
                continue;
            }
            let (at, line) = begun.entry(writer).or_insert_with(|| {
                lines.push(LogEntry { data: Bytes::new(), ..entry.clone() });
                (lines.len() - 1, BytesMut::new())
            });
            line.extend_from_slice(piece);
            lines[*at].next = entry.next;
            if is_whole(piece) {
                if let Some((at, line)) = begun.remove(&writer) {
                    lines[at].data = line.freeze();
                }
            }
        }
    }
    for (at, line) in begun.into_values() {
        lines[at].data = line.freeze();
    }
    lines
}

/// Entries with nothing in them but the lines that have a text in them.
pub(super) fn only(entries: Vec<LogEntry>, text: &str) -> Vec<LogEntry> {
    let only = |mut entry: LogEntry| {
        let found: Vec<&[u8]> = pieces(&entry.data).filter(|line| has(line, text)).collect();
        entry.data = found.concat().into();
        entry
    };
    entries.into_iter().map(only).filter(|entry| !entry.data.is_empty()).collect()
}

/// Lines with their ends, and what is left without one. A carriage return ends a line as a line feed does, so
/// that a progress bar is not one endless line.
fn pieces(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = match memchr2(b'\n', b'\r', rest) {
            Some(at) if rest[at] == b'\r' && rest.get(at + 1) == Some(&b'\n') => at + 2,
            Some(at) => at + 1,
            None => rest.len(),
        };
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

fn is_whole(piece: &[u8]) -> bool {
    matches!(piece.last(), Some(b'\n' | b'\r'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Cursor;
    use proptest::prelude::*;

    fn entry(fd: u8, data: &str) -> LogEntry {
        LogEntry {
            at_ns: 1,
            task: None,
            function: None,
            call: None,
            input: None,
            fd,
            spool_offset: None,
            data: Bytes::copy_from_slice(data.as_bytes()),
            next: Cursor::START,
        }
    }

    fn texts(entries: &[LogEntry]) -> Vec<(u8, &str)> {
        entries.iter().map(|e| (e.fd, std::str::from_utf8(&e.data).unwrap())).collect()
    }

    #[test]
    fn lines_are_put_together_per_writer() {
        let entries = vec![entry(1, "a\nb"), entry(2, "x"), entry(1, "b\n\nc"), entry(2, "y\n")];
        let lines = split(entries, None);
        assert_eq!(texts(&lines), [(1, "a\n"), (1, "bb\n"), (2, "xy\n"), (1, "\n"), (1, "c")]);
    }

    #[test]
    fn a_text_leaves_the_lines_that_have_it() {
        let entries = || vec![entry(1, "one\ntwo\nonce\n"), entry(1, "three")];
        assert_eq!(texts(&split(entries(), Some("on"))), [(1, "one\n"), (1, "once\n")]);
        assert_eq!(texts(&only(entries(), "on")), [(1, "one\nonce\n")]);
        assert_eq!(count(b"one\ntwo\nonce", Some("on")), 2);
        assert_eq!(count(b"one\ntwo\nonce", None), 3);
        assert_eq!(count(b"", None), 0);
    }

    #[test]
    fn a_progress_bar_is_many_lines() {
        let bar = vec![entry(1, "1%\r2%"), entry(1, "\r3%\r\ndone\n")];
        assert_eq!(texts(&split(bar, None)), [(1, "1%\r"), (1, "2%\r"), (1, "3%\r\n"), (1, "done\n")]);
    }

    proptest! {
        /// Cutting output into entries anywhere changes neither its bytes nor its lines.
        #[test]
        fn cuts_do_not_show(pieces in prop::collection::vec("[a\n]{0,6}", 0..12)) {
            let whole = pieces.concat();
            let entries = pieces.iter().map(|piece| entry(1, piece)).collect();
            let lines = split(entries, None);
            prop_assert_eq!(texts(&lines).iter().map(|(_, text)| *text).collect::<String>(), whole.clone());
            prop_assert_eq!(lines.len(), count(whole.as_bytes(), None));
        }
    }
}
