//! A container's own RPCs on their way to control: forwarded undecoded, known by name only.

use crate::registry::Entry;
use bytes::Bytes;
use evoke_core::Principal;
use evoke_proto::worker::Control;
use evoke_proto::{BoxStream, CallContext, Reply, Service, Status};
use std::sync::Arc;

/// What a container's listeners serve: control, as the container.
pub(crate) struct ContainerService {
    pub entry: Arc<Entry>,
    pub control: Arc<dyn Control>,
}

impl ContainerService {
    /// Notes what the call tells about the container, and has its output taken over first where the call
    /// ends an input, so that a result is never seen before the lines that led to it.
    async fn before(&self, context: &mut CallContext) {
        // Who calls is known by the listener alone.
        context.principal = Principal::Container(self.entry.task);
        if context.rpc.service != evoke_proto::rpc::MODAL_CLIENT {
            return;
        }
        match context.rpc.name {
            "ContainerHello" => self.entry.note_hello(),
            "FunctionGetInputs" => self.entry.note_ready(),
            // A container with a server of its own says only this.
            "ContainerServerLifecycleReady" => {
                self.entry.note_hello();
                self.entry.note_ready();
            }
            "FunctionPutOutputs" | "TaskResult" => self.entry.drain().await,
            _ => {}
        }
    }
}

#[async_trait::async_trait]
impl Service for ContainerService {
    async fn call(&self, mut context: CallContext, body: Bytes) -> Result<Reply, Status> {
        self.before(&mut context).await;
        self.control.call(context, body).await
    }

    async fn call_streaming(
        &self,
        mut context: CallContext,
        body: BoxStream<Result<Bytes, Status>>,
    ) -> Result<Reply, Status> {
        self.before(&mut context).await;
        self.control.call_streaming(context, body).await
    }
}
