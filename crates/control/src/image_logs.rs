//! Logs of image builds: written to a stream of the image's own while it is built, and told from there to all
//! who watch the build, who ask for it later, and who look at the chain of images that an image stands on.

use crate::images::parse_request;
use crate::logs::log_item;
use crate::times::{MS_NS, timestamp};
use crate::{Control, blocking, parse_id, stored};
use evoke_core::{AppId, Error, ImageId, TaskId, UnixMs};
use evoke_proto::{BoxStream, CallContext, Code, Status, api};
use evoke_store::logs::{Cursor, Filter, NewEntry, StreamName};
use evoke_store::{ImageRow, ImageState};
use futures::StreamExt;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The longest that one log stream is held (seconds), whatever the client asks for.
const STREAM_SECS_MAX: f32 = 60.0;
/// Images of a chain at most.
const CHAIN_MAX: usize = 1_000;
/// How long a build goes on with nobody who waits for it: who lost the connection comes back sooner, and a program
/// that is started again joins what it began.
const ALONE_MAX: Duration = Duration::from_secs(15);
/// What is said of a build that ended for that.
pub(crate) const ABANDONED: &str = "The build was ended, as everybody who waited for it had left. Run the app again; finished steps are kept";
/// What is said of a build that ended with its server.
pub(crate) const CUT_OFF: &str = "The build was cut off by a restart of the server. Run the app again";

/// Builds that run, by image.
#[derive(Default)]
pub(crate) struct Builds(Mutex<HashMap<ImageId, Arc<Build>>>);

impl Builds {
    /// The build of an image that runs now.
    fn running(&self, image: ImageId) -> Option<Arc<Build>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&image).cloned()
    }

    /// A build to be begun; none where one of the image runs.
    pub(crate) fn begin(&self, image: ImageId, builder: TaskId) -> Option<Arc<Build>> {
        let mut builds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if builds.contains_key(&image) {
            return None;
        }
        let build = Arc::new(Build::new(image, Some(builder)));
        builds.insert(image, build.clone());
        Some(build)
    }

    /// The build is over, and how; from now on the store tells of it.
    pub(crate) fn end(&self, image: ImageId, outcome: Outcome) {
        let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&image);
        if let Some(build) = ended {
            build.outcome.send_replace(Some(outcome));
        }
    }
}

/// How a build ended: what clients are told of the image, or why there is none.
pub(crate) type Outcome = Result<api::ImageMetadata, Error>;

/// A build with its log.
pub(crate) struct Build {
    stream: StreamName,
    /// Names the build in the log; none for one that was made before logs were kept.
    builder: Option<TaskId>,
    pending: Mutex<Vec<NewEntry>>,
    more: Notify,
    outcome: watch::Sender<Option<Outcome>>,
    /// How many clients watch it.
    watched: watch::Sender<usize>,
}

/// A client that watches a build, while it does.
struct Watching(Arc<Build>);

impl Watching {
    fn begin(build: Arc<Build>) -> Self {
        build.watched.send_modify(|watchers| *watchers += 1);
        Self(build)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watched.send_modify(|watchers| *watchers -= 1);
    }
}

impl Build {
    fn new(image: ImageId, builder: Option<TaskId>) -> Self {
        Self {
            stream: image.into(),
            builder,
            pending: Mutex::default(),
            more: Notify::new(),
            outcome: watch::channel(None).0,
            watched: watch::channel(0).0,
        }
    }

    /// Takes a piece of the log.
    pub(crate) fn write(&self, fd: i32, text: &str, at: UnixMs) {
        let entry = NewEntry {
            at_ns: at.0 * MS_NS,
            task: self.builder,
            fd: u8::try_from(fd).unwrap_or(1),
            data: bytes::Bytes::copy_from_slice(text.as_bytes()),
            ..NewEntry::default()
        };
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        self.more.notify_one();
    }

    /// Does `work`, storing what it logs. The work stands still while its log is written, so that it cannot run
    /// ahead of the disk.
    pub(crate) async fn recorded<T>(&self, control: &Control, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = self.more.notified() => self.flush(control).await,
            }
        };
        self.flush(control).await;
        done
    }

    /// Returns once nobody has watched the build for [`ALONE_MAX`].
    pub(crate) async fn abandoned(&self) {
        let mut watched = self.watched.subscribe();
        loop {
            // `self` keeps the sender, so that neither wait can fail for want of one.
            if watched.wait_for(|watchers| *watchers == 0).await.is_err() {
                return;
            }
            let come_back = watched.wait_for(|watchers| *watchers > 0);
            if tokio::time::timeout(ALONE_MAX, come_back).await.is_err() {
                return;
            }
        }
    }

    async fn flush(&self, control: &Control) {
        let entries = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if entries.is_empty() {
            return;
        }
        let (logs, stream) = (control.logs.clone(), self.stream.clone());
        if let Err(error) = blocking(move || logs.append(&stream, &entries).map_err(Error::from)).await {
            tracing::error!(%error, "the log of an image's build could not be stored");
        }
    }
}

/// One client that watches a build.
struct Watcher {
    control: Arc<Control>,
    watching: Watching,
    cursor: Cursor,
    deadline: Instant,
    over: bool,
}

impl Watcher {
    /// The next message; none when the stream ends.
    async fn next(&mut self) -> Result<Option<api::ImageJoinStreamingResponse>, Status> {
        while !self.over {
            // Subscribe first, then look: what comes after the look wakes. The end is looked at before the log, so
            // that the last piece cannot be missed.
            let mut appended = self.control.logs.subscribe(&self.watching.0.stream).map_err(stored)?;
            appended.mark_unchanged();
            let mut ended = self.watching.0.outcome.subscribe();
            let outcome = ended.borrow_and_update().clone();
            if let Some(builder) = self.watching.0.builder {
                let filter = Filter { task: Some(builder), ..Filter::default() };
                let page =
                    self.control.logs.read_from(self.watching.0.stream.clone(), self.cursor, filter).await;
                let page = page.map_err(stored)?;
                self.cursor = page.next;
                if !page.entries.is_empty() {
                    let entry_id = self.cursor.to_string();
                    let task_logs = page.entries.iter().map(log_item).collect();
                    return Ok(Some(api::ImageJoinStreamingResponse {
                        task_logs,
                        entry_id,
                        ..Default::default()
                    }));
                }
                if !page.at_end {
                    continue;
                }
            }
            if let Some(outcome) = outcome {
                self.over = true;
                return Ok(Some(end_of(outcome, self.cursor)));
            }
            let news = async {
                tokio::select! {
                    _ = appended.changed() => {}
                    _ = ended.changed() => {}
                }
            };
            if tokio::time::timeout_at(self.deadline, news).await.is_err() {
                return Ok(None);
            }
        }
        Ok(None)
    }
}

impl Control {
    pub(crate) async fn image_join_streaming(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageJoinStreamingRequest,
    ) -> Result<BoxStream<Result<api::ImageJoinStreamingResponse, Status>>, Status> {
        let id: ImageId = parse_id(&request.image_id)?;
        let build = match self.builds.running(id) {
            Some(build) => build,
            None => self.build_from_store(id).await?,
        };
        let hold = Duration::from_secs_f32(request.timeout.clamp(0.0, STREAM_SECS_MAX));
        let watcher = Watcher {
            control: self,
            watching: Watching::begin(build),
            cursor: request.last_entry_id.parse().unwrap_or(Cursor::START),
            deadline: Instant::now() + hold,
            over: false,
        };
        let stream = futures::stream::unfold(watcher, |mut watcher| async move {
            let next = watcher.next().await.transpose()?;
            Some((next, watcher))
        });
        Ok(stream.boxed())
    }

    /// A build that is over.
    async fn build_from_store(&self, id: ImageId) -> Result<Arc<Build>, Status> {
        let row = self.image_row(id).await?;
        let build = Build::new(id, row.builder);
        build.outcome.send_replace(Some(match row.state {
            ImageState::Ready => api::ImageMetadata::decode(row.metadata.as_slice())
                .map_err(|error| Error::internal(format!("stored image {id}: {error}"))),
            ImageState::Failed => Err(Error::precondition(row.error)),
            ImageState::Building => Err(Error::precondition(CUT_OFF)),
        }));
        Ok(Arc::new(build))
    }

    /// The builds of an image and of those that it stands on, the lowest first.
    pub(crate) async fn image_build_chain_get(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageBuildChainGetRequest,
    ) -> Result<api::ImageBuildChainGetResponse, Status> {
        let top = self.image_row(parse_id(&request.image_id)?).await?;
        let mut seen = HashSet::from([top.id]);
        let mut rows = vec![top];
        let mut at = 0;
        while let Some(row) = rows.get(at).filter(|_| rows.len() < CHAIN_MAX) {
            let bases = parse_request(row)?.image.unwrap_or_default().base_images;
            for base in bases.iter().rev() {
                let id: ImageId = parse_id(&base.image_id)?;
                // One that was deleted since is left out.
                let found = self.store.images().by_id(id).await.map_err(stored)?;
                rows.extend(found.filter(|_| seen.insert(id)));
            }
            at += 1;
        }
        let steps = rows.iter().rev().map(|row| self.step_of(row));
        Ok(api::ImageBuildChainGetResponse { build_steps: steps.collect::<Result<_, _>>()? })
    }

    fn step_of(&self, row: &ImageRow) -> Result<api::ImageBuildStep, Status> {
        let over = row.state != ImageState::Building;
        // The log is asked for up to this moment, which is not in it any more.
        let until = if over { row.updated_at.plus_ms(1) } else { self.now().plus_ms(1) };
        Ok(api::ImageBuildStep {
            image_id: row.id.to_string(),
            started_at: Some(timestamp(row.created_at)),
            finished_at: Some(timestamp(until)),
            builder_app_id: parse_request(row)?.app_id,
            builder_task_id: row.builder.map(|id| id.to_string()).unwrap_or_default(),
        })
    }

    /// Where the log of a container is, and how it is found there. What built an image counts as a container.
    pub(crate) async fn log_source(
        &self,
        app: AppId,
        task: Option<TaskId>,
    ) -> Result<(StreamName, Filter), Status> {
        let filter = Filter { task, ..Filter::default() };
        let built = match task {
            Some(task) => self.store.images().by_builder(task).await.map_err(stored)?,
            None => None,
        };
        let Some(row) = built else { return Ok((app.into(), filter)) };
        match parse_request(&row)?.build_function_id.as_str() {
            "" => Ok((row.id.into(), filter)),
            // A function made the image: its containers wrote the log, as all containers of the app do.
            function => {
                let functions = vec![parse_id(function)?];
                Ok((app.into(), Filter { functions, ..Filter::default() }))
            }
        }
    }
}

fn end_of(outcome: Outcome, cursor: Cursor) -> api::ImageJoinStreamingResponse {
    use api::generic_result::GenericStatus as Ended;
    let (status, exception) = match &outcome {
        Ok(_) => (Ended::Success, String::new()),
        Err(error) => (Ended::Failure, error.to_string()),
    };
    api::ImageJoinStreamingResponse {
        result: Some(api::GenericResult { status: status as i32, exception, ..Default::default() }),
        metadata: outcome.ok(),
        entry_id: cursor.to_string(),
        eof: true,
        ..Default::default()
    }
}

/// A stored image that cannot be read.
pub(crate) fn unreadable(id: ImageId, error: impl std::fmt::Display) -> Status {
    Status::new(Code::DataLoss, format!("stored image {id}: {error}"))
}
