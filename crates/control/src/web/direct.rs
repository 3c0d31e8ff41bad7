//! Requests that go to a server inside of a container as they are: `web_server` functions and `@app.server`. A
//! request holds a lease of the container for as long as it lasts.

use crate::{Control, containers::task_of};
use evoke_core::{Error, ErrorCode, FunctionId, TaskId};
use evoke_engine::{Engine, LeaseId};
use evoke_proto::web::{DirectSlot, DirectTarget, WebDirect, WebEnd};
use evoke_proto::{CallContext, Status, api};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long one try to reach a container's server may take.
const KNOCK_MAX: Duration = Duration::from_secs(1);
/// The pause between two tries; nothing tells when a program begins to listen.
const KNOCK_PAUSE: Duration = Duration::from_millis(20);

type Granted = Result<TaskId, String>;

/// Requests that wait for a container.
#[derive(Debug, Default)]
pub(crate) struct Line(Mutex<HashMap<LeaseId, oneshot::Sender<Granted>>>);

impl Line {
    /// What the engine has decided of a request that waits.
    pub(crate) fn tell(&self, lease: LeaseId, to: Granted) {
        let waits = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease);
        if let Some(waits) = waits {
            // Whoever does not wait any more has given the lease back.
            let _ = waits.send(to);
        }
    }

    fn join(&self, lease: LeaseId, waits: oneshot::Sender<Granted>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(lease, waits);
    }

    fn leave(&self, lease: LeaseId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease);
    }
}

/// A lease, given back when it goes out of scope.
pub(crate) struct Lease {
    control: Weak<Control>,
    id: LeaseId,
}

impl Lease {
    pub(crate) fn id(&self) -> LeaseId {
        self.id
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(control) = self.control.upgrade() else { return };
        control.web.line.leave(self.id);
        let lease = self.id;
        let end = |engine: &mut Engine, now| Ok(engine.end_lease(lease, now));
        if let Err(status) = control.calls.decide(&control, end, |()| Vec::new()) {
            tracing::error!(%status, "a container's slot could not be given back");
        }
    }
}

impl DirectSlot for Lease {
    fn ended(self: Box<Self>, end: WebEnd) {
        if let WebEnd::Failed(text) = end {
            tracing::debug!(%text, "a request to a container's server failed");
        }
    }
}

impl Control {
    /// The port of a function's own server, where requests go to it as they are.
    pub(crate) fn server_port(&self, function: FunctionId, method: &str) -> Option<u16> {
        let function = self.registry.function(function)?;
        let definition = &function.definition.function;
        if let Some(http) = definition.http_config.as_ref().filter(|_| definition.is_server) {
            return u16::try_from(http.port).ok();
        }
        // A container that ends after one input would end under the next request, and one without a network
        // cannot be reached: these go the official way, through the container's own loop.
        let config = definition.webhook_config.as_ref().filter(|_| method.is_empty())?;
        let direct = config.r#type() == api::WebhookType::WebServer
            && !definition.single_use_containers
            && definition.max_inputs == 0
            && !definition.block_network;
        u16::try_from(config.web_server_port).ok().filter(|_| direct)
    }

    /// Takes a slot of a container, waiting for one as long as it takes. Where there will be none, why.
    pub(crate) async fn take_lease(
        self: &Arc<Self>,
        function: FunctionId,
    ) -> Result<Result<(Lease, TaskId), String>, Error> {
        let (told, granted) = oneshot::channel();
        let ((lease, at_once), _ticket) = self.calls.decide(
            self,
            |engine, now| engine.lease(function, now),
            |(lease, task)| {
                if task.is_none() {
                    // Before anybody can be told.
                    self.web.line.join(*lease, told);
                }
                Vec::new()
            },
        )?;
        let lease = Lease { control: Arc::downgrade(self), id: lease };
        let task = match at_once {
            Some(task) => task,
            None => match granted.await {
                Ok(Ok(task)) => task,
                Ok(Err(text)) => return Ok(Err(text)),
                Err(_) => {
                    return Err(Error::new(ErrorCode::Unavailable, "The server starts anew; ask again"));
                }
            },
        };
        Ok(Ok((lease, task)))
    }

    /// Begins a request to a container's own server.
    pub(crate) async fn begin_direct(
        self: &Arc<Self>,
        function: FunctionId,
        port: u16,
    ) -> Result<WebDirect, Error> {
        let (lease, task) = self.take_lease(function).await?.map_err(Error::precondition)?;
        let gone = || Error::new(ErrorCode::Unavailable, format!("container {task} ended; ask again"));
        let address = self.worker().address(task).ok_or_else(gone)?;
        let target = DirectTarget::Tcp(SocketAddr::new(address, port));
        Ok(WebDirect { call: None, target, timeout: None, headers: Vec::new(), slot: Box::new(lease) })
    }

    pub(crate) async fn container_server_lifecycle_ready(
        self: Arc<Self>,
        context: CallContext,
        _request: api::ContainerServerLifecycleReadyRequest,
    ) -> Result<(), Status> {
        let task = task_of(&context)?;
        self.watch_server(task);
        Ok(())
    }

    /// Servers in containers that live on and were not seen to listen by the last process.
    pub(crate) fn watch_servers(&self, alive: &[TaskId]) {
        for task in alive {
            let waits = self.calls.look(|engine| engine.task_info(*task));
            let waits = waits.filter(|info| info.ready.is_none());
            let function = waits.and_then(|info| self.registry.function(info.function_id));
            if function.is_some_and(|function| function.definition.function.is_server) {
                self.watch_server(*task);
            }
        }
    }

    /// Takes a container for ready once its server listens. Its startup timeout bounds how long it may take.
    fn watch_server(&self, task: TaskId) {
        self.spawn("server-start", move |control| async move {
            let Some(info) = control.calls.look(|engine| engine.task_info(task)) else { return };
            let Some(port) = control.server_port(info.function_id, "") else { return };
            while control.calls.look(|engine| engine.task_info(task)).is_some() {
                if control.listens(task, port).await {
                    let ready =
                        control.calls.apply(&control, |engine, now| Ok(engine.server_ready(task, now)));
                    if let Err(status) = ready.await {
                        tracing::error!(%task, %status, "could not record that a server is ready");
                    }
                    return;
                }
                tokio::time::sleep(KNOCK_PAUSE).await;
            }
        });
    }

    async fn listens(&self, task: TaskId, port: u16) -> bool {
        let Some(address) = self.worker().address(task) else { return false };
        let knock = tokio::net::TcpStream::connect((address, port));
        matches!(tokio::time::timeout(KNOCK_MAX, knock).await, Ok(Ok(_)))
    }
}
