//! After a restart of this process: goes on with the containers that live on, and clears away what is left
//! of those that don't.

use crate::container::{Container, exit_event, exit_for_control, remove};
use crate::fd_keeper::{Part, by_task};
use crate::lifecycle::{Event, Lifecycle};
use crate::live::{Live, Parts, capture};
use crate::output::{Capture, spool_path};
use crate::prepare::MAIN_PROGRAM;
use crate::record::Record;
use crate::registry::Entry;
use crate::tasks::{self, TaskKind};
use crate::usage;
use crate::volumes::Volumes;
use crate::worker::Shared;
use evoke_core::{Error, ErrorCode, TaskId};
use evoke_proto::worker::{OutputFd, Usage, WorkerEvent};
use evoke_runtime::Ended;
use futures::stream::{self, StreamExt};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Containers that are adopted or removed at a time.
const AT_A_TIME: usize = 16;

/// Goes on with the containers whose descriptors are among `kept`; which they are.
pub(crate) async fn adopt_all(shared: &Arc<Shared>, kept: Vec<(String, OwnedFd)>) -> Vec<TaskId> {
    let tries = by_task(kept).into_iter().map(|(task, parts)| async move {
        match adopt(shared, task, parts).await {
            Ok(()) => Some(task),
            Err(error) => {
                // Its descriptors are closed by now, so that it ends; the sweep does the rest.
                tracing::warn!(%task, %error, "a container cannot be gone on with");
                forget_descriptors(shared, task).await;
                None
            }
        }
    });
    stream::iter(tries).buffer_unordered(AT_A_TIME).filter_map(std::future::ready).collect().await
}

async fn forget_descriptors(shared: &Shared, task: TaskId) {
    for part in Part::ALL {
        if let Err(error) = shared.deps.fd_keeper.remove(&part.name(task)).await {
            tracing::warn!(%task, %error, "a descriptor stays in the store");
        }
    }
}

async fn adopt(shared: &Arc<Shared>, task: TaskId, kept: HashMap<Part, OwnedFd>) -> Result<(), Error> {
    let parts = Parts::from_kept(kept).ok_or_else(|| Error::precondition("its start was cut short"))?;
    let mut record = Record::load(&shared.config.task_folder(task))
        .map_err(|error| Error::internal(format!("what was written down of it: {error}")))?;
    let (entry, mailbox) = Entry::new(task, record.generation, record.known.ready);
    entry.set_address(record.address);
    let offsets = shared.deps.control.log_offsets(task).await;
    let live = Live::open(shared, &entry, &record, parts, offsets)
        .map_err(|error| Error::internal(format!("its descriptors: {error}")))?;

    let processes = live.guest.status().await;
    let main = processes.iter().flatten().find(|process| process.name == MAIN_PROGRAM);
    record.proc = main.map(|process| process.proc).or(record.proc);
    let happened = match main.map(|process| process.exit) {
        Some(None) => None,
        Some(Some(exit)) => Some(exit_event(exit)),
        None if processes.is_ok() => Some(Event::Failed(Error::new(
            ErrorCode::Unavailable,
            "the server was restarted before the container's program ran",
        ))),
        None => Some(Event::Lost),
    };
    let commits = record.commit_on_exit.is_some();
    let (mut life, mut first) =
        Lifecycle::adopt(record.accepted_at, record.startup_timeout_ms, commits, record.known);
    if let Some(event) = happened.filter(|_| record.known.exit.is_none()) {
        let now = shared.deps.clock.now();
        first.extend(life.step(event, now).map_err(|illegal| Error::internal(illegal.to_string()))?);
    }
    shared.registry.add(entry.clone(), usize::MAX).map_err(|_| Error::internal("it is there already"))?;
    let around = record.template.as_deref().and_then(|id| shared.templates.living(id));
    let mut container = Container::new(shared.clone(), entry, life, record, mailbox, None, Some(live));
    container.forked_by(around);
    shared.drive(container, task, first);
    Ok(())
}

/// Destroys containers that nobody drives and clears away what is left of them, telling control how they
/// ended and shipping the output they left.
pub(crate) async fn sweep(shared: &Arc<Shared>) -> Result<(), Error> {
    let ids = shared.deps.runtime.list().await?;
    let strangers = ids.into_iter().filter(|id| !is_driven(shared, id));
    let removals = strangers.map(|id| async move {
        let known = id.parse().ok().and_then(|task| Record::load(&shared.config.task_folder(task)).ok());
        if let Some(volumes) = known.and_then(|record| Volumes::of(shared, &record, None)) {
            volumes.commit_all().await;
        }
        let ended = remove(shared, &id).await;
        (id, ended.unwrap_or_default())
    });
    let ended: HashMap<String, Ended> = stream::iter(removals).buffer_unordered(AT_A_TIME).collect().await;

    for name in names_in(&shared.config.tasks_folder)? {
        let Ok(task) = name.parse::<TaskId>() else { continue };
        if is_driven(shared, &name) {
            continue;
        }
        let used = ended.get(&name).copied().unwrap_or_default();
        let cloned = shared.clone();
        let burial = tasks::spawn(TaskKind::Container, task, async move { bury(&cloned, task, used).await });
        shared.burials().push(burial);
    }
    remove_orphaned_spools(shared)
}

fn is_driven(shared: &Shared, id: &str) -> bool {
    id.parse().is_ok_and(|task| shared.registry.get(task).is_some()) || shared.templates.living(id).is_some()
}

fn names_in(folder: &Path) -> Result<Vec<String>, Error> {
    let list = || -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    };
    list().map_err(|error| Error::internal(format!("reading {}: {error}", folder.display())))
}

/// A container that ended while nobody watched: ships what it left, and tells.
async fn bury(shared: &Arc<Shared>, task: TaskId, ended: Ended) {
    let mut shipped = true;
    // Without a record its program never ran, and control takes it for lost because it is not running.
    if let Ok(record) = Record::load(&shared.config.task_folder(task)) {
        shipped = ship_rest(shared, &record).await;
        shared.deps.control.report(last_event(shared, &record, ended)).await;
    }
    shared.forget(task, shipped).await;
}

fn last_event(shared: &Shared, record: &Record, ended: Ended) -> WorkerEvent {
    let at = shared.deps.clock.now();
    let mut exit = exit_for_control(&record.known);
    exit.oom = ended.usage.oom_kills > 0 && exit.code != Some(0);
    let wall_ms = record.started_at.map_or(0, |started| at.since(started));
    let committed = record.commit_on_exit.is_some();
    let committed = committed.then(|| Err(Error::new(ErrorCode::Unavailable, "the server was restarted")));
    let usage = Usage { wall_ms, ..usage::convert(ended.usage) };
    WorkerEvent::Exited { task: record.task, exit, usage, committed, at }
}

/// Ships what the spools of a container hold that control does not have; whether nothing is left.
async fn ship_rest(shared: &Shared, record: &Record) -> bool {
    let offsets = shared.deps.control.log_offsets(record.task).await;
    let stdout = capture(shared, record, OutputFd::Stdout, None, offsets.0);
    let stderr = capture(shared, record, OutputFd::Stderr, None, offsets.1);
    let (stdout, stderr) = tokio::join!(finished(stdout), finished(stderr));
    stdout && stderr
}

async fn finished(capture: io::Result<Capture>) -> bool {
    match capture {
        Ok(capture) => capture.finish().await,
        Err(error) => {
            tracing::warn!(%error, "a spool cannot be read");
            false
        }
    }
}

/// Removes spools of which nobody knows whose they are.
fn remove_orphaned_spools(shared: &Shared) -> Result<(), Error> {
    for name in names_in(&shared.config.spool_folder)? {
        let task = name.split('.').next().and_then(|task| task.parse::<TaskId>().ok());
        let known = task.is_some_and(|task| {
            shared.registry.get(task).is_some() || shared.config.task_folder(task).exists()
        });
        if known {
            continue;
        }
        for fd in [OutputFd::Stdout, OutputFd::Stderr] {
            let Some(task) = task else { continue };
            let path = spool_path(&shared.config.spool_folder, task, fd);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(spool = %path.display(), %error, "an orphaned spool stays");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
