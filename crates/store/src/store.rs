//! The store's handle: submits writes to the writer thread, reads through the pool of readers.

use crate::checkpoint::Checkpointer;
use crate::readers::Readers;
use crate::sync::Syncer;
use crate::writer::{self, QUEUE_BATCHES_SATURATED, Queue, lock};
use crate::{Db, Grade, StoreError, Write};
use crate::{
    apps::Apps, blobs::Blobs, classes::Classes, dicts::Dicts, environments::Environments,
    functions::Functions, image_names::ImageNames, images::Images, mounts::Mounts, objects::Objects,
    queues::Queues, scaling::Scaling, schedules::Schedules, secrets::Secrets, settings::Settings,
    shared_volumes::SharedVolumes, tokens::Tokens, volumes::Volumes, web::Web,
};
use rusqlite::Connection;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use tokio::sync::oneshot;

/// A handle to durable state; cheap to clone. The last one to be dropped closes the store, which writes
/// and syncs what was submitted.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// The order of the fields is the order in which they are dropped: the writing connection is the last, so
/// that closing it moves the log into the database.
struct Inner {
    queue: Arc<Queue>,
    syncer: Arc<Syncer>,
    checkpointer: Arc<Checkpointer>,
    threads: Mutex<Threads>,
    readers: Readers,
    db: Arc<Mutex<Db>>,
}

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("waiting", &self.inner.queue.len()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database at `path`, makes or migrates it as needed, and starts the store's threads.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let db = Db::open(path)?;
        let readers = Readers::open(path)?;
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let wal = File::options().read(true).write(true).open(&wal)?;
        Self::start(Arc::new(Mutex::new(db)), readers, Some(wal))
    }

    /// A store in memory, which ends with its last handle. Both grades promise the same there: nothing.
    pub fn open_in_memory() -> Result<Self, StoreError> {
        let db = Arc::new(Mutex::new(Db::open_in_memory()?));
        Self::start(db.clone(), Readers::Shared(db), None)
    }

    fn start(db: Arc<Mutex<Db>>, readers: Readers, wal: Option<File>) -> Result<Self, StoreError> {
        let queue = Arc::new(Queue::default());
        let syncer = Arc::new(Syncer::new());
        let checkpointer = Arc::new(Checkpointer::default());
        let path = lock(&db).path().map(Path::to_owned);
        // Built before the threads, so that those already started end if a later one cannot be started.
        let inner = Inner {
            queue: queue.clone(),
            syncer: syncer.clone(),
            checkpointer: checkpointer.clone(),
            threads: Mutex::default(),
            readers,
            db: db.clone(),
        };
        checkpointer.watch(lock(&db).connection());
        {
            let mut threads = lock(&inner.threads);
            let (sync_queue, sync_own) = (queue.clone(), syncer.clone());
            threads.others.push(spawn("store-sync", move || sync_own.run(wal, &sync_queue))?);
            if let Some(path) = path {
                let own = checkpointer.clone();
                threads.others.push(spawn("store-checkpoint", move || own.run(&path))?);
            }
            let run = move || writer::run(&queue, &db, &syncer, &checkpointer);
            threads.writer = Some(spawn("store-writer", run)?);
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Hands `writes` to the writer; they are committed together or not at all, after everything that was
    /// submitted before. Returns at once (see [`crate::QUEUE_BATCHES_MAX`] for the one exception), so it
    /// may be called under a lock. A dropped ticket does not take the writes back.
    pub fn submit(&self, writes: Vec<Write>, grade: Grade) -> Ticket {
        let (reply, done) = oneshot::channel();
        let seq = self.inner.queue.push(writes, grade, reply);
        Ticket { seq, done }
    }

    /// Submits several batches, one after the other with nothing in between. Each succeeds or fails alone. What
    /// comes with the tickets is to be dropped as soon as the caller has left its locks.
    pub fn submit_all(&self, batches: Vec<(Vec<Write>, Grade)>) -> (Vec<Ticket>, Lead) {
        let (replies, waiting): (Vec<_>, Vec<_>) = batches.iter().map(|_| oneshot::channel()).unzip();
        let batches = batches.into_iter().zip(replies).map(|((writes, grade), reply)| (writes, grade, reply));
        let mut tickets = Vec::with_capacity(waiting.len());
        let mut waiting = waiting.into_iter();
        let tell = |seq| tickets.extend(waiting.next().map(|done| Ticket { seq, done }));
        self.inner.queue.push_all(batches, tell, true);
        (tickets, Lead { store: self.clone() })
    }

    /// The number of the last submitted batch.
    pub fn last_submitted(&self) -> u64 {
        self.inner.queue.last_seq()
    }

    /// Returns once every batch up to `seq` has reached its grade or has failed (whether it failed is for
    /// its ticket to say).
    pub async fn committed(&self, seq: u64) -> Result<(), StoreError> {
        let mut progress = self.inner.syncer.progress();
        progress.wait_for(|through| *through >= seq).await.map_err(|_| StoreError::Closed)?;
        Ok(())
    }

    /// Whether every batch up to `seq` has reached its grade or has failed.
    pub fn is_committed(&self, seq: u64) -> bool {
        *self.inner.syncer.progress().borrow() >= seq
    }

    /// Whether so much waits for the writer that new work is better refused for now.
    pub fn is_saturated(&self) -> bool {
        self.inner.queue.len() >= QUEUE_BATCHES_SATURATED
    }

    /// Returns once the store is not saturated.
    pub async fn room(&self) {
        self.inner.queue.room().await;
    }

    /// Reads on a thread of its own. What `read` sees is one snapshot per statement.
    pub async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let permit = match self.inner.readers.permits() {
            Some(permits) => Some(permits.acquire_owned().await.map_err(|_| StoreError::Closed)?),
            None => None,
        };
        let inner = self.inner.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            inner.readers.with(read)
        });
        match reading.await {
            Ok(result) => result,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// Reads on the calling thread: for the start, for code without a runtime, and for look-ups by key that
    /// take less than a change of threads would.
    pub fn read_here<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.readers.with(read)
    }

    /// Takes no more writes, and returns when all submitted ones are written and synced. Blocks.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Schedules.
    pub fn schedules(&self) -> Schedules<'_> {
        Schedules(self)
    }

    /// Apps.
    pub fn apps(&self) -> Apps<'_> {
        Apps(self)
    }
    /// Payloads' metadata.
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs(self)
    }
    /// Class handles.
    pub fn classes(&self) -> Classes<'_> {
        Classes(self)
    }
    /// Dictionaries' entries.
    pub fn dicts(&self) -> Dicts<'_> {
        Dicts(self)
    }
    /// Environments.
    pub fn environments(&self) -> Environments<'_> {
        Environments(self)
    }
    /// Functions and definitions.
    pub fn functions(&self) -> Functions<'_> {
        Functions(self)
    }
    /// Images.
    pub fn images(&self) -> Images<'_> {
        Images(self)
    }
    /// Sets of files.
    pub fn mounts(&self) -> Mounts<'_> {
        Mounts(self)
    }
    /// Dictionaries and queues as a whole.
    pub fn objects(&self) -> Objects<'_> {
        Objects(self)
    }
    /// Queues' items.
    pub fn queues(&self) -> Queues<'_> {
        Queues(self)
    }
    /// Autoscaler settings that were changed live.
    pub fn scaling(&self) -> Scaling<'_> {
        Scaling(self)
    }
    /// Secrets.
    pub fn secrets(&self) -> Secrets<'_> {
        Secrets(self)
    }
    /// Settings.
    pub fn settings(&self) -> Settings<'_> {
        Settings(self)
    }
    /// Names of images.
    pub fn image_names(&self) -> ImageNames<'_> {
        ImageNames(self)
    }
    /// Network file systems.
    pub fn shared_volumes(&self) -> SharedVolumes<'_> {
        SharedVolumes(self)
    }
    /// Volumes.
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes(self)
    }
    /// What web functions have.
    pub fn web(&self) -> Web<'_> {
        Web(self)
    }
    /// Tokens.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens(self)
    }
}

impl Inner {
    fn close(&self) {
        self.queue.refuse(StoreError::Closed);
        let mut threads = lock(&self.threads);
        join(threads.writer.take());
        // After the writer, whose last commits they still serve.
        self.syncer.close();
        self.checkpointer.close();
        for thread in threads.others.drain(..) {
            join(Some(thread));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    Ok(thread::Builder::new().name(name.to_owned()).spawn(run)?)
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the store ended by a panic");
    }
}

/// Commits small batches on the thread that drops it, where the writer has nothing else to do: a commit is then
/// over before its submitter has begun to wait for it. Takes as long as the file system does to take some pages
/// of the log.
#[derive(Debug)]
#[must_use = "nothing may be committed before it is dropped"]
pub struct Lead {
    store: Store,
}

impl Drop for Lead {
    fn drop(&mut self) {
        let Inner { queue, db, syncer, checkpointer, .. } = &*self.store.inner;
        writer::lead(queue, db, syncer, checkpointer);
    }
}

/// The outcome of one submitted batch, to be awaited.
#[derive(Debug)]
#[must_use = "whether the writes were stored is only known once the ticket is awaited"]
pub struct Ticket {
    seq: u64,
    done: oneshot::Receiver<Result<(), StoreError>>,
}

impl Ticket {
    /// The batch's number; later batches have higher ones.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Waits on this thread; not to be used inside an async runtime.
    pub fn wait(self) -> Result<(), StoreError> {
        self.done.blocking_recv().unwrap_or(Err(StoreError::Closed))
    }
}

impl Future for Ticket {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.done).poll(cx).map(|done| done.unwrap_or(Err(StoreError::Closed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SettingWrite;

    /// After a failed sync nothing more is acknowledged: what was written may be lost, and a later sync that
    /// succeeds would not prove otherwise.
    #[test]
    fn a_failed_sync_ends_the_taking_of_writes() {
        let db = Arc::new(Mutex::new(Db::open_in_memory().unwrap()));
        // Not a file that can be synced.
        let unsyncable = File::open("/dev/null").unwrap();
        assert!(unsyncable.sync_data().is_err());
        let store = Store::start(db.clone(), Readers::Shared(db), Some(unsyncable)).unwrap();
        let write = || vec![SettingWrite::Put { key: "k".to_owned(), value: vec![] }.into()];
        let first = store.submit(write(), Grade::Synced).wait();
        assert!(matches!(first, Err(StoreError::Poisoned(_))), "{first:?}");
        let second = store.submit(write(), Grade::Written).wait();
        assert!(matches!(second, Err(StoreError::Poisoned(_))), "{second:?}");
    }
}
