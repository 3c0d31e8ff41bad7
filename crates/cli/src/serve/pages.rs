//! What the pages show, from control's overviews.

use async_trait::async_trait;
use evoke_control::ports::{LayerOverview, PackageOverview};
use evoke_control::{AppOverview, CallOverview, Control, TaskOverview};
use evoke_core::{AppId, Error, FunctionId, ImageId, UnixMs};
use evoke_gateway::{
    AppPage, AppRow, CallRow, ContainerRow, FunctionRow, ImagePage, LayerRow, LogLine, PackageRow, PageData,
};
use evoke_store::logs::LogEntry;
use std::collections::HashMap;
use std::sync::Arc;

/// Pieces of output on an app's page.
const LOG_ENTRIES: usize = 500;
/// The file descriptor that counts as standard error.
const STDERR: u8 = 2;

/// Control, as the pages ask it.
pub(super) struct Pages(pub Arc<Control>);

#[async_trait]
impl PageData for Pages {
    async fn apps(&self) -> Result<Vec<AppRow>, Error> {
        Ok(self.0.app_overviews().await.map_err(Error::from)?.into_iter().map(app_row).collect())
    }

    async fn app(&self, id: AppId) -> Result<AppPage, Error> {
        let app = app_row(self.0.app_overview(id).await.map_err(Error::from)?);
        let calls = self.0.call_overviews(id).await.map_err(Error::from)?;
        // How calls ended, by function: what the calls on the page say.
        let mut ended: HashMap<FunctionId, (u64, u64)> = HashMap::new();
        for call in &calls {
            let of = ended.entry(call.function).or_default();
            *of = (of.0 + call.succeeded, of.1 + call.failed);
        }
        let functions =
            self.0.function_overviews(id).await.map_err(Error::from)?.into_iter().map(|function| {
                let (succeeded, failed) = ended.get(&function.id).copied().unwrap_or_default();
                FunctionRow {
                    id: function.id,
                    name: function.name,
                    image: function.image,
                    containers: function.containers,
                    queued: function.queued,
                    running: function.running,
                    succeeded,
                    failed,
                }
            });
        let containers = self.0.task_overviews(id).await.map_err(Error::from)?;
        let logs = self.0.log_tail(id, LOG_ENTRIES).await.map_err(Error::from)?;
        Ok(AppPage {
            app,
            functions: functions.collect(),
            calls: calls.into_iter().map(call_row).collect(),
            containers: containers.into_iter().map(container_row).collect(),
            logs: logs.iter().flat_map(log_lines).collect(),
        })
    }

    async fn image(&self, id: ImageId) -> Result<ImagePage, Error> {
        let (image, layers) = self.0.image_show(&id.to_string()).await.map_err(Error::from)?;
        Ok(ImagePage {
            id,
            state: image.state.to_owned(),
            created: image.created,
            names: image.names,
            python: (!image.python.is_empty()).then(|| format!("Python {}", image.python)),
            error: image.error,
            layers: layers.into_iter().map(layer_row).collect(),
        })
    }
}

fn layer_row(layer: LayerOverview) -> LayerRow {
    let package = |package: PackageOverview| PackageRow {
        name: package.name,
        before: package.before,
        after: package.after,
    };
    LayerRow {
        step: layer.step,
        took_ms: layer.took_ms,
        bytes: layer.bytes,
        added: layer.files.added,
        changed: layer.files.changed,
        removed: layer.files.removed,
        packages: layer.python.into_iter().chain(layer.debian).map(package).collect(),
    }
}

fn app_row(app: AppOverview) -> AppRow {
    AppRow {
        id: app.id,
        name: app.name,
        environment: app.environment,
        state: app.state,
        created: app.created,
        stopped: app.stopped,
        containers: app.containers,
    }
}

fn call_row(call: CallOverview) -> CallRow {
    CallRow {
        id: call.id,
        function: call.name,
        created: call.created,
        finished: None,
        inputs: call.inputs,
        succeeded: call.succeeded,
        failed: call.failed,
    }
}

fn container_row(task: TaskOverview) -> ContainerRow {
    ContainerRow {
        id: task.id,
        function: task.function,
        state: task.state,
        created: task.created,
        start_ms: task.start_ms,
        ended: task.ended,
        outcome: task.outcome,
    }
}

fn log_lines(entry: &LogEntry) -> Vec<LogLine> {
    let text = String::from_utf8_lossy(&entry.data);
    let line = |text: &str| LogLine {
        at: UnixMs(entry.at_ns / 1_000_000),
        task: entry.task,
        error: entry.fd == STDERR,
        text: text.to_owned(),
    };
    text.lines().map(line).collect()
}
