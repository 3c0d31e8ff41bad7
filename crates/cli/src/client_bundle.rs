//! Evoke's own copy of the official client, for interpreters that have none or another version of it.
//!
//! Made from the package index at first use, in the person's own cache folder: it is their interpreter that
//! runs it, not the server.

use crate::interpreter::{CLIENT_VERSION, Interpreter};
use crate::names;
use anyhow::{Context, Result};
use evoke_core::Error;
use evoke_files::HostEnv;
use evoke_files::bundles::Bundles;
use evoke_files::fetch::Fetcher;
use evoke_files::pypi::{IndexConfig, Libc, PackageIndex};
use std::path::{Path, PathBuf};

/// Which list of pinned dependencies is taken: the one that the client itself has for current images.
const DEPENDENCIES_OF: &str = "2025.06";

/// The folders that make the client importable.
pub(crate) struct ClientBundle {
    /// The client's own packages: they come before whatever the environment has.
    pub first: PathBuf,
    /// What those depend on: the environment's own packages win over these.
    pub last: PathBuf,
}

/// The bundle for this interpreter.
pub(crate) fn obtain(interpreter: &Interpreter) -> Result<ClientBundle> {
    let host = HostEnv::of_this_process();
    let fetcher = Fetcher::from_host(&host).map_err(Error::from)?;
    let index = PackageIndex::new(fetcher, IndexConfig::of_host(&host));
    let root = cache_folder()?;
    let bundles = Bundles::open(&root, &host, index)
        .with_context(|| format!("opening the folder of client packages, {}", root.display()))?;
    let talk = |line: &str| eprintln!("evoke: {line}");
    let client = bundles.client_mount(CLIENT_VERSION, &talk).map_err(Error::from)?;
    let minor = u8::try_from(interpreter.minor).context("the interpreter's version")?;
    let libc = if interpreter.glibc { Libc::MANYLINUX_2_17 } else { Libc::MUSLLINUX_1_2 };
    let needed = bundles
        .dependencies(CLIENT_VERSION, DEPENDENCIES_OF, minor, libc, &talk)
        .map_err(Error::from)?
        .context("the client's dependencies have no list")?;
    Ok(ClientBundle { first: client.tree.join("pkg"), last: needed.tree.join("__modal/deps") })
}

fn cache_folder() -> Result<PathBuf> {
    let base = names::read(names::XDG_CACHE_HOME)
        .map(PathBuf::from)
        .or_else(|| names::read(names::HOME).map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep the client's packages")?;
    Ok(base.join("evoke").join("client"))
}
