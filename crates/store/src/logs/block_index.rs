//! The sparse time index of a segment: for each block of about 64 KiB, where it begins and the times of
//! its entries. Times need not rise within a stream, so a block has an earliest and a latest.
//!
//! A segment's index is built while it is written and stored beside it when it is full. It can always be
//! made again by reading the segment.

use std::io;
use std::path::Path;

/// Bytes of a segment after which a new block begins.
const BLOCK_BYTES: u64 = 64 * 1024;

const ELEMENT: usize = 24;

/// A run of records in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub offset: u64,
    pub earliest_ns: u64,
    pub latest_ns: u64,
}

/// The blocks of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BlockIndex {
    blocks: Vec<Block>,
}

impl BlockIndex {
    /// Takes up an entry at `offset`.
    pub(super) fn add(&mut self, offset: u64, at_ns: u64) {
        match self.blocks.last_mut() {
            Some(block) if offset - block.offset < BLOCK_BYTES => {
                block.earliest_ns = block.earliest_ns.min(at_ns);
                block.latest_ns = block.latest_ns.max(at_ns);
            }
            _ => self.blocks.push(Block { offset, earliest_ns: at_ns, latest_ns: at_ns }),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The blocks with entries between the two times, last first: where each begins and ends. `end` is the
    /// segment's.
    pub(super) fn between(&self, since_ns: u64, until_ns: u64, end: u64) -> Vec<(u64, u64)> {
        let ends = self.blocks.iter().skip(1).map(|block| block.offset).chain([end]);
        let mut found: Vec<(u64, u64)> = self
            .blocks
            .iter()
            .zip(ends)
            .filter(|(block, _)| block.earliest_ns < until_ns && block.latest_ns >= since_ns)
            .map(|(block, end)| (block.offset, end))
            .collect();
        found.reverse();
        found
    }

    /// Where the first block behind `offset` begins.
    pub(super) fn next_after(&self, offset: u64) -> Option<u64> {
        self.blocks.iter().map(|block| block.offset).find(|start| *start > offset)
    }

    /// Stores the index beside its segment.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(4 + self.blocks.len() * ELEMENT);
        bytes.extend_from_slice(&[0; 4]);
        for block in &self.blocks {
            for word in [block.offset, block.earliest_ns, block.latest_ns] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(path, bytes)
    }

    /// The stored index, if it is there and whole.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let crc = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        let body = &bytes[4..];
        if body.len() % ELEMENT != 0 || crc32fast::hash(body) != crc {
            return None;
        }
        let mut words =
            body.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
        let mut blocks = Vec::with_capacity(body.len() / ELEMENT);
        while let (Some(offset), Some(earliest_ns), Some(latest_ns)) =
            (words.next(), words.next(), words.next())
        {
            blocks.push(Block { offset, earliest_ns, latest_ns });
        }
        Some(Self { blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_blocks_of_a_time() {
        let mut index = BlockIndex::default();
        for (offset, at) in [(16, 10), (40_000, 30), (80_000, 20), (90_000, 50), (200_000, 60)] {
            index.add(offset, at);
        }
        assert_eq!(index.len(), 3);
        assert_eq!(
            index.between(0, u64::MAX, 210_000),
            [(200_000, 210_000), (80_000, 200_000), (16, 80_000)]
        );
        assert_eq!(index.between(20, 31, 210_000), [(80_000, 200_000), (16, 80_000)]);
        assert_eq!(index.between(60, 61, 210_000), [(200_000, 210_000)]);
        assert_eq!(index.between(61, 90, 210_000), []);
        assert_eq!(index.next_after(16), Some(80_000));
        assert_eq!(index.next_after(200_000), None);
    }

    #[test]
    fn is_loaded_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.idx");
        assert_eq!(BlockIndex::load(&path), None);
        let mut index = BlockIndex::default();
        index.add(16, 1);
        index.add(70_000, 2);
        index.save(&path).unwrap();
        assert_eq!(BlockIndex::load(&path), Some(index));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(BlockIndex::load(&path), None);
    }
}
