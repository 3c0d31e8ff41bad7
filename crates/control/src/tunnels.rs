//! Tunnels: ports of containers that are reached from outside, for as long as code in the container wants, or until
//! it ends.

use crate::Control;
use crate::containers::task_of;
use evoke_core::TaskId;
use evoke_proto::tunnels::{Mouth, Tunnel};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::Grade;
use std::net::SocketAddr;
use std::sync::Arc;

impl Control {
    pub(crate) async fn tunnel_start(
        self: Arc<Self>,
        context: CallContext,
        request: api::TunnelStartRequest,
    ) -> Result<api::TunnelStartResponse, Status> {
        let tunnel = tunnel_of(&context, request.port)?;
        let address = self.worker().address(tunnel.task).ok_or_else(|| {
            let why = "This container has no network, so that none of its ports can be forwarded. Remove block_network \
                from its function";
            Status::new(Code::FailedPrecondition, why)
        })?;
        let tls = match request.tunnel_type() {
            api::TunnelType::H2 => Mouth::TlsHttp2,
            api::TunnelType::Unspecified => Mouth::Tls,
        };
        let mouths: &[Mouth] = if request.unencrypted { &[tls, Mouth::Raw] } else { &[tls] };
        let target = SocketAddr::new(address, tunnel.port);
        let opened = self.tunnels.open(tunnel, target, mouths).await?;
        let mut entrances = opened.into_iter().flatten();
        let Some(encrypted) = entrances.next() else {
            let why = format!("Port {} of {} is forwarded already", tunnel.port, tunnel.task);
            return Err(Status::new(Code::AlreadyExists, why));
        };
        if self.calls.look(|engine| engine.task_info(tunnel.task)).is_none() {
            // It ended meanwhile, and nobody would close what was opened after that.
            self.tunnels.close(tunnel).await;
            return Err(Status::new(Code::FailedPrecondition, format!("{} has ended", tunnel.task)));
        }
        let mut reply = api::TunnelStartResponse {
            host: encrypted.host,
            port: u32::from(encrypted.port),
            ..Default::default()
        };
        if let Some(raw) = entrances.next() {
            reply.unencrypted_host = Some(raw.host);
            reply.unencrypted_port = Some(u32::from(raw.port));
        }
        // What was opened is kept by its descriptors; a client that repeats its question gets the same answer.
        self.commit(&context, Vec::new(), Grade::Written, &reply).await?;
        Ok(reply)
    }

    pub(crate) async fn tunnel_stop(
        self: Arc<Self>,
        context: CallContext,
        request: api::TunnelStopRequest,
    ) -> Result<api::TunnelStopResponse, Status> {
        let exists = self.tunnels.close(tunnel_of(&context, request.port)?).await;
        Ok(api::TunnelStopResponse { exists })
    }

    /// A container ended, and its tunnels with it.
    pub(crate) async fn end_tunnels(&self, task: TaskId) {
        self.tunnels.close_all(task).await;
    }
}

fn tunnel_of(context: &CallContext, port: u32) -> Result<Tunnel, Status> {
    let task = task_of(context)?;
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Status::invalid("A port is a number between 1 and 65535".to_owned()))?;
    Ok(Tunnel { task, port })
}
