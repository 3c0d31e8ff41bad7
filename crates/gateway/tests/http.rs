//! Blobs, pages and the protection of both, over real connections.

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Gateway, hex};
use evoke_core::{AppId, BlobId, Error, FunctionId, Result};
use evoke_gateway::WebIngress;
use evoke_proto::web::{Begun, WebAddress, WebApps, WebEndpoint, WebHead};
use md5::{Digest, Md5};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn random_bytes(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(length)
    .collect()
}

#[tokio::test]
async fn a_blob_goes_in_whole_and_comes_out_the_same() {
    let gateway = Gateway::start().await;
    let (blob, bytes) = (BlobId::from_bits(9), random_bytes(5_000_001));
    let etag = format!("etag: \"{}\"", hex(&Md5::digest(&bytes)));
    let put = gateway.signer.blob_put(&gateway.origin(), blob);
    // The second time the client's first answer was lost.
    for _ in 0..2 {
        let (status, head, _) = gateway.http("PUT", &put, "", &bytes).await;
        assert_eq!(status, 200);
        assert!(head.contains(&etag), "{head}");
    }
    let get = gateway.signer.blob_get(&gateway.origin(), blob);
    let (status, head, body) = gateway.http("GET", &get, "", b"").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-length: 5000001"));
    assert!(body == bytes);
    let (status, head, body) = gateway.http("HEAD", &get, "", b"").await;
    assert_eq!((status, body.len()), (200, 0));
    assert!(head.contains("content-length: 5000001"));
}

#[tokio::test]
async fn a_blob_goes_in_by_parts() {
    let gateway = Gateway::start().await;
    let (blob, bytes) = (BlobId::from_bits(10), random_bytes(3_000_000));
    let (first, second) = bytes.split_at(2_000_000);
    for (number, part) in [(2, second), (1, first)] {
        let url = gateway.signer.blob_part(&gateway.origin(), blob, number);
        let (status, head, _) = gateway.http("PUT", &url, "", part).await;
        assert_eq!(status, 200);
        assert!(head.contains(&hex(&Md5::digest(part))));
    }
    let url = gateway.signer.blob_complete(&gateway.origin(), blob);
    let (status, _, body) = gateway.http("POST", &url, "", b"<CompleteMultipartUpload/>").await;
    assert_eq!(status, 200);
    let digests = [Md5::digest(first), Md5::digest(second)].concat();
    let expected = format!("{}-2", hex(&Md5::digest(digests)));
    assert!(String::from_utf8(body).unwrap().contains(&expected));
    let get = gateway.signer.blob_get(&gateway.origin(), blob);
    assert!(gateway.http("GET", &get, "", b"").await.2 == bytes);
}

#[tokio::test]
async fn a_body_that_changed_on_its_way_is_refused_in_the_clients_words() {
    let gateway = Gateway::start().await;
    let put = gateway.signer.blob_put(&gateway.origin(), BlobId::from_bits(11));
    let header = format!("Content-MD5: {}\r\n", STANDARD.encode(Md5::digest(b"other")));
    let (status, _, body) = gateway.http("PUT", &put, &header, b"this").await;
    assert_eq!(status, 400);
    let text = String::from_utf8(body).unwrap();
    assert!(text.contains("The Content-MD5 you specified did not match what we received."));
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_no_blob() {
    let gateway = Gateway::start().await;
    let blob = BlobId::from_bits(12);
    let put = gateway.signer.blob_put("", blob);
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("PUT {put} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nonly this");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    // Whether there is an answer to a half-sent request does not matter.
    let _ = stream.read_to_end(&mut rest).await;
    let get = gateway.signer.blob_get(&gateway.origin(), blob);
    assert_eq!(gateway.http("GET", &get, "", b"").await.0, 404);
}

#[tokio::test]
async fn nothing_is_reached_without_a_signature() {
    let gateway = Gateway::start().await;
    let origin = gateway.origin();
    let blob = BlobId::from_bits(13);
    let get = gateway.signer.blob_get(&origin, blob);
    let app = gateway.signer.app(&origin, AppId::from_bits(1));
    let cases = [
        ("GET", format!("/blobs/{blob}"), 403),
        ("PUT", get.clone(), 403),
        ("POST", get, 405),
        ("GET", "/".to_owned(), 403),
        ("GET", format!("/apps/{}", AppId::from_bits(1)), 403),
        ("GET", app.replace("0001?", "0002?"), 403),
        ("POST", app, 405),
        ("GET", "/secret".to_owned(), 404),
        ("GET", "/blobs/..%2fkey".to_owned(), 404),
    ];
    for (method, url, expected) in cases {
        let status = gateway.http(method, &url, "", b"").await.0;
        assert!(status == expected || (expected == 405 && status == 404), "{method} {url}: {status}");
    }
    assert_eq!(gateway.http("GET", "/healthz", "", b"").await.0, 200);
}

#[tokio::test]
async fn pages_open_by_their_signed_address() {
    let gateway = Gateway::start().await;
    let (status, _, body) = gateway.http("GET", &gateway.signer.home(&gateway.origin()), "", b"").await;
    assert_eq!(status, 200);
    let home = String::from_utf8(body).unwrap();
    let link = home.split("href=\"").nth(1).unwrap().split('"').next().unwrap().replace("&amp;", "&");
    let (status, _, body) = gateway.http("GET", &link, "", b"").await;
    assert_eq!(status, 200);
    assert!(String::from_utf8(body).unwrap().contains("hello"));
    let missing = gateway.signer.app(&gateway.origin(), AppId::from_bits(2));
    assert_eq!(gateway.http("GET", &missing, "", b"").await.0, 404);
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_refuses_new_ones() {
    let gateway = Gateway::start().await;
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    assert_eq!(gateway.http("GET", "/healthz", "", b"").await.0, 200);
    gateway.stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(4), gateway.served).await.unwrap().unwrap();
    let mut rest = Vec::new();
    assert_eq!(idle.read_to_end(&mut rest).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(gateway.address).await.is_err());
}

/// Web functions that refuse everything, each in its own name.
struct Refusing;

#[async_trait::async_trait]
impl WebApps for Refusing {
    fn endpoint(&self, address: &WebAddress) -> Option<WebEndpoint> {
        let label = match address {
            WebAddress::Port(port @ 4_001) => format!("port {port}"),
            WebAddress::Host(host) if host == "a--b.localhost" => host.clone(),
            _ => return None,
        };
        let (function, method) = (FunctionId::from_bits(1), String::new());
        Some(WebEndpoint { function, method, label, requires_proxy_auth: false })
    }
    async fn admit(&self, _endpoint: &WebEndpoint, _key: &str, _secret: &str) -> Result<bool> {
        Ok(false)
    }
    async fn begin(&self, endpoint: &WebEndpoint, _head: WebHead) -> Result<Begun> {
        Err(Error::precondition(format!("this is {}", endpoint.label)))
    }
}

#[tokio::test]
async fn the_public_listener_serves_web_functions_by_the_host_that_a_request_names() {
    let gateway = Gateway::with_web(Some(WebIngress::new(Arc::new(Refusing)))).await;
    let own = gateway.address.port();
    let of_platform = "ok\n";
    for (host, path, expected) in [
        (gateway.address.to_string(), "/healthz", of_platform),
        ("127.0.0.1".to_owned(), "/healthz", of_platform),
        ("127.0.0.1:4000".to_owned(), "/healthz", of_platform),
        ("example.com:80".to_owned(), "/healthz", of_platform),
        ("127.0.0.1:4001".to_owned(), "/healthz", "this is port 4001\n"),
        ("example.com:4001".to_owned(), "/", "this is port 4001\n"),
        (format!("A--b.localhost:{own}"), "/healthz", "this is a--b.localhost\n"),
        ("a--b.localhost.".to_owned(), "/", "this is a--b.localhost\n"),
    ] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, expected, "{host}");
    }
    // RPCs of the platform are never asked for there.
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let request = "POST /modal.client.ModalClient/ClientHello HTTP/1.1\r\nHost: a--b.localhost\r\n\
        Content-Type: application/grpc\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    // They need HTTP/2, which says who answers.
    assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
}
