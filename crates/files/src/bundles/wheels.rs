//! Where the wheels of a bundle come from: a named file, the folders at hand, then the package index.

use super::{BundleError, Talk};
use crate::{
    io_failure::IoContext,
    pypi::{
        Choice, IndexFile, PackageIndex, PypiError, Requirement, Target, Version, WheelName, Yanked,
        choose_among,
    },
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A wheel that is on this machine.
#[derive(Debug, Clone)]
pub(super) struct LocalWheel {
    pub name: String,
    pub version: Version,
    pub path: PathBuf,
    /// The version that was asked for, where the index does not have it.
    pub instead_of: Option<String>,
}

/// The places where wheels are looked for.
#[derive(Debug, Clone)]
pub(super) struct WheelSource {
    pub index: PackageIndex,
    /// What `EVOKE_MODAL_WHEEL` names.
    pub named: Option<PathBuf>,
    /// Where downloads are kept; wheels that somebody put there count too.
    pub cache: PathBuf,
}

impl WheelSource {
    /// The wheel of the client in exactly this version.
    pub fn client(&self, version: &Version, talk: Talk<'_>) -> Result<LocalWheel, BundleError> {
        if let Some(path) = &self.named {
            let bad = |what| BundleError::NamedWheel { path: path.clone(), what };
            let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let wheel: WheelName = file_name.parse().map_err(|()| bad("not named as wheels are"))?;
            if wheel.name != "modal" {
                return Err(bad("not a wheel of the client"));
            }
            if !path.is_file() {
                return Err(bad("not a file that can be read"));
            }
            if wheel.version == *version {
                return Ok(LocalWheel {
                    name: wheel.name,
                    version: wheel.version,
                    path: path.clone(),
                    instead_of: None,
                });
            }
        }
        let specifiers = crate::pypi::Specifiers::exactly(version.clone());
        let wanted = Requirement { name: "modal".into(), specifiers, marker: None };
        self.any(&wanted, &super::client::target(), talk)
    }

    /// The best wheel for `wanted`: of those at hand, else of those in the index.
    pub fn any(
        &self,
        wanted: &Requirement,
        target: &Target,
        talk: Talk<'_>,
    ) -> Result<LocalWheel, BundleError> {
        let beside = self.named.as_deref().and_then(Path::parent).filter(|folder| folder.is_dir());
        for folder in beside.into_iter().chain([self.cache.as_path()]) {
            let at_hand = files_in(folder)?;
            if let Some(choice) = choose_among(wanted, &at_hand, target) {
                return Ok(local(choice, folder, None));
            }
        }
        let failed = |source| BundleError::Package { name: wanted.name.clone(), source: Box::new(source) };
        let (choice, instead_of) = self.choose(wanted, target).map_err(failed)?;
        match &instead_of {
            None => talk(&format!("{} {}: downloading", choice.name, choice.version)),
            Some(pin) => talk(&format!(
                "{}: the package index does not have the version {pin} that the client pins; taking {} instead",
                choice.name, choice.version
            )),
        }
        self.index.fetch(&choice, &self.cache, None).map_err(failed)?;
        Ok(local(choice, &self.cache, instead_of))
    }

    /// The wheel from the index. Mirrors lag behind: a pin that the index does not have gives way to the
    /// newest earlier version of the same major one, which the caller tells and notes down.
    fn choose(&self, wanted: &Requirement, target: &Target) -> Result<(Choice, Option<String>), PypiError> {
        let files = self.index.files(&wanted.name)?;
        if let Some(choice) = choose_among(wanted, &files, target) {
            return Ok((choice, None));
        }
        // The client itself is never anything but what was asked for.
        let pin = wanted.specifiers.pin().filter(|_| wanted.name != "modal");
        let earlier = pin.and_then(|pin| {
            let major = pin.release().first()?;
            let specifiers = format!("<{pin},=={major}.*").parse().ok()?;
            let nearby = Requirement { specifiers, ..wanted.clone() };
            Some((choose_among(&nearby, &files, target)?, Some(pin.to_string())))
        });
        // Asked again for the sake of its message.
        earlier.map_or_else(|| self.index.choose(wanted, target).map(|choice| (choice, None)), Ok)
    }
}

fn local(choice: Choice, folder: &Path, instead_of: Option<String>) -> LocalWheel {
    let path = folder.join(&choice.file.file_name);
    LocalWheel { name: choice.name, version: choice.version, path, instead_of }
}

/// The wheels in a folder, as an index would offer them.
fn files_in(folder: &Path) -> Result<Vec<IndexFile>, BundleError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).during("list", folder)? {
        let name = entry.during("list", folder)?.file_name();
        let Some(file_name) = name.to_str().filter(|name| name.ends_with(".whl")) else { continue };
        files.push(IndexFile {
            file_name: file_name.to_owned(),
            url: String::new(),
            sha256: None,
            length: None,
            requires_python: None,
            yanked: Yanked::No,
        });
    }
    Ok(files)
}
