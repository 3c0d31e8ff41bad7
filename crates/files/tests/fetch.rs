//! The HTTP client against a server that misbehaves.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use common::{Answer, Server};
use evoke_files::{
    ContentHash, HostEnv,
    fetch::{Download, FetchError, Fetcher, Limits},
};
use std::{fs, sync::Mutex, time::Duration};

fn fetcher(host: &HostEnv) -> Fetcher {
    let quick = Duration::from_millis(500);
    let limits = Limits {
        connect_timeout: quick,
        answer_timeout: quick,
        idle_timeout: quick,
        attempts_max: 3,
        backoff: Duration::from_millis(1),
        ..Limits::default()
    };
    Fetcher::with_limits(host, limits).unwrap()
}

#[test]
fn transient_answers_are_tried_again_and_others_given_back() {
    let server = Server::start(|request, number| match request.target.as_str() {
        "/flaky" if number < 2 => Answer::status(503),
        "/flaky" => Answer::ok("fine"),
        "/down" => Answer::status(502),
        _ => Answer::status(404).header("x-why", "none"),
    });
    let fetcher = fetcher(&HostEnv::default());
    assert_eq!(fetcher.get_bytes(&format!("{}/flaky", server.url), &[], 100).unwrap(), b"fine");
    assert_eq!(server.requests().len(), 3);
    let missing = fetcher.get(&format!("{}/missing", server.url), &[]).unwrap();
    assert_eq!((missing.status, missing.header("x-why")), (404, Some("none")));
    let error = fetcher.get_bytes(&format!("{}/down", server.url), &[], 100).unwrap_err();
    assert!(error.is_unreachable() && error.status() == Some(502), "{error}");
    let error = fetcher.get_bytes(&format!("{}/flaky", server.url), &[], 3).unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { .. }));
    let error = fetcher.get("http://127.0.0.1:1/", &[]).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }) && error.hint().is_some(), "{error}");
    assert!(matches!(fetcher.get("ftp://x/", &[]), Err(FetchError::Url { .. })));
}

#[test]
fn redirects_drop_credentials_for_other_hosts() {
    let other = Server::start(|_, _| Answer::ok("there"));
    let target = other.url.clone();
    let first = Server::start(move |request, _| match request.target.as_str() {
        "/a" => Answer::status(302).header("location", "b?x=1"),
        "/loop" => Answer::status(301).header("location", "/loop"),
        _ => Answer::status(307).header("location", format!("{target}/c")),
    });
    let fetcher = fetcher(&HostEnv::default());
    let url = first.url.replace("http://", "http://user:pass%20word@");
    let reply = fetcher.get(&format!("{url}/a"), &[]).unwrap();
    assert_eq!(reply.url, format!("{}/c", other.url));
    assert_eq!(reply.bytes(10).unwrap(), b"there");
    let basic = Some("Basic dXNlcjpwYXNzIHdvcmQ=");
    for request in first.requests() {
        assert_eq!(request.headers.get("authorization").map(String::as_str), basic, "{}", request.target);
    }
    assert!(!other.requests()[0].headers.contains_key("authorization"));
    fetcher.get(&format!("{}/a", first.url), &[("authorization", "Bearer t")]).unwrap();
    assert_eq!(first.requests()[3].headers["authorization"], "Bearer t");
    assert!(!other.requests()[1].headers.contains_key("authorization"));
    assert!(matches!(fetcher.get(&format!("{}/loop", first.url), &[]), Err(FetchError::Redirects { .. })));
}

#[test]
fn the_proxy_is_used_except_where_it_is_not_wanted() {
    let proxy = Server::start(|_, _| Answer::ok("by proxy"));
    let direct = Server::start(|_, _| Answer::ok("direct"));
    let with_password = proxy.url.replace("http://", "http://me:secret@");
    let via = HostEnv::of_pairs([("http_proxy", with_password.as_str())]);
    for _ in 0..2 {
        let body = fetcher(&via).get_bytes("http://somewhere.test:81/x?y", &[], 100).unwrap();
        assert_eq!(body, b"by proxy");
    }
    let seen = proxy.requests();
    assert_eq!((seen.len(), seen[0].target.as_str()), (2, "http://somewhere.test:81/x?y"));
    assert_eq!(seen[0].headers["host"], "somewhere.test:81");
    assert_eq!(seen[0].headers["proxy-authorization"], "Basic bWU6c2VjcmV0");
    // https is tunnelled.
    let tunnel = Server::start(|_, _| Answer::status(403));
    let via = HostEnv::of_pairs([("HTTPS_PROXY", tunnel.url.as_str())]);
    fetcher(&via).get("https://somewhere.test/x", &[]).unwrap_err();
    let asked = &tunnel.requests()[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("CONNECT", "somewhere.test:443"));
    let except = HostEnv::of_pairs([("http_proxy", proxy.url.as_str()), ("NO_PROXY", "127.0.0.1")]);
    assert_eq!(fetcher(&except).get_bytes(&direct.url, &[], 100).unwrap(), b"direct");
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let body: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let content = body.clone();
    let server = Server::start(move |request, number| {
        let from = request
            .headers
            .get("range")
            .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
        let tagged = |answer: Answer| answer.header("etag", "\"v1\"");
        let answer = match from {
            None => tagged(Answer::ok(content.clone())),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
                let part = Answer { status: 206, ..Answer::ok(&content[from..]) };
                tagged(part.header("content-range", range))
            }
        };
        Answer { cut: (number < 3).then_some(20_000), ..answer }
    });
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("file");
    let progress = Mutex::new((0, None));
    let tell = |done, whole| *progress.lock().unwrap() = (done, whole);
    let what = Download {
        url: &server.url,
        sha256: Some(ContentHash::of(&body)),
        progress: Some(&tell),
        ..Download::default()
    };
    let done = fetcher(&HostEnv::default()).download(&what, &target).unwrap();
    assert_eq!((done.length, done.sha256), (100_000, ContentHash::of(&body)));
    assert_eq!(fs::read(&target).unwrap(), body);
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert_eq!(requests[3].headers["range"], "bytes=60000-");
    assert_eq!(requests[3].headers["if-range"], "\"v1\"");
    assert_eq!(*progress.lock().unwrap(), (100_000, Some(100_000)));
    assert!(!folder.path().join("file.part").exists());
}

#[test]
fn wrong_bytes_never_get_the_name() {
    let server = Server::start(|request, _| match request.headers.get("range") {
        Some(_) => Answer { status: 206, ..Answer::ok("tail").header("content-range", "bytes 4-7/8") },
        None => Answer::ok("new bits"),
    });
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("file");
    let fetcher = fetcher(&HostEnv::default());
    let what = Download { url: &server.url, sha256: Some(ContentHash::of(b"other")), ..Download::default() };
    let error = fetcher.download(&what, &target).unwrap_err();
    assert!(matches!(error, FetchError::Mismatch { what: "SHA-256", .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let what = Download { url: &server.url, length: Some(3), ..Download::default() };
    assert!(matches!(fetcher.download(&what, &target), Err(FetchError::TooLarge { .. })));
    // A left-over of another content is found out and replaced.
    fs::write(folder.path().join("file.part"), "old ").unwrap();
    let what =
        Download { url: &server.url, sha256: Some(ContentHash::of(b"new bits")), ..Download::default() };
    fetcher.download(&what, &target).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "new bits");
}

#[test]
fn a_body_that_trickles_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/layer", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\nconnection: close\r\n\r\n";
                let mut sent = std::io::Write::write_all(&mut stream, head);
                // Never silent for as long as the longest silence that is waited for.
                while sent.is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                    sent = std::io::Write::write_all(&mut stream, b"x");
                }
            });
        }
    });
    let quick = Duration::from_millis(500);
    let limits = Limits {
        idle_timeout: quick,
        slow_window: Duration::from_millis(200),
        slow_bytes_min: 1_000,
        attempts_max: 2,
        backoff: Duration::from_millis(1),
        ..Limits::default()
    };
    let fetcher = Fetcher::with_limits(&HostEnv::default(), limits).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let what = Download { url: &url, length: Some(100_000), ..Download::default() };
    let error = fetcher.download(&what, &folder.path().join("layer")).unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("bytes in 200ms"), "{error}");
    assert!(!folder.path().join("layer").exists());
    let error = fetcher.get_bytes(&url, &[], 1 << 20).unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("bytes in 200ms"), "{error}");
}

#[test]
fn a_server_that_never_answers_is_given_up_before_all_attempts() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/document", listener.local_addr().unwrap());
    let limits = Limits {
        answer_timeout: Duration::from_millis(100),
        patience: Duration::from_millis(150),
        attempts_max: 1_000,
        backoff: Duration::from_millis(1),
        ..Limits::default()
    };
    let fetcher = Fetcher::with_limits(&HostEnv::default(), limits).unwrap();
    // The connection is accepted by the kernel alone.
    let error = fetcher.get_bytes(&url, &[], 1 << 20).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let what = Download { url: &url, ..Download::default() };
    let error = fetcher.download(&what, &folder.path().join("layer")).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    drop(listener);
}
