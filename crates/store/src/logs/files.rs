//! Open segment files: a bounded number, the least recently used closed first, so that any number of apps
//! may log.

use super::segment;
use crate::writer::lock;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Segments kept open.
const OPEN_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    files: HashMap<PathBuf, (Arc<File>, u64)>,
    uses: u64,
}

impl OpenFiles {
    /// Segment `number` of `folder`, open for reading and writing.
    pub(super) fn get(&self, folder: &Path, number: u32) -> io::Result<Arc<File>> {
        let path = segment::path(folder, number);
        let mut open = lock(&self.open);
        open.uses += 1;
        let now = open.uses;
        if let Some((file, used)) = open.files.get_mut(&path) {
            *used = now;
            return Ok(file.clone());
        }
        let file = Arc::new(File::options().read(true).write(true).open(&path)?);
        open.insert(path, file.clone());
        Ok(file)
    }

    /// Takes up a segment just made.
    pub(super) fn put(&self, folder: &Path, number: u32, file: Arc<File>) {
        lock(&self.open).insert(segment::path(folder, number), file);
    }

    /// Closes a segment.
    pub(super) fn forget(&self, folder: &Path, number: u32) {
        lock(&self.open).files.remove(&segment::path(folder, number));
    }
}

impl Open {
    fn insert(&mut self, path: PathBuf, file: Arc<File>) {
        if self.files.len() >= OPEN_MAX {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            if let Some(oldest) = oldest {
                self.files.remove(&oldest);
            }
        }
        self.uses += 1;
        self.files.insert(path, (file, self.uses));
    }
}
