//! A layer's archive that is unpacked while it is downloaded: who reads it gets what is there, waits for more,
//! and sees its end only once the whole was found to be what its digest says.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A download that others read from. Cheap to clone.
#[derive(Clone)]
pub(super) struct Arrival {
    shared: Arc<Shared>,
}

struct Shared {
    /// Where the archive is in the end; until then it has `.part` behind its name.
    target: PathBuf,
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes that can be read.
    there: u64,
    /// It is over, and whether all of it is right.
    end: Option<bool>,
    /// It was begun anew: what was read of it may have been something else.
    anew: bool,
}

/// Tells readers the end of a download, whatever way it is reached.
pub(super) struct Ending(Arrival, bool);

impl Arrival {
    pub(super) fn new(target: &Path) -> Self {
        let (state, more) = Default::default();
        Self { shared: Arc::new(Shared { target: target.to_owned(), state, more }) }
    }

    /// So many bytes are there.
    pub(super) fn tell(&self, there: u64) {
        let mut state = self.lock();
        state.anew |= there < state.there;
        state.there = there;
        self.shared.more.notify_all();
    }

    /// Promises that the end will be told: by [`Ending::right`], or as a failure when it is dropped.
    pub(super) fn ending(&self) -> Ending {
        Ending(self.clone(), false)
    }

    /// Whether it was begun anew, so that what was read in one go was not one archive.
    pub(super) fn was_begun_anew(&self) -> bool {
        self.lock().anew
    }

    /// Reads it from its beginning.
    pub(super) fn reader(&self) -> Reader {
        Reader { arrival: self.clone(), file: None, at: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is more than `at`; how much there is, and whether that is all.
    fn more_than(&self, at: u64) -> io::Result<(u64, bool)> {
        let mut state = self.lock();
        loop {
            match *state {
                State { anew: true, .. } => return Err(io::Error::other("the download was begun anew")),
                State { end: Some(false), .. } => return Err(io::Error::other("the download failed")),
                State { end: Some(true), there, .. } => return Ok((there, true)),
                // What is there is right only as far as anybody knows: the end says whether it is.
                State { there, .. } if there > at => return Ok((there, false)),
                _ => state = self.shared.more.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Ending {
    /// All of it is there and right.
    pub(super) fn right(mut self) {
        self.1 = true;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().end = Some(self.1);
        self.0.shared.more.notify_all();
    }
}

/// Reads an archive that arrives.
pub(super) struct Reader {
    arrival: Arrival,
    file: Option<File>,
    at: u64,
}

impl Reader {
    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let target = &self.arrival.shared.target;
            let mut part = target.as_os_str().to_owned();
            part.push(".part");
            let opened = match File::open(part) {
                // It has its name by now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => File::open(target),
                opened => opened,
            };
            self.file = Some(opened?);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (there, all) = self.arrival.more_than(self.at)?;
        let left = if all { u64::MAX } else { there - self.at };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.open()?.read(&mut buffer[..most])?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn part(folder: &Path, text: &str) -> (Arrival, File) {
        let target = folder.join("x");
        let mut file = File::create(folder.join("x.part")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        (Arrival::new(&target), file)
    }

    #[test]
    fn what_arrives_is_read_and_its_end_is_seen_when_it_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let (arrival, mut file) = part(folder.path(), "first");
        let ending = arrival.ending();
        let mut reader = arrival.reader();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        arrival.tell(5);
        file.write_all(b" last").unwrap();
        arrival.tell(10);
        std::fs::rename(folder.path().join("x.part"), folder.path().join("x")).unwrap();
        ending.right();
        assert_eq!(reading.join().unwrap().unwrap(), "first last");
        let mut again = String::new();
        arrival.reader().read_to_string(&mut again).unwrap();
        assert_eq!(again, "first last");
    }

    #[test]
    fn a_download_that_fails_or_begins_anew_has_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let (arrival, _file) = part(folder.path(), "some");
        let ending = arrival.ending();
        arrival.tell(4);
        drop(ending);
        let mut reader = arrival.reader();
        assert!(reader.read(&mut [0; 9]).unwrap_err().to_string().contains("failed"));
        let (arrival, _file) = part(folder.path(), "some");
        let _ending = arrival.ending();
        arrival.tell(4);
        let mut reader = arrival.reader();
        assert_eq!(reader.read(&mut [0; 9]).unwrap(), 4);
        assert!(!arrival.was_begun_anew());
        arrival.tell(1);
        assert!(arrival.was_begun_anew() && reader.read(&mut [0; 9]).is_err());
    }
}
