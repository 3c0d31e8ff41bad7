//! Plain requests over HTTP/1.

use super::world::{App, PATIENCE, World};
use bytes::Bytes;
use evoke_proto::web::{FromApp, WebAddress};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::{Duration, Instant};

/// The application of most tests here; what it does depends on the path.
pub fn app(mut app: App) -> BoxFuture<'static, ()> {
    async move {
        let path = app.head.raw_path.clone();
        match path.as_str() {
            "/head" => {
                let mut lines = format!(
                    "{} {} {} {} {:?}\n",
                    app.head.method,
                    app.head.scheme,
                    app.head.raw_path,
                    app.head.http_version,
                    app.head.query
                );
                for (name, value) in &app.head.headers {
                    lines +=
                        &format!("{}={}\n", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
                }
                app.start(200, &[("x-of-app", "yes"), ("connection", "close"), ("keep-alive", "1")]).await;
                app.body(lines, false).await;
            }
            "/echo" => {
                let Some(body) = app.read().await else { return app.log.say("echo: gone") };
                app.start(200, &[("content-length", &body.len().to_string())]).await;
                app.body(body, false).await;
            }
            // Answers while it still reads.
            "/duplex" => {
                app.start(200, &[]).await;
                loop {
                    match app.receive.recv().await {
                        Some(evoke_proto::web::ToApp::Body(bytes, more)) => {
                            app.body(bytes, more).await;
                            if !more {
                                break;
                            }
                        }
                        _ => return app.log.say("duplex: gone"),
                    }
                }
            }
            "/events" => {
                app.start(200, &[("content-type", "text/event-stream")]).await;
                app.body("data: 1\n\n", true).await;
                app.gone().await;
                return app.log.say("events: gone");
            }
            "/hang" => {
                app.log.say("hanging");
                app.gone().await;
                return app.log.say("hang: gone");
            }
            "/unread" => {
                app.log.say("not reading");
                app.send.closed().await;
                return app.log.say("unread: gone");
            }
            "/none" => {
                app.start(204, &[("content-length", "0")]).await;
                app.body("", false).await;
            }
            "/unchanged" => {
                app.start(304, &[("etag", "x")]).await;
                app.body("", false).await;
            }
            "/sized" => {
                app.start(200, &[("content-length", "5")]).await;
                app.body("hello", false).await;
                app.log.say("sized: done");
            }
            // Says that it is done when the client has all of it already.
            "/late-end" => {
                app.start(200, &[("content-length", "5")]).await;
                app.body("hello", true).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                let end = FromApp::Body(Bytes::new(), false);
                let heard = app.send.send(end).await.is_ok();
                let told = matches!(app.receive.try_recv(), Ok(evoke_proto::web::ToApp::Body(..)))
                    && app.receive.try_recv() == Err(tokio::sync::mpsc::error::TryRecvError::Empty);
                app.log.say(format!("late end: {heard} {told}"));
            }
            "/early" => {
                app.start(200, &[]).await;
                app.body("no need", false).await;
            }
            "/endless" => {
                app.start(200, &[]).await;
                for n in 0_u64.. {
                    if app.send.send(FromApp::Body(Bytes::from(vec![0; 64 << 10]), true)).await.is_err() {
                        return app.log.say("endless: gone");
                    }
                    app.log.say(format!("endless {n}"));
                }
            }
            "/cookies" => {
                app.start(200, &[("set-cookie", "a=1"), ("set-cookie", "b=2")]).await;
                app.body("", false).await;
            }
            _ => {
                app.start(404, &[]).await;
                app.body("no such path", false).await;
            }
        }
        app.done().await;
    }
    .boxed()
}

#[tokio::test]
async fn the_application_is_told_what_is_true_and_nothing_of_the_hop() {
    let world = World::start(app).await;
    let host = world.address;
    let answer = world
        .ask(&format!(
            "PATCH /head?a=%20b&c HTTP/1.1\r\nHost: {host}\r\nX-Thing: One\r\nX-Thing: two\r\n\
             X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX_Forwarded_For: 7.7.7.7\r\n\
             Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Host: evil.example\r\n\
             Evoke-Input: in-1\r\nEVOKE_CALL: fc-1\r\nModal-Secret: ws-1\r\nX-Modal-Token-Secret: as-1\r\n\
             Keep-Alive: 5\r\nTE: trailers\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\n\
             Content-Length: 0\r\n\r\n"
        ))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = answer.text();
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.remove(0), "PATCH http /head 1.1 b\"a=%20b&c\"");
    lines.sort();
    let host = host.to_string();
    let expected = [
        "content-length=0".to_owned(),
        format!("host={host}"),
        "x-forwarded-for=127.0.0.1".to_owned(),
        format!("x-forwarded-host={host}"),
        "x-forwarded-proto=http".to_owned(),
        "x-thing=One".to_owned(),
        "x-thing=two".to_owned(),
    ];
    assert_eq!(lines, expected);
    // And the client gets the application's headers and the date, without those of the hop.
    assert_eq!(answer.header("x-of-app"), Some("yes"));
    assert!(answer.header("keep-alive").is_none() && answer.header("connection").is_none());
    let names: Vec<_> =
        answer.head.lines().skip(1).filter_map(|l| l.split_once(": ")).map(|(n, _)| n).collect();
    assert_eq!(names, ["x-of-app", "transfer-encoding", "date"]);
}

#[tokio::test]
async fn a_body_goes_in_and_out_with_its_length_and_in_chunks() {
    let world = World::start(app).await;
    let mut wire = world.connect().await;
    // Twice on one connection, framed in both ways.
    wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello").await;
    let answer = wire.answer().await;
    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("hello", Some("5")));
    wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        .await;
    assert_eq!(wire.answer().await.text(), "abcde");
    wire.send("POST /duplex HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    let head = wire.head().await;
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    // The first piece is back before the second is sent.
    assert_eq!(wire.until(b"abc\r\n").await, b"3\r\nabc\r\n");
    wire.send("0\r\n\r\n").await;
    assert_eq!(wire.until(b"0\r\n\r\n").await, b"0\r\n\r\n");
}

#[tokio::test]
async fn old_clients_get_an_answer_that_ends_with_the_connection() {
    let world = World::start(app).await;
    let answer = world.ask("GET /duplex HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None));
    let answer = world.ask("POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(answer.text(), "ok");
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let mut world = World::start(app).await;
    let mut wire = world.connect().await;
    for (request, expected, length) in [
        ("GET /none", "204", None),
        ("GET /unchanged", "304", None),
        ("HEAD /sized", "200", Some("5")),
        ("HEAD /duplex", "200", None),
        ("GET /cookies", "200", None),
    ] {
        wire.send(format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let answer = if request == "GET /cookies" { wire.answer().await } else { wire.head().await };
        assert!(answer.head.starts_with(&format!("HTTP/1.1 {expected}")), "{answer:?}");
        assert_eq!(answer.header("content-length"), length, "{request}");
        if request == "HEAD /sized" {
            // It is not told that its client is gone before it is done.
            world.hears("sized: done").await;
        }
        if request == "GET /cookies" {
            assert_eq!(answer.head.matches("set-cookie").count(), 2);
        }
    }
}

#[tokio::test]
async fn an_application_that_ends_late_is_not_told_that_its_client_left() {
    let mut world = World::start(app).await;
    assert_eq!(world.get("/late-end").await.text(), "hello");
    world.hears("late end: true true").await;
}

#[tokio::test]
async fn who_is_answered_early_can_send_the_rest() {
    let world = World::start(app).await;
    world.add(WebAddress::Host("locked.localhost".into()), "locked", true);
    let body = vec![b'x'; 8 << 20];
    for (host, path, status) in
        [("locked.localhost", "/echo", 401), ("h", "/no-room", 429), ("h", "/early", 200)]
    {
        let mut wire = world.connect().await;
        let length = body.len();
        wire.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n")).await;
        // The answer is there before the body.
        let mut first = [0];
        assert_eq!(wire.0.peek(&mut first).await.unwrap(), 1, "{path}");
        wire.send(&body).await;
        assert_eq!(wire.answer().await.status, status, "{path}");
        // And the connection is still good.
        wire.send("GET /sized HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(wire.answer().await.text(), "hello", "{path}");
    }
}

#[tokio::test]
async fn expect_continue_is_answered_when_the_request_is_taken() {
    let world = World::start(app).await;
    world.add(WebAddress::Host("locked.localhost".into()), "locked", true);
    let mut wire = world.connect().await;
    wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(wire.head().await.status, 100);
    wire.send("ok").await;
    assert_eq!(wire.answer().await.text(), "ok");
    let mut wire = world.connect().await;
    wire.send(
        "POST /echo HTTP/1.1\r\nHost: locked.localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
    )
    .await;
    assert_eq!(wire.head().await.status, 401);
}

#[tokio::test]
async fn events_are_not_held_back_and_the_end_of_their_reader_is_told() {
    let mut world = World::start(app).await;
    let mut wire = world.connect().await;
    wire.send("GET /events HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(wire.head().await.header("content-type"), Some("text/event-stream"));
    wire.until(b"data: 1\n\n\r\n").await;
    drop(wire);
    world.hears("events: gone").await;
}

#[tokio::test]
async fn a_client_that_goes_away_is_told_of_wherever_the_request_is() {
    let mut world = World::start(app).await;
    // Before anything is answered.
    let mut wire = world.connect().await;
    wire.send("GET /hang HTTP/1.1\r\nHost: h\r\n\r\n").await;
    world.hears("hanging").await;
    drop(wire);
    world.hears("hang: gone").await;
    // In the middle of its body.
    let mut wire = world.connect().await;
    wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe").await;
    drop(wire);
    world.hears("echo: gone").await;
}

#[tokio::test]
async fn a_client_that_goes_away_while_its_body_is_not_read_is_told_of() {
    let mut world = World::start(app).await;
    let mut wire = world.connect().await;
    wire.send("POST /unread HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n").await;
    world.hears("not reading").await;
    fill(&mut wire).await;
    // A client that is killed with a reset; its closing alone would wait behind what was not taken.
    wire.0.set_zero_linger().unwrap();
    drop(wire);
    world.hears("unread: gone").await;
}

/// Sends until nobody takes more; how much that was.
async fn fill(wire: &mut super::world::Wire) -> u64 {
    use tokio::io::AsyncWriteExt;
    let (piece, mut sent) = (vec![0; 64 << 10], 0);
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), wire.0.write(&piece)).await {
        sent += written.unwrap() as u64;
    }
    sent
}

#[tokio::test]
async fn a_sender_waits_for_an_application_that_does_not_read() {
    let mut world = World::start(app).await;
    let mut wire = world.connect().await;
    wire.send("POST /unread HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n").await;
    world.hears("not reading").await;
    // The kernel's buffers at both ends, and what the gateway holds: a few pieces.
    let sent = fill(&mut wire).await;
    assert!(sent < 16 << 20, "{sent} bytes were taken");
}

#[tokio::test]
async fn an_application_waits_for_a_client_that_does_not_read() {
    let mut world = World::start(app).await;
    let mut wire = world.connect().await;
    wire.send("GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").await;
    wire.head().await;
    world.hears("endless 3").await;
    // What went out before it had to wait fits into the kernel's buffers and the gateway's.
    let stuck = tokio::time::timeout(Duration::from_secs(2), world.hears("endless 400")).await;
    assert!(stuck.is_err(), "25 MB were taken for a client that reads nothing");
    drop(wire);
    world.hears("endless: gone").await;
}

#[tokio::test]
async fn hosts_find_their_function_and_proxy_tokens_open_it() {
    let mut world = World::start(app).await;
    world.add(WebAddress::Host("other.localhost".into()), "other", false);
    world.add(WebAddress::Host("locked.localhost".into()), "locked", true);
    let port = world.address.port();
    for (host, label) in [
        (format!("127.0.0.1:{port}"), "plain"),
        ("127.0.0.1:1".to_owned(), "plain"),
        ("unknown.example".to_owned(), "plain"),
        (format!("Other.localhost:{port}"), "other"),
        ("other.localhost".to_owned(), "other"),
    ] {
        let answer = world.ask(&format!("GET /head HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status, 200);
        world.hears(&format!("{label} /head")).await;
    }
    let answer = world.ask("GET http://other.localhost/head HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.text().contains("host=other.localhost"), "{answer:?}");
    world.hears("other /head").await;
    for (token, status) in [
        ("", 401),
        ("Modal-Key: wk-1\r\n", 401),
        ("Modal-Key: wk-1\r\nModal-Secret: no\r\n", 401),
        ("Modal-Key: wk-1\r\nModal-Secret: ws-1\r\n", 200),
    ] {
        let answer = world.ask(&format!("GET /head HTTP/1.1\r\nHost: locked.localhost\r\n{token}\r\n")).await;
        assert_eq!(answer.status, status, "{token}");
        assert!(!answer.text().contains("ws-1"));
    }
}

#[tokio::test]
async fn a_listener_that_stops_lets_what_was_begun_end() {
    let mut world = World::start(app).await;
    let mut wire = world.connect().await;
    wire.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\no").await;
    world.hears("plain /echo").await;
    world.stop.send(true).unwrap();
    wire.send("k").await;
    assert_eq!(wire.answer().await.text(), "ok");
    let begun = Instant::now();
    tokio::time::timeout(PATIENCE, world.served).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4));
}
