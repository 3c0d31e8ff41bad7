//! The client's own packages under `/pkg`.

use super::{Bundle, BundleError, Bundles, Package, Talk, build::make_folder, wheels::LocalWheel};
use crate::pypi::{Libc, MarkerEnv, Requirement, Target, Version, metadata_of_wheel, unpack_wheel};
use std::path::Path;

/// The oldest Python that the client runs on. Its own packages are pure Python, so that what fits this one
/// fits all.
const OLDEST_PYTHON_MINOR: u8 = 10;

/// The packages that the mount has: those of the client's wheel, and `synchronicity` from its own.
const CLIENT_PACKAGES: [&str; 4] = ["modal", "modal_proto", "modal_version", "synchronicity"];

/// For which interpreter the client's own packages are chosen.
pub(super) fn target() -> Target {
    Target { python_minor: OLDEST_PYTHON_MINOR, libc: Libc::MANYLINUX_2_17, arch: std::env::consts::ARCH }
}

impl Bundles {
    /// The packages of the client of this version: `/pkg/{modal,modal_proto,modal_version,synchronicity}`.
    /// Made on first use; `talk` hears how it goes on.
    pub fn client_mount(&self, client_version: &str, talk: Talk<'_>) -> Result<Bundle, BundleError> {
        let version: Version = client_version.parse()?;
        self.obtain(&format!("client-{version}"), |tree| {
            talk(&format!("preparing the client {version} for containers"));
            let wheels = &self.inner.wheels;
            let modal = wheels.client(&version, talk)?;
            let synchronicity = wheels.any(&needed_synchronicity(&modal.path)?, &target(), talk)?;
            let pkg = tree.join("pkg");
            make_folder(&pkg)?;
            for wheel in [&modal, &synchronicity] {
                unpack_wheel(&wheel.path, &pkg, &belongs_to_client)?;
            }
            Ok([modal, synchronicity].map(Package::of).into())
        })
    }
}

/// Which `synchronicity` the client's wheel asks for.
fn needed_synchronicity(wheel: &Path) -> Result<Requirement, BundleError> {
    let env = MarkerEnv { python_minor: OLDEST_PYTHON_MINOR, machine: std::env::consts::ARCH.into() };
    let metadata = metadata_of_wheel(wheel)?;
    let head = metadata.split("\n\n").next().unwrap_or_default();
    for line in head.lines().filter_map(|line| line.strip_prefix("Requires-Dist:")) {
        // Lines about other projects may use forms that don't matter here.
        if !line.trim_start().starts_with("synchronicity") {
            continue;
        }
        let requirement: Requirement = line.parse()?;
        if requirement.name == "synchronicity" && requirement.applies(&env) {
            return Ok(requirement);
        }
    }
    Err(BundleError::Undeclared("synchronicity"))
}

/// Whether a file of a wheel belongs into the mount: packages of the client, without bytecode of another
/// interpreter and without hidden files.
fn belongs_to_client(path: &str) -> bool {
    let package = path.split('/').next().unwrap_or_default();
    CLIENT_PACKAGES.contains(&package)
        && belongs_anywhere(path)
        && !path.split('/').any(|p| p.starts_with('.'))
}

/// Whether a file of any wheel belongs into a bundle: bytecode never comes from a wheel.
pub(super) fn belongs_anywhere(path: &str) -> bool {
    !path.ends_with(".pyc") && !path.split('/').any(|part| part == "__pycache__")
}

impl Package {
    pub(super) fn of(wheel: LocalWheel) -> Self {
        let file_name = wheel.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name: wheel.name, version: wheel.version.to_string(), file_name, instead_of: wheel.instead_of }
    }
}
