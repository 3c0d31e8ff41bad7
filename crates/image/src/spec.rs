//! What an image is once it is built: layers and the configuration that its processes start with.

use crate::digest::Hasher;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Who owns the files of a layer on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerOwner {
    /// The ids on disk are the ids inside (root's files are uid 0).
    Canonical,
    /// All files belong to one host user and appear as root's.
    Single {
        /// Host uid.
        uid: u32,
        /// Host gid.
        gid: u32,
    },
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRef {
    /// Hex SHA-256 of how the layer came to be.
    pub digest: String,
    /// The tree, ready to mount.
    pub path: PathBuf,
    /// Who owns its files.
    pub owner: LayerOwner,
}

/// A folder or file of this machine that a `host` image shows read-only. Its owners are not mapped: inside
/// they are nobody's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostBind {
    /// Path on this machine.
    pub source: PathBuf,
    /// Path inside.
    pub target: PathBuf,
}

/// The Python of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PythonInfo {
    /// As `python -V` says it: `Python 3.11.2`.
    pub version: String,
    /// The interpreter's path inside.
    pub path: String,
    /// The minor version: 11 of 3.11.
    pub minor: u32,
    /// How many of the image's layers, from the bottom, were there when it was first found: those that brought
    /// it are among them, and what was built on top of them is not. 0 where that is not known.
    #[serde(default)]
    pub layers: usize,
}

/// The C library of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Libc {
    /// GNU, with its version where known (`2.36`).
    Glibc(Option<String>),
    /// musl.
    Musl,
}

/// An installed Python package.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PythonPackage {
    /// Its name as its metadata has it.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// An image: what to mount, and what its processes start with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Bottom first.
    pub layers: Vec<LayerRef>,
    /// Only of `host` images.
    #[serde(default)]
    pub binds: Vec<HostBind>,
    /// Environment in the order it was set; names are unique.
    pub env: Vec<(String, String)>,
    /// Working folder; `/` where none is set.
    pub workdir: String,
    /// The program that is always run; empty where none is set.
    pub entrypoint: Vec<String>,
    /// The default command; empty where none is set.
    pub cmd: Vec<String>,
    /// The user as written; empty is root.
    pub user: String,
    /// The shell of shell forms.
    pub shell: Vec<String>,
    /// The Python found in it, if any.
    pub python: Option<PythonInfo>,
    /// The C library found in it, if any.
    pub libc: Option<Libc>,
    /// Python packages found in it after its last step.
    #[serde(default)]
    pub packages: Vec<PythonPackage>,
    /// The client's image builder version it was built for.
    pub builder_version: String,
    /// Lines for the person who asks where this came from.
    #[serde(default)]
    pub provenance: Vec<String>,
    /// It shows this machine's own programs; the client's set-up steps make no sense in it.
    #[serde(default)]
    pub host: bool,
}

/// The search path of an image that sets none.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Default for ImageSpec {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            binds: Vec::new(),
            env: vec![("PATH".into(), PATH_DEFAULT.into())],
            workdir: "/".into(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            user: String::new(),
            shell: shell_default(),
            python: None,
            libc: None,
            packages: Vec::new(),
            builder_version: String::new(),
            provenance: Vec::new(),
            host: false,
        }
    }
}

/// The shell of an image that sets none.
pub(crate) fn shell_default() -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into()]
}

impl ImageSpec {
    /// A digest of the file systems it mounts (not of its configuration).
    pub fn root_digest(&self) -> String {
        let mut hasher = Hasher::new("evoke-root-1");
        hasher.number(self.layers.len() as u64);
        for layer in &self.layers {
            hasher.text(&layer.digest);
        }
        hasher.number(self.binds.len() as u64);
        for bind in &self.binds {
            hasher.text(&bind.source.to_string_lossy()).text(&bind.target.to_string_lossy());
        }
        hasher.finish()
    }

    /// The value of an environment variable.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Sets an environment variable, in place where it exists.
    pub fn set_env(&mut self, name: &str, value: &str) {
        match self.env.iter_mut().find(|(k, _)| k == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.env.push((name.to_owned(), value.to_owned())),
        }
    }
}
