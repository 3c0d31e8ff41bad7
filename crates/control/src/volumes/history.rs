//! The versions of a volume, for people: a list, what two differ in, and the way back to one.

use super::draft::{Draft, Files};
use super::{Change, Control};
use crate::stored;
use evoke_core::{Error, UnixMs};
use evoke_proto::Status;
use evoke_store::{VolumeRow, VolumeSnapshot};

/// Versions in a list.
const VERSIONS_MAX: u32 = 1_000;

/// A version in a line.
#[derive(Debug, Clone)]
pub struct VolumeVersionOverview {
    /// Its number.
    pub number: u64,
    /// When it was made.
    pub created: UnixMs,
    /// What made it.
    pub author: String,
    /// Entries that it added or changed.
    pub puts: u64,
    /// Entries that it removed.
    pub removes: u64,
}

/// An entry in which two versions differ.
#[derive(Debug, Clone)]
pub struct VolumeChangeOverview {
    /// Where it is.
    pub path: String,
    /// Whether it is there no more.
    pub removed: bool,
    /// Its size in the later version.
    pub size: u64,
}

struct Restore(u64);

impl Change for Restore {
    fn apply<'c, F: Files>(
        self,
        draft: &mut Draft<'_, F>,
        at: &dyn Fn(u64) -> VolumeSnapshot<'c>,
    ) -> Result<(), Error> {
        draft.restore(&at(self.0))
    }
}

impl Control {
    /// The volume of this name or id.
    async fn volume_named(&self, environment: &str, name: &str) -> Result<VolumeRow, Status> {
        if name.starts_with("vo-") {
            return self.volume(name).await;
        }
        let environment = self.environment(environment)?;
        let found = self.store.volumes().by_name(environment.id, name.to_owned()).await.map_err(stored)?;
        found.ok_or_else(|| {
            Status::not_found(format!("There is no volume '{name}' in environment '{}'", environment.name))
        })
    }

    /// The versions of a volume, newest first.
    pub async fn volume_log(
        &self,
        environment: &str,
        name: &str,
    ) -> Result<Vec<VolumeVersionOverview>, Status> {
        let row = self.volume_named(environment, name).await?;
        let versions = self.store.volumes().versions(row.id, VERSIONS_MAX).await.map_err(stored)?;
        let lines = versions.into_iter().map(|version| VolumeVersionOverview {
            number: version.number,
            created: version.created_at,
            author: version.author,
            puts: version.puts,
            removes: version.removes,
        });
        Ok(lines.collect())
    }

    /// What differs between two versions; the newest one where no second is named.
    pub async fn volume_diff(
        &self,
        environment: &str,
        name: &str,
        from: u64,
        to: Option<u64>,
    ) -> Result<Vec<VolumeChangeOverview>, Status> {
        let row = self.volume_named(environment, name).await?;
        let to = to.unwrap_or(row.head);
        self.known_version(&row, from).await?;
        self.known_version(&row, to).await?;
        if from > to {
            return Err(Status::invalid(format!("Version {from} is not before {to}")));
        }
        let read = self.store.read(move |conn| VolumeSnapshot::new(conn, row.id, to).since(from));
        let (puts, removes) = read.await.map_err(stored)?;
        let gone = removes.into_iter().map(|path| VolumeChangeOverview { path, removed: true, size: 0 });
        let there =
            puts.into_iter().map(|f| VolumeChangeOverview { path: f.path, removed: false, size: f.size });
        let mut all: Vec<_> = gone.chain(there).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    /// Makes a new version that holds what version `number` held; its own number.
    pub async fn volume_restore(&self, environment: &str, name: &str, number: u64) -> Result<u64, Status> {
        let row = self.volume_named(environment, name).await?;
        self.known_version(&row, number).await?;
        let author = format!("restore of version {number}");
        let done = self.advance(None, row.id, &author, usize::MAX, Restore(number)).await?;
        Ok(done.head)
    }

    async fn known_version(&self, row: &VolumeRow, number: u64) -> Result<(), Status> {
        let oldest = self.store.volumes().oldest_version(row.id).await.map_err(stored)?;
        if number > row.head || (number < oldest && number > 0) || (number == 0 && oldest > 1) {
            return Err(Status::not_found(format!(
                "The volume has no version {number}; it has {oldest} to {}",
                row.head
            )));
        }
        Ok(())
    }
}
