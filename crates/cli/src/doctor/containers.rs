//! What the privileged helper finds when it tries: overlay roots, id-mapped layers, namespaces, network.

use super::{Check, Level};
use crate::config::Config;
use crate::data_folder::DataFolder;
use crate::helper;
use anyhow::{Context, Result};
use evoke_runtime::{Finding, FindingState, HelperRuntime, Runtime};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the helper may take to end after it has tried everything.
const HELPER_STOP_MAX: Duration = Duration::from_secs(30);

/// All checks of this file.
pub(super) fn checks(data: &DataFolder) -> Vec<Check> {
    if !rustix::process::geteuid().is_root() {
        let detail = "not tried: making containers needs root";
        return vec![Check::warn("containers", detail, "see whether they can be made: sudo evoke doctor")];
    }
    match try_out(data) {
        Ok(findings) => findings.into_iter().map(as_check).collect(),
        Err(error) => vec![Check::fail(
            "containers",
            format!("could not be tried: {error:#}"),
            "see the lines above and below; `EVOKE_LOG=debug sudo evoke up` says more",
        )],
    }
}

fn as_check(finding: Finding) -> Check {
    let level = match finding.state {
        FindingState::Fine => Level::Ok,
        FindingState::Degraded => Level::Warn,
        FindingState::Broken => Level::Fail,
    };
    Check { subject: finding.subject, level, detail: finding.detail, mend: finding.mend }
}

/// A folder of our own beside the data folder, on the same file system, removed at the end.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            if error.kind() != std::io::ErrorKind::NotFound {
                eprintln!("evoke: {} could not be removed: {error}", self.0.display());
            }
        }
    }
}

fn try_out(data: &DataFolder) -> Result<Vec<Finding>> {
    let beside = Beside(existing_parent(data.path()).join(format!(".evoke-doctor-{}", std::process::id())));
    let trial = DataFolder::at(&beside.0);
    let user = trial.prepare()?;
    let mut helper = helper::start(&trial, user, &Config::default())?;
    let socket = helper.attach().context("connecting the helper")?;
    let found = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?
        .block_on(async {
            let runtime = HelperRuntime::connect(socket).context("connecting to the helper")?;
            runtime.probe().await.context("trying what this machine can do")
        });
    helper.stop(HELPER_STOP_MAX)?;
    found
}

/// The nearest folder above that exists.
pub(super) fn existing_parent(path: &Path) -> PathBuf {
    path.ancestors().skip(1).find(|parent| parent.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}
