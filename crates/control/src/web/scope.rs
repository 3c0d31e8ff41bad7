//! The arguments of a web function: `((scope,), {})` in pickle's protocol 4, the one form in which every version
//! of the official container takes them. Writes what ASGI's scopes consist of and nothing else.

use bytes::Bytes;
use evoke_proto::web::WebHead;
use percent_encoding::percent_decode;

/// A pickle under construction.
struct Pickle(Vec<u8>);

impl Pickle {
    fn text(&mut self, text: &str) {
        match u8::try_from(text.len()) {
            Ok(length) => self.0.extend([0x8c, length]),
            Err(_) => {
                self.0.push(b'X');
                self.length(text.len());
            }
        }
        self.0.extend(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        match u8::try_from(bytes.len()) {
            Ok(length) => self.0.extend([b'C', length]),
            Err(_) => {
                self.0.push(b'B');
                self.length(bytes.len());
            }
        }
        self.0.extend(bytes);
    }

    /// Heads are bounded far below 4 GiB by the gateway.
    fn length(&mut self, length: usize) {
        self.0.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn int(&mut self, number: i32) {
        self.0.push(b'J');
        self.0.extend(number.to_le_bytes());
    }

    fn dict(&mut self, fill: impl FnOnce(&mut Self)) {
        self.0.extend(b"}(");
        fill(self);
        self.0.push(b'u');
    }

    fn list(&mut self, fill: impl FnOnce(&mut Self)) {
        self.0.extend(b"](");
        fill(self);
        self.0.push(b'e');
    }

    fn pair(&mut self, first: impl FnOnce(&mut Self), second: impl FnOnce(&mut Self)) {
        first(self);
        second(self);
        self.0.push(0x86);
    }
}

/// The arguments for a request. `proxied` says that the container's own proxy will look for the name
/// `X-Forwarded-For` as browsers write it.
pub(crate) fn arguments(head: &WebHead, proxied: bool) -> Bytes {
    let mut p = Pickle(Vec::with_capacity(1024));
    p.0.extend(b"\x80\x04");
    p.dict(|p| scope(p, head, proxied));
    // The tuple of positional arguments, no keyword arguments, and the pair of both.
    p.0.extend(b"\x85}\x86.");
    p.0.into()
}

fn scope(p: &mut Pickle, head: &WebHead, proxied: bool) {
    let text = |p: &mut Pickle, key: &str, value: &str| {
        p.text(key);
        p.text(value);
    };
    text(p, "type", if head.websocket.is_some() { "websocket" } else { "http" });
    p.text("asgi");
    p.dict(|p| {
        text(p, "version", "3.0");
        // From 2.4 on a client that is gone makes sending fail, which the official container does not do; before,
        // frameworks listen for its message.
        text(p, "spec_version", "2.3");
    });
    text(p, "http_version", &head.http_version);
    text(p, "scheme", &head.scheme);
    text(p, "path", &percent_decode(head.raw_path.as_bytes()).decode_utf8_lossy());
    p.text("raw_path");
    p.bytes(head.raw_path.as_bytes());
    text(p, "root_path", "");
    p.text("query_string");
    p.bytes(&head.query);
    p.text("headers");
    p.list(|p| {
        for (name, value) in &head.headers {
            let name: &[u8] =
                if proxied && name.as_ref() == b"x-forwarded-for" { b"X-Forwarded-For" } else { name };
            p.pair(|p| p.bytes(name), |p| p.bytes(value));
        }
    });
    if let Some(client) = head.client {
        p.text("client");
        p.pair(|p| p.text(&client.ip().to_string()), |p| p.int(i32::from(client.port())));
    }
    match &head.websocket {
        Some(subprotocols) => {
            p.text("subprotocols");
            p.list(|p| subprotocols.iter().for_each(|protocol| p.text(protocol)));
        }
        None => {
            text(p, "method", &head.method);
            p.text("extensions");
            p.dict(|p| {
                p.text("http.response.trailers");
                p.dict(|_| {});
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// What Python makes of it.
    fn repr(pickle: &[u8]) -> String {
        let program = "import pickle, sys; print(pickle.load(sys.stdin.buffer))";
        let mut python = Command::new("python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        python.stdin.take().unwrap().write_all(pickle).unwrap();
        String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap()
    }

    fn head() -> WebHead {
        WebHead {
            method: "POST".into(),
            scheme: "http".into(),
            raw_path: "/a%20b/%C3%A9".into(),
            query: Bytes::from_static(b"x=1&y=%20"),
            headers: vec![
                (Bytes::from_static(b"host"), Bytes::from_static(b"h:1")),
                (Bytes::from_static(b"x-forwarded-for"), Bytes::from(vec![b'9'; 300])),
            ],
            http_version: "1.1".into(),
            client: Some("10.1.2.3:45678".parse().unwrap()),
            websocket: None,
        }
    }

    #[test]
    fn python_reads_an_http_scope() {
        let long = "9".repeat(300);
        let expected = format!(
            "(({{'type': 'http', 'asgi': {{'version': '3.0', 'spec_version': '2.3'}}, 'http_version': '1.1', \
             'scheme': 'http', 'path': '/a b/é', 'raw_path': b'/a%20b/%C3%A9', 'root_path': '', \
             'query_string': b'x=1&y=%20', 'headers': [(b'host', b'h:1'), (b'x-forwarded-for', b'{long}')], \
             'client': ('10.1.2.3', 45678), 'method': 'POST', 'extensions': {{'http.response.trailers': {{}}}}}},), {{}})\n"
        );
        assert_eq!(repr(&arguments(&head(), false)), expected);
    }

    #[test]
    fn python_reads_a_websocket_scope() {
        let head = WebHead {
            websocket: Some(vec!["chat".into(), "x".into()]),
            headers: vec![],
            client: None,
            ..head()
        };
        let read = repr(&arguments(&head, true));
        assert!(
            read.contains("'type': 'websocket'") && read.contains("'subprotocols': ['chat', 'x']"),
            "{read}"
        );
        assert!(!read.contains("method") && read.contains("'headers': []"), "{read}");
    }
}
