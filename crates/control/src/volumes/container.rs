//! Volumes in containers: what a container is given, and what it changed.

use super::draft::{Draft, Files, Stored, clean};
use super::{Change, Control};
use crate::{blocking, parse_id};
use evoke_core::{Error, Principal, TaskId, VolumeId};
use evoke_proto::worker::{VolumeChange, VolumeChangeKind, VolumeMount};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::VolumeSnapshot;
use std::path::PathBuf;
use std::sync::Arc;

/// Volumes of one container.
const MOUNTS_MAX: usize = 32;

/// What a container changed since a version.
struct Merge {
    base: u64,
    changes: Vec<(VolumeChange, Option<Stored>)>,
}

impl Change for Merge {
    fn apply<'c, F: Files>(
        self,
        draft: &mut Draft<'_, F>,
        at: &dyn Fn(u64) -> VolumeSnapshot<'c>,
    ) -> Result<(), Error> {
        draft.merge(&at(self.base), self.changes)
    }
}

impl Control {
    /// The volumes of a container, each in its newest version.
    pub(crate) async fn volume_mounts(&self, asked: &[api::VolumeMount]) -> Result<Vec<VolumeMount>, Status> {
        if asked.len() > MOUNTS_MAX {
            return Err(Status::invalid(format!("A container can have {MOUNTS_MAX} volumes at most")));
        }
        let mut mounts = Vec::with_capacity(asked.len());
        for mount in asked {
            let volume: VolumeId = parse_id(&mount.volume_id)?;
            let sub_path = clean(mount.sub_path.as_deref().unwrap_or_default())?;
            mounts.push(VolumeMount {
                volume,
                target: mount.mount_path.clone(),
                read_only: mount.read_only,
                sub_path,
                view: self.view_of(volume).await?,
            });
        }
        Ok(mounts)
    }

    pub(crate) async fn volume_commit(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeCommitRequest,
    ) -> Result<api::VolumeCommitResponse, Status> {
        let task = calling_container(&context, "commit")?;
        let volume = parse_id(&request.volume_id)?;
        self.worker().commit_volume(task, volume).await?;
        // What could be shown of it is shown already.
        Ok(api::VolumeCommitResponse { skip_reload: true })
    }

    pub(crate) async fn volume_reload(
        self: Arc<Self>,
        context: CallContext,
        request: api::VolumeReloadRequest,
    ) -> Result<(), Status> {
        let task = calling_container(&context, "reload")?;
        let volume = parse_id(&request.volume_id)?;
        Ok(self.worker().reload_volume(task, volume).await?)
    }

    /// Merges what a container changed into the newest version.
    pub(crate) async fn merge_changes(
        &self,
        volume: VolumeId,
        base: u64,
        changes: Vec<VolumeChange>,
        author: &str,
    ) -> Result<u64, Status> {
        let size = changes.len();
        let staged: Vec<PathBuf> = changes.iter().filter_map(staged_of).cloned().collect();
        let contents = self.contents.clone();
        let imported = blocking(move || contents.import(&staged).map_err(Error::from)).await?;
        let mut imported = imported.into_iter().map(|(content, size)| (content.to_string(), size));
        let changes = changes
            .into_iter()
            .map(|change| {
                let stored = staged_of(&change).and_then(|_| imported.next());
                (change, stored)
            })
            .collect();
        let done = self.advance(None, volume, author, size, Merge { base, changes }).await?;
        Ok(done.head)
    }
}

fn staged_of(change: &VolumeChange) -> Option<&PathBuf> {
    match &change.kind {
        VolumeChangeKind::File { staged } => Some(staged),
        _ => None,
    }
}

fn calling_container(context: &CallContext, verb: &str) -> Result<TaskId, Status> {
    match &context.principal {
        Principal::Container(task) => Ok(*task),
        _ => Err(Status::new(
            Code::FailedPrecondition,
            format!("{verb}() can only be called in a container that has the volume mounted"),
        )),
    }
}
