//! Evoke's own copy of the official client, for interpreters that have none or another version of it.
//!
//! Made at first use in the person's own cache folder, because it is their interpreter that runs it, not the
//! server. The installer is the index's newest pip, run from its wheel: it resolves what the client needs for
//! this very interpreter, knows the person's index, proxy and certificates, and an interpreter needs neither
//! pip nor venv of its own.

use crate::interpreter::{CLIENT_VERSION, Interpreter};
use crate::names;
use anyhow::{Context, Result, ensure};
use evoke_core::Error;
use evoke_files::HostEnv;
use evoke_files::fetch::Fetcher;
use evoke_files::pypi::{IndexConfig, Libc, PackageIndex, Target};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The packages that must be the client's own; they come before whatever the environment has.
const FIRST: [&str; 4] = ["modal", "modal_proto", "modal_version", "synchronicity"];
/// Lines of the installer's complaint that are shown.
const LINES_SHOWN: usize = 8;

/// The folders that make the client importable.
pub(crate) struct ClientBundle {
    /// The client's own packages.
    pub first: PathBuf,
    /// What those depend on: the environment's own packages win over these.
    pub last: PathBuf,
}

/// The bundle for this interpreter, made if it is not there.
pub(crate) fn obtain(interpreter: &Interpreter) -> Result<ClientBundle> {
    let cache = cache_folder()?;
    let libc = if interpreter.glibc { "glibc" } else { "musl" };
    let key = format!("{CLIENT_VERSION}-cp3{}-{libc}-{}", interpreter.minor, std::env::consts::ARCH);
    let folder = cache.join(key);
    if !folder.is_dir() {
        eprintln!(
            "evoke: fetching the client {CLIENT_VERSION} for {}, once",
            interpreter.executable.display()
        );
        make(interpreter, &cache, &folder)?;
    }
    Ok(ClientBundle { first: folder.join("first"), last: folder.join("last") })
}

/// Installs beside the place and moves it there when it is complete; of two makers the first wins.
fn make(interpreter: &Interpreter, cache: &Path, folder: &Path) -> Result<()> {
    let draft = cache.join(format!("draft-{}", std::process::id()));
    std::fs::create_dir_all(&draft).with_context(|| format!("making {}", draft.display()))?;
    let made = fill(interpreter, cache, &draft).and_then(|()| match std::fs::rename(&draft, folder) {
        Err(_) if folder.is_dir() => Ok(()),
        renamed => renamed.with_context(|| format!("moving the client's packages to {}", folder.display())),
    });
    if draft.exists() {
        std::fs::remove_dir_all(&draft).with_context(|| format!("removing {}", draft.display()))?;
    }
    made
}

fn fill(interpreter: &Interpreter, cache: &Path, draft: &Path) -> Result<()> {
    let (first, last) = (draft.join("first"), draft.join("last"));
    let pip = installer(interpreter, &cache.join("wheels"))?;
    let output = Command::new(&interpreter.executable)
        .arg(pip.join("pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-warn-conflicts"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(&last)
        .arg(format!("modal=={CLIENT_VERSION}"))
        .env_remove(names::PYTHONPATH)
        .env_remove("PIP_USER")
        .env_remove("PIP_REQUIRE_VIRTUALENV")
        .stdin(Stdio::null())
        .output()
        .context("running the installer")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
    ensure!(output.status.success(), "the installer failed ({}):\n{end}", output.status);
    std::fs::create_dir(&first)?;
    for package in FIRST {
        let from = last.join(package);
        ensure!(from.is_dir(), "the installer left no package `{package}`");
        std::fs::rename(from, first.join(package))?;
    }
    Ok(())
}

/// The newest pip that runs on this interpreter, as a wheel.
fn installer(interpreter: &Interpreter, wheels: &Path) -> Result<PathBuf> {
    let host = HostEnv::of_this_process();
    let fetcher = Fetcher::from_host(&host).map_err(Error::from)?;
    let index = PackageIndex::new(fetcher, IndexConfig::of_host(&host));
    let target = Target {
        python_minor: u8::try_from(interpreter.minor).context("the interpreter's version")?,
        libc: if interpreter.glibc { Libc::MANYLINUX_2_17 } else { Libc::MUSLLINUX_1_2 },
        arch: std::env::consts::ARCH,
    };
    let wanted = "pip".parse().context("the installer's name")?;
    let choice = index.choose(&wanted, &target).map_err(Error::from)?;
    Ok(index.fetch(&choice, wheels, None).map_err(Error::from)?)
}

fn cache_folder() -> Result<PathBuf> {
    let base = names::read(names::XDG_CACHE_HOME)
        .map(PathBuf::from)
        .or_else(|| names::read(names::HOME).map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep the client's packages")?;
    Ok(base.join("evoke").join("client"))
}
