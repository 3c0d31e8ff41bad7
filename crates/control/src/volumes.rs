//! Volumes by name: made, looked up, listed, renamed, deleted; and the one way by which a version comes to be.
//!
//! What a version changes is decided by [`draft::Draft`] over a snapshot of the newest one, one at a time per
//! volume; the store takes the whole of it or nothing. Folders to mount are made of it when they are wanted.

mod container;
mod draft;
mod history;
mod listing;
mod trees;
mod uploads;

use crate::data_objects::OBJECT_SILENCE_MS_MAX;
use crate::named::{self, Asked};
use crate::{Control, WORKSPACE, names, parse_id, stored};
pub(crate) use draft::clean as clean_path;
use draft::{Draft, Everything, Files};
use evoke_core::{EnvironmentId, Error, UnixMs, VolumeId};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{Grade, VolumeRow, VolumeSnapshot, VolumeWrite};
pub(crate) use listing::in_batches;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use history::{VolumeChangeOverview, VolumeVersionOverview};

/// What clients are told where they name no version of the protocol: both serve every verb, the second one
/// sends only the blocks that are missing.
const FS_VERSION_DEFAULT: api::VolumeFsVersion = api::VolumeFsVersion::V2;
/// As people call one.
const WHAT: &str = "volume";
/// Versions older than this are forgotten, but for the newest one (milliseconds).
const VERSIONS_KEPT_MS: u64 = 30 * 24 * 3600 * 1000;
/// Changes from which on all of a version is read at once.
const CHANGES_MANY: usize = 2_000;

/// What is known of volumes in memory.
#[derive(Default)]
pub(crate) struct State {
    /// The turn to make the next version of each volume.
    turns: Mutex<HashMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
    /// When an ephemeral one was last heard of.
    heard: Mutex<HashMap<VolumeId, UnixMs>>,
    /// Volumes that may be mounted somewhere: their folders on disk stay.
    mounted: Mutex<HashSet<VolumeId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is one call of a map.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    async fn turn(&self, volume: VolumeId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = lock(&self.turns).entry(volume).or_default().clone();
        turn.lock_owned().await
    }
}

/// What a change of a volume came to.
pub(crate) struct Advanced {
    /// The newest version now.
    pub head: u64,
}

impl Control {
    pub(crate) async fn volume_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeGetOrCreateRequest,
    ) -> Result<api::VolumeGetOrCreateResponse, Status> {
        use api::ObjectCreationType as Kind;
        let kind = request.object_creation_type();
        let environment = self.environment(&request.environment_name)?;
        let named = !matches!(kind, Kind::Ephemeral | Kind::AnonymousOwnedByApp);
        let name = named.then(|| request.deployment_name.clone());
        let asked = asked(request.deployment_name.as_str(), &environment.name, kind);
        if named {
            let mut found = self.volume_by_name(environment.id, asked.name).await?;
            if let Some(row) = found.take_if(|_| kind == Kind::CreateOverwriteIfExists) {
                self.submit(vec![VolumeWrite::Delete { id: row.id }.into()], Grade::Synced).await?;
                self.forget_volume(row.id);
            }
            if let Some(row) = asked.settle(found)? {
                return Ok(created_reply(&row));
            }
        }
        let version = match request.version() {
            api::VolumeFsVersion::Unspecified => FS_VERSION_DEFAULT,
            version => version,
        };
        let now = self.now();
        let row = VolumeRow {
            id: VolumeId::new(now, &mut *self.entropy()),
            environment_id: environment.id,
            name,
            fs_version: version as i32,
            head: 0,
            trees: Vec::new(),
            created_at: now,
        };
        if !named {
            lock(&self.volumes.heard).insert(row.id, now);
        }
        let reply = created_reply(&row);
        let created =
            self.commit(&context, vec![VolumeWrite::Create(row).into()], Grade::Synced, &reply).await;
        let find = async || self.volume_by_name(environment.id, asked.name).await;
        asked.made(created, reply, find, created_reply).await
    }

    async fn volume_by_name(
        &self,
        environment: EnvironmentId,
        name: &str,
    ) -> Result<Option<VolumeRow>, Status> {
        self.store.volumes().by_name(environment, name.to_owned()).await.map_err(stored)
    }

    pub(crate) async fn volume_get_by_id(
        self: Arc<Self>,
        _context: CallContext,
        request: api::VolumeGetByIdRequest,
    ) -> Result<api::VolumeGetByIdResponse, Status> {
        let row = self.volume(&request.volume_id).await?;
        Ok(api::VolumeGetByIdResponse { volume_id: row.id.to_string(), metadata: Some(metadata(&row)) })
    }

    pub(crate) async fn volume_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::VolumeListRequest,
    ) -> Result<api::VolumeListResponse, Status> {
        let environment = self.environment(&request.environment_name)?;
        let rows = self.store.volumes().list(environment.id).await.map_err(stored)?;
        let page = named::page(rows, request.pagination, |row| row.created_at);
        let items = page.iter().map(|row| api::VolumeListItem {
            label: row.name.clone().unwrap_or_default(),
            volume_id: row.id.to_string(),
            created_at: row.created_at.as_secs_f64(),
            metadata: Some(metadata(row)),
        });
        Ok(api::VolumeListResponse { items: items.collect(), environment_name: environment.name.clone() })
    }

    pub(crate) async fn volume_rename(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeRenameRequest,
    ) -> Result<(), Status> {
        let row = self.volume(&request.volume_id).await?;
        names::check_object_name(&request.name, WHAT)?;
        let environment = self.environment_name(Some(row.environment_id));
        let taken = self.volume_by_name(row.environment_id, &request.name).await?;
        if taken.is_some_and(|other| other.id != row.id) {
            return Err(asked(&request.name, &environment, api::ObjectCreationType::Unspecified).taken());
        }
        let name = request.name;
        self.commit(&context, vec![VolumeWrite::Rename { id: row.id, name }.into()], Grade::Synced, &()).await
    }

    pub(crate) async fn volume_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeDeleteRequest,
    ) -> Result<(), Status> {
        let row = self.volume(&request.volume_id).await?;
        let _turn = self.volumes.turn(row.id).await;
        self.commit(&context, vec![VolumeWrite::Delete { id: row.id }.into()], Grade::Synced, &()).await?;
        self.forget_volume(row.id);
        Ok(())
    }

    pub(crate) async fn volume_heartbeat(
        self: Arc<Self>,
        _context: CallContext,
        request: api::VolumeHeartbeatRequest,
    ) -> Result<(), Status> {
        let row = self.volume(&request.volume_id).await?;
        lock(&self.volumes.heard).insert(row.id, self.now());
        Ok(())
    }

    /// Lets go of what is known of a deleted volume.
    pub(crate) fn forget_volume(&self, id: VolumeId) {
        lock(&self.volumes.heard).remove(&id);
        lock(&self.volumes.turns).remove(&id);
        self.remove_trees(id, Vec::new());
    }

    /// The volume of this id.
    pub(crate) async fn volume(&self, id: &str) -> Result<VolumeRow, Status> {
        let id: VolumeId = parse_id(id)?;
        let row = self.store.volumes().by_id(id).await.map_err(stored)?;
        row.ok_or_else(|| Status::not_found(format!("There is no volume {id}; it may have been deleted")))
    }

    /// Makes the next version of a volume: `change` decides on it in a draft over the newest one. Nothing is
    /// stored where that changes nothing but, under the request's idempotency key, the empty answer.
    pub(crate) async fn advance<C>(
        &self,
        context: Option<&CallContext>,
        volume: VolumeId,
        author: &str,
        size: usize,
        change: C,
    ) -> Result<Advanced, Status>
    where
        C: Change,
    {
        let _turn = self.volumes.turn(volume).await;
        let row = self.volume(&volume.to_string()).await?;
        let (head, now) = (row.head, self.now());
        let decided = self.store.read(move |conn| {
            let newest = VolumeSnapshot::new(conn, volume, head);
            let at = |version| VolumeSnapshot::new(conn, volume, version);
            Ok(if size > CHANGES_MANY {
                let all = Everything::of(newest.under("")?);
                draw(&all, now, |draft| change.apply(draft, &at))
            } else {
                draw(&newest, now, |draft| change.apply(draft, &at))
            })
        });
        let (puts, removes) = decided.await.map_err(stored)??;
        let mut writes = Vec::new();
        let number = head + u64::from(!puts.is_empty() || !removes.is_empty());
        if number > head {
            let author = author.to_owned();
            writes.push(VolumeWrite::Advance { id: volume, number, at: now, author, puts, removes }.into());
        }
        match context {
            Some(context) => self.commit(context, writes, Grade::Synced, &()).await?,
            None => self.submit(writes, Grade::Synced).await?,
        }
        Ok(Advanced { head: number })
    }

    /// Deletes ephemeral volumes whose client is gone, and versions whose time is over.
    pub(crate) async fn retain_volumes(&self) -> Result<(), Status> {
        let now = self.now();
        for row in self.store.volumes().ephemeral().await.map_err(stored)? {
            // One that was made before this server began counts as heard of now.
            let heard = *lock(&self.volumes.heard).entry(row.id).or_insert(now);
            if now.since(heard) > OBJECT_SILENCE_MS_MAX {
                self.submit(vec![VolumeWrite::Delete { id: row.id }.into()], Grade::Synced).await?;
                self.forget_volume(row.id);
            }
        }
        let before = UnixMs(now.0.saturating_sub(VERSIONS_KEPT_MS));
        self.submit(vec![VolumeWrite::Prune { before }.into()], Grade::Written).await
    }
}

/// A change of a volume as data, to be decided where the files can be read.
pub(crate) trait Change: Send + 'static {
    /// Puts it into the draft; `at` reads any version.
    fn apply<'c, F: Files>(
        self,
        draft: &mut Draft<'_, F>,
        at: &dyn Fn(u64) -> VolumeSnapshot<'c>,
    ) -> Result<(), Error>;
}

type Decided = Result<(Vec<evoke_store::VolumeFile>, Vec<String>), Error>;

fn draw<F: Files>(
    files: &F,
    now: UnixMs,
    change: impl FnOnce(&mut Draft<'_, F>) -> Result<(), Error>,
) -> Decided {
    let mut draft = Draft::new(files, now);
    change(&mut draft)?;
    draft.finish()
}

fn asked<'a>(name: &'a str, environment: &'a str, creation: api::ObjectCreationType) -> Asked<'a> {
    Asked { what: WHAT, command: "volume", name, environment, creation }
}

fn metadata(row: &VolumeRow) -> api::VolumeMetadata {
    api::VolumeMetadata {
        version: row.fs_version,
        name: row.name.clone().unwrap_or_default(),
        creation_info: Some(api::CreationInfo {
            created_at: row.created_at.as_secs_f64(),
            created_by: WORKSPACE.into(),
        }),
    }
}

fn created_reply(row: &VolumeRow) -> api::VolumeGetOrCreateResponse {
    api::VolumeGetOrCreateResponse {
        volume_id: row.id.to_string(),
        version: row.fs_version,
        metadata: Some(metadata(row)),
    }
}
