//! Collection: images, layers, mounts and contents that nothing needs any more are removed, off every path.
//!
//! What functions of apps that are not stopped run with, in every version of their history, stays, and so does
//! what has a name, what is being built, and what somebody used lately. Rows go before files, so that a SIGKILL in
//! between leaves files that the next round finds and no row whose files are gone. A round first marks where it
//! begins and then looks at what is needed: what is looked up or made from then on is not removed by it.

mod reach;

use crate::images::parse_request;
use crate::ports::{LayersCollected, LayersKept};
use crate::{Control, blocking, stored};
use evoke_core::{AppId, DefinitionId, Error, ImageId, MountId, TaskId, UnixMs};
use evoke_files::{Collected, ContentHash, VolumeContent};
use evoke_proto::{Status, api};
use evoke_store::{Grade, ImageState, ImageWrite, MountWrite, Write};
use prost::Message;
use reach::{Held, ImageFact, MountFact, unused_images, unused_mounts};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Time between two looks at the disk.
const LOOK: Duration = Duration::from_secs(600);
/// Looks between two rounds where the disk has room: one round in six hours.
const LOOKS_PER_ROUND: u32 = 36;
/// What is unused for this long goes where the disk is nearly full (milliseconds).
const PRESSED_UNUSED_MS: u64 = 10 * 60 * 1000;
/// Looks between two rounds of a disk that stays nearly full.
const LOOKS_PER_PRESSED_ROUND: u32 = 6;
/// An image stays for so long after a client asked for it that named no app (milliseconds).
const ASKED_ALONE_MS: u64 = 10 * 60 * 1000;
/// Mounts and contents stay for so long after somebody last sent or asked for them: what lists them is stored
/// after them (milliseconds).
const CONTENT_GRACE_MS: u64 = 3600 * 1000;
/// Rows that are read or removed at a time.
const PAGE: u32 = 200;

/// When what nothing needs is removed.
#[derive(Debug, Clone, Copy)]
pub struct CollectionConfig {
    /// What nothing needs stays for so long after its last use (milliseconds).
    pub unused_ms: u64,
    /// With less than this free on the disk, what nothing needs goes early (bytes).
    pub free_bytes_min: u64,
}

impl Default for CollectionConfig {
    fn default() -> Self {
        Self { unused_ms: 30 * 24 * 3600 * 1000, free_bytes_min: 10 << 30 }
    }
}

/// What a round removed, or would have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CollectionReport {
    /// Images forgotten.
    pub images: u64,
    /// Layers.
    pub layers: u64,
    /// Bytes of their files.
    pub layer_bytes: u64,
    /// Downloads that nobody went on with.
    pub downloads: u64,
    /// Their bytes.
    pub download_bytes: u64,
    /// Sets of mounted files forgotten.
    pub mounts: u64,
    /// Folders with mounted files.
    pub mount_folders: u64,
    /// Contents of mounted files and volumes.
    pub contents: u64,
    /// Their bytes.
    pub content_bytes: u64,
}

/// What rounds know of each other.
#[derive(Default)]
pub(crate) struct State {
    /// One round at a time.
    turn: tokio::sync::Mutex<()>,
    /// Images that clients were told of, which may not be part of anything yet.
    asked: Mutex<HashMap<ImageId, Asked>>,
    /// Containers that an earlier server started: they may use what this one would make otherwise.
    lived_on: OnceLock<Vec<TaskId>>,
}

/// Who was told of an image.
#[derive(Default)]
struct Asked {
    /// Apps whose client asked: as long as they are not stopped they may make functions of it.
    apps: HashSet<AppId>,
    /// When one that named no app asked.
    alone: Option<UnixMs>,
}

impl State {
    /// A client is told of an image.
    pub(crate) fn asked(&self, image: ImageId, app: Option<AppId>, now: UnixMs) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = asked.entry(image).or_default();
        match app {
            Some(app) => drop(asked.apps.insert(app)),
            None => asked.alone = Some(now),
        }
    }

    /// The images that were asked for by apps that are `live`, or lately; the others are forgotten.
    fn still_asked(&self, live: &HashSet<AppId>, now: UnixMs) -> Vec<ImageId> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, asked| {
            asked.apps.retain(|app| live.contains(app));
            !asked.apps.is_empty() || asked.alone.is_some_and(|at| now.since(at) < ASKED_ALONE_MS)
        });
        asked.keys().copied().collect()
    }

    /// Notes the containers that an earlier server started.
    pub(crate) fn adopted(&self, alive: &[TaskId]) {
        // Told once, at the start.
        let _ = self.lived_on.set(alive.to_vec());
    }
}

impl Control {
    /// Collects round after round. Ends with the server.
    pub(crate) async fn run_collection(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut since_round = 0;
        loop {
            looks.tick().await;
            let pressed = self.is_disk_pressed();
            let due = if pressed { LOOKS_PER_PRESSED_ROUND } else { LOOKS_PER_ROUND };
            since_round += 1;
            // The first look of a server's life is no round: what containers do comes first.
            if since_round <= due {
                continue;
            }
            since_round = 0;
            let unused_ms = self.config.collection.unused_ms;
            let unused_ms = if pressed { unused_ms.min(PRESSED_UNUSED_MS) } else { unused_ms };
            match self.collect(unused_ms, false).await {
                Ok(report) if report == CollectionReport::default() => {}
                Ok(report) => tracing::info!(?report, pressed, "removed what nothing needs"),
                Err(status) => {
                    tracing::warn!(%status, "what nothing needs could not be removed; the next round tries again")
                }
            }
        }
    }

    fn is_disk_pressed(&self) -> bool {
        match self.objects.free_bytes() {
            Ok(free) => free < self.config.collection.free_bytes_min,
            Err(error) => {
                tracing::warn!(%error, "cannot tell how much room the disk has");
                false
            }
        }
    }

    /// Removes what nothing needs and nobody used for `unused_ms`; only counts it where it is a dry run.
    pub async fn collect(&self, unused_ms: u64, dry_run: bool) -> Result<CollectionReport, Status> {
        let _turn = self.collection.turn.lock().await;
        let layers = self.builder.begin_collection();
        self.trees.begin_collection();
        let now = self.now();
        let before = UnixMs(now.0.saturating_sub(unused_ms));
        let mut report = CollectionReport::default();
        let held = self.held().await?;
        let forgotten = self.forget_images(&held, before, dry_run).await?;
        report.images = forgotten.len() as u64;
        // What somebody asked for at the last moment is there still, and stays with its layers.
        let folders = self.needed_folders(&if dry_run { forgotten } else { HashSet::new() }).await?;
        let compiled = self.has_containers_of_before().await;
        let kept = LayersKept { folders, unused_before: before, compiled, dry_run };
        let LayersCollected { layers, layer_bytes, downloads, download_bytes } = layers.finish(kept).await?;
        report = CollectionReport { layers, layer_bytes, downloads, download_bytes, ..report };
        self.collect_files(&held, before, unused_ms, dry_run, &mut report).await?;
        Ok(report)
    }

    /// What is needed whatever its age: by functions of apps that are not stopped, in every version of them, by
    /// names, by builds that run, and what clients of such apps were told of.
    async fn held(&self) -> Result<Held, Status> {
        let mut held = Held::default();
        let mut after: Option<DefinitionId> = None;
        loop {
            let page = self.store.functions().definitions_in_use(after, PAGE).await.map_err(stored)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for row in &page {
                let definition = crate::definition::Definition::from_stored(&row.body.clone().into())?;
                hold(&mut held, &definition.function);
                let ranked = definition.data.ranked_functions.iter().filter_map(|one| one.function.as_ref());
                ranked.for_each(|function| hold(&mut held, function));
            }
        }
        for function in self.registry.lock().functions.values() {
            hold(&mut held, &function.definition.function);
        }
        let live = self.registry.lock().apps.keys().copied().collect();
        held.images.extend(self.collection.still_asked(&live, self.now()));
        held.images.extend(self.store.image_names().images().await.map_err(stored)?);
        for row in self.store.images().building().await.map_err(stored)? {
            let image = parse_request(&row)?.image.unwrap_or_default();
            held.mounts.extend(image.context_mount_id.parse::<MountId>());
        }
        Ok(held)
    }

    /// Forgets the images that nothing needs; gives their ids.
    async fn forget_images(
        &self,
        held: &Held,
        before: UnixMs,
        dry_run: bool,
    ) -> Result<HashSet<ImageId>, Status> {
        let mut facts = Vec::new();
        let mut after = None;
        loop {
            let page = self.store.images().page(after, PAGE).await.map_err(stored)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for row in &page {
                let image = parse_request(row)?.image.unwrap_or_default();
                facts.push(ImageFact {
                    id: row.id,
                    building: row.state == ImageState::Building,
                    used: row.used_at,
                    bases: image.base_images.iter().filter_map(|base| base.image_id.parse().ok()).collect(),
                });
            }
        }
        let unused = unused_images(&facts, &held.images, before);
        let writes = unused.iter().map(|id| ImageWrite::Collect { id: *id, before }.into());
        self.remove_rows(writes.collect(), dry_run).await?;
        Ok(unused.into_iter().collect())
    }

    /// The folders of the layers of all images but those that are `going`.
    async fn needed_folders(&self, going: &HashSet<ImageId>) -> Result<HashSet<String>, Status> {
        let mut folders = HashSet::new();
        let mut after = None;
        loop {
            let page = self.store.images().page(after, PAGE).await.map_err(stored)?;
            let Some(last) = page.last() else { return Ok(folders) };
            after = Some(last.id);
            for row in page.iter().filter(|row| row.state == ImageState::Ready && !going.contains(&row.id)) {
                let built = serde_json::from_str(&row.built)
                    .map_err(|error| crate::image_logs::unreadable(row.id, error))?;
                folders.extend(self.builder.folders_of(&built)?);
            }
        }
    }

    /// Whether containers run that an earlier server started.
    async fn has_containers_of_before(&self) -> bool {
        let Some(lived_on) = self.collection.lived_on.get().filter(|list| !list.is_empty()) else {
            return false;
        };
        let running = self.worker().running().await;
        lived_on.iter().any(|task| running.contains(task))
    }

    /// Mounts, their folders, and the contents that neither mounts nor volumes have.
    async fn collect_files(
        &self,
        held: &Held,
        before: UnixMs,
        unused_ms: u64,
        dry_run: bool,
        report: &mut CollectionReport,
    ) -> Result<(), Status> {
        let now = self.now();
        let mut facts = Vec::new();
        let mut after = None;
        loop {
            let page = self.store.mounts().page(after, PAGE).await.map_err(stored)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            facts.extend(page.iter().map(|row| MountFact {
                id: row.id,
                named: row.name.is_some(),
                used: row.used_at,
            }));
        }
        let sent_before = before.min(UnixMs(now.0.saturating_sub(CONTENT_GRACE_MS)));
        let unused = unused_mounts(&facts, &held.mounts, sent_before);
        report.mounts = unused.len() as u64;
        let writes = unused.iter().map(|id| MountWrite::Collect { id: *id, before: sent_before }.into());
        self.remove_rows(writes.collect(), dry_run).await?;
        let going: HashSet<MountId> = if dry_run { unused.into_iter().collect() } else { HashSet::new() };
        let (trees, mut objects) = self.needed_files(&going).await?;
        let mut large = HashSet::new();
        for content in self.store.volumes().contents().await.map_err(stored)? {
            match content.parse::<VolumeContent>() {
                Ok(VolumeContent::Object(hash)) => objects.insert(hash),
                Ok(VolumeContent::Large(hash)) => large.insert(hash),
                // Nothing is removed while we cannot tell what is needed.
                Err(error) => return Err(Status::internal(format!("a volume's file: {error}"))),
            };
        }
        let grace = unused_ms.max(CONTENT_GRACE_MS);
        let (folders, store, contents) = (self.trees.clone(), self.objects.clone(), self.contents.clone());
        let (removed, plain, own) = blocking(move || {
            let removed = folders.collect(&|digest| trees.contains(digest), dry_run)?;
            let plain = store.collect(&|hash| objects.contains(hash), now, grace, dry_run)?;
            let own = contents.collect(&|hash| large.contains(hash), now, grace, dry_run)?;
            Ok::<(u64, Collected, Collected), Error>((removed, plain, own))
        })
        .await?;
        report.mount_folders = removed;
        report.contents = plain.removed + own.removed;
        report.content_bytes = plain.removed_bytes + own.removed_bytes;
        Ok(())
    }

    /// The folders and the contents of all mounts but those that are `going`.
    async fn needed_files(
        &self,
        going: &HashSet<MountId>,
    ) -> Result<(HashSet<ContentHash>, HashSet<ContentHash>), Status> {
        let (mut trees, mut objects) = (HashSet::new(), HashSet::new());
        let mut after = None;
        loop {
            let page = self.store.mounts().page(after, PAGE).await.map_err(stored)?;
            let Some(last) = page.last() else { return Ok((trees, objects)) };
            after = Some(last.id);
            // The named ones are packages of the client and have no files here.
            for row in page.iter().filter(|row| row.name.is_none() && !going.contains(&row.id)) {
                let unreadable = |what: String| Status::internal(format!("stored mount {}: {what}", row.id));
                let digest = row.digest.parse().map_err(|e| unreadable(format!("{e}")))?;
                trees.insert(digest);
                let listed = api::MountGetOrCreateRequest::decode(row.files.as_slice())
                    .map_err(|e| unreadable(e.to_string()))?;
                for file in listed.files {
                    objects.insert(file.sha256_hex.parse().map_err(|e| unreadable(format!("{e}")))?);
                }
            }
        }
    }

    async fn remove_rows(&self, writes: Vec<Write>, dry_run: bool) -> Result<(), Status> {
        if dry_run {
            return Ok(());
        }
        for slice in writes.chunks(PAGE as usize) {
            self.submit(slice.to_vec(), Grade::Synced).await?;
        }
        Ok(())
    }
}

/// What a function runs with.
fn hold(held: &mut Held, function: &api::Function) {
    held.images.extend(function.image_id.parse::<ImageId>());
    held.mounts.extend(function.mount_ids.iter().filter_map(|id| id.parse::<MountId>().ok()));
    for dependency in &function.object_dependencies {
        held.images.extend(dependency.object_id.parse::<ImageId>());
        held.mounts.extend(dependency.object_id.parse::<MountId>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_was_told_of_stays_as_long_as_its_app() {
        let state = State::default();
        let (image, other) = (ImageId::from_bits(1), ImageId::from_bits(2));
        let (app, stopped) = (AppId::from_bits(1), AppId::from_bits(2));
        state.asked(image, Some(app), UnixMs(0));
        state.asked(image, Some(stopped), UnixMs(0));
        state.asked(other, None, UnixMs(1_000));
        let soon = UnixMs(ASKED_ALONE_MS);
        let mut asked = state.still_asked(&HashSet::from([app]), soon);
        asked.sort();
        assert_eq!(asked, [image, other]);
        assert_eq!(state.still_asked(&HashSet::from([app]), UnixMs(ASKED_ALONE_MS * 2)), [image]);
        assert!(state.still_asked(&HashSet::from([stopped]), soon).is_empty(), "they were forgotten");
    }
}
