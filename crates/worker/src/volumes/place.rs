//! What is written down of one volume of a container: its slots, each with the version that it began with, and
//! for each slot the list of what was committed.

use super::changes;
use crate::container::disk_error;
use evoke_core::{Error, VolumeId};
use evoke_proto::worker::Control;
use evoke_runtime::{Runtime, VolumeEntry};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

const SLOTS_FILE: &str = "slots.json";

/// Who writes to a place, and who takes what it wrote.
pub(super) struct Writer<'a> {
    pub runtime: &'a dyn Runtime,
    pub control: &'a dyn Control,
    /// The container's name with the runtime.
    pub container: &'a str,
    /// What people are told made the version.
    pub author: &'a str,
}

/// One place that takes what a container writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    number: u32,
    /// The version that is seen below it.
    base: u64,
}

/// All of them for one volume, the one that is written to last.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
    slots: Vec<Slot>,
    next: u32,
}

impl Place {
    /// The first slot of a new container.
    pub(super) fn begin(folder: PathBuf, base: u64) -> io::Result<()> {
        Self { folder, slots: vec![Slot { number: 0, base }], next: 1 }.save()
    }

    /// As it was written down; nothing is known of a place without a note.
    pub(super) fn load(folder: PathBuf) -> Self {
        let noted = fs::read(folder.join(SLOTS_FILE)).ok();
        let slots: Vec<Slot> = noted.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        let next = slots.iter().map(|slot| slot.number + 1).max().unwrap_or_default();
        Self { folder, slots, next }
    }

    /// Whole or not at all. A place that a loss of power takes is lost with its container.
    fn save(&self) -> io::Result<()> {
        let draft = self.folder.join("slots.new");
        fs::write(&draft, serde_json::to_vec(&self.slots).map_err(io::Error::other)?)?;
        fs::rename(draft, self.folder.join(SLOTS_FILE))
    }

    fn noted(&self) -> Result<(), Error> {
        self.save().map_err(|error| disk_error("writing down a volume's places", &error))
    }

    pub(super) fn slots(&self) -> Vec<u32> {
        self.slots.iter().map(|slot| slot.number).collect()
    }

    /// The slots that nobody writes to any more.
    pub(super) fn older(&self) -> Vec<u32> {
        let (_, older) =
            self.slots.split_last().map_or((None, [].as_slice()), |(last, rest)| (Some(last), rest));
        older.iter().map(|slot| slot.number).collect()
    }

    /// Whether exactly this version is seen, with nothing over it.
    pub(super) fn shows(&self, version: u64) -> bool {
        let empty = |slot: &Slot| fs::metadata(self.known(slot.number)).map_or(0, |meta| meta.len()) == 0;
        matches!(self.slots.as_slice(), [only] if only.base == version && empty(only))
    }

    /// A new slot over a version, written down before it can be written to.
    pub(super) fn add(&mut self, base: u64) -> Result<u32, Error> {
        let number = self.next;
        self.next += 1;
        self.slots.push(Slot { number, base });
        self.noted()?;
        Ok(number)
    }

    /// Forgets a slot.
    pub(super) fn take_back(&mut self, number: u32) -> Result<(), Error> {
        self.slots.retain(|slot| slot.number != number);
        self.noted()?;
        // Left behind it is removed with the container's folder.
        let _ = fs::remove_file(self.known(number));
        Ok(())
    }

    fn known(&self, slot: u32) -> PathBuf {
        self.folder.join(format!("known.{slot}"))
    }

    /// Has what is new in a slot merged into the volume; whether there was anything.
    pub(super) async fn commit(
        &mut self,
        writer: &Writer<'_>,
        volume: VolumeId,
        number: u32,
    ) -> Result<bool, Error> {
        let Some(slot) = self.slots.iter().find(|slot| slot.number == number).copied() else {
            return Ok(false);
        };
        let disk = |error: &io::Error| disk_error("listing what was written to a volume", error);
        let (known, listing, staging) =
            (self.known(number), self.folder.join("listing"), self.folder.join("staging"));
        let files = (|| {
            if staging.exists() {
                fs::remove_dir_all(&staging)?;
            }
            fs::create_dir(&staging)?;
            let known = File::options().read(true).append(true).create(true).open(&known)?;
            Ok((known, File::create(&listing)?, File::open(&staging)?))
        })();
        let (old, new, folder) = files.map_err(|error| disk(&error))?;
        let place = (&*volume.to_string(), number);
        let container = writer.container;
        let collected =
            writer.runtime.collect_volume(container, place, old.into(), new.into(), folder.into()).await?;
        if !collected.skipped.is_empty() {
            let skipped = collected.skipped.join(", ");
            tracing::warn!(container, %volume, skipped, "a volume cannot hold these, they are left out");
        }
        let (before, now) = tokio::task::spawn_blocking({
            let (known, listing) = (known.clone(), listing.clone());
            move || Ok((read(&known)?, read(&listing)?))
        })
        .await
        .map_err(|error| Error::internal(error.to_string()))?
        .map_err(|error: io::Error| disk(&error))?;
        let changes = changes::between(&before, &now, &staging);
        let changed = !changes.is_empty();
        if changed {
            writer.control.merge_volume(volume, slot.base, changes, writer.author.to_owned()).await?;
        }
        // Only now: a crash before it has the same changes merged again, which changes nothing.
        fs::rename(&listing, &known).map_err(|error| disk(&error))?;
        Ok(changed)
    }
}

fn read(listing: &Path) -> io::Result<Vec<VolumeEntry>> {
    let lines = BufReader::new(File::open(listing)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}
