//! Making files durable together. Whoever finishes a file hands it over and waits; the first of those who
//! wait becomes the leader and does the whole batch: data to stable storage, renames, folders to stable
//! storage, then everybody is woken. A lone file costs one `fdatasync` and one `fsync` of its folder; when
//! many small files arrive at once they share two calls of `syncfs`.

use crate::{IoFailure, io_failure::IoContext};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// From so many files on, one `syncfs` is cheaper than a sync of each.
const SYNCFS_FROM: usize = 4;
/// Files in one batch; more wait for the next one.
const BATCH_MAX: usize = 256;

/// A complete file under a temporary name, and the name it shall get.
#[derive(Debug)]
pub(crate) struct Pending {
    pub file: Arc<File>,
    pub temporary: PathBuf,
    pub name: PathBuf,
}

/// What went wrong for a batch, kept so that each of its members can report it.
#[derive(Debug, Clone)]
struct Failure {
    action: &'static str,
    path: PathBuf,
    errno: Option<i32>,
    text: String,
}

impl Failure {
    fn of(failure: &IoFailure) -> Self {
        let IoFailure { action, path, source } = failure;
        Self { action, path: path.clone(), errno: source.raw_os_error(), text: source.to_string() }
    }

    fn to_io(&self) -> IoFailure {
        let source =
            self.errno.map_or_else(|| io::Error::other(self.text.clone()), io::Error::from_raw_os_error);
        IoFailure { action: self.action, path: self.path.clone(), source }
    }
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(u64, Vec<Pending>)>,
    next_ticket: u64,
    leading: bool,
    batches_done: u64,
    done: Vec<(u64, Option<Failure>)>,
}

/// Collects finished files and makes them durable in batches.
#[derive(Default)]
pub(crate) struct Committer {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Committer {
    /// Returns once every file of `files` is on stable storage under its name. A name that exists already
    /// is replaced.
    pub fn commit(&self, files: Vec<Pending>) -> Result<(), IoFailure> {
        if files.is_empty() {
            return Ok(());
        }
        let mut queue = self.lock();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push((ticket, files));
        loop {
            if let Some(at) = queue.done.iter().position(|(done, _)| *done == ticket) {
                let (_, failure) = queue.done.swap_remove(at);
                return failure.map_or(Ok(()), |f| Err(f.to_io()));
            }
            if queue.leading {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.leading = true;
            let batch = take_batch(&mut queue.waiting);
            drop(queue);
            let outcomes = commit_batch(batch);
            queue = self.lock();
            queue.done.extend(outcomes);
            queue.leading = false;
            queue.batches_done += 1;
            self.changed.notify_all();
        }
    }

    /// Waits until what already has its name is durable too: a file that was found by its name may belong to
    /// a batch whose last sync is still under way.
    pub fn settle(&self) {
        let mut queue = self.lock();
        let batch = queue.batches_done;
        while queue.leading && queue.batches_done == batch {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while the lock is held; a poisoned queue is still consistent.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_batch(waiting: &mut Vec<(u64, Vec<Pending>)>) -> Vec<(u64, Vec<Pending>)> {
    let mut files = 0;
    let mut members = 0;
    for (_, pending) in waiting.iter() {
        if members > 0 && files + pending.len() > BATCH_MAX {
            break;
        }
        files += pending.len();
        members += 1;
    }
    waiting.drain(..members).collect()
}

/// Does one batch. Where a step for all of them fails, each member fails with it; a rename that fails is
/// the matter of its member alone.
fn commit_batch(batch: Vec<(u64, Vec<Pending>)>) -> Vec<(u64, Option<Failure>)> {
    let files: Vec<&Pending> = batch.iter().flat_map(|(_, pending)| pending).collect();
    if let Err(failure) = sync_data(&files) {
        let failure = Failure::of(&failure);
        return batch.iter().map(|(ticket, _)| (*ticket, Some(failure.clone()))).collect();
    }
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut renamed = Vec::new();
    for (ticket, pending) in &batch {
        let result =
            pending.iter().try_for_each(|p| fs::rename(&p.temporary, &p.name).during("rename to", &p.name));
        renamed.extend(pending.iter());
        outcomes.push((*ticket, result.err().map(|f| Failure::of(&f))));
    }
    if let Err(failure) = sync_names(&renamed) {
        let failure = Failure::of(&failure);
        for (_, outcome) in &mut outcomes {
            outcome.get_or_insert_with(|| failure.clone());
        }
    }
    outcomes
}

fn sync_data(files: &[&Pending]) -> Result<(), IoFailure> {
    if files.len() >= SYNCFS_FROM {
        return sync_filesystem(files[0]);
    }
    files.iter().try_for_each(|p| p.file.sync_data().during("sync", &p.temporary))
}

fn sync_names(files: &[&Pending]) -> Result<(), IoFailure> {
    let folders: BTreeSet<&Path> = files.iter().filter_map(|p| p.name.parent()).collect();
    if folders.len() >= SYNCFS_FROM {
        return sync_filesystem(files[0]);
    }
    folders.into_iter().try_for_each(sync_folder)
}

/// All of a batch lies below one data folder and so on one file system.
fn sync_filesystem(any: &Pending) -> Result<(), IoFailure> {
    rustix::fs::syncfs(&*any.file).during("sync the file system of", &any.name)
}

/// Makes the names in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), IoFailure> {
    File::open(folder).during("open", folder)?.sync_all().during("sync", folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pending(folder: &Path, n: usize, name: PathBuf) -> Pending {
        let temporary = folder.join(format!("tmp-{n}"));
        let mut file = File::create(&temporary).unwrap();
        write!(file, "{n}").unwrap();
        Pending { file: Arc::new(file), temporary, name }
    }

    #[test]
    fn many_writers_share_batches_and_a_bad_one_fails_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let committer = Committer::default();
        std::thread::scope(|scope| {
            let results: Vec<_> = (0..40)
                .map(|n| {
                    let committer = &committer;
                    scope.spawn(move || {
                        let below = if n == 7 { "missing" } else { "." };
                        committer.commit(vec![pending(path, n, path.join(below).join(format!("f{n}")))])
                    })
                })
                .map(|thread| thread.join().unwrap())
                .collect();
            for (n, result) in results.iter().enumerate() {
                assert_eq!(result.is_err(), n == 7, "{n}: {result:?}");
            }
        });
        assert_eq!(fs::read_to_string(path.join("f39")).unwrap(), "39");
    }
}
