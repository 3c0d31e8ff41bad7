//! Frames made by hand, and callers that do not keep to the form.

use super::codec::{self, Frame, Kind};
use super::*;
use crate::grpc::{Caller, Grpc};
use crate::{CallContext, Dispatcher, Peer, Service, Status, api, encode, router};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evoke_core::{Principal, SeededEntropy, TaskId, UnixMs};
use futures::StreamExt;
use proptest::prelude::*;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, oneshot};

const CREATE: &str = "/modal.client.ModalClient/AppCreate";
const HEARTBEAT: &str = "/modal.client.ModalClient/AppHeartbeat";
const STOP: &str = "/modal.client.ModalClient/AppStop";
const LOGS: &str = "/modal.client.ModalClient/AppGetLogs";
const STDIN: &str = "/modal.task_command_router.TaskCommandRouter/TaskExecStdinWriteStream";

/// What calls left behind.
#[derive(Default)]
struct Seen {
    begun: Notify,
    dropped: Notify,
    logs: AtomicUsize,
}

struct OnDrop(Arc<Seen>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.dropped.notify_one();
    }
}

fn service(seen: &Arc<Seen>) -> Arc<dyn Service> {
    let (dropped, logs) = (seen.clone(), seen.clone());
    let echo = |context: CallContext, request: api::AppCreateRequest| async move {
        let header = context.header("x-all").unwrap_or_default().to_owned();
        let app_id = format!("{header}{}", context.idempotency_key().unwrap_or_default());
        if request.description == "warn" {
            context.warn("100% old");
        }
        Ok(api::AppCreateResponse { app_id, app_page_url: request.description, ..Default::default() })
    };
    let wait = move |_context: CallContext, _request: api::AppHeartbeatRequest| {
        let guard = OnDrop(dropped.clone());
        dropped.begun.notify_one();
        async move {
            let _guard = guard;
            futures::future::pending().await
        }
    };
    let fail = |_context: CallContext, _request: api::AppStopRequest| async {
        Err(Status::not_found("no such app").class_name_used())
    };
    let lines = move |_context: CallContext, _request: api::AppGetLogsRequest| {
        let logs = logs.clone();
        let line = move |_: u32| {
            logs.logs.fetch_add(1, Ordering::SeqCst);
            Ok(api::TaskLogsBatch { entry_id: "x".repeat(100_000), ..Default::default() })
        };
        async move { Ok(futures::stream::iter(0..40).map(line)) }
    };
    let count = |_context: CallContext, mut requests: crate::BoxStream<Result<_, Status>>| async move {
        let mut total = 0;
        while let Some(request) = requests.next().await {
            let _: router::TaskExecStdinWriteStreamRequest = request?;
            total += 1;
        }
        Err(Status::not_found(format!("{total} messages")))
    };
    Arc::new(
        Dispatcher::builder()
            .unary(api::rpc::AppCreate, echo)
            .unary(api::rpc::AppHeartbeat, wait)
            .unary(api::rpc::AppStop, fail)
            .server_stream(api::rpc::AppGetLogs, lines)
            .client_stream(router::rpc::TaskExecStdinWriteStream, count)
            .build(),
    )
}

/// The caller's end of a connection, and what the server saw.
struct Near {
    stream: DuplexStream,
    arrived: BytesMut,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
}

/// How an answer ended.
#[derive(Debug, PartialEq)]
struct Ended {
    code: u8,
    text: String,
    details: usize,
    warnings: usize,
}

impl Near {
    /// Connected, nothing said.
    fn silent() -> Self {
        let (stream, far) = tokio::io::duplex(1 << 20);
        let seen = Arc::<Seen>::default();
        let principal = Principal::Container(TaskId::new(UnixMs(1), &mut SeededEntropy::new(1)));
        let caller = Caller { principal, peer: Peer::Unix, origin: "http://localhost".into() };
        let (stop, stopped) = oneshot::channel::<()>();
        let (grpc, service) = (Grpc::default(), service(&seen));
        let served = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            serve(&grpc, service, far, caller, stop).await;
        });
        Self { stream, arrived: BytesMut::new(), seen, stop: Some(stop), served }
    }

    async fn greeted() -> Self {
        let mut near = Self::silent();
        near.raw(&PREFACE).await;
        near.frame(Kind::Hello, 0, &headers(&[("x-all", "hi ")])).await;
        let mut preface = [0; 8];
        near.stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        let hello = near.next().await.unwrap();
        assert_eq!((hello.kind, hello.call, hello.body.len()), (Kind::Hello, 0, 8));
        near
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn frame(&mut self, kind: Kind, call: u32, body: &[u8]) {
        self.raw(&codec::encode(kind, call, body)).await;
    }

    async fn request(&mut self, call: u32, path: &str, own: &[(&str, &str)]) {
        let mut body = BytesMut::new();
        body.put_u16_le(path.len() as u16);
        body.put_slice(path.as_bytes());
        body.put_slice(&headers(own));
        self.frame(Kind::Request, call, &body).await;
    }

    async fn call(&mut self, call: u32, path: &str, own: &[(&str, &str)], message: &[u8]) {
        self.request(call, path, own).await;
        self.raw(&codec::message(call, message.len(), message)).await;
    }

    /// The next frame; none at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = codec::decode(&mut self.arrived).unwrap() {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.arrived).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn ended(&mut self, call: u32) -> Ended {
        let frame = self.next().await.unwrap();
        assert_eq!((frame.kind, frame.call), (Kind::End, call));
        let mut body = frame.body;
        let code = body.get_u8();
        let long = |body: &mut Bytes| {
            let length = body.get_u32_le() as usize;
            body.split_to(length)
        };
        let text = String::from_utf8(long(&mut body).to_vec()).unwrap();
        let details = long(&mut body).len();
        Ended { code, text, details, warnings: body.get_u8().into() }
    }

    /// The reason that the server gave for ending the connection, which has ended.
    async fn fault(&mut self) -> String {
        let frame = self.next().await.unwrap();
        assert_eq!((frame.kind, frame.call), (Kind::Fault, 0));
        assert_eq!(self.next().await, None);
        (&mut self.served).await.unwrap();
        String::from_utf8(frame.body.to_vec()).unwrap()
    }
}

fn headers(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in pairs {
        out.put_u8(name.len() as u8);
        out.put_slice(name.as_bytes());
        out.put_u16_le(value.len() as u16);
        out.put_slice(value.as_bytes());
    }
    out
}

fn create(description: &str) -> Bytes {
    encode(&api::AppCreateRequest { description: description.into(), ..Default::default() })
}

#[tokio::test]
async fn a_call_has_the_headers_of_both_and_one_reply() {
    let mut near = Near::greeted().await;
    near.call(1, CREATE, &[("x-idempotency-key", "k")], &create("there")).await;
    let reply = near.next().await.unwrap();
    assert_eq!((reply.kind, reply.call), (Kind::Reply, 1));
    let reply = api::AppCreateResponse::decode(reply.body).unwrap();
    assert_eq!((reply.app_id.as_str(), reply.app_page_url.as_str()), ("hi k", "there"));
}

#[tokio::test]
async fn warnings_and_failures_come_with_the_end() {
    let mut near = Near::greeted().await;
    near.call(1, CREATE, &[], &create("warn")).await;
    assert_eq!(near.next().await.unwrap().kind, Kind::Message);
    let fine = Ended { code: 0, text: String::new(), details: 0, warnings: 1 };
    assert_eq!(near.ended(1).await, fine);
    near.call(2, STOP, &[], &[]).await;
    let failed = near.ended(2).await;
    assert_eq!((failed.code, failed.text.as_str(), failed.details > 0), (5, "no such app", true));
    near.call(3, "/x.Y/Z", &[], &[]).await;
    assert_eq!(near.ended(3).await.code, 12);
    near.call(4, "/modal.client.ModalClient/TokensList", &[], &[]).await;
    assert_eq!(near.ended(4).await.code, 7);
    near.call(5, CREATE, &[], b"\xff\xff").await;
    assert_eq!(near.ended(5).await.code, 3);
    near.call(6, HEARTBEAT, &[("grpc-timeout", "10m")], &[]).await;
    assert_eq!(near.ended(6).await.code, 4);
    near.request(7, CREATE, &[]).await;
    near.frame(Kind::End, 7, &[]).await;
    assert_eq!(near.ended(7).await.text, "The request has no message");
}

#[tokio::test]
async fn a_large_message_waits_for_its_grant_and_holds_nobody_up() {
    let mut near = Near::greeted().await;
    let large = create(&"x".repeat(3 * MESSAGE_FREE));
    near.request(1, CREATE, &[]).await;
    near.raw(&codec::message(1, large.len(), &[])).await;
    let grant = near.next().await.unwrap();
    assert_eq!((grant.kind, grant.call), (Kind::Grant, 1));
    let (first, rest) = large.split_at(PART_BYTES);
    near.frame(Kind::Part, 1, first).await;
    near.call(2, CREATE, &[], &create("in between")).await;
    assert_eq!(near.next().await.unwrap().call, 2);
    for part in rest.chunks(PART_BYTES) {
        near.frame(Kind::Part, 1, part).await;
    }
    let message = near.next().await.unwrap();
    assert_eq!((message.kind, message.call), (Kind::Message, 1));
    let (length, first) = codec::read_message(message.body).unwrap();
    let mut gathered = BytesMut::from(&first[..]);
    while gathered.len() < length {
        gathered.extend_from_slice(&near.next().await.unwrap().body);
    }
    assert_eq!(api::AppCreateResponse::decode(gathered).unwrap().app_page_url.len(), 3 * MESSAGE_FREE);
    assert_eq!(near.ended(1).await.code, 0);
}

#[tokio::test]
async fn a_message_over_the_limit_fails_its_call_alone() {
    let mut near = Near::greeted().await;
    near.request(1, CREATE, &[]).await;
    near.raw(&codec::message(1, usize::from(u16::MAX) << 16, &[])).await;
    let ended = near.ended(1).await;
    assert!(ended.code == 3 && ended.text.contains("413"), "{ended:?}");
    near.call(2, CREATE, &[], &create("")).await;
    assert_eq!(near.next().await.unwrap().call, 2);
}

#[tokio::test]
async fn a_call_that_is_taken_back_is_dropped() {
    let mut near = Near::greeted().await;
    near.call(1, HEARTBEAT, &[], &[]).await;
    near.seen.begun.notified().await;
    near.frame(Kind::Cancel, 1, &[]).await;
    near.seen.dropped.notified().await;
    // And so is one whose caller goes away.
    near.call(2, HEARTBEAT, &[], &[]).await;
    near.seen.begun.notified().await;
    drop(near.stream);
    near.seen.dropped.notified().await;
    near.served.await.unwrap();
}

#[tokio::test]
async fn a_stream_is_ahead_of_its_caller_by_a_bound() {
    let mut near = Near::greeted().await;
    near.call(1, LOGS, &[], &[]).await;
    for number in 0..11 {
        let (first, rest) = (near.next().await.unwrap(), near.next().await.unwrap());
        assert_eq!((first.kind, rest.kind), (Kind::Message, Kind::Part), "{number}");
    }
    // The bound was reached within the last one: the next begins once something is taken, other calls go on.
    near.call(2, CREATE, &[], &create("")).await;
    assert_eq!(near.next().await.unwrap().call, 2);
    assert!(near.seen.logs.load(Ordering::SeqCst) <= 12);
    let taken = 100_000_u32.to_le_bytes();
    for _ in 0..11 {
        near.frame(Kind::Grant, 1, &taken).await;
    }
    let mut messages = 11;
    let ended = loop {
        let frame = near.next().await.unwrap();
        match frame.kind {
            Kind::Message => {
                messages += 1;
                near.frame(Kind::Grant, 1, &taken).await;
            }
            Kind::Part => {}
            _ => break frame,
        }
    };
    assert_eq!((ended.kind, messages), (Kind::End, 40));
}

#[tokio::test]
async fn requests_stream_one_by_one() {
    let mut near = Near::greeted().await;
    near.request(1, STDIN, &[]).await;
    for _ in 0..3 {
        near.raw(&codec::message(1, 0, &[])).await;
        assert_eq!(near.next().await.unwrap().kind, Kind::Grant);
    }
    near.frame(Kind::End, 1, &[]).await;
    let ended = near.ended(1).await;
    assert_eq!((ended.code, ended.text.as_str()), (5, "3 messages"));
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_connection_with_a_reason() {
    type Nonsense = fn() -> Vec<u8>;
    let cases: [(Nonsense, &str); 7] = [
        (|| vec![0xff; 64], "over the limit"),
        (|| [0, 0, 0, 0, 77, 1, 0, 0, 0].to_vec(), "no kind 77"),
        (|| codec::encode(Kind::Part, 9, &[]).to_vec(), "no call 9"),
        (|| codec::encode(Kind::Request, 1, &[5]).to_vec(), "ends within a text"),
        (|| codec::encode(Kind::Reply, 1, &[]).to_vec(), "does not send"),
        (|| codec::encode(Kind::Request, 0, &[0, 0]).to_vec(), "begun before"),
        (|| codec::encode(Kind::Request, 1, &[0, 0, 1, b' ', 0, 0]).to_vec(), "names no header"),
    ];
    for (bytes, expected) in cases {
        let mut near = Near::greeted().await;
        near.raw(&bytes()).await;
        let fault = near.fault().await;
        assert!(fault.contains(expected), "{fault}");
    }
    let mut near = Near::greeted().await;
    near.request(1, CREATE, &[]).await;
    near.raw(&codec::message(1, 7, b"less")).await;
    assert!(near.fault().await.contains("announced 7 bytes and sent 4"));
}

#[tokio::test]
async fn a_connection_that_does_not_greet_is_ended() {
    let mut near = Near::silent();
    near.raw(b"\0evoke\0\x63").await;
    let mut answered = Vec::new();
    near.stream.read_to_end(&mut answered).await.unwrap();
    assert_eq!(answered, PREFACE, "the answer names the version that is spoken");
    let mut near = Near::silent();
    near.raw(&PREFACE).await;
    near.request(1, CREATE, &[]).await;
    let mut preface = [0; 8];
    near.stream.read_exact(&mut preface).await.unwrap();
    assert!(near.fault().await.contains("begins with a greeting"));
    // Half a frame, and then nothing.
    let mut near = Near::greeted().await;
    near.raw(&codec::encode(Kind::Request, 1, &[0; 40])[..20]).await;
    near.stream.shutdown().await.unwrap();
    assert_eq!(near.next().await, None);
}

#[tokio::test]
async fn a_stop_lets_end_what_was_begun_and_begins_no_more() {
    let mut near = Near::greeted().await;
    near.call(1, HEARTBEAT, &[("grpc-timeout", "300m")], &[]).await;
    near.call(2, CREATE, &[], &create("")).await;
    assert_eq!(near.next().await.unwrap().call, 2);
    near.stop.take().unwrap().send(()).unwrap();
    // Whether the stop was seen before this call is not known; that the call is answered is.
    near.call(3, CREATE, &[], &create("")).await;
    assert_eq!(near.next().await.unwrap().call, 3);
    assert_eq!(near.ended(1).await.code, 4);
    assert_eq!(near.next().await, None);
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        frames in prop::collection::vec((1_u8..=9, any::<u32>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
        cuts in prop::collection::vec(1_usize..200, 1..50),
    ) {
        let kinds = [Kind::Hello, Kind::Request, Kind::Message, Kind::Part, Kind::End, Kind::Cancel, Kind::Grant,
                     Kind::Reply, Kind::Fault];
        let expected: Vec<Frame> = frames
            .into_iter()
            .map(|(kind, call, body)| Frame { kind: kinds[usize::from(kind) - 1], call, body: body.into() })
            .collect();
        let mut bytes: Bytes =
            expected.iter().flat_map(|f| codec::encode(f.kind, f.call, &f.body)).collect::<Vec<u8>>().into();
        let (mut arrived, mut found, mut cuts) = (BytesMut::new(), Vec::new(), cuts.iter().cycle());
        while !bytes.is_empty() {
            let cut = bytes.len().min(*cuts.next().unwrap());
            arrived.extend_from_slice(&bytes.split_to(cut));
            while let Some(frame) = codec::decode(&mut arrived).unwrap() {
                found.push(frame);
            }
        }
        prop_assert!(arrived.is_empty());
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_bytes_break_the_readers(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut arrived = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = codec::decode(&mut arrived) {
            prop_assert!(frame.body.len() <= BODY_BYTES_MAX);
        }
        let bytes = Bytes::from(bytes);
        // What they find in it does not matter here.
        let _ = codec::read_request(bytes.clone());
        let _ = codec::read_headers(bytes.clone());
        let _ = codec::read_message(bytes.clone());
        let _ = codec::read_grant(bytes);
    }
}
