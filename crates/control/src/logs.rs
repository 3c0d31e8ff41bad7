//! Logs: what containers write is appended to the app's stream; clients follow it, with the states of the
//! app's containers in between, until the app is over and everything was told.

use crate::log_history::{chosen, descriptor};
use crate::{Control, parse_id, stored};
use evoke_core::{AppId, FunctionId, TaskId, UnixMs};
use evoke_proto::worker::{LogChunk, OutputFd};
use evoke_proto::{BoxStream, CallContext, Peer, Status, api};
use evoke_store::logs::{Cursor, Filter, LogEntry, NewEntry, StreamName, TimeRange, Wanted};
use futures::StreamExt;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The longest that one stream is held (seconds), whatever the client asks for.
const STREAM_SECS_MAX: f32 = 60.0;
/// Changes of container states kept per app for clients that follow.
const STATES_MAX: usize = 1024;

/// Connections remembered per app whose client is done with it.
const DONE_MAX: usize = 16;
/// Lines that a client gets of the past when it begins to follow a deployed app.
const RECENT_LINES: usize = 100;

/// What happens to apps beside their output: states of their containers, and their end.
#[derive(Default)]
pub(crate) struct AppEvents(Mutex<HashMap<AppId, Events>>);

struct Events {
    states: VecDeque<(u64, api::TaskLogsBatch)>,
    /// Number of the latest event.
    latest: watch::Sender<u64>,
    /// Connections whose client is done with the app while it goes on.
    done: VecDeque<Peer>,
}

impl AppEvents {
    fn with<T>(&self, app: AppId, work: impl FnOnce(&mut Events) -> T) -> T {
        let mut apps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let events = apps.entry(app).or_insert_with(|| Events {
            states: VecDeque::new(),
            latest: watch::channel(0).0,
            done: VecDeque::new(),
        });
        work(events)
    }

    /// Something about the app changed: those who follow look again.
    pub(crate) fn changed(&self, app: AppId) {
        self.with(app, |events| events.latest.send_modify(|latest| *latest += 1));
    }

    /// The client behind this connection is done with the app, which goes on: for it the logs end here.
    pub(crate) fn farewell(&self, app: AppId, peer: Peer) {
        self.with(app, |events| {
            events.done.push_back(peer);
            if events.done.len() > DONE_MAX {
                events.done.pop_front();
            }
            events.latest.send_modify(|latest| *latest += 1);
        });
    }

    fn is_done(&self, app: AppId, peer: Peer) -> bool {
        // Processes on this machine cannot be told apart by where they call from.
        matches!(peer, Peer::Net(_)) && self.with(app, |events| events.done.contains(&peer))
    }

    /// A container of the app came into a state.
    pub(crate) fn task_state(
        &self,
        app: AppId,
        function: String,
        task: TaskId,
        state: api::TaskState,
        at: UnixMs,
    ) {
        let item =
            api::TaskLogs { task_state: state as i32, timestamp: at.as_secs_f64(), ..Default::default() };
        let batch = api::TaskLogsBatch {
            task_id: task.to_string(),
            function_id: function,
            items: vec![item],
            ..Default::default()
        };
        self.with(app, |events| {
            let number = *events.latest.borrow() + 1;
            events.states.push_back((number, batch));
            if events.states.len() > STATES_MAX {
                events.states.pop_front();
            }
            events.latest.send_replace(number);
        });
    }

    fn after(&self, app: AppId, seen: u64) -> (Vec<api::TaskLogsBatch>, u64) {
        self.with(app, |events| {
            let new = events.states.iter().filter(|(number, _)| *number > seen);
            (new.map(|(_, batch)| batch.clone()).collect(), *events.latest.borrow())
        })
    }

    fn subscribe(&self, app: AppId) -> watch::Receiver<u64> {
        self.with(app, |events| events.latest.subscribe())
    }

    /// The app is over and nobody follows it any more.
    pub(crate) fn forget_unwatched(&self, app: AppId) {
        let mut apps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if apps.get(&app).is_some_and(|events| events.latest.receiver_count() == 0) {
            apps.remove(&app);
        }
    }
}

/// One client that follows an app.
struct Follower {
    control: Arc<Control>,
    app: AppId,
    peer: Peer,
    filter: Filter,
    cursor: Cursor,
    seen: u64,
    deadline: Instant,
    pending: VecDeque<api::TaskLogsBatch>,
    over: bool,
}

impl Control {
    /// Appends output of containers; durable when it returns.
    pub(crate) async fn take_logs(&self, chunks: Vec<LogChunk>) -> Result<(), evoke_core::Error> {
        let mut by_app: HashMap<AppId, Vec<NewEntry>> = HashMap::new();
        for chunk in chunks {
            by_app.entry(chunk.app).or_default().push(NewEntry {
                at_ns: chunk.at_ms.0 * 1_000_000,
                task: Some(chunk.task),
                function: Some(chunk.function),
                call: chunk.call,
                input: chunk.input,
                fd: match chunk.fd {
                    OutputFd::Stdout => 1,
                    OutputFd::Stderr => 2,
                },
                spool_offset: Some(chunk.spool_offset),
                data: chunk.data,
            });
        }
        for (app, entries) in by_app {
            let logs = self.logs.clone();
            crate::blocking(move || logs.append(&app.into(), &entries).map_err(evoke_core::Error::from))
                .await
                .map_err(|status| evoke_core::Error::internal(status.message))?;
        }
        Ok(())
    }

    pub(crate) async fn app_get_logs(
        self: Arc<Self>,
        context: CallContext,
        request: api::AppGetLogsRequest,
    ) -> Result<BoxStream<Result<api::TaskLogsBatch, Status>>, Status> {
        let app = match (request.app_id.as_str(), request.task_id.as_str()) {
            ("", task) if !task.is_empty() => self.app_of_task(parse_id(task)?).await?,
            (app, _) => parse_id(app)?,
        };
        let hold = Duration::from_secs_f32(request.timeout.clamp(0.0, STREAM_SECS_MAX));
        let filter = Filter {
            task: chosen(&request.task_id)?,
            functions: self.functions_meant(&request.function_id, &request.parametrized_function_id)?,
            call: chosen(&request.function_call_id)?,
            input: chosen(&request.input_id)?,
            fd: descriptor(request.file_descriptor),
            text: (!request.search_text.is_empty()).then_some(request.search_text),
        };
        let deployed = self.registry.lock().apps.get(&app).is_some_and(|app| app.row.name.is_some());
        let (cursor, recent) = match request.last_entry_id.parse() {
            Ok(cursor) => (cursor, Vec::new()),
            // What a deployed app has written in its life is for those who ask for it.
            Err(_) if deployed => self.recent(app, &filter).await?,
            Err(_) => (Cursor::START, Vec::new()),
        };
        let follower = Follower {
            filter,
            cursor,
            control: self,
            app,
            peer: context.peer,
            seen: 0,
            deadline: Instant::now() + hold,
            pending: recent.into(),
            over: false,
        };
        Ok(futures::stream::unfold(follower, |mut follower| async move {
            let next = follower.next().await.transpose()?;
            Some((next, follower))
        })
        .boxed())
    }

    /// The newest lines of an app, and where to go on from.
    async fn recent(&self, app: AppId, filter: &Filter) -> Result<(Cursor, Vec<api::TaskLogsBatch>), Status> {
        let stream = StreamName::from(app);
        let end = self.logs.end(&stream).map_err(stored)?;
        let all = TimeRange { since_ns: 0, until_ns: u64::MAX };
        let range = self
            .logs
            .read_range(stream, all, filter.clone(), Wanted::Lines(RECENT_LINES))
            .await
            .map_err(stored)?;
        let cursor = range.entries.iter().map(|entry| entry.next).max().map_or(end, |next| next.max(end));
        Ok((cursor, batches(range.entries)))
    }

    /// The functions whose logs are meant: a variant alone, or a function with all its variants; all functions
    /// where none is named.
    pub(crate) fn functions_meant(&self, function: &str, variant: &str) -> Result<Vec<FunctionId>, Status> {
        if let Some(variant) = chosen(variant)? {
            return Ok(vec![variant]);
        }
        let Some(function) = chosen(function)? else { return Ok(Vec::new()) };
        let live = self.registry.lock();
        let mut meant = vec![function];
        let mut at = 0;
        while let Some(base) = meant.get(at).copied() {
            meant.extend(live.functions.values().filter(|f| f.base == Some(base)).map(|f| f.id));
            at += 1;
        }
        Ok(meant)
    }

    async fn app_of_task(&self, task: TaskId) -> Result<AppId, Status> {
        let row = self
            .store
            .read(move |db| Ok(evoke_store::calls::task_by_id(db, &task)?))
            .await
            .map_err(stored)?;
        row.map(|row| row.app_id).ok_or_else(|| Status::not_found(format!("There is no container {task}")))
    }

    /// The newest lines of an app, for its page.
    pub async fn log_tail(&self, app: AppId, lines: usize) -> Result<Vec<LogEntry>, Status> {
        let all = TimeRange { since_ns: 0, until_ns: u64::MAX };
        let range = self
            .logs
            .read_range(app.into(), all, Filter::default(), Wanted::Lines(lines))
            .await
            .map_err(stored)?;
        Ok(range.entries)
    }
}

impl Follower {
    /// The next message; none when the stream ends.
    async fn next(&mut self) -> Result<Option<api::TaskLogsBatch>, Status> {
        loop {
            if let Some(batch) = self.pending.pop_front() {
                return Ok(Some(batch));
            }
            if self.over {
                return Ok(None);
            }
            // Subscribe first, then look: what comes after the look wakes.
            let stream = StreamName::from(self.app);
            let mut appended = self.control.logs.subscribe(&stream).map_err(stored)?;
            let mut changed = self.control.app_events.subscribe(self.app);
            appended.mark_unchanged();
            changed.mark_unchanged();
            let running = self.control.registry.lock().apps.contains_key(&self.app);
            let (states, seen) = self.control.app_events.after(self.app, self.seen);
            self.seen = seen;
            self.pending.extend(states);
            let page = self
                .control
                .logs
                .read_from(stream, self.cursor, self.filter.clone())
                .await
                .map_err(stored)?;
            let moved = page.next != self.cursor;
            self.cursor = page.next;
            self.pending.extend(batches(page.entries));
            if !self.pending.is_empty() || (moved && !page.at_end) {
                continue;
            }
            if !running || self.control.app_events.is_done(self.app, self.peer) {
                self.over = true;
                self.control.app_events.forget_unwatched(self.app);
                return Ok(Some(api::TaskLogsBatch { app_done: true, ..Default::default() }));
            }
            let news = async {
                tokio::select! {
                    _ = appended.changed() => {}
                    _ = changed.changed() => {}
                }
            };
            if tokio::time::timeout_at(self.deadline, news).await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// Entries as messages: neighbours of the same container and function share one.
pub(crate) fn batches(entries: Vec<LogEntry>) -> Vec<api::TaskLogsBatch> {
    let mut batches: Vec<api::TaskLogsBatch> = Vec::new();
    for entry in entries {
        let task_id = entry.task.map(|id| id.to_string()).unwrap_or_default();
        let item = log_item(&entry);
        match batches.last_mut() {
            Some(batch) if batch.task_id == task_id => {
                batch.items.push(item);
                batch.entry_id = entry.next.to_string();
            }
            _ => batches.push(api::TaskLogsBatch {
                task_id,
                function_id: entry.function.map(|id| id.to_string()).unwrap_or_default(),
                items: vec![item],
                entry_id: entry.next.to_string(),
                ..Default::default()
            }),
        }
    }
    batches
}

pub(crate) fn log_item(entry: &LogEntry) -> api::TaskLogs {
    api::TaskLogs {
        data: String::from_utf8_lossy(&entry.data).into_owned(),
        timestamp: entry.at_ns as f64 / 1e9,
        timestamp_ns: entry.at_ns,
        file_descriptor: i32::from(entry.fd),
        function_call_id: entry.call.map(|id| id.to_string()).unwrap_or_default(),
        input_id: entry.input.map(|id| id.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}
