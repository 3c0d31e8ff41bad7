//! Python packages from an index: which index the host uses, what a project's page offers, which wheel fits
//! an interpreter, and its safe unpacking.

mod files;
mod index;
mod index_config;
mod marker;
mod requirement;
mod simple_page;
mod specifier;
mod unpack;
mod version;
mod wheel_name;

pub use files::{IndexFile, Yanked};
pub(crate) use index::choose_among;
pub use index::{Choice, PackageIndex, PypiError};
pub use index_config::IndexConfig;
pub use marker::{Marker, MarkerEnv};
pub use requirement::{Requirement, RequirementError, normal_name};
pub use specifier::{SpecifierError, Specifiers};
pub use unpack::{UnpackError, metadata_of_wheel, text_in_wheel, unpack_wheel};
pub use version::{Version, VersionError};
pub use wheel_name::{Libc, Target, WheelName};
