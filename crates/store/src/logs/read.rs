//! Reading a stream: on from a cursor, backwards through a time, counting.

use super::block_index::BlockIndex;
use super::record::{Entry, Record};
use super::segment::{self, Go, HEADER};
use super::stream::View;
use super::{Cursor, Filter, LogEntry, lines};
use crate::StoreError;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

/// Bytes of text in one page of [`super::Logs::read_from`], plus at most one entry.
pub const PAGE_BYTES_MAX: usize = 512 * 1024;

/// Bytes of segments that are read for one page, whether or not anything in them matches.
const PAGE_SCAN_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of text in one answer of [`super::Logs::read_range`], plus at most one block.
pub const RANGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Entries in one answer of [`super::Logs::read_range`].
pub const RANGE_ENTRIES_MAX: usize = 20_000;

/// Buckets in one answer of [`super::Logs::count`].
pub const BUCKETS_MAX: u64 = 10_000;

/// What an entry costs beside its text.
const ENTRY_OVERHEAD: usize = 128;

/// A page of entries.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order in which they were appended.
    pub entries: Vec<LogEntry>,
    /// Where to go on; behind the last entry, or further if what follows does not match.
    pub next: Cursor,
    /// Whether that is behind everything there was.
    pub at_end: bool,
}

/// A span of time.
#[derive(Debug, Clone, Copy)]
pub struct TimeRange {
    /// From this time on, in nanoseconds since the Unix epoch.
    pub since_ns: u64,
    /// Up to and without this time.
    pub until_ns: u64,
}

impl TimeRange {
    fn has(&self, at_ns: u64) -> bool {
        (self.since_ns..self.until_ns).contains(&at_ns)
    }
}

/// How much of a time is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The newest so many lines.
    Lines(usize),
    /// Everything: as lines, or, where there are more than [`RANGE_ENTRIES_MAX`] of them, as it was written,
    /// many lines in an entry.
    Everything,
}

impl Wanted {
    /// Lines and entries after which there is enough.
    fn enough(self) -> (usize, usize) {
        match self {
            Wanted::Lines(lines) => (lines, usize::MAX),
            Wanted::Everything => (usize::MAX, RANGE_ENTRIES_MAX),
        }
    }
}

/// Entries of a time.
#[derive(Debug, Clone)]
pub struct Range {
    /// In the order of their times.
    pub entries: Vec<LogEntry>,
    /// Whether there may be older ones, left out because of the limit.
    pub truncated: bool,
}

/// How many lines a bucket of time has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// When it begins, in nanoseconds since the Unix epoch.
    pub start_ns: u64,
    /// Lines of stdout.
    pub stdout: u64,
    /// Lines of stderr.
    pub stderr: u64,
    /// Lines of the system.
    pub system: u64,
}

pub(super) fn page(view: &View, from: Cursor, filter: &Filter) -> Result<Page, StoreError> {
    let mut page = whole_page(view, from, filter)?;
    if let Some(text) = &filter.text {
        page.entries = lines::only(page.entries, text);
    }
    Ok(page)
}

/// A page of entries that match, with all that is in them.
fn whole_page(view: &View, from: Cursor, filter: &Filter) -> Result<Page, StoreError> {
    let mut page = Page { entries: Vec::new(), next: begin(view, from), at_end: false };
    let (mut text, mut scanned) = (0, 0);
    while page.next < view.end {
        let Some((file, to)) = open(view, page.next.segment)? else {
            page.next = Cursor { segment: page.next.segment + 1, offset: 0 };
            continue;
        };
        let segment = page.next.segment;
        let start = page.next.offset.max(HEADER.len() as u64);
        let mut full = false;
        let reached = segment::walk(&file, start, to, |record, from, after| {
            scanned += after - from;
            if let Record::Entry(entry) = record {
                if entry.matches(filter) {
                    text += entry.data().len() + ENTRY_OVERHEAD;
                    page.entries.push(entry.to_owned(Cursor { segment, offset: after }));
                }
            }
            full = text >= PAGE_BYTES_MAX || scanned >= PAGE_SCAN_MAX;
            if full { Go::Stop } else { Go::On }
        })?;
        page.next = if full || reached >= to {
            Cursor { segment, offset: reached }
        } else {
            after_damage(view, segment, reached, &file)?
        };
        if full {
            page.at_end = page.next >= view.end;
            return Ok(page);
        }
        if page.next < view.end && page.next.offset >= to {
            page.next = Cursor { segment: segment + 1, offset: 0 };
        }
    }
    page.at_end = true;
    Ok(page)
}

/// Where reading from `from` really begins: segments before may be gone, or a crash may have taken the end.
fn begin(view: &View, from: Cursor) -> Cursor {
    if from.segment < view.first || from.segment > view.end.segment {
        Cursor { segment: view.first, offset: 0 }
    } else {
        from.min(view.end)
    }
}

/// Where to go on behind damaged bytes of a segment.
fn after_damage(view: &View, segment: u32, reached: u64, file: &File) -> Result<Cursor, StoreError> {
    tracing::warn!(folder = %view.folder.display(), segment, offset = reached, "a damaged log record is skipped");
    let index = index_of(view, segment, file)?;
    Ok(match index.next_after(reached) {
        Some(offset) => Cursor { segment, offset },
        None if segment == view.end.segment => view.end,
        None => Cursor { segment: segment + 1, offset: 0 },
    })
}

pub(super) fn range(
    view: &View,
    time: TimeRange,
    filter: &Filter,
    wanted: Wanted,
) -> Result<Range, StoreError> {
    let text = filter.text.as_deref();
    let (lines_max, entries_max) = wanted.enough();
    // Newest first while it is collected.
    let mut entries: Vec<LogEntry> = Vec::new();
    let (mut lines, mut bytes) = (0, 0);
    let mut truncated = false;
    'segments: for number in (view.first..=view.end.segment).rev() {
        let Some((file, to)) = open(view, number)? else { continue };
        for (from, to) in index_of(view, number, &file)?.between(time.since_ns, time.until_ns, to) {
            if lines > lines_max || entries.len() >= entries_max || bytes >= RANGE_BYTES_MAX {
                truncated = true;
                break 'segments;
            }
            let mut block = Vec::new();
            each_entry(&file, from, to, |entry, after| {
                if time.has(entry.at_ns) && entry.matches(filter) {
                    bytes += entry.data().len() + ENTRY_OVERHEAD;
                    lines += lines::whole(entry.data(), text);
                    block.push(entry.to_owned(Cursor { segment: number, offset: after }));
                }
            })?;
            entries.extend(block.into_iter().rev());
        }
    }
    if entries.len() > entries_max {
        truncated = true;
        entries.truncate(entries_max);
    }
    entries.reverse();
    entries.sort_by_key(|entry| entry.at_ns);
    let mut entries = match (wanted, text) {
        (Wanted::Everything, Some(text)) if lines > RANGE_ENTRIES_MAX => lines::only(entries, text),
        (Wanted::Everything, None) if lines > RANGE_ENTRIES_MAX => entries,
        _ => lines::split(entries, text),
    };
    if entries.len() > lines_max {
        truncated = true;
        entries.drain(..entries.len() - lines_max);
    }
    Ok(Range { entries, truncated })
}

/// A bucket while it is counted.
#[derive(Default)]
struct Counted {
    lines: Bucket,
    entries: usize,
    bytes: usize,
}

impl Counted {
    fn add(&mut self, entry: &Entry<'_>, text: Option<&str>) {
        let lines = lines::count(entry.data(), text) as u64;
        match entry.fd {
            1 => self.lines.stdout += lines,
            2 => self.lines.stderr += lines,
            _ => self.lines.system += lines,
        }
        self.entries += 1;
        self.bytes += entry.data().len() + ENTRY_OVERHEAD;
    }

    /// What is said of it: whoever counts does so to read no more than an answer holds, which may be more lines
    /// than entries.
    fn told(self) -> Bucket {
        let Bucket { start_ns, stdout, stderr, system } = self.lines;
        let most = RANGE_ENTRIES_MAX as u64 - 3;
        let total = stdout + stderr + system;
        if total <= most || self.entries > RANGE_ENTRIES_MAX || self.bytes > RANGE_BYTES_MAX {
            return self.lines;
        }
        let share = |lines: u64| (lines * most).div_ceil(total);
        Bucket { start_ns, stdout: share(stdout), stderr: share(stderr), system: share(system) }
    }
}

pub(super) fn count(
    view: &View,
    time: TimeRange,
    filter: &Filter,
    bucket_ns: u64,
) -> Result<Vec<Bucket>, StoreError> {
    let bucket_ns = bucket_ns.max(1);
    let mut buckets: BTreeMap<u64, Counted> = BTreeMap::new();
    let mut too_many = false;
    for number in view.first..=view.end.segment {
        let Some((file, to)) = open(view, number)? else { continue };
        for (from, to) in index_of(view, number, &file)?.between(time.since_ns, time.until_ns, to) {
            each_entry(&file, from, to, |entry, _| {
                if !time.has(entry.at_ns) || !entry.matches(filter) {
                    return;
                }
                let start_ns = entry.at_ns - entry.at_ns % bucket_ns;
                if buckets.len() as u64 >= BUCKETS_MAX && !buckets.contains_key(&start_ns) {
                    too_many = true;
                    return;
                }
                let counted = buckets.entry(start_ns).or_default();
                counted.lines.start_ns = start_ns;
                counted.add(&entry, filter.text.as_deref());
            })?;
        }
        if too_many {
            return Err(StoreError::TooMuch(format!("more than {BUCKETS_MAX} buckets; make them wider")));
        }
    }
    Ok(buckets.into_values().map(Counted::told).collect())
}

/// Calls `each` for the entries between two offsets, with the offset behind each. Ends at damaged bytes:
/// the next block is read on its own.
fn each_entry(
    file: &File,
    from: u64,
    to: u64,
    mut each: impl FnMut(Entry<'_>, u64),
) -> Result<(), StoreError> {
    segment::walk(file, from, to, |record, _, after| {
        if let Record::Entry(entry) = record {
            each(entry, after);
        }
        Go::On
    })?;
    Ok(())
}

/// A segment and where its records end; `None` if retention took it meanwhile.
fn open(view: &View, number: u32) -> Result<Option<(File, u64)>, StoreError> {
    let file = match File::open(segment::path(&view.folder, number)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = if number == view.end.segment { view.end.offset } else { file.metadata()?.len() };
    Ok(Some((file, end)))
}

/// The index of a segment: in memory for the last one, else from its file, else made again.
fn index_of(view: &View, number: u32, file: &File) -> Result<BlockIndex, StoreError> {
    if number == view.end.segment {
        return Ok(view.index.clone());
    }
    let path = segment::index_path(&view.folder, number);
    if let Some(index) = BlockIndex::load(&path) {
        return Ok(index);
    }
    let index = segment::scan(file)?.map(|scanned| scanned.index).unwrap_or_default();
    if let Err(error) = index.save(&path) {
        tracing::warn!(%error, "storing the index of a log segment");
    }
    Ok(index)
}
