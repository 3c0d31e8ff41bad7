//! A place in a stream of log entries, as clients carry it around.

use std::fmt;
use std::str::FromStr;

/// A place between two entries: what comes before it has been seen. Prints as `segment-offset`, and orders
/// as the entries do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor {
    pub(super) segment: u32,
    pub(super) offset: u64,
}

impl Cursor {
    /// Before the first entry that is still kept.
    pub const START: Cursor = Cursor { segment: 0, offset: 0 };
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.segment, self.offset)
    }
}

/// The text is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a log entry id")]
pub struct ParseCursorError;

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let (segment, offset) = text.split_once('-').ok_or(ParseCursorError)?;
        Ok(Self {
            segment: segment.parse().map_err(|_| ParseCursorError)?,
            offset: offset.parse().map_err(|_| ParseCursorError)?,
        })
    }
}
