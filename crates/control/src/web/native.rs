//! Requests that go to an application as they are: its container serves them itself, and the gateway connects to it.
//! Like requests to a user's own server they hold a lease; unlike them each is known by a call and an input, which
//! are nowhere stored, so that it can be cancelled, ends in its function's time, and its code can ask which it is.
//!
//! Whether a container serves requests it shows when it is asked. What does not is served by messages.

use super::direct::Lease;
use crate::{Control, registry::Function};
use evoke_core::{CallId, DefinitionId, Error, InputId, TaskId};
use evoke_engine::LeaseEnd;
use evoke_files::ContentHash;
use evoke_proto::web::{
    Begun, DirectSlot, DirectTarget, FromApp, WebDirect, WebEnd, WebEndpoint, WebExchange, WebHead,
};
use evoke_proto::{api, api::WebhookType};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Where containers serve requests, beside the port of their platform.
const PORT: u16 = 64_088;
/// The header by which the gateway says what it alone knows. The container's side describes its form.
const HEADER: &str = "evoke-request";
/// The variable that tells a container where to serve, and the gateway's key.
pub(crate) const VARIABLE: &str = "EVOKE_WEB";
/// The name of this lean way in the switch.
const WAY: &str = "web";
/// How long a container may take to show that it serves requests.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// What a container that serves requests answers the question with.
const PROBE_ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\nevoke-web: here\r\n\r\n";
/// A request that has no container for so long waits on as an input, whose client can be sent away to come back.
const LEASE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Containers that are remembered to serve requests; beyond, those that are gone are forgotten.
const SERVING_MAX: usize = 1_024;

/// What is known of containers and requests. Nothing of it has to outlive the server.
#[derive(Debug, Default)]
pub(crate) struct Native {
    /// Whether the containers of a definition serve requests, as far as that is known.
    definitions: Mutex<HashMap<DefinitionId, bool>>,
    /// Containers that were seen to.
    serving: Mutex<HashSet<TaskId>>,
    requests: Mutex<HashMap<CallId, Request>>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    input: InputId,
    task: TaskId,
    lease: evoke_engine::LeaseId,
    cancelled: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Native {
    /// The inputs of a container that were cancelled, for its heartbeat's answer.
    pub(crate) fn cancelled(&self, task: TaskId) -> Vec<InputId> {
        let requests = locked(&self.requests);
        let cancelled = requests.values().filter(|request| request.task == task && request.cancelled);
        cancelled.map(|request| request.input).collect()
    }

    fn learn(&self, definition: DefinitionId, serves: bool) {
        locked(&self.definitions).insert(definition, serves);
    }
}

/// Whether everything that containers of a function do is to answer requests by an application. A container that
/// ends after so many inputs would end under the next request, and one without a network cannot be reached.
fn is_fit(function: &api::Function) -> bool {
    let served = |config: Option<&api::WebhookConfig>| {
        let kind = config.map_or(WebhookType::Unspecified, api::WebhookConfig::r#type);
        matches!(kind, WebhookType::AsgiApp | WebhookType::WsgiApp | WebhookType::Function)
    };
    let methods = &function.method_definitions;
    let all = if function.is_class {
        !methods.is_empty() && methods.values().all(|method| served(method.webhook_config.as_ref()))
    } else {
        served(function.webhook_config.as_ref())
    };
    all && !function.single_use_containers && function.max_inputs == 0 && !function.block_network
}

fn is_on(switch: &str) -> bool {
    switch.split(',').any(|word| word.trim() == WAY)
}

/// What a request holds: the lease, and its place among the requests that can be cancelled.
struct Slot {
    control: Weak<Control>,
    call: CallId,
    lease: Lease,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(control) = self.control.upgrade() {
            locked(&control.web.native.requests).remove(&self.call);
        }
    }
}

impl DirectSlot for Slot {
    fn ended(self: Box<Self>, end: WebEnd) {
        match end {
            WebEnd::Failed(text) => tracing::debug!(call = %self.call, %text, "a request failed"),
            WebEnd::TimedOut(_) => {
                if let Some(control) = self.control.upgrade() {
                    control.stop_leased(&self.lease, LeaseEnd::TimedOut);
                }
            }
            WebEnd::Unreachable(text) => {
                tracing::debug!(call = %self.call, %text, "a container cannot be reached");
                let Some(control) = self.control.upgrade() else { return };
                let lease = self.lease.id();
                let shun = |engine: &mut evoke_engine::Engine, now| Ok(engine.shun_leased(lease, now));
                if let Err(status) = control.calls.decide(&control, shun, |()| Vec::new()) {
                    tracing::error!(%status, "a container that cannot be reached could not be left out");
                }
            }
            WebEnd::Done | WebEnd::Cancelled => {}
        }
    }
}

impl Control {
    /// What a container is told, by [`VARIABLE`], if it is to serve requests. `switch` says which lean ways it takes.
    pub(crate) fn web_variable(&self, task: TaskId, function: &Function, switch: &str) -> Option<String> {
        let fit = is_fit(&function.definition.function);
        let on = fit && is_on(switch);
        if fit {
            self.web.native.learn(function.definition_id, on);
        }
        on.then(|| format!("{PORT} {}", self.web_key(task)))
    }

    /// What the gateway shows to a container; nobody else can know it.
    fn web_key(&self, task: TaskId) -> String {
        let bytes = [&self.config.web_key[..], b" web ", task.to_string().as_bytes()].concat();
        ContentHash::of(&bytes).to_hex()
    }

    /// Whether requests for this function are worth a question to its containers.
    fn may_serve(&self, function: &Function) -> bool {
        let known = locked(&self.web.native.definitions).get(&function.definition_id).copied();
        known.unwrap_or_else(|| is_fit(&function.definition.function) && is_on(&self.lean))
    }

    /// Begins a request that its container serves itself; none where it has to go by messages.
    pub(crate) async fn begin_native(
        self: &Arc<Self>,
        endpoint: &WebEndpoint,
        head: &WebHead,
    ) -> Result<Option<Begun>, Error> {
        let Some(function) = self.registry.function(endpoint.function) else { return Ok(None) };
        if !self.may_serve(&function) {
            return Ok(None);
        }
        let taking = tokio::time::timeout(LEASE_WAIT_MAX, self.take_lease(endpoint.function)).await;
        let (lease, task) = match taking {
            Err(_) => return Ok(None),
            Ok(Ok(Ok(taken))) => taken,
            Ok(Ok(Err(text))) => return Ok(Some(Begun::Messages(self.failed(text)))),
            Ok(Err(error)) => return Err(error),
        };
        let gone =
            || Error::new(evoke_core::ErrorCode::Unavailable, format!("container {task} ended; ask again"));
        let address = self.worker().address(task).ok_or_else(gone)?;
        let key = self.web_key(task);
        if !self.is_serving(task, address, &key).await {
            self.web.native.learn(function.definition_id, false);
            return Ok(None);
        }
        let (call, input) = {
            let (now, mut entropy) = (self.now(), self.entropy());
            (CallId::new(now, &mut *entropy), InputId::new(now, &mut *entropy))
        };
        let method = if endpoint.method.is_empty() { "-" } else { &endpoint.method };
        let (host, port) = match head.client {
            Some(client) => (client.ip().to_string(), client.port()),
            None => ("-".to_owned(), 0),
        };
        let own = format!("{key} {method} {input} {call} {} {host} {port}", head.http_version);
        let request = Request { input, task, lease: lease.id(), cancelled: false };
        locked(&self.web.native.requests).insert(call, request);
        Ok(Some(Begun::Direct(WebDirect {
            call: Some(call),
            target: DirectTarget::Tcp(SocketAddr::new(address, PORT)),
            timeout: Some(Duration::from_millis(function.conf().timeout_ms)),
            headers: vec![(HEADER, own)],
            slot: Box::new(Slot { control: Arc::downgrade(self), call, lease }),
        })))
    }

    /// A request whose container cannot be started, as the message that says so.
    fn failed(&self, text: String) -> WebExchange {
        let call = CallId::new(self.now(), &mut *self.entropy());
        let (to_app, _) = mpsc::channel(1);
        let (send, from_app) = mpsc::channel(1);
        // There is room for it.
        let _ = send.try_send(FromApp::Ended(WebEnd::Failed(text)));
        WebExchange { call, to_app, from_app }
    }

    async fn is_serving(&self, task: TaskId, address: IpAddr, key: &str) -> bool {
        if locked(&self.web.native.serving).contains(&task) {
            return true;
        }
        match tokio::time::timeout(PROBE_MAX, probe(SocketAddr::new(address, PORT), key)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return false,
            Ok(Err(error)) => {
                tracing::debug!(%task, %error, "requests go to this container by messages");
                return false;
            }
            Err(_) => return false,
        }
        let mut serving = locked(&self.web.native.serving);
        if serving.len() >= SERVING_MAX {
            serving.retain(|task| self.worker().address(*task).is_some());
        }
        serving.insert(task);
        true
    }

    /// Cancels a request that its container serves itself; false where there is none of this call. What does not
    /// listen is stopped with its container, at once where that is asked for.
    pub(crate) fn cancel_native(self: &Arc<Self>, call: CallId, terminate: bool) -> bool {
        let request = match locked(&self.web.native.requests).get_mut(&call) {
            None => return false,
            Some(request) => {
                request.cancelled = true;
                *request
            }
        };
        if terminate {
            self.stop_lease(request.lease, LeaseEnd::Terminated);
            return true;
        }
        self.calls.heartbeats.wake(request.task);
        self.spawn("web-cancel", move |control| async move {
            let grace_ms = control.calls.look(|engine| engine.cancel_grace_ms());
            tokio::time::sleep(Duration::from_millis(grace_ms)).await;
            if locked(&control.web.native.requests).contains_key(&call) {
                control.stop_lease(request.lease, LeaseEnd::Cancelled);
            }
        });
        true
    }

    fn stop_leased(&self, lease: &Lease, end: LeaseEnd) {
        self.stop_lease(lease.id(), end);
    }

    fn stop_lease(&self, lease: evoke_engine::LeaseId, end: LeaseEnd) {
        let stop =
            self.calls.decide(self, |engine, now| Ok(engine.stop_leased(lease, end, now)), |()| Vec::new());
        if let Err(status) = stop {
            tracing::error!(%status, "a request's container could not be stopped");
        }
    }
}

/// Asks a container whether it serves requests.
async fn probe(address: SocketAddr, key: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let question = format!("GET / HTTP/1.1\r\n{HEADER}: {key} - probe - - - 0\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = [0; PROBE_ANSWER.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer == PROBE_ANSWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_applications_alone_are_fit() {
        let config =
            |kind: WebhookType| Some(api::WebhookConfig { r#type: kind.into(), ..Default::default() });
        let plain = |kind| api::Function { webhook_config: config(kind), ..Default::default() };
        for (kind, fit) in [
            (WebhookType::AsgiApp, true),
            (WebhookType::WsgiApp, true),
            (WebhookType::Function, true),
            (WebhookType::WebServer, false),
            (WebhookType::Unspecified, false),
        ] {
            assert_eq!(is_fit(&plain(kind)), fit, "{kind:?}");
        }
        let app = plain(WebhookType::AsgiApp);
        assert!(!is_fit(&api::Function { single_use_containers: true, ..app.clone() }));
        assert!(!is_fit(&api::Function { max_inputs: 5, ..app.clone() }));
        assert!(!is_fit(&api::Function { block_network: true, ..app }));
        let class = |kinds: &[WebhookType]| api::Function {
            is_class: true,
            method_definitions: kinds
                .iter()
                .enumerate()
                .map(|(n, kind)| {
                    let method =
                        api::MethodDefinition { webhook_config: config(*kind), ..Default::default() };
                    (n.to_string(), method)
                })
                .collect(),
            ..Default::default()
        };
        assert!(is_fit(&class(&[WebhookType::AsgiApp, WebhookType::WsgiApp])));
        assert!(!is_fit(&class(&[WebhookType::AsgiApp, WebhookType::Unspecified])));
        assert!(!is_fit(&class(&[])));
    }

    #[test]
    fn the_switch_names_ways() {
        assert!(is_on("transport, web") && is_on("web"));
        assert!(!is_on("off") && !is_on("transport,webs") && !is_on(""));
    }
}
