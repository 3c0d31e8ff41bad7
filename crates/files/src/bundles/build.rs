//! Finding a bundle or building it once.

use super::{BundleError, wheels::WheelSource};
use crate::{HostEnv, IoFailure, durable::sync_folder, io_failure::IoContext, pypi::PackageIndex};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Takes lines that tell a person how a build goes on.
pub type Talk<'a> = &'a (dyn Fn(&str) + Sync);

/// A package inside a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// The project, in its normal form.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The wheel's file name.
    pub file_name: String,
    /// The version that the client pins, where the index did not have it and this one stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
}

/// A bundle that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its name; the same key always stands for the same tree.
    pub key: String,
    /// Its root, to be laid over a container's root. Its files belong to the server's user.
    pub tree: PathBuf,
    /// What it is made of.
    pub packages: Vec<Package>,
}

/// `bundle.json`.
#[derive(Serialize, Deserialize)]
struct Note {
    packages: Vec<Package>,
}

/// The place of the bundles. Cheap to clone.
#[derive(Clone)]
pub struct Bundles {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub root: PathBuf,
    pub wheels: WheelSource,
    building: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    next_temporary: AtomicU64,
}

impl Bundles {
    /// Bundles below `root`, made from what `host` names (`EVOKE_MODAL_WHEEL`) and `index` has. Left-overs
    /// of unfinished builds are removed.
    pub fn open(root: &Path, host: &HostEnv, index: PackageIndex) -> Result<Self, IoFailure> {
        let tmp = root.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).during("remove", &tmp)?;
        }
        let cache = root.join("wheels");
        for folder in [&tmp, &cache] {
            fs::create_dir_all(folder).during("create", folder)?;
        }
        let wheels = WheelSource { index, named: host.path("EVOKE_MODAL_WHEEL"), cache };
        let inner = Inner {
            root: root.to_owned(),
            wheels,
            building: Mutex::default(),
            next_temporary: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The bundle of this key, if it has been made.
    pub fn find(&self, key: &str) -> Option<Bundle> {
        let folder = self.inner.root.join(key);
        let note = fs::read(folder.join("bundle.json")).ok()?;
        let note: Note = serde_json::from_slice(&note).ok()?;
        Some(Bundle { key: key.to_owned(), tree: folder.join("tree"), packages: note.packages })
    }

    /// The bundle of this key: the one that is there, else the one that `fill` makes in the empty folder it
    /// is given. Of several callers at once one builds and the others wait for it.
    pub(super) fn obtain(
        &self,
        key: &str,
        fill: impl FnOnce(&Path) -> Result<Vec<Package>, BundleError>,
    ) -> Result<Bundle, BundleError> {
        if let Some(bundle) = self.find(key) {
            return Ok(bundle);
        }
        let turn = self.turn_of(key);
        // The lock guards no data.
        let held = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bundle) = self.find(key) {
            return Ok(bundle);
        }
        let folder = self.temporary(key)?;
        let built = self.build(key, &folder, fill);
        if built.is_err() {
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(path = %folder.display(), %error, "could not remove an unfinished bundle");
            }
        }
        drop(held);
        self.inner.building.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        built
    }

    fn turn_of(&self, key: &str) -> Arc<Mutex<()>> {
        let mut building = self.inner.building.lock().unwrap_or_else(PoisonError::into_inner);
        building.entry(key.to_owned()).or_default().clone()
    }

    /// A new empty folder for something that is being built.
    pub(super) fn temporary(&self, key: &str) -> Result<PathBuf, IoFailure> {
        let number = self.inner.next_temporary.fetch_add(1, Ordering::Relaxed);
        let folder = self.inner.root.join("tmp").join(format!("{key}-{number}"));
        make_folder(&folder)?;
        Ok(folder)
    }

    fn build(
        &self,
        key: &str,
        folder: &Path,
        fill: impl FnOnce(&Path) -> Result<Vec<Package>, BundleError>,
    ) -> Result<Bundle, BundleError> {
        let tree = folder.join("tree");
        make_folder(&tree)?;
        let packages = fill(&tree)?;
        let note_path = folder.join("bundle.json");
        let note = serde_json::to_vec_pretty(&Note { packages: packages.clone() })
            .map_err(io::Error::other)
            .during("encode", &note_path)?;
        fs::write(&note_path, note).during("write", &note_path)?;
        let handle = File::open(&tree).during("open", &tree)?;
        rustix::fs::syncfs(&handle).during("sync the file system of", &tree)?;
        let target = self.inner.root.join(key);
        // Another process may have been faster with the same content, or a damaged one may be in the way.
        if target.exists() && self.find(key).is_none() {
            fs::remove_dir_all(&target).during("remove", &target)?;
        }
        match fs::rename(folder, &target) {
            Err(_) if self.find(key).is_some() => fs::remove_dir_all(folder).during("remove", folder)?,
            renamed => renamed.during("rename to", &target)?,
        }
        sync_folder(&self.inner.root)?;
        Ok(Bundle { key: key.to_owned(), tree: target.join("tree"), packages })
    }
}

/// A folder of mode 0755, whatever the umask.
pub(super) fn make_folder(path: &Path) -> Result<(), IoFailure> {
    DirBuilder::new().mode(0o755).create(path).during("create", path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).during("set the mode of", path)
}
