//! Gives back what containers of a killed server still hold: mounts, control groups, network, folders.

use crate::config::Config;
use crate::data_folder::DataFolder;
use crate::helper;
use anyhow::{Context, Result};
use evoke_runtime::{HelperRuntime, Runtime};
use std::time::Duration;

/// How long the helper may take to end after the sweep.
const HELPER_STOP_MAX: Duration = Duration::from_secs(30);

/// Destroys every container that left anything; gives their number. Needs root and no server on the folder.
pub(crate) fn leftovers(data: &DataFolder) -> Result<usize> {
    let user = data.prepare()?;
    let _lock = data.lock(user)?;
    let mut helper = helper::start(data, user, &Config::load(data)?)?;
    let socket = helper.attach().context("connecting the helper")?;
    let swept = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?
        .block_on(async {
            let runtime = HelperRuntime::connect(socket).context("connecting to the helper")?;
            sweep(&runtime).await
        });
    helper.stop(HELPER_STOP_MAX)?;
    swept
}

async fn sweep(runtime: &HelperRuntime) -> Result<usize> {
    let ids = runtime.list().await.context("listing what containers left")?;
    for id in &ids {
        runtime.destroy(id).await.with_context(|| format!("removing what container {id} left"))?;
    }
    Ok(ids.len())
}
