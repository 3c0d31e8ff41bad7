//! Requests that go to a server inside of a container.

use super::world::{App, PATIENCE, Wire, World};
use bytes::Bytes;
use evoke_gateway::WebLimits;
use evoke_proto::web::DirectTarget;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn none(_: App) -> BoxFuture<'static, ()> {
    async { panic!("no messages here") }.boxed()
}

/// A server that does what the path says, and the number of connections that it had.
async fn server() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(serve));
            tokio::spawn(serving.with_upgrades());
        }
    });
    (address, count)
}

type Out = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

fn full(bytes: impl Into<Bytes>) -> Out {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn serve(mut request: Request<Incoming>) -> Result<Response<Out>, Infallible> {
    Ok(match request.uri().path() {
        "/head" => {
            let mut lines = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                lines += &format!("{name}={}\n", value.to_str().unwrap());
            }
            let answer = Response::builder().header("connection", "x-hop").header("x-hop", "1");
            answer.header("x-of-app", "yes").body(full(lines)).unwrap()
        }
        "/echo" => {
            let body = request.into_body().map_err(std::io::Error::other).boxed_unsync();
            Response::new(body)
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(250)).await;
            Response::new(full("late"))
        }
        "/hang" => std::future::pending().await,
        "/events" => {
            let first = Ok(Frame::data(Bytes::from_static(b"data: 1\n\n")));
            let stream = futures::StreamExt::chain(
                futures::stream::iter([first]),
                futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>(),
            );
            Response::new(StreamBody::new(stream).boxed_unsync())
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 4];
                while io.read_exact(&mut bytes).await.is_ok() {
                    io.write_all(&bytes).await.unwrap();
                }
            });
            let answer = Response::builder().status(101).header("upgrade", &request.headers()["upgrade"]);
            let answer = answer.header("connection", "upgrade").header("x-of-app", "yes");
            answer.body(full("")).unwrap()
        }
        _ => Response::builder().status(404).body(full("no such path")).unwrap(),
    })
}

async fn world() -> (World, Arc<AtomicUsize>) {
    let world = World::start(none).await;
    let (address, count) = server().await;
    world.direct(DirectTarget::Tcp(address), true);
    (world, count)
}

/// A server that answers each connection by what `script` does with it.
async fn scripted<F>(script: fn(Wire, usize) -> F) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for n in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(Wire(stream), n));
        }
    });
    address
}

#[tokio::test]
async fn the_server_is_told_what_is_true_and_the_client_gets_its_answer() {
    let (mut world, _) = world().await;
    let host = world.address;
    let answer = world
        .ask(&format!(
            "GET http://{host}/head?a=%20 HTTP/1.1\r\nHost: {host}\r\nEvoke-Input: in-9\r\n\
             Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
        ))
        .await;
    let text = answer.text();
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.remove(0), "GET /head?a=%20");
    lines.sort();
    let host = format!("host={host}");
    let forwarded = format!("x-forwarded-{host}");
    let expected =
        ["evoke-input=in-1", &host, "x-forwarded-for=127.0.0.1", &forwarded, "x-forwarded-proto=http"];
    assert_eq!(lines, expected);
    assert_eq!(answer.header("x-of-app"), Some("yes"));
    assert!(answer.header("x-hop").is_none() && answer.header("connection").is_none());
    world.hears("slot: Done").await;
}

#[tokio::test]
async fn connections_to_the_server_are_used_again_and_closed_when_idle() {
    let (mut world, count) = world().await;
    let mut wire = world.connect().await;
    for n in 0..5 {
        wire.send("GET /head HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(wire.answer().await.status, 200);
        wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .await;
        assert_eq!(wire.answer().await.text(), "ok", "{n}");
        wire.send("HEAD /head HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(wire.head().await.status, 200);
        world.hears("slot: Done").await;
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // One that was not used for a while is closed by us.
    let closes = scripted(|mut wire, _| async move {
        wire.until(b"\r\n\r\n").await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!(wire.rest().await.is_empty());
        wire.0.shutdown().await.unwrap();
    });
    world.direct(DirectTarget::Tcp(closes.await), true);
    assert_eq!(world.get("/").await.text(), "ok");
}

#[tokio::test]
async fn bodies_pass_while_they_come() {
    let (mut world, _) = world().await;
    let mut wire = world.connect().await;
    wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    assert_eq!(wire.head().await.status, 200);
    assert_eq!(wire.until(b"abc\r\n").await, b"3\r\nabc\r\n");
    wire.send("0\r\n\r\n").await;
    assert_eq!(wire.until(b"0\r\n\r\n").await, b"0\r\n\r\n");
    world.hears("slot: Done").await;
    let body = "x".repeat(5_000_000);
    let request = format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n{body}");
    let (reading, writing) = wire.0.into_split();
    let sent = tokio::spawn(async move {
        let mut writing = writing;
        writing.write_all(request.as_bytes()).await.unwrap();
        writing
    });
    let (mut reading, mut read) = (reading, 0);
    let all = async {
        let mut piece = vec![0; 64 << 10];
        // The head has no such letter.
        while read < 5_000_000 {
            let some = reading.read(&mut piece).await.unwrap();
            assert!(some > 0);
            read += piece[..some].iter().filter(|byte| **byte == b'x').count();
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    assert_eq!(read, 5_000_000);
    drop(sent.await.unwrap());
    let mut wire = world.connect().await;
    wire.send("GET /events HTTP/1.1\r\nHost: h\r\n\r\n").await;
    wire.head().await;
    wire.until(b"data: 1\n\n\r\n").await;
    drop(wire);
    world.hears("slot: Cancelled").await;
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_slot_back() {
    let (mut world, _) = world().await;
    let mut wire = world.connect().await;
    wire.send("GET /hang HTTP/1.1\r\nHost: h\r\n\r\n").await;
    world.hears("plain /hang").await;
    drop(wire);
    world.hears("slot: Cancelled").await;
}

#[tokio::test]
async fn who_waits_too_long_is_sent_away_and_finds_the_answer() {
    let limits = WebLimits { answer: Duration::from_millis(100), ..WebLimits::default() };
    let mut world = World::with_limits(none, limits).await;
    let (address, _) = server().await;
    world.direct(DirectTarget::Tcp(address), true);
    let mut answer = world.get("/slow").await;
    assert_eq!(answer.status, 303);
    while answer.status == 303 {
        let location = answer.header("location").unwrap().to_owned();
        answer = world.get(location.strip_prefix(&format!("http://{}", world.address)).unwrap()).await;
    }
    assert_eq!(answer.text(), "late");
    world.hears("slot: Done").await;
    // Where nobody could come back for it, it is waited for.
    world.direct(DirectTarget::Tcp(address), false);
    assert_eq!(world.get("/slow").await.text(), "late");
}

#[tokio::test]
async fn servers_that_fail_are_an_error_or_a_cut() {
    let mut world = World::start(none).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    world.direct(DirectTarget::Tcp(closed), false);
    let answer = world.get("/").await;
    assert!(answer.status == 502 && answer.text().contains("cannot be reached"), "{answer:?}");
    world.hears("slot: Failed").await;
    // What is a call may be served by another container.
    world.direct(DirectTarget::Tcp(closed), true);
    let answer = world.get("/").await;
    assert!(answer.status == 500 && answer.text().contains("can be reached"), "{answer:?}");
    world.hears("slot: Unreachable").await;
    world.direct(DirectTarget::Unix("/nowhere/socket".into()), false);
    assert_eq!(world.get("/").await.status, 502);
    world.hears("slot: Failed").await;
    for said in
        ["", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.direct(DirectTarget::Tcp(listener.local_addr().unwrap()), true);
        tokio::spawn(async move {
            let mut wire = Wire(listener.accept().await.unwrap().0);
            wire.until(b"\r\n\r\n").await;
            wire.send(said).await;
        });
        let answer = world.get("/").await;
        assert!(answer.status == 500 && answer.text().contains("answered (fc-"), "{said:?}: {answer:?}");
        world.hears("slot: Failed").await;
    }
    let breaks = scripted(|mut wire, _| async move {
        wire.until(b"\r\n\r\n").await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await;
    });
    world.direct(DirectTarget::Tcp(breaks.await), true);
    let mut wire = world.connect().await;
    wire.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(wire.is_cut().await);
    world.hears("slot: Failed").await;
}

/// Answers its first request and then hears the next one without answering it.
async fn stale(mut wire: Wire, n: usize) {
    wire.until(b"\r\n\r\n").await;
    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}")).await;
    let mut byte = [0];
    let _ = wire.0.read(&mut byte).await;
}

#[tokio::test]
async fn only_what_has_no_effect_is_sent_twice() {
    let mut world = World::start(none).await;
    world.direct(DirectTarget::Tcp(scripted(stale).await), false);
    assert_eq!(world.get("/").await.text(), "0");
    world.hears("slot: Done").await;
    assert_eq!(world.get("/").await.text(), "1");
    world.hears("slot: Done").await;
    let answer = world.ask("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer.status, 502);
    world.hears("slot: Failed").await;
}

#[tokio::test]
async fn bodies_over_the_limit_and_stalled_ones_are_refused() {
    let limits =
        WebLimits { body_bytes: 1_000, body_stall: Duration::from_millis(100), ..WebLimits::default() };
    let mut world = World::with_limits(none, limits).await;
    let silent = scripted(|mut wire, _| async move { drop(wire.rest().await) });
    world.direct(DirectTarget::Tcp(silent.await), true);
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(world.ask(&format!("{head}{chunk}{chunk}1\r\nx\r\n")).await.status, 413);
    world.hears("slot: Cancelled").await;
    assert_eq!(world.ask(&format!("{head}{chunk}")).await.status, 408);
    world.hears("slot: Cancelled").await;
}

#[tokio::test]
async fn an_upgrade_is_a_tunnel() {
    let (mut world, _) = world().await;
    for protocol in ["websocket", "other"] {
        let mut wire = world.connect().await;
        wire.send(format!(
            "GET /upgrade HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearl"
        ))
        .await;
        let head = wire.head().await;
        assert_eq!((head.status, head.header("upgrade")), (101, Some(protocol)));
        assert_eq!(head.header("x-of-app"), Some("yes"));
        assert_eq!(wire.until(b"earl").await, b"earl");
        wire.send("late").await;
        assert_eq!(wire.until(b"late").await, b"late");
        drop(wire);
        world.hears("slot: Done").await;
    }
    let answer =
        world.ask("GET /head HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("upgrade=other"));
    world.hears("slot: Done").await;
}

#[tokio::test]
async fn a_server_may_be_at_a_socket() {
    let world = World::start(none).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let serving = hyper::server::conn::http1::Builder::new();
        serving.serve_connection(TokioIo::new(stream), service_fn(serve)).await
    });
    world.direct(DirectTarget::Unix(path), true);
    assert!(world.get("/head").await.text().starts_with("GET /head\n"));
}

#[tokio::test]
async fn http2_clients_are_served_by_the_same_servers() {
    let (world, _) = world().await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let shake =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = shake.await.unwrap();
    tokio::spawn(connection);
    let body = Full::new(Bytes::from(vec![7; 3_000_000]));
    let request = Request::builder().method("POST").uri("http://h.example/echo").body(body).unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert!(answer.into_body().collect().await.unwrap().to_bytes() == vec![7; 3_000_000]);
}
