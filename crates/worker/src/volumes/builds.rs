//! Volumes of the commands of image builds: each command begins with the newest versions, and what it wrote becomes
//! the next ones when it has ended. Nothing of it outlives this process: a build that is cut off is run anew.

use super::VolumeRecord;
use super::place::{Place, Writer};
use crate::container::disk_error;
use async_trait::async_trait;
use evoke_core::Error;
use evoke_image::{ImageError, OpenVolumes, Volumes};
use evoke_proto::worker::{Control, VolumeMount};
use evoke_runtime::{Runtime, Volume};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Mounts volumes into builds.
#[derive(Clone)]
pub struct BuildVolumes {
    runtime: Arc<dyn Runtime>,
    /// Where copies of what was written lie until they are taken over.
    staging: PathBuf,
    /// The service user, who owns the folders of versions.
    owner: (u32, u32),
}

impl BuildVolumes {
    /// `staging` is on the file system of the volumes and is emptied at each start; `owner` is the service user and
    /// its group.
    pub fn new(runtime: Arc<dyn Runtime>, staging: PathBuf, owner: (u32, u32)) -> Self {
        Self { runtime, staging, owner }
    }

    /// `mounts` for the commands of one build; `author` says to people what made the versions that come of it.
    pub fn of(&self, control: Arc<dyn Control>, mounts: &[VolumeMount], author: String) -> Arc<dyn Volumes> {
        let records = mounts.iter().map(VolumeRecord::of).collect();
        Arc::new(OfBuild { tools: self.clone(), control, records, author })
    }
}

/// Those of one build.
#[derive(Clone)]
struct OfBuild {
    tools: BuildVolumes,
    control: Arc<dyn Control>,
    records: Vec<VolumeRecord>,
    author: String,
}

impl fmt::Debug for OfBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OfBuild").field(&self.records).finish()
    }
}

#[async_trait]
impl Volumes for OfBuild {
    async fn open(&self, container: &str) -> Result<Box<dyn OpenVolumes>, ImageError> {
        self.opened(container).await.map(|open| Box::new(open) as _).map_err(ImageError::Volume)
    }
}

impl OfBuild {
    async fn opened(&self, container: &str) -> Result<Open, Error> {
        let disk = |error: &std::io::Error| disk_error("making the places of a build's volumes", error);
        let folder = tempfile::Builder::new().prefix("volumes-").tempdir_in(&self.tools.staging);
        let folder = folder.map_err(|error| disk(&error))?;
        let (mut places, mut mounts) = (Vec::new(), Vec::new());
        for record in &self.records {
            let view = self.control.volume_view(record.volume).await?;
            let place = folder.path().join(record.volume.to_string());
            std::fs::create_dir(&place)
                .and_then(|()| Place::begin(place.clone(), view.version))
                .map_err(|error| disk(&error))?;
            places.push(Place::load(place));
            mounts.push(record.spec(0, &view, self.tools.owner));
        }
        Ok(Open { build: self.clone(), container: container.to_owned(), places, mounts, _folder: folder })
    }
}

/// Those of one container of a build.
struct Open {
    build: OfBuild,
    container: String,
    /// In the order of the build's records.
    places: Vec<Place>,
    mounts: Vec<Volume>,
    /// Goes with it.
    _folder: tempfile::TempDir,
}

#[async_trait]
impl OpenVolumes for Open {
    fn mounts(&self) -> Vec<Volume> {
        self.mounts.clone()
    }

    async fn commit(&mut self) -> Result<(), ImageError> {
        let writer = Writer {
            runtime: &*self.build.tools.runtime,
            control: &*self.build.control,
            container: &self.container,
            author: &self.build.author,
        };
        for (record, place) in self.build.records.iter().zip(&mut self.places) {
            if record.read_only {
                continue;
            }
            for slot in place.slots() {
                place.commit(&writer, record.volume, slot).await.map_err(ImageError::Volume)?;
            }
        }
        Ok(())
    }
}
