//! The same over HTTP/2.

use super::world::{App, PATIENCE, World};
use bytes::Bytes;
use evoke_proto::web::FromApp;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

type Client = SendRequest<Full<Bytes>>;

async fn connect(world: &World) -> Client {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(format!("http://h.example{path}"));
    request.header("cookie", "a=1").header("cookie", "b=2").body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn requests_share_a_connection() {
    let world = World::start(super::http1::app).await;
    let mut client = connect(&world).await;
    let hanging = client.send_request(request("GET", "/hang", ""));
    let echo = client.send_request(request("POST", "/echo", vec![7; 3_000_000])).await.unwrap();
    assert_eq!(echo.status(), 200);
    assert!(echo.into_body().collect().await.unwrap().to_bytes() == vec![7; 3_000_000]);
    let head = client.send_request(request("GET", "/head?q", "")).await.unwrap();
    assert!(!head.headers().contains_key("connection"));
    let head = head.into_body().collect().await.unwrap().to_bytes();
    let head = String::from_utf8(head.to_vec()).unwrap();
    assert!(head.starts_with("GET http /head 2 b\"q\"\n"), "{head}");
    for line in ["host=h.example\n", "cookie=a=1; b=2\n", "x-forwarded-host=h.example\n"] {
        assert!(head.contains(line), "{head}");
    }
    drop(hanging);
}

#[tokio::test]
async fn a_request_taken_back_is_told_of_and_others_go_on() {
    let mut world = World::start(super::http1::app).await;
    let mut client = connect(&world).await;
    let hanging = tokio::spawn(client.send_request(request("GET", "/hang", "")));
    world.hears("hanging").await;
    hanging.abort();
    world.hears("hang: gone").await;
    let events = client.send_request(request("GET", "/events", "")).await.unwrap();
    drop(events);
    world.hears("events: gone").await;
    assert_eq!(client.send_request(request("GET", "/sized", "")).await.unwrap().status(), 200);
}

fn with_trailers(app: App) -> BoxFuture<'static, ()> {
    async move {
        let text = |text: &'static str| Bytes::from_static(text.as_bytes());
        let headers = vec![(text("trailer"), text("x-sum"))];
        app.put(FromApp::Start { status: 200, headers, trailers: app.head.raw_path != "/breaks" }).await;
        app.body("abc", app.head.raw_path == "/breaks").await;
        app.put(FromApp::Trailers(vec![(text("X-Sum"), text("6"))], false)).await;
        app.done().await;
    }
    .boxed()
}

#[tokio::test]
async fn trailers_come_behind_the_body_in_both_versions() {
    let world = World::start(with_trailers).await;
    let mut client = connect(&world).await;
    let answer = client.send_request(request("GET", "/", "")).await.unwrap();
    let answer = answer.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-sum"], "6");
    assert_eq!(answer.to_bytes(), "abc");
    let mut wire = world.connect().await;
    wire.send("GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await;
    wire.head().await;
    assert_eq!(wire.until(b"\r\n\r\n").await, b"3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n");
    // Who cannot take trailers gets the rest.
    assert!(world.get("/").await.whole);
}

#[tokio::test]
async fn what_breaks_is_a_reset_of_its_stream_alone() {
    let world = World::start(with_trailers).await;
    let mut client = connect(&world).await;
    let broken =
        async { client.send_request(request("GET", "/breaks", "")).await?.into_body().collect().await };
    assert!(tokio::time::timeout(PATIENCE, broken).await.unwrap().is_err());
    assert!(client.send_request(request("GET", "/", "")).await.is_ok());
}

#[tokio::test]
async fn a_stream_becomes_a_websocket() {
    use http_body_util::Empty;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::{Message, Role};
    let mut world = World::start(super::sockets::app).await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (mut client, connection) =
        handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let open = |path: &str| {
        let request = Request::builder().method("CONNECT").uri(format!("http://h.example{path}"));
        let request = request.header("sec-websocket-version", "13").header("sec-websocket-protocol", "one");
        request.extension(hyper::ext::Protocol::from_static("websocket")).body(Empty::new()).unwrap()
    };
    client.ready().await.unwrap();
    // The server says by its settings, which come first, that it takes this.
    let refused = client.send_request(open("/refuses")).await.unwrap();
    assert_eq!(refused.status(), 403);
    let mut answer = client.send_request(open("/echo")).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["sec-websocket-protocol"]),
        (200, &"one".parse().unwrap())
    );
    let upgraded = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    use futures::{SinkExt, StreamExt};
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
    socket.close(None).await.unwrap();
    world.hears("ended by Some(Disconnect(Some(1005)))").await;
}
