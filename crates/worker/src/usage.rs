//! Looks at what each container uses, at intervals, so that little is lost if it can't be asked at the end.

use crate::registry::Registry;
use evoke_proto::worker::Usage;
use evoke_runtime::Runtime;
use std::sync::Arc;
use std::time::Duration;

/// One timer for all containers; none runs while there are no containers.
pub(crate) async fn sample(runtime: Arc<dyn Runtime>, registry: Arc<Registry>, interval: Duration) {
    let mut count = registry.count();
    loop {
        // An error means that the registry is gone, and the worker with it.
        if count.wait_for(|n| *n > 0).await.is_err() {
            return;
        }
        tokio::time::sleep(interval).await;
        for entry in registry.all() {
            match runtime.usage(&entry.task.to_string()).await {
                Ok(usage) => entry.set_usage(Usage { wall_ms: entry.usage().wall_ms, ..convert(usage) }),
                Err(error) => tracing::debug!(task = %entry.task, %error, "no usage"),
            }
        }
    }
}

/// The runtime's numbers as control gets them, without the wall time.
pub(crate) fn convert(usage: evoke_runtime::Usage) -> Usage {
    Usage { wall_ms: 0, cpu_ns: usage.cpu_ns, memory_peak_bytes: usage.memory_peak_bytes }
}
