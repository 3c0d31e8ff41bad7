//! A recipe and its resolved bases to steps, each with the digest of the layer it makes. Pure: the same
//! recipe on the same bases always gives the same steps, and the same step on the same parent one digest.

mod copies;
mod mounts;
mod runs;
mod stages;
mod state;

pub use mounts::{BindOrigin, MountPlan, Sharing};
pub use stages::external_images;

use crate::dockerfile::Dockerfile;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::spec::ImageSpec;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Changes configuration only.
    Config,
    /// Left out, and why.
    Skip(String),
    /// Runs a command.
    Run(RunPlan),
    /// Copies files.
    Copy(CopyPlan),
}

/// A command as it will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlan {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, without secrets.
    pub env: Vec<(String, String)>,
    /// Working folder.
    pub cwd: String,
    /// User.
    pub user: String,
    /// Whether it has a network.
    pub network: bool,
    /// What it sees besides.
    pub mounts: Vec<MountPlan>,
    /// Things the person should know.
    pub notes: Vec<String>,
}

/// Files as they will be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlan {
    /// Where from.
    pub from: CopyOrigin,
    /// Absolute.
    pub destination: String,
    /// `user[:group]`.
    pub chown: Option<String>,
    /// Permission bits.
    pub chmod: Option<u32>,
}

/// Where a COPY takes its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyOrigin {
    /// The context mount's tree as it is.
    Mount {
        /// Names below it.
        sources: Vec<String>,
    },
    /// A folder put together for this step.
    Staged {
        /// What goes in, by the path it gets.
        files: Vec<(String, StagedFile)>,
        /// Names below it.
        sources: Vec<String>,
    },
    /// Another stage or image.
    Image {
        /// Its root.
        root: crate::steps::Root,
        /// Names below its root; may be patterns.
        sources: Vec<String>,
    },
    /// A local archive that ADD unpacks.
    Archive {
        /// The file.
        file: StagedFile,
        /// Its name, which says how it is compressed.
        name: String,
    },
}

/// Where the content of a staged file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StagedFile {
    /// The context, at this path.
    Context(String),
    /// A here-document.
    Text(String),
    /// An address, and its checksum where the Dockerfile gives one.
    Url(String, Option<String>),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its place in [`Plan::stages`].
    pub stage: usize,
    /// Line number in the Dockerfile.
    pub line: usize,
    /// As written.
    pub text: String,
    /// What it does.
    pub action: Action,
    /// The layers below it.
    pub onto: crate::steps::Root,
    /// The layer it makes, if it makes one.
    pub layer: Option<crate::spec::LayerRef>,
}

/// A stage as logs call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStage {
    /// Its name, or `stage-` and its number in the file.
    pub name: String,
    /// What it begins with, as written.
    pub base: String,
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Stages that are needed, in the order of the file.
    pub stages: Vec<PlannedStage>,
    /// Their steps, in the order of the file.
    pub steps: Vec<Step>,
    /// The image once all steps are done.
    pub image: ImageSpec,
}

/// What a plan stands on.
pub struct PlanInput<'a> {
    /// The parsed lines.
    pub dockerfile: &'a Dockerfile,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Images from outside, by the reference as [`external_images`] gives it.
    pub external: &'a BTreeMap<String, ImageSpec>,
    /// Where layers live.
    pub layers: &'a Path,
    /// Makes every digest another one: for builds that must not meet the cache.
    pub salt: Option<String>,
}

impl PlanInput<'_> {
    fn layer_path(&self, digest: &str) -> PathBuf {
        self.layers.join(digest)
    }
}

/// Plans the last stage and what it needs.
pub fn plan(input: &PlanInput<'_>) -> Result<Plan> {
    stages::plan_all(input)
}

#[cfg(test)]
mod tests;
