//! WebSockets, by a real client and by raw frames.

use super::world::{App, PATIENCE, Wire, World};
use bytes::Bytes;
use evoke_gateway::WebLimits;
use evoke_proto::web::{FromApp, ToApp, WebEnd};
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt, StreamExt};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, handshake::client::Response};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

type Client = WebSocketStream<TcpStream>;

pub fn app(mut app: App) -> BoxFuture<'static, ()> {
    async move {
        assert_eq!(app.receive.recv().await, Some(ToApp::Connect));
        let path = app.head.raw_path.clone();
        match path.as_str() {
            "/refuses" => return app.put(FromApp::Close(1008, "no".into())).await,
            "/fails" => return app.put(FromApp::Ended(WebEnd::Failed("why".into()))).await,
            "/page" => {
                app.start(418, &[("x-a", "b")]).await;
                return app.body("tea", false).await;
            }
            "/hang" => {
                app.log.say("hanging");
                app.gone().await;
                return app.log.say("hang: gone");
            }
            _ => {}
        }
        let offered = app.head.websocket.clone().unwrap();
        let headers = vec![(Bytes::from_static(b"x-of-app"), Bytes::from_static(b"yes"))];
        app.put(FromApp::Accept { subprotocol: offered.last().cloned(), headers }).await;
        match path.as_str() {
            "/scheme" => app.put(FromApp::Text(format!("{} {}", app.head.method, app.head.scheme))).await,
            "/closes" => return app.put(FromApp::Close(4001, "because".into())).await,
            "/bare" => return app.put(FromApp::Close(1005, String::new())).await,
            "/garbage" => return app.put(FromApp::Close(999, String::new())).await,
            "/returns" => return app.done().await,
            "/breaks" => return app.put(FromApp::Ended(WebEnd::Failed("why".into()))).await,
            "/pours" => {
                while app.send.send(FromApp::Binary(vec![0; 256 << 10].into())).await.is_ok() {}
                return app.log.say("pours: gone");
            }
            // Reads nothing more.
            "/deaf" => {
                app.log.say("deaf");
                app.send.closed().await;
                return app.log.say("deaf: gone");
            }
            _ => {}
        }
        loop {
            match app.receive.recv().await {
                Some(ToApp::Text(text)) => app.put(FromApp::Text(text)).await,
                Some(ToApp::Binary(bytes)) => app.put(FromApp::Binary(bytes)).await,
                last => return app.log.say(format!("ended by {last:?}")),
            }
        }
    }
    .boxed()
}

async fn try_open(world: &World, path: &str, protocols: &str) -> Result<(Client, Response), Error> {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let mut request = format!("ws://{}{path}", world.address).into_client_request().unwrap();
    if !protocols.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    }
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    client_async_with_config(request, stream, Some(config)).await
}

async fn open(world: &World, path: &str) -> Client {
    try_open(world, path, "").await.unwrap().0
}

async fn next(client: &mut Client) -> Message {
    tokio::time::timeout(PATIENCE, client.next()).await.unwrap().unwrap().unwrap()
}

async fn closing(client: &mut Client) -> Option<(u16, String)> {
    match next(client).await {
        Message::Close(frame) => frame.map(|frame| (frame.code.into(), frame.reason.to_string())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_go_both_ways_whole() {
    let world = World::start(app).await;
    let (mut client, response) = try_open(&world, "/echo", "one, two").await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "two");
    assert_eq!(response.headers()["x-of-app"], "yes");
    let large = "ü".repeat(1 << 20);
    for message in [
        Message::text("hello"),
        Message::text(""),
        Message::binary(vec![0, 255]),
        Message::text(large.clone()),
        Message::binary(vec![7; 2 << 20]),
    ] {
        client.send(message.clone()).await.unwrap();
        assert!(next(&mut client).await == message);
    }
    client.send(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(next(&mut client).await, Message::Pong(Bytes::from_static(b"x")));
    assert_eq!(next(&mut open(&world, "/scheme").await).await, Message::text("GET ws"));
}

#[tokio::test]
async fn who_sends_much_before_it_reads_gets_all_of_it() {
    let world = World::start(app).await;
    let (mut sink, mut stream) = open(&world, "/echo").await.split();
    let sending = tokio::spawn(async move {
        for n in 0..200_u32 {
            let mut bytes = vec![0; 64 << 10];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            sink.send(Message::binary(bytes)).await.unwrap();
        }
        sink
    });
    for n in 0..200_u32 {
        let message = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(message.into_data()[..4], n.to_be_bytes());
    }
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn it_is_open_only_when_the_application_says_so() {
    let mut world = World::start(app).await;
    for (path, status) in [("/refuses", 403), ("/fails", 500), ("/page", 418)] {
        match try_open(&world, path, "").await {
            Err(Error::Http(response)) => {
                assert_eq!(response.status().as_u16(), status, "{path}");
                assert_eq!(response.headers().contains_key("x-a"), status == 418);
            }
            other => panic!("{path}: {:?}", other.map(|(_, response)| response)),
        }
    }
    let opening = tokio::time::timeout(Duration::from_millis(200), try_open(&world, "/hang", "")).await;
    assert!(opening.is_err());
    world.hears("hang: gone").await;
}

#[tokio::test]
async fn the_application_closes_with_its_code_and_reason() {
    let world = World::start(app).await;
    for (path, expected) in [
        ("/closes", Some((4001, "because"))),
        ("/bare", None),
        ("/returns", Some((1000, ""))),
        ("/garbage", Some((1011, "failed"))),
        ("/breaks", Some((1011, "failed"))),
    ] {
        let closed = closing(&mut open(&world, path).await).await;
        assert_eq!(closed.as_ref().map(|(code, _)| *code), expected.map(|(code, _)| code), "{path}");
        if let (Some((_, reason)), Some((_, part))) = (closed, expected) {
            assert!(reason.contains(part), "{path}: {reason}");
        }
    }
}

#[tokio::test]
async fn the_application_is_told_how_the_client_ended() {
    let mut world = World::start(app).await;
    let frame = CloseFrame { code: CloseCode::Library(4002), reason: "bye".into() };
    let mut client = open(&world, "/echo").await;
    client.close(Some(frame)).await.unwrap();
    world.hears("ended by Some(Disconnect(Some(4002)))").await;
    assert_eq!(closing(&mut client).await, Some((4002, "bye".to_owned())));
    let mut client = open(&world, "/echo").await;
    client.close(None).await.unwrap();
    world.hears("ended by Some(Disconnect(Some(1005)))").await;
    drop(open(&world, "/echo").await);
    world.hears("ended by Some(Disconnect(Some(1006)))").await;
}

#[tokio::test]
async fn clients_that_break_the_rules_are_told_which() {
    let mut world = World::start(app).await;
    let mut client = open(&world, "/echo").await;
    // What it still sends is taken, so that it comes to read why it is closed.
    client.send(Message::binary(vec![0; 5 << 20])).await.unwrap();
    assert_eq!(closing(&mut client).await.unwrap().0, 1009);
    world.hears("ended by Some(Disconnect(Some(1009)))").await;
    for (frame, code) in [
        // A text that is not UTF-8, a frame without a mask, a reserved bit, a reserved kind, and a closing
        // whose code no one may send.
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff][..], 1007_u16),
        (&[0x81, 0x01, b'a'], 1002),
        (&[0xc1, 0x81, 0, 0, 0, 0, b'a'], 1002),
        (&[0x83, 0x81, 0, 0, 0, 0, b'a'], 1002),
        (&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xed], 1002),
    ] {
        let mut wire = raw(&world, "/echo").await;
        wire.send(frame).await;
        let mut head = [0; 4];
        tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read_exact(&mut wire.0, &mut head))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((head[0], u16::from_be_bytes([head[2], head[3]])), (0x88, code), "{frame:?}");
    }
}

async fn raw(world: &World, path: &str) -> Wire {
    let mut wire = world.connect().await;
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    wire.send(format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ))
    .await;
    let head = wire.head().await;
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    wire
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let limits = WebLimits { write_stall: Duration::from_millis(200), ..WebLimits::default() };
    let mut world = World::with_limits(app, limits).await;
    let wire = raw(&world, "/pours").await;
    world.hears("pours: gone").await;
    drop(wire);
}

#[tokio::test]
async fn a_client_waits_for_an_application_that_does_not_read() {
    let mut world = World::start(app).await;
    let mut client = open(&world, "/deaf").await;
    world.hears("deaf").await;
    let mut sent = 0;
    let message = Message::binary(vec![0; 1 << 20]);
    while sent < 64
        && tokio::time::timeout(Duration::from_millis(500), client.send(message.clone())).await.is_ok()
    {
        sent += 1;
    }
    assert!(sent < 24, "{sent} MiB were taken");
    drop(client);
}

#[tokio::test]
async fn a_listener_that_stops_says_so() {
    let mut world = World::start(app).await;
    let mut client = open(&world, "/echo").await;
    client.send(Message::text("a")).await.unwrap();
    next(&mut client).await;
    world.stop.send(true).unwrap();
    assert_eq!(closing(&mut client).await.unwrap().0, 1012);
    world.hears("ended by Some(Disconnect(Some(1012)))").await;
    tokio::time::timeout(PATIENCE, world.served).await.unwrap().unwrap();
}
