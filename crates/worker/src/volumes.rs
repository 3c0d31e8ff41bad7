//! The volumes of one container: what it wrote to them becomes versions, and other versions are shown to it.
//!
//! A container writes to a place of its own, a *slot*. A commit lists the slot, compares with the list of the
//! last time ([`changes`]) and has control merge what is new. Showing another version makes a new slot; the old
//! one is looked through once more when nobody can write to it, and dropped. What is needed to go on after a
//! restart (slots and lists) is on disk, written before what it describes can matter.

mod builds;
mod changes;
mod place;

pub use builds::BuildVolumes;

use crate::record::Record;
use crate::tasks::{self, TaskKind};
use crate::worker::Shared;
use evoke_core::{Error, TaskId, VolumeId};
use evoke_proto::worker::{VolumeMount, VolumeView};
use evoke_runtime::{Guest, Layer, Owner, Volume};
use place::{Place, Writer};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Time between two commits in the background of what a container wrote.
const BACKGROUND: Duration = Duration::from_secs(5);
/// A commit in the background that took long is followed by a pause so many times as long.
const PAUSE_FACTOR: u32 = 10;
/// Times that a version is shown anew because of what was written in the moment before.
const SHOW_TRIES: u32 = 3;

/// A volume of a container, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub volume: VolumeId,
    pub target: String,
    pub read_only: bool,
    pub sub_path: String,
}

impl VolumeRecord {
    pub(crate) fn of(mount: &VolumeMount) -> Self {
        Self {
            volume: mount.volume,
            target: mount.target.clone(),
            read_only: mount.read_only,
            sub_path: mount.sub_path.clone(),
        }
    }

    /// What the runtime is asked to mount.
    pub(crate) fn spec(&self, slot: u32, view: &VolumeView, owner: (u32, u32)) -> Volume {
        let owner = Owner::Single { uid: owner.0, gid: owner.1 };
        Volume {
            id: self.volume.to_string(),
            slot,
            target: self.target.clone(),
            read_only: self.read_only,
            sub_path: self.sub_path.clone(),
            trees: view.trees.iter().map(|path| Layer { path: path.clone(), owner }).collect(),
        }
    }
}

/// The volumes of one container that lives, or of one that has just ended.
pub(crate) struct Volumes {
    shared: Arc<Shared>,
    task: TaskId,
    guest: Option<Guest>,
    mounts: Vec<Mounted>,
}

struct Mounted {
    record: VolumeRecord,
    /// Held while the volume is committed or shown anew.
    place: Mutex<Place>,
}

/// What a try to show another version came to.
enum Shown {
    /// It is shown, or was already.
    Yes,
    /// Something is open there.
    Busy,
}

impl Volumes {
    /// Those of `record`; none where it has none. `guest` is needed for showing other versions only.
    pub(crate) fn of(shared: &Arc<Shared>, record: &Record, guest: Option<Guest>) -> Option<Arc<Self>> {
        if record.volumes.is_empty() {
            return None;
        }
        let folder = shared.config.task_folder(record.task).join("volumes");
        let mounts = record.volumes.iter().map(|volume| Mounted {
            record: volume.clone(),
            place: Mutex::new(Place::load(folder.join(volume.volume.to_string()))),
        });
        let mounts = mounts.collect();
        Some(Arc::new(Self { shared: shared.clone(), task: record.task, guest, mounts }))
    }

    fn mounted(&self, volume: VolumeId) -> Result<&Mounted, Error> {
        let found = self.mounts.iter().find(|mounted| mounted.record.volume == volume);
        found.ok_or_else(|| not_mounted(self.task, volume))
    }

    /// Commits what was written, and shows the newest version if nothing is open.
    pub(crate) async fn commit(&self, volume: VolumeId) -> Result<(), Error> {
        let mounted = self.mounted(volume)?;
        let mut place = mounted.place.lock().await;
        self.commit_place(mounted, &mut place).await?;
        // What is open there keeps the newest version from being shown, which is for `reload` to complain of.
        self.show(mounted, &mut place).await.map(drop)
    }

    /// Commits what was written and shows the newest version.
    pub(crate) async fn reload(&self, volume: VolumeId) -> Result<(), Error> {
        let mounted = self.mounted(volume)?;
        let mut place = mounted.place.lock().await;
        self.commit_place(mounted, &mut place).await?;
        match self.show(mounted, &mut place).await? {
            Shown::Yes => Ok(()),
            // The client knows this sentence and adds which files those are.
            Shown::Busy => Err(Error::precondition(format!(
                "the volume at {} cannot be reloaded: there are open files preventing the operation",
                mounted.record.target
            ))),
        }
    }

    /// Commits all of them. What fails is told, and keeps the others from nothing.
    pub(crate) async fn commit_all(&self) {
        for mounted in &self.mounts {
            let mut place = mounted.place.lock().await;
            if let Err(error) = self.commit_place(mounted, &mut place).await {
                let (task, volume) = (self.task, mounted.record.volume);
                tracing::warn!(%task, %volume, %error, "what a container wrote to a volume is not committed");
            }
        }
    }

    /// Whether a new version came of it.
    async fn commit_place(&self, mounted: &Mounted, place: &mut Place) -> Result<bool, Error> {
        let mut changed = false;
        if mounted.record.read_only {
            return Ok(changed);
        }
        let container = self.task.to_string();
        let writer = Writer {
            runtime: &*self.shared.deps.runtime,
            control: &*self.shared.deps.control,
            container: &container,
            author: &format!("container {container}"),
        };
        for slot in place.slots() {
            changed |= place.commit(&writer, mounted.record.volume, slot).await?;
        }
        Ok(changed)
    }

    async fn show(&self, mounted: &Mounted, place: &mut Place) -> Result<Shown, Error> {
        let Some(guest) = &self.guest else { return Ok(Shown::Yes) };
        let (record, runtime) = (&mounted.record, &self.shared.deps.runtime);
        let (id, volume) = (self.task.to_string(), record.volume.to_string());
        for _ in 0..SHOW_TRIES {
            let view = self.shared.deps.control.volume_view(record.volume).await?;
            if place.shows(view.version) {
                return Ok(Shown::Yes);
            }
            let owner = (self.shared.config.uid, self.shared.config.gid);
            let slot = place.add(view.version)?;
            let mount = runtime.mount_volume(&id, record.spec(slot, &view, owner)).await;
            let shown = match mount {
                Ok(mount) => guest.replace_volume(&volume, mount.as_fd()).await.map_err(|error| {
                    Error::internal(format!("the volume {volume} cannot be shown anew: {error}"))
                }),
                Err(error) => Err(error.into()),
            };
            if !matches!(shown, Ok(true)) {
                place.take_back(slot)?;
                runtime.drop_volume(&id, &volume, slot).await?;
                return shown.map(|_| Shown::Busy);
            }
            // Nobody can write to the older places any more: what came in the last moment is the last of it.
            let changed = self.commit_place(mounted, place).await?;
            for old in place.older() {
                place.take_back(old)?;
                runtime.drop_volume(&id, &volume, old).await?;
            }
            if !changed {
                break;
            }
        }
        Ok(Shown::Yes)
    }

    /// Commits again and again while the container lives. Ends when it is dropped.
    pub(crate) fn commit_in_background(self: &Arc<Self>) -> Option<Background> {
        if self.mounts.iter().all(|mounted| mounted.record.read_only) {
            return None;
        }
        let volumes = self.clone();
        let work = async move {
            let mut pause = BACKGROUND;
            loop {
                // Nothing tells of writes to a file system; a look at it does.
                tokio::time::sleep(pause).await;
                let began = Instant::now();
                volumes.commit_all().await;
                pause = BACKGROUND.max(began.elapsed() * PAUSE_FACTOR);
            }
        };
        Some(Background(tasks::spawn(TaskKind::Volumes, self.task, work)))
    }
}

/// Ends the commits in the background with itself.
pub(crate) struct Background(tokio::task::JoinHandle<()>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) fn not_mounted(task: TaskId, volume: VolumeId) -> Error {
    Error::precondition(format!("the container {task} does not have the volume {volume} mounted"))
}

/// Notes what a new container sees first of its volumes.
pub(crate) fn write_down(folder: &std::path::Path, mounts: &[VolumeMount]) -> std::io::Result<()> {
    for mount in mounts {
        let folder = folder.join("volumes").join(mount.volume.to_string());
        std::fs::create_dir_all(&folder)?;
        Place::begin(folder, mount.view.version)?;
    }
    Ok(())
}
