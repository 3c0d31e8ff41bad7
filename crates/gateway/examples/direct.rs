//! How much of a server's throughput is left behind the gateway: plain GETs to a server at once and through the
//! gateway in turn, by 1 and by 32 connections.
//!
//! `cargo run --release -p evoke-gateway --example direct [HOST:PORT]`; without an address the server is a plain
//! one of hyper in this process. With one it is whatever listens there.
#![allow(clippy::unwrap_used)] // What fails here ends the measurement.

use bytes::Bytes;
use evoke_core::{CallId, Error, FunctionId};
use evoke_gateway::{Listener, WebIngress};
use evoke_proto::web::{
    Begun, DirectSlot, DirectTarget, WebAddress, WebApps, WebDirect, WebEnd, WebEndpoint, WebHead,
};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// How long each measurement takes.
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

struct Apps {
    target: DirectTarget,
    calls: AtomicU64,
}

struct Slot;

impl DirectSlot for Slot {
    fn ended(self: Box<Self>, end: WebEnd) {
        assert_eq!(end, WebEnd::Done);
    }
}

#[async_trait::async_trait]
impl WebApps for Apps {
    fn endpoint(&self, _address: &WebAddress) -> Option<WebEndpoint> {
        let (function, method) = (FunctionId::from_bits(1), String::new());
        Some(WebEndpoint { function, method, label: "bench".to_owned(), requires_proxy_auth: false })
    }
    async fn admit(&self, _endpoint: &WebEndpoint, _key: &str, _secret: &str) -> Result<bool, Error> {
        Ok(true)
    }
    async fn begin(&self, _endpoint: &WebEndpoint, _head: WebHead) -> Result<Begun, Error> {
        let call = CallId::from_bits(self.calls.fetch_add(1, Ordering::Relaxed).into());
        let (target, slot) = (self.target.clone(), Box::new(Slot));
        Ok(Begun::Direct(WebDirect { call: Some(call), target, timeout: None, headers: vec![], slot }))
    }
}

async fn hello(_request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = Response::builder().header("content-type", "application/json");
    Ok(answer.body(Full::new(Bytes::from_static(b"{\"hello\":\"world\"}"))).unwrap())
}

async fn plain_server(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(hello));
        tokio::spawn(serving);
    }
}

/// Requests in a second by so many connections, and the median of their times.
async fn load(address: SocketAddr, connections: usize) -> (f64, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let clients: Vec<_> = (0..connections).map(|_| tokio::spawn(client(address, stop.clone()))).collect();
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    times.sort();
    (rate, times[times.len() / 2])
}

async fn client(address: SocketAddr, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n");
    let (mut times, mut answer) = (Vec::new(), vec![0; 4 << 10]);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = 0;
        // Both kinds of framing end like this for a small JSON body.
        while !ends(&answer[..read]) {
            let some = stream.read(&mut answer[read..]).await.unwrap();
            assert!(some > 0, "the server closed");
            read += some;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        times.push(begun.elapsed());
    }
    times
}

/// Whether an answer is complete.
fn ends(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    match text.split("content-length: ").nth(1) {
        Some(rest) => answer.len() >= head + 4 + rest.lines().next().unwrap().parse::<usize>().unwrap(),
        None => answer.ends_with(b"0\r\n\r\n"),
    }
}

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
}

fn main() {
    let (servers, gateways, clients) = (runtime(1), runtime(2), runtime(1));
    let bind = || servers.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let server = match std::env::args().nth(1) {
        Some(address) => address.parse().unwrap(),
        None => {
            let listener = bind();
            let address = listener.local_addr().unwrap();
            servers.spawn(plain_server(listener));
            address
        }
    };
    let apps = Arc::new(Apps { target: DirectTarget::Tcp(server), calls: AtomicU64::new(1) });
    let listener = gateways.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let gateway = listener.local_addr().unwrap();
    let (_stop, stopped) = watch::channel(false);
    gateways.spawn(async move {
        let port = WebAddress::Port(gateway.port());
        WebIngress::new(apps).serve(Listener::Tcp(listener), port, stopped).await;
    });
    println!("connections  direct/s (median)      gateway/s (median)     ratio");
    for connections in [1, 32] {
        for _ in 0..ROUNDS {
            let (direct, first) = clients.block_on(load(server, connections));
            let (passed, second) = clients.block_on(load(gateway, connections));
            println!(
                "{connections:>11}  {direct:>8.0} ({first:>9.1?})   {passed:>8.0} ({second:>9.1?})   {:.2}",
                passed / direct
            );
        }
    }
}
