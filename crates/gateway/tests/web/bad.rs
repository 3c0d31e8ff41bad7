//! Clients and applications that break the rules.

use super::world::{App, PATIENCE, World};
use bytes::Bytes;
use evoke_gateway::WebLimits;
use evoke_proto::web::{FromApp, WebEnd};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::Duration;

fn start(status: u16, name: &'static str, value: &'static str) -> FromApp {
    let headers = vec![(Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()))];
    FromApp::Start { status, headers, trailers: false }
}

/// Says what the path names and then ends.
fn garbage(app: App) -> BoxFuture<'static, ()> {
    async move {
        let body = |text: &'static str, more| FromApp::Body(Bytes::from_static(text.as_bytes()), more);
        let failed = || FromApp::Ended(WebEnd::Failed("its secret reason".to_owned()));
        let messages = match app.head.raw_path.as_str() {
            "/status-0" => vec![start(0, "a", "b")],
            "/status-100" => vec![start(100, "a", "b")],
            "/name" => vec![start(200, "a b", "c")],
            "/split" => vec![start(200, "a", "b\r\nset-cookie: c=d")],
            "/length" => vec![start(200, "content-length", "+3"), body("abc", false)],
            "/body-first" => vec![body("abc", false)],
            "/nothing" => vec![FromApp::Ended(WebEnd::Done)],
            "/accept" => vec![FromApp::Accept { subprotocol: None, headers: vec![] }],
            "/fails" => vec![failed()],
            "/times-out" => vec![FromApp::Ended(WebEnd::TimedOut("300 s".to_owned()))],
            "/cancelled" => vec![FromApp::Ended(WebEnd::Cancelled)],
            "/vanishes" => vec![],
            // From here on the answer began.
            "/short" => vec![start(200, "content-length", "10"), body("abc", false)],
            "/shorter" => {
                vec![start(200, "content-length", "10"), body("abc", true), FromApp::Ended(WebEnd::Done)]
            }
            "/long" => vec![start(200, "content-length", "2"), body("abc", false)],
            "/twice" => vec![start(200, "a", "b"), body("abc", true), start(200, "a", "b")],
            "/breaks" => vec![start(200, "a", "b"), body("abc", true), failed()],
            "/returns" => vec![start(200, "a", "b"), body("abc", true), FromApp::Ended(WebEnd::Done)],
            "/gone" => vec![start(200, "a", "b"), body("abc", true)],
            "/trailers" => vec![start(200, "a", "b"), body("abc", true), FromApp::Trailers(vec![], false)],
            _ => vec![start(200, "content-length", "2"), body("ok", false)],
        };
        for message in messages {
            app.put(message).await;
        }
    }
    .boxed()
}

#[tokio::test]
async fn garbage_before_an_answer_is_an_error_that_names_the_call() {
    let world = World::start(garbage).await;
    for (path, status, what) in [
        ("/status-0", 500, "the status 0"),
        ("/status-100", 500, "the status 100"),
        ("/name", 500, "a header of the name"),
        ("/split", 500, "no header's value"),
        ("/length", 500, "content length"),
        ("/body-first", 500, "a body before its answer"),
        ("/nothing", 500, "without an answer"),
        ("/accept", 500, "WebSocket"),
        ("/fails", 500, "failed before it answered"),
        ("/vanishes", 500, "failed before it answered"),
        ("/times-out", 504, "in its time"),
        ("/cancelled", 502, "cancelled"),
    ] {
        let answer = world.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        let text = answer.text();
        assert!(text.contains(what) && text.contains("fc-"), "{path}: {text}");
        assert!(!text.contains("secret") && answer.header("set-cookie").is_none(), "{answer:?}");
    }
}

#[tokio::test]
async fn what_breaks_after_an_answer_began_never_looks_complete() {
    let world = World::start(garbage).await;
    for path in ["/short", "/shorter", "/long", "/twice", "/breaks", "/returns", "/gone", "/trailers"] {
        let mut wire = world.connect().await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert!(wire.is_cut().await, "{path}");
    }
    assert_eq!(world.get("/").await.text(), "ok");
}

#[tokio::test]
async fn requests_that_cannot_begin_say_why() {
    let world = World::start(garbage).await;
    for (path, status, retry) in
        [("/no-function", 404, None), ("/no-room", 429, Some("1")), ("/no-machine", 503, Some("1"))]
    {
        let answer = world.get(path).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, retry), "{path}");
    }
}

#[tokio::test]
async fn requests_that_two_servers_could_read_differently_are_refused_or_read_in_one_way() {
    let world = World::start(super::http1::app).await;
    let refused = [
        ("two lengths", "Content-Length: 3\r\nContent-Length: 5\r\n", "abcde", 400),
        ("a signed length", "Content-Length: +3\r\n", "abc", 400),
        ("a list of lengths", "Content-Length: 3, 5\r\n", "abcde", 400),
        ("a coding after chunked", "Transfer-Encoding: chunked, gzip\r\n", "", 400),
        ("a coding before chunked", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", 501),
        ("twice chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "", 400),
        ("an odd coding", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n", 400),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n", 400),
        ("a folded line", "X: a\r\n b\r\n", "", 400),
        ("a bare return in a value", "X: a\rTransfer-Encoding: chunked\r\n", "", 400),
        ("a zero byte", "X: a\0b\r\n", "", 400),
        ("two hosts", "Host: other\r\n", "", 400),
    ];
    for (what, headers, body, status) in refused {
        let mut wire = world.connect().await;
        wire.send(format!("POST /echo HTTP/1.1\r\nHost: h\r\n{headers}\r\n{body}")).await;
        let answer = wire.head().await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
    }
    // Both framings: the chunks count, and nothing behind them is taken for a second request.
    for headers in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let mut wire = world.connect().await;
        let smuggled = "GET /cookies HTTP/1.1\r\nHost: h\r\n\r\n";
        wire.send(format!("POST /echo HTTP/1.1\r\nHost: h\r\n{headers}\r\n1\r\nx\r\n0\r\n\r\n{smuggled}"))
            .await;
        let answer = wire.answer().await;
        assert_eq!(answer.text(), "x", "{answer:?}");
        let rest = String::from_utf8(wire.rest().await).unwrap();
        assert!(!rest.contains("set-cookie"), "{rest}");
    }
    for request in ["GET /head HTTP/1.1\r\n\r\n", "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n"] {
        assert_eq!(world.ask(request).await.status, 400, "{request}");
    }
}

#[tokio::test]
async fn heads_and_bodies_over_the_limit_are_refused() {
    let world =
        World::with_limits(super::http1::app, WebLimits { body_bytes: 1_000, ..WebLimits::default() }).await;
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(100 << 10));
    assert_eq!(world.ask(&long).await.status, 431);
    let many: String = (0..1_000).map(|n| format!("X{n}: 1\r\n")).collect();
    assert_eq!(world.ask(&format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n")).await.status, 431);
    let answer = world.ask("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n").await;
    assert_eq!(answer.status, 413);
    let mut wire = world.connect().await;
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    wire.send(format!(
        "POST /hang HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}1\r\nx\r\n"
    ))
    .await;
    assert_eq!(wire.answer().await.status, 413);
}

#[tokio::test]
async fn a_body_that_stalls_is_ended() {
    let limits = WebLimits { body_stall: Duration::from_millis(100), ..WebLimits::default() };
    let world = World::with_limits(super::http1::app, limits).await;
    let mut wire = world.connect().await;
    wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe").await;
    assert_eq!(wire.answer().await.status, 408);
    assert!(wire.rest().await.is_empty());
    // Where the answer began already it is cut.
    let mut wire = world.connect().await;
    wire.send("POST /duplex HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe").await;
    assert!(!wire.answer().await.whole);
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let world =
        World::with_limits(super::http1::app, WebLimits { connections: 1, ..WebLimits::default() }).await;
    let mut first = world.connect().await;
    first.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n1").await;
    let mut second = world.connect().await;
    second.send("GET /sized HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let waits = tokio::time::timeout(Duration::from_millis(200), second.0.readable()).await;
    assert!(waits.is_err());
    first.send("2").await;
    assert_eq!(first.answer().await.text(), "12");
    drop(first);
    assert_eq!(tokio::time::timeout(PATIENCE, second.answer()).await.unwrap().text(), "hello");
}
