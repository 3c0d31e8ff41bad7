//! GPUs of this machine: which there are, and what a container needs to use one of them.
//!
//! What it needs is said by specifications of the Container Device Interface; where none names the device, it is
//! put together from the installed driver. A container gets the nodes of its own devices and no other, so that
//! it sees no other, whatever its programs ask for.

mod cdi;
mod driver;
mod edits;
mod inventory;
mod soname;

/// What brings a driver's specification up to date.
pub const GENERATE: &str = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml";
/// What mends a driver whose nodes are not all there.
pub const LOAD: &str = "load the driver in full: nvidia-modprobe -c 0 -u";

pub use edits::{Edits, Mount, Node};
pub use inventory::{Card, cards};

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where a container has the driver's libraries under the names that programs ask for: in a folder that no
/// image has.
pub const LIBRARIES: &str = "/__modal/driver";
/// The variable that leads a loader there.
pub const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
/// The variable that says which devices a container has.
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";

/// Where devices come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuConfig {
    /// Folders of specifications, those of later ones going over those before.
    pub cdi: Vec<PathBuf>,
    /// So many devices are declared, named by their numbers from zero. One of which neither a specification nor
    /// the driver knows is nothing that a container sees.
    pub declared: usize,
}

/// Why a device cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A specification cannot be used.
    #[error("the device specification {} is not usable: {why}", .path.display())]
    Spec {
        /// Its file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There is no such device.
    #[error("there is no GPU {0} on this machine")]
    Unknown(String),
}

/// What makes the devices of these names usable in one container.
pub fn resolve(config: &GpuConfig, names: &[String]) -> Result<Edits, GpuError> {
    let specs = cdi::Specs::read(&config.cdi)?;
    // Not asked by the driver's library, which is no code for a process with root.
    let (cards, driver) = (inventory::listed(), driver::Driver::loaded(Path::new("/")));
    let mut all = Edits::default();
    for name in names {
        let index = cards.iter().position(|card| card.uuid == *name).or_else(|| name.parse().ok());
        let card = index.and_then(|index| cards.get(index));
        let number = index.map(|index| index.to_string());
        let aliases: Vec<&str> =
            [Some(name.as_str()), card.map(|card| card.uuid.as_str()), number.as_deref()]
                .into_iter()
                .flatten()
                .collect();
        let declared = name.parse::<usize>().is_ok_and(|number| number < config.declared);
        match (specs.device(&aliases)?, card, &driver) {
            (Some(edits), ..) => all.merge(&edits),
            (None, Some(card), Some(driver)) => all.merge(&driver.device(card)),
            _ if declared => {}
            _ => return Err(GpuError::Unknown(name.clone())),
        }
    }
    all.links.extend(library_links(&all.mounts));
    all.env.retain(|(name, _)| name != VISIBLE);
    all.env.push((VISIBLE.to_owned(), names.join(",")));
    if !all.links.is_empty() {
        all.env.push((LIBRARY_PATH.to_owned(), LIBRARIES.to_owned()));
    }
    Ok(all)
}

/// Links under which the loader finds the libraries among the mounts: beside each, and all in one folder of
/// nothing else, which can be put on a path without hiding anything.
fn library_links(mounts: &[Mount]) -> Vec<(String, String)> {
    let mut links = Vec::new();
    for mount in mounts {
        let Some((folder, file)) = mount.path.rsplit_once('/') else { continue };
        let Some(name) = Some(file).filter(|file| file.contains(".so")).and_then(|_| soname::of(&mount.host))
        else {
            continue;
        };
        if name != file {
            links.push((file.to_owned(), format!("{folder}/{name}")));
        }
        if folder != LIBRARIES {
            links.push((mount.path.clone(), format!("{LIBRARIES}/{name}")));
        }
    }
    links
}

/// What is known of how devices get into containers, for `doctor`.
#[derive(Debug, Default)]
pub struct Ways {
    /// The devices that specifications name, and the files.
    pub specified: Vec<(String, PathBuf)>,
    /// What the hooks of specifications would do that is not done.
    pub unknown_hooks: Vec<String>,
    /// Whether a driver is loaded.
    pub driver: bool,
    /// Nodes that computing needs and the driver has not made yet.
    pub missing: Vec<&'static str>,
}

/// Looks how devices get into containers.
pub fn ways(config: &GpuConfig) -> Result<Ways, GpuError> {
    let specs = cdi::Specs::read(&config.cdi)?;
    Ok(Ways {
        specified: specs.names().map(|(name, path)| (name.to_owned(), path.to_owned())).collect(),
        unknown_hooks: specs.unknown_hooks(),
        driver: driver::Driver::loaded(Path::new("/")).is_some(),
        missing: driver::NEEDED.into_iter().filter(|node| !Path::new(node).exists()).collect(),
    })
}
