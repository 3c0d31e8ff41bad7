//! The one container: the entrypoint as a plain child process.

use anyhow::{Context, Result};
use bytes::Bytes;
use evoke_core::TaskId;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// How the container is started.
pub(crate) struct Launcher {
    pub(crate) python: PathBuf,
    pub(crate) module_folder: PathBuf,
    pub(crate) work_folder: PathBuf,
    pub(crate) server_url: String,
    /// Where frames are answered.
    pub(crate) socket: PathBuf,
    /// The lean ways to take, or `off`.
    pub(crate) lean: String,
    pub(crate) task: TaskId,
}

impl Launcher {
    /// Starts the entrypoint with these arguments. It ends with its handle.
    pub(crate) fn start(&self, arguments: &Bytes) -> Result<Child> {
        let path = self.work_folder.join("arguments");
        std::fs::write(&path, arguments).context("writing the container's arguments")?;
        let output = File::create(self.work_folder.join("container.log")).context("opening its log")?;
        let entrypoint = if self.lean == "off" { "modal._container_entrypoint" } else { "evoke_runtime" };
        Command::new(&self.python)
            .args(["-m", entrypoint])
            .env("EVOKE_LEAN", &self.lean)
            .env("EVOKE_PLATFORM_SOCKET", &self.socket)
            .env("MODAL_SERVER_URL", &self.server_url)
            .env("MODAL_CONTAINER_ARGUMENTS_PATH", &path)
            .env("MODAL_TASK_ID", self.task.to_string())
            .env("MODAL_IMAGE_ID", "im-bare")
            .env("MODAL_IS_REMOTE", "1")
            .env("MODAL_ENVIRONMENT", "main")
            .env("MODAL_CLOUD_PROVIDER", "CLOUD_PROVIDER_UNSPECIFIED")
            .env("MODAL_REGION", "local")
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONPATH", &self.module_folder)
            .env_remove("MODAL_TOKEN_ID")
            .env_remove("MODAL_TOKEN_SECRET")
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing its log")?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.python.display()))
    }
}
