//! What dictionaries and queues have in common: made by name or for as long as their client lives, listed,
//! deleted; and the removal of what is left of deleted ones.

use crate::named::Asked;
use crate::{Control, WORKSPACE, blocking, stored};
use evoke_core::id::{self as ids, Id};
use evoke_core::{AppId, Error, UnixMs};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{
    Answer, DataKind, DictWrite, ENTRY_IDLE_MS_MAX, Grade, Keep, ObjectRow, ObjectWrite, QueueWrite, Write,
};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

/// An object that lives as long as its client, whose client was not heard of for this long (milliseconds), is
/// deleted: three of the client's heartbeats, which come every 300 s.
pub(crate) const OBJECT_SILENCE_MS_MAX: u64 = 15 * 60 * 1000;
/// A file that no entry points at is kept this long (milliseconds): longer than replies for repeated requests.
const LOOSE_FILE_KEPT_MS: u64 = 70 * 60 * 1000;
/// Files removed in one go.
const LOOSE_FILES_AT_ONCE: u32 = 100;
/// Objects in one page of a listing that names no number.
const PAGE_OBJECTS: usize = 1_000;
/// Time between two rounds of removal that nothing asked for.
const SWEEP_ROUND: Duration = Duration::from_secs(600);

/// A kind of object by the names that people know.
pub(crate) trait DataObject: DataKind {
    /// As the client's class is called.
    const WHAT: &'static str;
    /// As the command is called.
    const COMMAND: &'static str;
}

impl DataObject for ids::Dict {
    const WHAT: &'static str = "Dict";
    const COMMAND: &'static str = "dict";
}

impl DataObject for ids::Queue {
    const WHAT: &'static str = "Queue";
    const COMMAND: &'static str = "queue";
}

/// The object with this id is not there.
pub(crate) fn no_object<K: DataObject>(id: Id<K>) -> Status {
    Status::not_found(format!(
        "There is no {what} {id}: it was deleted, or it was ephemeral and its client is gone. \
         List what there is with: evoke {command} list",
        what = K::WHAT,
        command = K::COMMAND
    ))
}

/// What the protocol tells of an object's birth.
pub(crate) fn creation_info<K: DataKind>(row: &ObjectRow<K>) -> Option<api::CreationInfo> {
    Some(api::CreationInfo { created_at: row.created_at.as_secs_f64(), created_by: row.created_by.clone() })
}

impl Control {
    /// Who makes what this request makes. A workspace has one user.
    pub(crate) fn author(&self) -> String {
        WORKSPACE.to_string()
    }

    /// The app of the container that asks.
    fn app_of(&self, context: &CallContext) -> Option<AppId> {
        let task = context.principal.task()?;
        self.calls.look(|engine| engine.task_info(task)).map(|info| info.app_id)
    }

    /// Has a write keep its answer for a repeated request.
    pub(crate) fn keep<T>(
        &self,
        context: &CallContext,
        encode: fn(&T) -> Option<Vec<u8>>,
    ) -> Option<Keep<T>> {
        let key = context.idempotency_key()?.to_string();
        Some(Keep { key, rpc: context.rpc.name.to_string(), at: self.now(), encode })
    }

    /// Looks an object up by its name, or makes one, as `creation` says. `more` is stored with a new one.
    pub(crate) async fn object_get_or_create<K: DataObject, R: Message>(
        &self,
        context: &CallContext,
        (name, environment): (&str, &str),
        creation: api::ObjectCreationType,
        more: impl Fn(Id<K>) -> Vec<Write>,
        reply: impl Fn(&ObjectRow<K>) -> R,
    ) -> Result<R, Status> {
        use api::ObjectCreationType as Creation;
        let what = K::WHAT;
        let environment = self.environment(environment)?;
        let now = self.now();
        let mut row = ObjectRow {
            id: Id::<K>::new(now, &mut *self.entropy()),
            environment_id: environment.id,
            app_id: None,
            name: None,
            created_at: now,
            created_by: self.author(),
            heard_at: None,
        };
        match creation {
            Creation::Ephemeral => row.heard_at = Some(now),
            Creation::AnonymousOwnedByApp => match self.app_of(context) {
                Some(app) => row.app_id = Some(app),
                None => row.heard_at = Some(now),
            },
            Creation::CreateOverwriteIfExists => {
                return Err(Status::invalid(format!(
                    "A {what} is not overwritten: delete it first, or clear it"
                )));
            }
            Creation::Unspecified | Creation::CreateIfMissing | Creation::CreateFailIfExists => {
                row.name = Some(name.to_string());
            }
        }
        if row.name.is_some() {
            return self.named_object(context, row, &environment.name, creation, more, reply).await;
        }
        let answer = reply(&row);
        let mut writes = vec![row.clone().into()];
        writes.extend(more(row.id));
        self.commit(context, writes, Grade::Synced, &answer).await?;
        Ok(answer)
    }

    /// The same for one with a name: `row` is what is made where there is none of its name.
    async fn named_object<K: DataObject, R: Message>(
        &self,
        context: &CallContext,
        row: ObjectRow<K>,
        environment: &str,
        creation: api::ObjectCreationType,
        more: impl Fn(Id<K>) -> Vec<Write>,
        reply: impl Fn(&ObjectRow<K>) -> R,
    ) -> Result<R, Status> {
        let name = row.name.clone().unwrap_or_default();
        let asked = Asked { what: K::WHAT, command: K::COMMAND, name: &name, environment, creation };
        let find = async || {
            let objects = self.store.objects();
            objects.by_name::<K>(row.environment_id, name.clone()).await.map_err(stored)
        };
        if let Some(found) = asked.settle(find().await?)? {
            return Ok(reply(&found));
        }
        let answer = reply(&row);
        let mut writes = vec![row.clone().into()];
        writes.extend(more(row.id));
        let made = self.commit(context, writes, Grade::Synced, &answer).await;
        asked.made(made, answer, find, reply).await
    }

    /// The object with this id.
    pub(crate) async fn object<K: DataObject>(&self, id: Id<K>) -> Result<ObjectRow<K>, Status> {
        let found = self.store.objects().by_id(id).await.map_err(stored)?;
        found.ok_or_else(|| no_object(id))
    }

    /// The named objects of an environment that a page shows, and the environment's name.
    pub(crate) async fn object_page<K: DataObject>(
        &self,
        environment: &str,
        pagination: Option<api::ListPagination>,
    ) -> Result<(Vec<ObjectRow<K>>, String), Status> {
        let environment = self.environment(environment)?;
        let page = pagination.unwrap_or_default();
        let most = usize::try_from(page.max_objects).ok().filter(|most| *most > 0);
        let most = most.unwrap_or(PAGE_OBJECTS).min(PAGE_OBJECTS);
        let objects = self.store.objects();
        let rows = objects.page(environment.id, page.created_before, most).await.map_err(stored)?;
        Ok((rows, environment.name))
    }

    pub(crate) async fn object_heartbeat<K: DataObject>(&self, id: Id<K>) -> Result<(), Status> {
        self.object(id).await?;
        let heard = ObjectWrite::Heard { id: id.to_string(), at: self.now() };
        self.submit(vec![heard.into()], Grade::Written).await
    }

    /// Deletes or empties an object.
    pub(crate) async fn object_write<K: DataObject>(
        &self,
        context: &CallContext,
        id: Id<K>,
        write: ObjectWrite,
    ) -> Result<(), Status> {
        self.object(id).await?;
        self.commit(context, vec![write.into()], Grade::Synced, &()).await?;
        self.sweep.notify_one();
        Ok(())
    }

    /// Removes what is left of deleted and cleared objects, and what is over its time. Ends with the server.
    pub(crate) async fn run_sweeps(self: Arc<Self>) {
        loop {
            if let Err(status) = self.sweep_round().await {
                tracing::warn!(%status, "old data could not be removed; the next round tries again");
            }
            tokio::select! {
                () = self.sweep.notified() => {}
                () = tokio::time::sleep(SWEEP_ROUND) => {}
            }
        }
    }

    async fn sweep_round(&self) -> Result<(), Status> {
        let now = self.now();
        let since = |age_ms: u64| UnixMs(now.0.saturating_sub(age_ms));
        let silent = ObjectWrite::DeleteSilent { before: since(OBJECT_SILENCE_MS_MAX) };
        let loose = DictWrite::CountLoose { now };
        self.submit(vec![silent.into(), loose.into()], Grade::Written).await?;
        self.repeat(|more| ObjectWrite::Sweep { more }.into()).await?;
        let before = since(ENTRY_IDLE_MS_MAX);
        self.repeat(|more| DictWrite::Expire { before, more }.into()).await?;
        self.repeat(|more| QueueWrite::Expire { now, more }.into()).await?;
        self.remove_loose_files(since(LOOSE_FILE_KEPT_MS)).await
    }

    /// Submits bounded pieces of a piece of work until there is no more of it.
    async fn repeat(&self, write: impl Fn(Answer<bool>) -> Write) -> Result<(), Status> {
        loop {
            let more = Answer::new(None);
            self.submit(vec![write(more.clone())], Grade::Written).await?;
            if more.take() != Some(true) {
                return Ok(());
            }
        }
    }

    async fn remove_loose_files(&self, before: UnixMs) -> Result<(), Status> {
        loop {
            let dicts = self.store.dicts();
            let files = dicts.loose_files(before, LOOSE_FILES_AT_ONCE).await.map_err(stored)?;
            if files.is_empty() {
                return Ok(());
            }
            let (values, removed) = (self.values.clone(), files.clone());
            blocking(move || removed.iter().try_for_each(|file| values.delete(*file)).map_err(Error::from))
                .await?;
            self.submit(vec![DictWrite::Removed { files }.into()], Grade::Written).await?;
        }
    }
}
