//! Retention of logs: by age and by size, whole segments at a time.

use super::{Logs, StreamName, segment};
use crate::StoreError;
use crate::writer::lock;
use evoke_core::UnixMs;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Ends the name of a folder that is being deleted.
const GOING: &str = ".expired";

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Milliseconds after which a segment that got no more entries is deleted.
    pub age_ms_max: u64,
    /// Bytes that a stream may have; its oldest segments are deleted until it has fewer. The one that is
    /// written always stays.
    pub stream_bytes_max: u64,
}

/// What retention did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    /// Segments deleted.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

pub(super) fn expire(logs: &Logs, now: UnixMs, retention: Retention) -> Result<Expired, StoreError> {
    let mut expired = Expired::default();
    for entry in fs::read_dir(&logs.inner.root)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(GOING) {
            // Left by a crash.
            fs::remove_dir_all(entry.path())?;
        } else if entry.file_type()?.is_dir() {
            expire_stream(logs, &StreamName(name), &entry.path(), now, retention, &mut expired)?;
        }
    }
    Ok(expired)
}

fn expire_stream(
    logs: &Logs,
    name: &StreamName,
    folder: &Path,
    now: UnixMs,
    retention: Retention,
    expired: &mut Expired,
) -> Result<(), StoreError> {
    let too_old = UnixMs(now.0.saturating_sub(retention.age_ms_max));
    let mut segments = Vec::new();
    for number in segment::list(folder)? {
        let metadata = fs::metadata(segment::path(folder, number))?;
        segments.push((number, metadata.len(), changed_at(&metadata)?));
    }
    // The newest one tells whether the stream is still of interest to anybody.
    let all_old = segments.iter().all(|(_, _, changed)| *changed < too_old);
    let going = folder.with_extension(&GOING[1..]);
    if all_old && put_aside_unless_in_use(logs, name, folder, &going)? {
        for (_, bytes, _) in &segments {
            expired.segments += 1;
            expired.bytes += bytes;
        }
        fs::remove_dir_all(going)?;
        return Ok(());
    }
    let mut total: u64 = segments.iter().map(|(_, bytes, _)| bytes).sum();
    segments.pop();
    for (number, bytes, changed) in segments {
        if changed >= too_old && total <= retention.stream_bytes_max {
            break;
        }
        segment::remove(folder, number)?;
        total -= bytes;
        expired.segments += 1;
        expired.bytes += bytes;
        let state = lock(&logs.inner.streams).states.get(name).map(|(state, _)| state.clone());
        if let Some(state) = state {
            lock(&state).dropped_before(number + 1);
        }
    }
    Ok(())
}

/// Takes a stream out of sight, its folder and its state; `false` if somebody uses it. An append that comes
/// right after begins the stream anew.
fn put_aside_unless_in_use(logs: &Logs, name: &StreamName, folder: &Path, going: &Path) -> io::Result<bool> {
    let mut streams = lock(&logs.inner.streams);
    if let Some((state, _)) = streams.states.get(name) {
        // Nobody else can get at the state while the map is locked.
        if Arc::strong_count(state) > 1 || lock(state).is_watched() {
            return Ok(false);
        }
        lock(state).close(&logs.inner.shared);
        streams.states.remove(name);
    }
    fs::rename(folder, going)?;
    Ok(true)
}

fn changed_at(metadata: &fs::Metadata) -> io::Result<UnixMs> {
    let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(UnixMs(since.as_millis() as u64))
}
