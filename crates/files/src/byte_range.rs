//! The `Range` header: which bytes of a content are asked for.

/// Bytes of a content, the end not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last one.
    pub end: u64,
}

/// What a `Range` header means for a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeAnswer {
    /// All of it, status 200: there is no range, or none that we serve.
    Whole,
    /// These bytes, status 206.
    Part(ByteRange),
    /// None of them exist, status 416.
    Unsatisfiable,
}

impl ByteRange {
    /// How many bytes these are.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// The `Content-Range` header of a content of `length` bytes.
    pub fn content_range(&self, length: u64) -> String {
        format!("bytes {}-{}/{length}", self.start, self.end.saturating_sub(1))
    }
}

/// Reads a `Range` header for a content of `length` bytes. Several ranges at once are answered as none
/// were asked for, which the standard allows.
pub fn parse_range(header: Option<&str>, length: u64) -> RangeAnswer {
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else {
        return RangeAnswer::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else { return RangeAnswer::Whole };
    let (first, last) = (first.trim(), last.trim());
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(length)),
        (Ok(start), Err(_)) if last.is_empty() => (start, length),
        (Err(_), Ok(suffix)) if first.is_empty() => (length.saturating_sub(suffix), length),
        _ => return RangeAnswer::Whole,
    };
    if start >= end { RangeAnswer::Unsatisfiable } else { RangeAnswer::Part(ByteRange { start, end }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |start, end| RangeAnswer::Part(ByteRange { start, end });
        let cases = [
            (None, RangeAnswer::Whole),
            (Some("bytes=0-9"), part(0, 10)),
            (Some("bytes=5-"), part(5, 100)),
            (Some("bytes=-7"), part(93, 100)),
            (Some("bytes=-700"), part(0, 100)),
            (Some("bytes=90-1000"), part(90, 100)),
            (Some("bytes=100-"), RangeAnswer::Unsatisfiable),
            (Some("bytes=-0"), RangeAnswer::Unsatisfiable),
            (Some("bytes=9-2"), RangeAnswer::Whole),
            (Some("bytes=1-2,4-5"), RangeAnswer::Whole),
            (Some("items=1-2"), RangeAnswer::Whole),
        ];
        for (header, wanted) in cases {
            assert_eq!(parse_range(header, 100), wanted, "{header:?}");
        }
        assert_eq!(ByteRange { start: 0, end: 10 }.content_range(100), "bytes 0-9/100");
    }
}
