//! A gateway for web functions over a stand-in for the control plane, and clients that speak by raw bytes.

use bytes::Bytes;
use evoke_core::{CallId, Error, FunctionId};
use evoke_gateway::{Listener, WebIngress, WebLimits};
use evoke_proto::web::{
    Begun, DirectSlot, DirectTarget, FromApp, ToApp, WebAddress, WebApps, WebDirect, WebEnd, WebEndpoint,
    WebExchange, WebHead,
};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Messages on their way to the application and back.
pub const CHANNEL: usize = 4;

/// The application's side of a request.
pub struct App {
    pub head: WebHead,
    pub receive: mpsc::Receiver<ToApp>,
    pub send: mpsc::Sender<FromApp>,
    pub log: Log,
}

/// What applications say that happened to them.
#[derive(Clone)]
pub struct Log(mpsc::UnboundedSender<String>);

impl Log {
    pub fn say(&self, what: impl Into<String>) {
        // The test may be over.
        let _ = self.0.send(what.into());
    }
}

impl App {
    pub async fn start(&self, status: u16, headers: &[(&str, &str)]) {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let headers = headers.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
        self.put(FromApp::Start { status, headers, trailers: false }).await;
    }
    pub async fn put(&self, message: FromApp) {
        let _ = self.send.send(message).await;
    }
    pub async fn body(&self, bytes: impl Into<Bytes>, more: bool) {
        self.put(FromApp::Body(bytes.into(), more)).await;
    }
    pub async fn done(&self) {
        self.put(FromApp::Ended(WebEnd::Done)).await;
    }
    /// The whole body of the request; none if its client went away first.
    pub async fn read(&mut self) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            match self.receive.recv().await? {
                ToApp::Body(bytes, more) => {
                    whole.extend_from_slice(&bytes);
                    if !more {
                        return Some(whole);
                    }
                }
                ToApp::Disconnect(_) => return None,
                other => panic!("{other:?}"),
            }
        }
    }
    /// Until the client is gone, as the control plane would notice it.
    pub async fn gone(&mut self) {
        loop {
            tokio::select! {
                message = self.receive.recv() => match message {
                    None | Some(ToApp::Disconnect(_)) => return,
                    Some(_) => {}
                },
                () = self.send.closed() => return,
            }
        }
    }
}

type Script = fn(App) -> futures::future::BoxFuture<'static, ()>;

/// The control plane's stand-in.
pub struct Apps {
    endpoints: Mutex<HashMap<WebAddress, WebEndpoint>>,
    script: Script,
    calls: AtomicU64,
    log: Log,
    direct: Mutex<Option<(DirectTarget, bool)>>,
}

/// A container's slot.
struct Held(Log);

impl DirectSlot for Held {
    fn ended(self: Box<Self>, end: WebEnd) {
        // The words are for people.
        let words = format!("{end:?}");
        self.0.say(format!("slot: {}", words.split('(').next().unwrap()));
    }
}

#[async_trait::async_trait]
impl WebApps for Apps {
    fn endpoint(&self, address: &WebAddress) -> Option<WebEndpoint> {
        self.endpoints.lock().unwrap().get(address).cloned()
    }
    async fn admit(&self, _endpoint: &WebEndpoint, key: &str, secret: &str) -> Result<bool, Error> {
        Ok((key, secret) == ("wk-1", "ws-1"))
    }
    async fn begin(&self, endpoint: &WebEndpoint, head: WebHead) -> Result<Begun, Error> {
        use evoke_core::ErrorCode::{NotFound, ResourceExhausted, Unavailable};
        match head.raw_path.as_str() {
            "/no-function" => return Err(Error::new(NotFound, "gone")),
            "/no-room" => return Err(Error::new(ResourceExhausted, "too many").with_hint("wait")),
            "/no-machine" => return Err(Error::new(Unavailable, "none")),
            _ => {}
        }
        self.log.say(format!("{} {}", endpoint.label, head.raw_path));
        let call = CallId::from_bits(u128::from(self.calls.fetch_add(1, Ordering::SeqCst)) + 1);
        if let Some((target, has_call)) = self.direct.lock().unwrap().clone() {
            let headers = vec![("evoke-input", "in-1".to_owned())];
            let slot = Box::new(Held(self.log.clone()));
            let call = has_call.then_some(call);
            return Ok(Begun::Direct(WebDirect { call, target, timeout: None, headers, slot }));
        }
        let (to_app, receive) = mpsc::channel(CHANNEL);
        let (send, from_app) = mpsc::channel(CHANNEL);
        tokio::spawn((self.script)(App { head, receive, send, log: self.log.clone() }));
        Ok(Begun::Messages(WebExchange { call, to_app, from_app }))
    }
}

/// A running gateway with one web function, `plain`; it stops with its handle.
pub struct World {
    pub address: SocketAddr,
    pub apps: Arc<Apps>,
    pub stop: watch::Sender<bool>,
    pub served: tokio::task::JoinHandle<()>,
    log: mpsc::UnboundedReceiver<String>,
}

impl World {
    pub async fn start(script: Script) -> Self {
        Self::with_limits(script, WebLimits::default()).await
    }

    pub async fn with_limits(script: Script, limits: WebLimits) -> Self {
        let (log, said) = mpsc::unbounded_channel();
        let apps = Arc::new(Apps {
            endpoints: Mutex::default(),
            script,
            calls: AtomicU64::default(),
            log: Log(log),
            direct: Mutex::default(),
        });
        let web = WebIngress::with_limits(apps.clone(), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let default = WebAddress::Port(address.port());
        let served = tokio::spawn(async move { web.serve(Listener::Tcp(listener), default, stopped).await });
        let world = Self { address, apps, stop, served, log: said };
        world.add(WebAddress::Port(address.port()), "plain", false);
        world
    }

    pub fn add(&self, address: WebAddress, label: &str, requires_proxy_auth: bool) {
        let function = FunctionId::from_bits(1);
        let endpoint =
            WebEndpoint { function, method: String::new(), label: label.to_owned(), requires_proxy_auth };
        self.apps.endpoints.lock().unwrap().insert(address, endpoint);
    }

    /// From now on requests go to the server at `target`.
    pub fn direct(&self, target: DirectTarget, has_call: bool) {
        *self.apps.direct.lock().unwrap() = Some((target, has_call));
    }

    pub async fn connect(&self) -> Wire {
        Wire(TcpStream::connect(self.address).await.unwrap())
    }

    /// The answer to one request, on a connection of its own.
    pub async fn ask(&self, request: &str) -> Answer {
        let mut wire = self.connect().await;
        wire.send(request).await;
        wire.answer().await
    }

    /// Sends a GET of a path and gives the answer.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)).await
    }

    /// Waits until an application says `what`.
    pub async fn hears(&mut self, what: &str) {
        let heard = async {
            while let Some(said) = self.log.recv().await {
                if said == what {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("nobody said {what}"));
    }
}

/// A connection, by raw bytes.
pub struct Wire(pub TcpStream);

/// An answer as it was on the wire.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the body came to the end that its framing says.
    pub whole: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

impl Wire {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until the bytes end in `end`; everything read.
    pub async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut read = Vec::new();
        let reading = async {
            while !read.ends_with(end) {
                read.push(self.0.read_u8().await?);
            }
            Ok::<_, std::io::Error>(())
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap_or_else(|e| panic!("{e}"));
        read
    }

    /// Everything until the other end closes or breaks off.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut read = Vec::new();
        // A reset is an end too.
        let _ = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut read)).await.unwrap();
        read
    }

    /// The head of an answer.
    pub async fn head(&mut self) -> Answer {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: vec![], whole: true }
    }

    /// A whole answer to a request that was not a HEAD.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.whole = self.chunks(&mut answer.body).await.is_some();
        } else if let Some(length) = answer.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            let mut read = 0;
            while read < body.len() {
                match tokio::time::timeout(PATIENCE, self.0.read(&mut body[read..])).await.unwrap() {
                    Ok(0) | Err(_) => break,
                    Ok(some) => read += some,
                }
            }
            answer.whole = read == body.len();
            body.truncate(read);
            answer.body = body;
        } else if !matches!(answer.status, 204 | 304) {
            answer.body = self.rest().await;
        }
        answer
    }

    /// Whether what comes is cut before it is whole: in the middle of a good answer, or before any of it.
    pub async fn is_cut(&mut self) -> bool {
        let mut first = [0];
        let peeked = tokio::time::timeout(PATIENCE, self.0.peek(&mut first)).await.unwrap();
        if peeked.is_ok_and(|some| some > 0) {
            let answer = self.answer().await;
            assert_eq!(answer.status, 200, "{answer:?}");
            if answer.whole {
                return false;
            }
        }
        self.rest().await.is_empty()
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> Option<()> {
        loop {
            let line = self.line().await?;
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; length];
            tokio::time::timeout(PATIENCE, self.0.read_exact(&mut chunk)).await.unwrap().ok()?;
            body.extend(chunk);
            if length > 0 {
                self.line().await?;
                continue;
            }
            while self.line().await? != "\r\n" {}
            return Some(());
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line.push(tokio::time::timeout(PATIENCE, self.0.read_u8()).await.unwrap().ok()?.into());
        }
        Some(line)
    }
}
