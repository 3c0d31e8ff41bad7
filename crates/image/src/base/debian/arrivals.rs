//! Packages on their way: some threads download them and unpack the small ones ahead of time, one reader takes
//! them in order while later ones are still coming.

use super::archive::{Suite, fetch_package, target};
use super::deb::Deb;
use super::resolve::Package;
use crate::error::{ImageError, Result};
use evoke_files::fetch::Fetcher;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Downloads at a time: a package is small, and asking takes as long as getting it.
const DOWNLOADS: usize = 6;
/// Packages that are ready before their turn at most.
const AHEAD_MAX: usize = 24;
/// A package whose files are at most this many bytes is decompressed ahead of its turn; in all, 24 of these are
/// held at a time, and an image has few that large.
const DECOMPRESSED_MAX: u64 = 16 * 1024 * 1024;

/// Told of bytes that have come and bytes in all.
pub(super) type Tell<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// The packages of one image, between those who bring them and the one who takes them.
pub(super) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What came and was not taken yet, by place.
    here: Vec<Option<Deb>>,
    /// The next one to be fetched, and the next one to be taken.
    next: usize,
    taken: usize,
    bytes: u64,
    failed: Option<ImageError>,
    /// Nobody will take the rest.
    abandoned: bool,
}

impl Arrivals {
    pub(super) fn new(packages: usize) -> Arc<Self> {
        let here = std::iter::repeat_with(|| None).take(packages).collect();
        let state = State { here, next: 0, taken: 0, bytes: 0, failed: None, abandoned: false };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings all packages to `folder`; ends when the last one is there, or with the first failure.
    pub(super) fn fetch(
        &self,
        fetcher: &Fetcher,
        suites: &[Suite],
        packages: &[Package],
        folder: &Path,
        tell: Tell<'_>,
    ) -> Result<()> {
        let total: u64 = packages.iter().map(|p| p.size).sum();
        let work = || {
            while let Some(at) = self.claim() {
                let Some(package) = packages.get(at) else { break };
                let path = target(folder, package);
                let ready = fetch_package(fetcher, suites, package, &path).and_then(|()| {
                    let deb = Deb::open(&path)?;
                    if package.installed_bytes <= DECOMPRESSED_MAX { deb.decompressed() } else { Ok(deb) }
                });
                let done = self.put(at, ready, package.size);
                tell(done, total);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..DOWNLOADS {
                scope.spawn(work);
            }
        });
        self.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// The place of the next package to fetch, once there is room for one more.
    fn claim(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() || state.abandoned || state.next == state.here.len() {
                return None;
            }
            if state.next < state.taken + AHEAD_MAX {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
    }

    fn put(&self, at: usize, ready: Result<Deb>, size: u64) -> u64 {
        let mut state = self.lock();
        match ready {
            Ok(deb) => {
                state.here[at] = Some(deb);
                state.bytes += size;
            }
            Err(error) => drop(state.failed.get_or_insert(error)),
        }
        self.changed.notify_all();
        state.bytes
    }
}

/// Takes packages in order.
pub(super) struct Taker(pub Arc<Arrivals>);

impl Iterator for Taker {
    type Item = Result<Deb>;

    fn next(&mut self) -> Option<Result<Deb>> {
        let mut state = self.0.lock();
        loop {
            if let Some(error) = &state.failed {
                return Some(Err(error.clone()));
            }
            let at = state.taken;
            if at == state.here.len() {
                return None;
            }
            if let Some(deb) = state.here[at].take() {
                state.taken += 1;
                self.0.changed.notify_all();
                return Some(Ok(deb));
            }
            state = self.0.wait(state);
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.lock().abandoned = true;
        self.0.changed.notify_all();
    }
}

/// Where the packages are kept.
pub(super) fn targets(folder: &Path, packages: &[Package]) -> Vec<PathBuf> {
    packages.iter().map(|p| target(folder, p)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> ImageError {
        ImageError::malformed("a package", "broken")
    }

    #[test]
    fn a_failure_reaches_the_taker_and_ends_the_fetching() {
        let arrivals = Arrivals::new(3);
        let taker = Taker(arrivals.clone());
        assert_eq!(arrivals.claim(), Some(0));
        let taking = std::thread::spawn(move || {
            let mut taker = taker;
            taker.next().unwrap().is_err()
        });
        arrivals.put(0, Err(broken()), 1);
        assert!(taking.join().unwrap());
        assert_eq!(arrivals.claim(), None);
    }

    #[test]
    fn fetching_stays_within_reach_of_the_taker_and_ends_with_it() {
        let arrivals = Arrivals::new(AHEAD_MAX + 5);
        for at in 0..AHEAD_MAX {
            assert_eq!(arrivals.claim(), Some(at));
        }
        let waiting = {
            let arrivals = arrivals.clone();
            std::thread::spawn(move || arrivals.claim())
        };
        drop(Taker(arrivals.clone()));
        assert_eq!(waiting.join().unwrap(), None);
    }
}
