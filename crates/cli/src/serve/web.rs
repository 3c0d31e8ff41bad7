//! The listeners of web functions: bound on the address that clients use, kept by the holder so that a server which
//! starts again finds requests waiting instead of refused, and served by the gateway.

use evoke_core::{Error, ErrorCode};
use evoke_gateway::{Listener, WebIngress};
use evoke_proto::web::{WebAddress, WebListeners};
use evoke_runtime::fdstore::FdStoreClient;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What the names of these listeners begin with in the descriptor store.
const KEPT: &str = "web/";

/// The listeners.
pub(super) struct WebPorts {
    host: IpAddr,
    keeper: FdStoreClient,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What former servers left that is not open again.
    kept: HashMap<u16, OwnedFd>,
    /// Bound, and not served before the gateway is there.
    waiting: HashMap<u16, TcpListener>,
    /// Served; told to stop by being dropped.
    serving: HashMap<u16, watch::Sender<bool>>,
    gateway: Option<WebIngress>,
}

impl WebPorts {
    /// Listeners beside the public one. Takes over what former servers left, out of all that the holder keeps.
    pub(super) fn new(
        public: &TcpListener,
        keeper: FdStoreClient,
        kept: &mut Vec<(String, OwnedFd)>,
    ) -> io::Result<Self> {
        let mut state = State::default();
        for (name, fd) in std::mem::take(kept) {
            match name.strip_prefix(KEPT).and_then(|port| port.parse().ok()) {
                Some(port) => drop(state.kept.insert(port, fd)),
                None => kept.push((name, fd)),
            }
        }
        Ok(Self { host: public.local_addr()?.ip(), keeper, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on requests are served. What nobody has opened by now is left over and closed.
    pub(super) async fn serve(&self, gateway: WebIngress) -> Result<(), Error> {
        let left: Vec<u16> = {
            let mut state = self.state();
            state.gateway = Some(gateway);
            for (port, listener) in std::mem::take(&mut state.waiting) {
                state.begin(port, listener)?;
            }
            std::mem::take(&mut state.kept).into_keys().collect()
        };
        for port in left {
            self.keeper.remove(&name(port)).await.map_err(|error| failed(port, error))?;
        }
        Ok(())
    }
}

impl State {
    fn begin(&mut self, port: u16, listener: TcpListener) -> Result<(), Error> {
        let Some(gateway) = &self.gateway else {
            self.waiting.insert(port, listener);
            return Ok(());
        };
        let listener = Listener::from_tcp(listener).map_err(|error| failed(port, error))?;
        let (stop, stopped) = watch::channel(false);
        let gateway = gateway.clone();
        tokio::spawn(async move { gateway.serve(listener, WebAddress::Port(port), stopped).await });
        self.serving.insert(port, stop);
        Ok(())
    }
}

#[async_trait::async_trait]
impl WebListeners for WebPorts {
    async fn open(&self, port: u16) -> Result<bool, Error> {
        let kept = {
            let mut state = self.state();
            if state.serving.contains_key(&port) || state.waiting.contains_key(&port) {
                return Ok(true);
            }
            state.kept.remove(&port)
        };
        let listener = match kept {
            Some(fd) => TcpListener::from(fd),
            None => match TcpListener::bind((self.host, port)) {
                Ok(listener) => {
                    self.keeper.put(&name(port), listener.as_fd()).await.map_err(|e| failed(port, e))?;
                    listener
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(false),
                Err(error) => return Err(failed(port, error)),
            },
        };
        self.state().begin(port, listener)?;
        Ok(true)
    }

    async fn close(&self, port: u16) {
        {
            let mut state = self.state();
            state.serving.remove(&port);
            state.waiting.remove(&port);
        }
        if let Err(error) = self.keeper.remove(&name(port)).await {
            tracing::warn!(port, %error, "the holder still keeps the listener of a web function");
        }
    }
}

fn name(port: u16) -> String {
    format!("{KEPT}{port}")
}

fn failed(port: u16, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Unavailable, format!("port {port} of a web function cannot be served: {error}"))
}
