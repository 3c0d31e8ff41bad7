//! The interface between the gateway, which speaks HTTP to the world, and the control plane, which knows the
//! web functions: as plain Rust, with no HTTP library's types. A request is one [`WebHead`] and then messages
//! both ways, those of the ASGI interface (<https://asgi.readthedocs.io/en/latest/specs/www.html>).

use bytes::Bytes;
use evoke_core::{CallId, Error, FunctionId};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// How a request says which web function it wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WebAddress {
    /// The port that it came to, or that its `Host` names.
    Port(u16),
    /// The host that it names, in lower case and without a port: `<label>.<domain>` or a custom domain.
    Host(String),
}

/// A web function, as far as the gateway has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebEndpoint {
    /// The function that serves it.
    pub function: FunctionId,
    /// The method of its class; empty for a plain function.
    pub method: String,
    /// Its label: the name in its address.
    pub label: String,
    /// Whether a request must show a proxy token.
    pub requires_proxy_auth: bool,
}

/// Everything of a request that comes before its body.
#[derive(Debug, Clone)]
pub struct WebHead {
    /// `GET` and the like, in upper case.
    pub method: String,
    /// `http` or `https`, as the outside sees it; `ws` or `wss` for a WebSocket.
    pub scheme: String,
    /// The path as it was sent, with its percent signs.
    pub raw_path: String,
    /// What came behind the question mark, without it.
    pub query: Bytes,
    /// Names in lower case, values as they came, in their order. Nothing in it is the gateway's own.
    pub headers: Vec<(Bytes, Bytes)>,
    /// `1.0`, `1.1` or `2`.
    pub http_version: String,
    /// Who asks, where that is known.
    pub client: Option<SocketAddr>,
    /// The protocols that the client of a WebSocket offers; none where the request is plain HTTP.
    pub websocket: Option<Vec<String>>,
}

/// A message to the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToApp {
    /// A piece of the request's body, and whether more follow. Also sent, empty, for a request without one.
    Body(Bytes, bool),
    /// The client wants to open the WebSocket. The first message of each.
    Connect,
    /// A text message of the client.
    Text(String),
    /// A binary message of the client.
    Binary(Bytes),
    /// The client is gone; for a WebSocket with the code of its close frame, where it sent one.
    Disconnect(Option<u16>),
}

/// A message of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromApp {
    /// The response begins.
    Start {
        /// Its status.
        status: u16,
        /// Its headers.
        headers: Vec<(Bytes, Bytes)>,
        /// Whether trailers will follow its body.
        trailers: bool,
    },
    /// A piece of the response's body, and whether more follow.
    Body(Bytes, bool),
    /// Trailers, and whether more follow.
    Trailers(Vec<(Bytes, Bytes)>, bool),
    /// The WebSocket is accepted.
    Accept {
        /// The protocol chosen among those offered.
        subprotocol: Option<String>,
        /// Headers for the answer.
        headers: Vec<(Bytes, Bytes)>,
    },
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
    /// The WebSocket is closed, or, before it was accepted, refused.
    Close(u16, String),
    /// The application has returned. The last message, always.
    Ended(WebEnd),
}

/// How an application's work on a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebEnd {
    /// It returned.
    Done,
    /// It, or its container, failed; in words for the log.
    Failed(String),
    /// Its time was over.
    TimedOut(String),
    /// It was cancelled.
    Cancelled,
    /// Its container cannot be reached; nothing was sent to it.
    Unreachable(String),
}

/// A request under way, relayed message by message. Dropping it tells the application that its client is
/// gone.
#[derive(Debug)]
pub struct WebExchange {
    /// The call that the request is.
    pub call: CallId,
    /// To the application. Sending waits while the application does not read.
    pub to_app: mpsc::Sender<ToApp>,
    /// From the application. Not reading makes the application wait.
    pub from_app: mpsc::Receiver<FromApp>,
}

/// A request that goes to a server inside of a container as it is. Dropping it gives the container's slot
/// back, as a failure unless [`DirectSlot::ended`] said how it went.
pub struct WebDirect {
    /// The call that the request is, where it is one.
    pub call: Option<CallId>,
    /// Where the server listens.
    pub target: DirectTarget,
    /// How long the request may take in all; what is not over then is ended.
    pub timeout: Option<Duration>,
    /// Headers that the server is told more by; they replace what the client sent under these names.
    pub headers: Vec<(&'static str, String)>,
    /// The slot.
    pub slot: Box<dyn DirectSlot>,
}

/// Where a server inside of a container listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DirectTarget {
    /// A port of the container's own interface.
    Tcp(SocketAddr),
    /// A socket, by its path on this machine.
    Unix(PathBuf),
}

/// What a request holds of a container.
pub trait DirectSlot: Send + Sync {
    /// The request is done.
    fn ended(self: Box<Self>, end: WebEnd);
}

/// A request that has begun.
pub enum Begun {
    /// By messages.
    Messages(WebExchange),
    /// By a connection of its own.
    Direct(WebDirect),
}

/// What the gateway needs of the control plane.
#[async_trait::async_trait]
pub trait WebApps: Send + Sync {
    /// The web function at an address.
    fn endpoint(&self, address: &WebAddress) -> Option<WebEndpoint>;

    /// Whether a proxy token is valid for an endpoint.
    async fn admit(&self, endpoint: &WebEndpoint, key: &str, secret: &str) -> Result<bool, Error>;

    /// Makes a request an input of the function. It may have to wait for a container: messages can be sent at
    /// once all the same.
    async fn begin(&self, endpoint: &WebEndpoint, head: WebHead) -> Result<Begun, Error>;
}

/// A request is answered within this time, or its client is sent to another address to wait there: 150 s, as
/// the official documentation of web endpoints has it.
pub const ANSWER_MS_MAX: u64 = 150_000;

/// Opens ports for web functions.
#[async_trait::async_trait]
pub trait WebListeners: Send + Sync {
    /// Serves web functions at a port: this one if it is free. False where somebody else has it.
    async fn open(&self, port: u16) -> Result<bool, Error>;

    /// Serves nothing there any more.
    async fn close(&self, port: u16);
}
