//! What idle WebSockets cost: a thousand of them, in a process of their own.
#![allow(clippy::unwrap_used)] // What fails here fails the test.

#[allow(dead_code)] // The other tests use the rest.
#[path = "web/world.rs"]
mod world;

use evoke_proto::web::{DirectTarget, FromApp, ToApp};
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use world::{App, Wire, World};

const SOCKETS: usize = 1_000;
/// What one may cost in memory, with the client and the application of this test, in bytes.
const BYTES_MAX: usize = 20 << 10;
/// Descriptors that the test needs.
const DESCRIPTORS: u64 = 6 * SOCKETS as u64 + 400;

fn accepts(mut app: App) -> BoxFuture<'static, ()> {
    async move {
        assert_eq!(app.receive.recv().await, Some(ToApp::Connect));
        app.put(FromApp::Accept { subprotocol: None, headers: vec![] }).await;
        while let Some(ToApp::Text(text)) = app.receive.recv().await {
            app.put(FromApp::Text(text)).await;
        }
    }
    .boxed()
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

/// Opens a socket and sends one message to and fro.
async fn open(world: &World) -> Wire {
    let mut wire = world.connect().await;
    wire.send(
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    assert_eq!(wire.head().await.status, 101);
    wire.send([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await;
    assert_eq!(wire.until(b"hi").await, [0x81, 0x02, b'h', b'i']);
    wire
}

/// A server that sends back a message without its mask.
async fn bare_server(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut wire = Wire(stream);
            wire.until(b"\r\n\r\n").await;
            wire.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            .await;
            let mut frame = [0; 8];
            while wire.0.read_exact(&mut frame).await.is_ok() {
                wire.0.write_all(&[0x81, 0x02, frame[6], frame[7]]).await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn idle_sockets_cost_little() {
    let most = getrlimit(Resource::Nofile).maximum;
    assert!(most.is_none_or(|most| most >= DESCRIPTORS), "at most {most:?} descriptors can be open here");
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum: most }).unwrap();
    let world = World::start(accepts).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = DirectTarget::Tcp(listener.local_addr().unwrap());
    tokio::spawn(bare_server(listener));
    let mut kept = Vec::new();
    for kind in ["by messages", "by a tunnel"] {
        for _ in 0..20 {
            kept.push(open(&world).await);
        }
        let before = resident_bytes();
        for _ in 0..SOCKETS {
            kept.push(open(&world).await);
        }
        let each = (resident_bytes() - before) / SOCKETS;
        println!("an idle WebSocket {kind} costs {each} bytes");
        assert!(each < BYTES_MAX, "an idle WebSocket {kind} costs {each} bytes");
        world.direct(server.clone(), true);
    }
}
