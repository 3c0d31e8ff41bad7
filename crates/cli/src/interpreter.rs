//! Which Python runs the official CLI, and whether its own client package can be used.
//!
//! The user's file imports the user's packages, so the interpreter is the user's: the active environment, then
//! `./.venv`, then `python3` on the path.

use crate::names;
use anyhow::{Context, Result};
use evoke_core::Error;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The client version that this server is built from; other 1.6 releases speak the same protocol.
pub(crate) const CLIENT_VERSION: &str = "1.6.4";
/// Client versions that can be used as they are: this major and minor version.
const SUPPORTED: (u32, u32) = (1, 6);
/// Interpreters that the client runs on: 3.10 up to and without 3.16.
const PYTHON_MINOR_MIN: u32 = 10;
const PYTHON_MINOR_END: u32 = 16;

/// Asks an interpreter about itself without importing the client, which would take half a second.
const PROBE: &str = r#"
import importlib.util, json, platform, sys
spec = importlib.util.find_spec("modal")
version = None
if importlib.util.find_spec("modal_version"):
    import modal_version
    version = modal_version.__version__
origin = None
if spec is not None:
    origin = spec.origin or next(iter(spec.submodule_search_locations or []), "")
print(json.dumps({
    "executable": sys.executable, "major": sys.version_info[0], "minor": sys.version_info[1],
    "origin": origin, "client": version, "glibc": platform.libc_ver()[0] == "glibc",
}))
"#;

/// An interpreter and what it says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Interpreter {
    /// The program.
    pub executable: PathBuf,
    /// Its version.
    pub major: u32,
    /// Its version.
    pub minor: u32,
    /// Where `import modal` would load from.
    pub origin: Option<PathBuf>,
    /// Version of the client package that it has.
    pub client: Option<String>,
    /// Whether it is linked with glibc (else musl).
    pub glibc: bool,
}

/// Whose client package is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Client {
    /// The interpreter's own.
    Own,
    /// Evoke's bundle, because the interpreter has none.
    Bundle,
    /// Evoke's bundle, because the interpreter's version is another one.
    BundleInsteadOf(String),
}

impl Interpreter {
    /// The user's interpreter, as seen from `folder`.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        let candidates = candidates(folder);
        for candidate in &candidates {
            if candidate.components().count() == 1 || candidate.exists() {
                match Self::probe(candidate) {
                    Ok(found) => return Ok(found),
                    // Not there: the next one. There and broken: the user means it, so say so.
                    Err(error) if candidate.components().count() > 1 => return Err(error),
                    Err(_) => {}
                }
            }
        }
        let tried = candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(Error::not_found(format!("no Python interpreter found (tried {tried})"))
            .with_hint("install one (apt-get install python3), or activate your environment first")
            .into())
    }

    /// Runs `program` to ask it about itself.
    pub(crate) fn probe(program: &Path) -> Result<Self> {
        let output = Command::new(program)
            .args(["-c", PROBE])
            .output()
            .with_context(|| format!("running {}", program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("it said nothing");
            anyhow::bail!("{} does not work: {last} ({})", program.display(), output.status);
        }
        let mut found: Self = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} did not answer as Python does", program.display()))?;
        if found.executable.as_os_str().is_empty() {
            found.executable = program.to_path_buf();
        }
        Ok(found)
    }

    /// Whose client package to use with it; an error if its Python is too old or new, or if a file of the
    /// user's hides the package.
    pub(crate) fn client(&self) -> Result<Client> {
        if self.major != 3 || !(PYTHON_MINOR_MIN..PYTHON_MINOR_END).contains(&self.minor) {
            let what = format!(
                "{} is Python {}.{}; the client needs 3.{PYTHON_MINOR_MIN} to 3.{}",
                self.executable.display(),
                self.major,
                self.minor,
                PYTHON_MINOR_END - 1
            );
            let hint = "activate an environment with such a Python, or make one: python3.11 -m venv .venv";
            return Err(Error::precondition(what).with_hint(hint).into());
        }
        let Some(origin) = &self.origin else { return Ok(Client::Bundle) };
        if !origin.ends_with("modal/__init__.py") {
            let what =
                format!("`import modal` would load {}, which is not the client package", origin.display());
            let hint = "rename that file or folder, or run from another folder";
            return Err(Error::precondition(what).with_hint(hint).into());
        }
        match &self.client {
            Some(version) if is_supported(version) => Ok(Client::Own),
            Some(version) => Ok(Client::BundleInsteadOf(version.clone())),
            None => Ok(Client::BundleInsteadOf("unknown".to_owned())),
        }
    }
}

/// In order of preference.
fn candidates(folder: &Path) -> Vec<PathBuf> {
    let active = names::read(names::VIRTUAL_ENV).map(|env| Path::new(&env).join("bin/python"));
    let local = folder.join(".venv/bin/python");
    active.into_iter().chain([local, PathBuf::from("python3")]).collect()
}

/// Whether a client of this version can be used as it is.
fn is_supported(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    matches!((parts.next().flatten(), parts.next().flatten()), (Some(a), Some(b)) if (a, b) == SUPPORTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(minor: u32, origin: Option<&str>, client: Option<&str>) -> Result<Client> {
        let interpreter = Interpreter {
            executable: "/p".into(),
            major: 3,
            minor,
            origin: origin.map(Into::into),
            client: client.map(Into::into),
            glibc: true,
        };
        interpreter.client()
    }

    #[test]
    fn the_users_own_client_is_used_where_it_can_be() {
        let package = Some("/site/modal/__init__.py");
        assert_eq!(with(11, package, Some("1.6.4")).unwrap(), Client::Own);
        assert_eq!(with(11, package, Some("1.6.0")).unwrap(), Client::Own);
        assert_eq!(with(11, package, Some("1.2.3")).unwrap(), Client::BundleInsteadOf("1.2.3".into()));
        assert_eq!(with(11, None, None).unwrap(), Client::Bundle);
    }

    #[test]
    fn what_cannot_work_says_why() {
        assert!(with(9, None, None).unwrap_err().to_string().contains("3.10 to 3.15"));
        assert!(
            with(11, Some("/home/u/modal.py"), None).unwrap_err().to_string().contains("/home/u/modal.py")
        );
    }
}
