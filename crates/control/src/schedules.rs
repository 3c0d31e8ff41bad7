//! Functions that run by themselves. What is due is decided by `evoke_sched::Schedule`; this sleeps until then
//! and makes the call, together in one transaction with the due time that it is for, so that no due time is
//! run twice, whatever is killed in between.
//!
//! A run is an ordinary call without arguments that nobody waits for. Runs may overlap as calls may; but while
//! an earlier run still waits for a container, a due time starts no further one: the one that waits stands for
//! both.

use crate::invocations::{call_without_arguments, encoded};
use crate::{Control, stored};
use evoke_core::{AppId, CallId, FunctionId, UnixMs};
use evoke_engine::{CallType, Invocation, MapRequest, NewInput};
use evoke_proto::{Status, api};
use evoke_sched::{Due, PeriodParts, Schedule, ScheduleError};
use evoke_store::{ScheduleRow, ScheduleWrite};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The clock on the wall may be set, and it goes on while a machine sleeps, which timers do not see: with a
/// schedule to keep, it is looked at after this time even if nothing is due before.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// A run that could not be made is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// The schedule of a function's definition; none where it has none.
pub(crate) fn schedule_of(function: &api::Function, now: UnixMs) -> Result<Option<Schedule>, ScheduleError> {
    match &function.schedule {
        Some(schedule) => read(schedule, now),
        None => Ok(None),
    }
}

fn read(schedule: &api::Schedule, now: UnixMs) -> Result<Option<Schedule>, ScheduleError> {
    use api::schedule::ScheduleOneof as Kind;
    match &schedule.schedule_oneof {
        Some(Kind::Cron(cron)) => Schedule::cron(&cron.cron_string, &cron.timezone, now).map(Some),
        Some(Kind::Period(period)) => Schedule::period(PeriodParts {
            years: period.years,
            months: period.months,
            weeks: period.weeks,
            days: period.days,
            hours: period.hours,
            minutes: period.minutes,
            seconds: period.seconds,
        })
        .map(Some),
        None => Ok(None),
    }
}

/// All schedules of deployed apps, and who keeps them.
#[derive(Default)]
pub(crate) struct Schedules {
    entries: Mutex<HashMap<FunctionId, Entry>>,
    changed: Notify,
}

struct Entry {
    row: ScheduleRow,
    schedule: Schedule,
    /// The latest run that this server has made.
    call: Option<CallId>,
}

impl Entry {
    fn of(row: ScheduleRow, now: UnixMs) -> Option<Self> {
        let message = api::Schedule::decode(row.body.as_slice()).ok()?;
        match read(&message, row.since.max(now)) {
            Ok(schedule) => Some(Self { row, schedule: schedule?, call: None }),
            Err(error) => {
                tracing::warn!(function = %row.function_id, %error, "a stored schedule is not kept any more");
                None
            }
        }
    }

    fn due(&self, now: UnixMs) -> Due {
        self.schedule.due(self.row.since, self.row.last, now)
    }
}

/// A run to be made.
struct DueRun {
    function: FunctionId,
    due: UnixMs,
    /// The run before it, as far as this server made it.
    earlier: Option<CallId>,
}

/// A function's schedule as people are shown it.
#[derive(Debug, Clone)]
pub(crate) struct ScheduleOverview {
    /// When it is due next.
    pub next: Option<UnixMs>,
    /// The due time that it was last started for.
    pub last: Option<UnixMs>,
}

impl std::fmt::Display for ScheduleOverview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.next {
            Some(next) => write!(f, "runs by itself, next at {}", evoke_sched::in_words(next))?,
            None => write!(f, "never runs by itself again")?,
        }
        self.last.map_or(Ok(()), |last| write!(f, ", last for {}", evoke_sched::in_words(last)))
    }
}

impl Schedules {
    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has to be stored for an app to have these schedules and no others. `restarts`: periods count from
    /// now on.
    pub(crate) fn changes(
        &self,
        app: AppId,
        wanted: BTreeMap<FunctionId, api::Schedule>,
        restarts: bool,
        now: UnixMs,
    ) -> Vec<ScheduleWrite> {
        let entries = self.lock();
        let of_app = entries.values().filter(|entry| entry.row.app_id == app);
        let gone = of_app.map(|entry| entry.row.function_id).filter(|id| !wanted.contains_key(id));
        let mut writes: Vec<_> = gone.map(|function_id| ScheduleWrite::Delete { function_id }).collect();
        for (function_id, schedule) in wanted {
            let body = schedule.encode_to_vec();
            let period = matches!(schedule.schedule_oneof, Some(api::schedule::ScheduleOneof::Period(_)));
            let same = entries.get(&function_id).is_some_and(|entry| entry.row.body == body);
            if !same || (period && restarts) {
                let row = ScheduleRow { function_id, app_id: app, since: now, last: None, body };
                writes.push(ScheduleWrite::Put(row));
            }
        }
        writes
    }

    /// Takes over what was stored.
    pub(crate) fn apply(&self, writes: Vec<ScheduleWrite>, now: UnixMs) {
        if writes.is_empty() {
            return;
        }
        let mut entries = self.lock();
        for write in writes {
            match write {
                ScheduleWrite::Put(row) => {
                    entries.remove(&row.function_id);
                    entries.extend(Entry::of(row, now).map(|entry| (entry.row.function_id, entry)));
                }
                ScheduleWrite::Started { .. } => {}
                ScheduleWrite::Delete { function_id } => drop(entries.remove(&function_id)),
                ScheduleWrite::DeleteOfApp { app_id } => entries.retain(|_, e| e.row.app_id != app_id),
            }
        }
        self.changed.notify_one();
    }

    /// The runs to be made now, and when to look again.
    fn due(&self, now: UnixMs) -> (Vec<DueRun>, Option<UnixMs>) {
        let entries = self.lock();
        let mut runs = Vec::new();
        let mut next: Option<UnixMs> = None;
        for (function, entry) in entries.iter() {
            let due = entry.due(now);
            runs.extend(due.run.map(|due| DueRun { function: *function, due, earlier: entry.call }));
            next = [next, due.next].into_iter().flatten().min();
        }
        (runs, next)
    }

    fn started(&self, function: FunctionId, due: UnixMs, call: Option<CallId>) {
        if let Some(entry) = self.lock().get_mut(&function) {
            entry.row.last = Some(due);
            entry.call = call.or(entry.call);
        }
    }

    /// A function's schedule, if it has one.
    pub(crate) fn overview(&self, function: FunctionId, now: UnixMs) -> Option<ScheduleOverview> {
        let entries = self.lock();
        let entry = entries.get(&function)?;
        Some(ScheduleOverview { next: entry.due(now).next, last: entry.row.last })
    }
}

impl Control {
    /// Reads the schedules, at start.
    pub(crate) async fn load_schedules(&self) -> Result<(), Status> {
        let rows = self.store.schedules().all().await.map_err(stored)?;
        self.schedules.apply(rows.into_iter().map(ScheduleWrite::Put).collect(), self.now());
        Ok(())
    }

    /// Starts what is due when it is due. Ends with the server.
    pub(crate) async fn keep_schedules(self: Arc<Self>) {
        loop {
            let now = self.now();
            let (runs, next) = self.schedules.due(now);
            let mut wait = next.map(|at| Duration::from_millis(at.since(now).max(1)).min(CLOCK_CHECK));
            for DueRun { function, due, earlier } in runs {
                if let Err(status) = self.run_scheduled(function, due, earlier).await {
                    tracing::error!(%function, due = due.0, %status, "a scheduled run could not be made");
                    wait = Some(wait.map_or(AGAIN, |wait| wait.min(AGAIN)));
                }
            }
            let sleep = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.schedules.changed.notified() => {}
            }
        }
    }

    async fn run_scheduled(
        &self,
        function: FunctionId,
        due: UnixMs,
        earlier: Option<CallId>,
    ) -> Result<(), Status> {
        let started = ScheduleWrite::Started { function_id: function, due };
        let waits = earlier.and_then(|call| self.calls.look(|engine| engine.call_info(call)));
        if waits.is_some_and(|call| call.waiting > 0) {
            tracing::info!(%function, due = due.0, "an earlier scheduled run still waits and stands for this one");
            self.submit(vec![started.into()], evoke_store::Grade::Synced).await?;
            self.schedules.started(function, due, None);
            return Ok(());
        }
        let request = MapRequest {
            function_id: function,
            call_type: CallType::Unary,
            invocation: Invocation::Async,
            parent_input: None,
            inputs: vec![NewInput { idx: 0, group: 0, input: encoded(&call_without_arguments()) }],
            return_exceptions: false,
        };
        let (reply, ticket) =
            self.calls.decide(self, |engine, now| engine.map(request, now), |_| vec![started.into()])?;
        self.calls.stored(self, ticket).await?;
        tracing::info!(%function, call = %reply.call_id, due = due.0, "scheduled run");
        self.schedules.started(function, due, Some(reply.call_id));
        Ok(())
    }
}
