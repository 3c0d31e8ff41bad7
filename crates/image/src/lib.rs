//! Images: where their bases come from, our reading of the Dockerfile dialect, layers and the build cache.
//!
//! Invariants: a layer is named by the digest of how it came to be (the layers below it, the step, what the
//! step copies and sees), so the same step on the same parent is made once and shared; a layer that the
//! index tells of is complete; secrets and this machine's own configuration reach commands and never a
//! layer; whatever was fetched is checked against its digest before it is used.
//!
//! Entry points: [`ImageBuilder::build`] makes a [`Recipe`] into an [`ImageSpec`]; [`BaseConfig`] says where
//! bases come from; [`StandalonePythons`] are for images without one; [`Builder`] is what is asked of containers, [`LayerIndex`] of the store, [`Context`] of
//! the file store.

pub mod base;
mod build;
mod collect;
mod container;
mod context;
mod digest;
pub mod dockerfile;
mod error;
mod glob;
mod index;
mod kept;
mod log;
mod network;
pub mod plan;
mod recipe;
mod spec;
mod standalone;
pub mod steps;
mod survey;
#[cfg(test)]
mod testing;
mod tree;
mod uses;

pub use base::{BaseConfig, BaseSource, BaseTools, Bases, Login, LoginKind, Reference};
pub use build::{BuildRequest, BuildTools, FunctionLayer, ImageBuilder};
pub use collect::{CollectedLayers, Keep};
pub use container::RuntimeBuilder;
pub use context::{Context, ContextEntry, NoContext};
pub use error::ImageError;
pub use index::{FolderIndex, LayerIndex, LayerRecord};
pub use log::{LogSink, LogStream, NoLog};
pub use network::HostNetwork;
pub use recipe::{ContextMount, Recipe, SecretRef, VolumeRef};
pub use spec::{HostBind, ImageSpec, LayerOwner, LayerRef, Libc, PATH_DEFAULT, PythonInfo, PythonPackage};
pub use standalone::{STANDALONE_SOURCE, StandalonePython, StandalonePythons};
pub use steps::{Builder, LayerSize, OpenVolumes, Volumes};
pub use survey::{LayerFacts, LayerReport, PackageChange, Surveyor, Surveys};
pub use uses::{LayerUse, LayerUses, Round};
