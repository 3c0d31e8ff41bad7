//! Which input the bytes of a stream belong to: ranges of offsets, each with its tag.

use evoke_core::{CallId, InputId};
use std::collections::VecDeque;

/// The input that wrote something, where that is certain.
pub(crate) type Tag = Option<(CallId, InputId)>;

/// Most tag changes remembered for bytes that are not shipped yet. Beyond it the newest range loses its tag,
/// since a wrong tag is worse than none.
const RANGES_MAX: usize = 4096;

/// Tags by offset. The last one holds for everything that is still to come.
#[derive(Debug)]
pub(crate) struct Tags {
    /// First offset and tag of each range, ascending; never empty.
    ranges: VecDeque<(u64, Tag)>,
}

impl Tags {
    /// No tag from offset 0 on.
    pub(crate) fn new() -> Self {
        Self { ranges: VecDeque::from([(0, None)]) }
    }

    /// What is written from `offset` on belongs to `tag`.
    pub(crate) fn set(&mut self, offset: u64, tag: Tag) {
        if let Some(last) = self.ranges.back_mut() {
            if last.1 == tag {
                return;
            }
            if last.0 >= offset {
                last.1 = tag;
                return;
            }
            if self.ranges.len() >= RANGES_MAX {
                if let Some(last) = self.ranges.back_mut() {
                    last.1 = None;
                }
                return;
            }
        }
        self.ranges.push_back((offset, tag));
    }

    /// The tag at `offset`, and where its range ends (`None`: not known yet).
    pub(crate) fn at(&self, offset: u64) -> (Tag, Option<u64>) {
        let next = self.ranges.partition_point(|range| range.0 <= offset);
        let tag = next.checked_sub(1).and_then(|own| self.ranges.get(own)).and_then(|range| range.1);
        (tag, self.ranges.get(next).map(|range| range.0))
    }

    /// Forgets ranges that end at or before `offset`.
    pub(crate) fn forget_before(&mut self, offset: u64) {
        while self.ranges.get(1).is_some_and(|next| next.0 <= offset) {
            self.ranges.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::{SeededEntropy, UnixMs};

    fn tag(n: u64) -> Tag {
        let mut entropy = SeededEntropy::new(n);
        Some((CallId::new(UnixMs(n), &mut entropy), InputId::new(UnixMs(n), &mut entropy)))
    }

    #[test]
    fn ranges_end_where_the_next_begins() {
        let mut tags = Tags::new();
        tags.set(10, tag(1));
        tags.set(20, None);
        tags.set(20, tag(2));
        assert_eq!(tags.at(0), (None, Some(10)));
        assert_eq!(tags.at(10), (tag(1), Some(20)));
        assert_eq!(tags.at(19), (tag(1), Some(20)));
        tags.forget_before(19);
        assert_eq!(tags.at(19), (tag(1), Some(20)));
        tags.forget_before(20);
        assert_eq!(tags.ranges.len(), 1);
        assert_eq!(tags.at(25), (tag(2), None));
    }

    #[test]
    fn the_same_tag_again_makes_no_range() {
        let mut tags = Tags::new();
        tags.set(5, tag(1));
        tags.set(9, tag(1));
        assert_eq!(tags.at(5), (tag(1), None));
    }

    #[test]
    fn beyond_the_bound_bytes_lose_their_tag_instead_of_getting_a_wrong_one() {
        let mut tags = Tags::new();
        for n in 0..(RANGES_MAX as u64 + 10) {
            tags.set(n + 1, tag(n));
        }
        assert_eq!(tags.ranges.len(), RANGES_MAX);
        assert_eq!(tags.at(RANGES_MAX as u64 + 100), (None, None));
    }
}
