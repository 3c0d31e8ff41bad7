//! The gRPC codec against bodies made by hand.

use super::*;
use bytes::BytesMut;
use evoke_core::{Principal, TaskId};
use http_body_util::{Full, StreamBody};
use prost::Message;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{CallContext, Dispatcher, Peer, api, encode, router};

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flag];
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    bytes
}

fn request<B>(path: &str, body: B) -> Request<B> {
    Request::builder()
        .version(Version::HTTP_2)
        .uri(path)
        .header("content-type", "application/grpc+proto")
        .body(body)
        .unwrap()
}

fn client() -> Caller {
    caller(Principal::Client { token_id: "ak-1".into(), view: None })
}

fn caller(principal: Principal) -> Caller {
    Caller { principal, peer: Peer::Local, origin: "http://localhost".into() }
}

fn dispatcher() -> Arc<dyn Service> {
    let echo = |context: CallContext, request: api::AppCreateRequest| async move {
        context.warn("100% old");
        Ok(api::AppCreateResponse { app_id: request.description, ..Default::default() })
    };
    let lines = |_context: CallContext, _request: api::AppGetLogsRequest| async move {
        let batch = |n: u32| Ok(api::TaskLogsBatch { entry_id: n.to_string(), ..Default::default() });
        Ok(futures::stream::iter((0..3).map(batch)).chain(futures::stream::pending()))
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
            .unary(api::rpc::AppHeartbeat, |_context, _request| futures::future::pending())
            .unary(api::rpc::AppStop, |_context, _request| async { panic!("a defect") })
            .server_stream(api::rpc::AppGetLogs, lines)
            .client_stream(router::rpc::TaskExecStdinWriteStream, count)
            .build(),
    )
}

/// The code, the decoded message and the body of an answer.
async fn answer(response: Response<GrpcBody>) -> (u8, String, Bytes, HeaderMap) {
    let (head, body) = response.into_parts();
    assert_eq!(head.status, StatusCode::OK);
    let collected = body.collect().await.unwrap();
    let map = collected.trailers().cloned().unwrap_or(head.headers);
    let code = map["grpc-status"].to_str().unwrap().parse().unwrap();
    let message = map.get("grpc-message").map(|m| m.to_str().unwrap().to_owned()).unwrap_or_default();
    let message = percent_encoding::percent_decode_str(&message).decode_utf8().unwrap().into_owned();
    (code, message, collected.to_bytes(), map)
}

async fn call<B>(request: Request<B>, caller: Caller) -> (u8, String, Bytes, HeaderMap)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: fmt::Display,
{
    answer(Grpc::default().serve(dispatcher(), request, caller).await).await
}

const CREATE: &str = "/modal.client.ModalClient/AppCreate";

fn create_body(description: &str) -> Vec<u8> {
    framed(0, &encode(&api::AppCreateRequest { description: description.into(), ..Default::default() }))
}

#[tokio::test]
async fn answers_a_unary_call_with_its_warnings() {
    let body = Full::new(Bytes::from(create_body("hello")));
    let (code, _, body, trailers) = call(request(CREATE, body), client()).await;
    assert_eq!(code, 0);
    assert_eq!(trailers["x-modal-warning"], "100%25 old");
    assert_eq!(body[0], 0);
    assert_eq!(api::AppCreateResponse::decode(&body[5..]).unwrap().app_id, "hello");
}

#[tokio::test]
async fn joins_messages_that_arrive_byte_by_byte() {
    let big = "x".repeat(COPY_TEST_LEN);
    for size in [1, 7, 5, 70_000] {
        let bytes = create_body(&big);
        let chunks: Vec<_> = bytes
            .chunks(size)
            .map(|c| Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::copy_from_slice(c))))
            .collect();
        let body = StreamBody::new(futures::stream::iter(chunks));
        let (code, _, body, _) = call(request(CREATE, body), client()).await;
        assert_eq!((code, api::AppCreateResponse::decode(&body[5..]).unwrap().app_id.len()), (0, big.len()));
    }
}
const COPY_TEST_LEN: usize = 100_000;

#[tokio::test]
async fn refuses_what_it_cannot_read() {
    let mut two = create_body("a");
    two.extend(create_body("b"));
    let mut huge = vec![0];
    huge.extend(u32::MAX.to_be_bytes());
    let cases: [(Vec<u8>, u8, &str); 6] = [
        (framed(1, b"x"), 12, "Compressed"),
        (huge, 3, "over the limit"),
        (vec![], 3, "no message"),
        (two, 3, "more than one"),
        (create_body("abc")[..6].to_vec(), 3, "ends within"),
        (framed(0, &[0xFF; 3]), 3, "does not decode"),
    ];
    for (bytes, expected, part) in cases {
        let (code, message, ..) = call(request(CREATE, Full::new(Bytes::from(bytes))), client()).await;
        assert_eq!(code, expected, "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn names_what_is_not_served() {
    let empty = || Full::new(Bytes::from(framed(0, b"")));
    let (code, message, ..) = call(request("/modal.client.ModalClient/AppList", empty()), client()).await;
    assert_eq!((code, message.as_str()), (12, "AppList is not served by this Evoke version"));
    let (code, message, ..) = call(request("/a.B/C", empty()), client()).await;
    assert_eq!((code, message.as_str()), (12, "/a.B/C is not served by this Evoke version"));
}

#[tokio::test]
async fn refuses_callers_by_the_table() {
    let body = || Full::new(Bytes::from(create_body("a")));
    let (code, message, ..) = call(request(CREATE, body()), caller(Principal::Anonymous)).await;
    assert_eq!(code, 16);
    assert!(message.contains("eval \"$(evoke env)\""), "{message}");
    let hello = "/modal.client.ModalClient/ContainerHello";
    assert_eq!(call(request(hello, body()), client()).await.0, 7);
    let task = TaskId::from_bits(1);
    let tokens = "/modal.client.ModalClient/TokensList";
    assert_eq!(call(request(tokens, body()), caller(Principal::Container(task))).await.0, 7);
}

#[tokio::test]
async fn keeps_deadlines_of_unary_calls_and_of_streams() {
    let body = || Full::new(Bytes::from(framed(0, b"")));
    for (path, messages) in [("AppHeartbeat", 0), ("AppGetLogs", 3)] {
        let mut request = request(&format!("/modal.client.ModalClient/{path}"), body());
        request.headers_mut().insert("grpc-timeout", "20m".parse().unwrap());
        let (code, _, mut body, _) = call(request, client()).await;
        assert_eq!(code, 4);
        let mut seen = 0;
        while !body.is_empty() {
            let mut prefix = body.split_to(5);
            prefix.advance(1);
            body.advance(prefix.get_u32() as usize);
            seen += 1;
        }
        assert_eq!(seen, messages);
    }
}

#[tokio::test]
async fn takes_a_stream_of_requests() {
    let mut bytes = framed(0, b"");
    bytes.extend(framed(0, b""));
    let path = "/modal.task_command_router.TaskCommandRouter/TaskExecStdinWriteStream";
    let (code, message, ..) = call(request(path, Full::new(Bytes::from(bytes))), client()).await;
    assert_eq!((code, message.as_str()), (5, "2 messages"));
}

#[tokio::test]
async fn a_panic_is_an_internal_error() {
    let body = Full::new(Bytes::from(framed(0, b"")));
    let (code, ..) = call(request("/modal.client.ModalClient/AppStop", body), client()).await;
    assert_eq!(code, 13);
}

#[tokio::test]
async fn a_message_over_the_budget_waits_for_its_turn() {
    let grpc = Grpc { budget: Budget::new(128 << 10) };
    let held = grpc.budget.take(100 << 10).await;
    let done = Arc::new(AtomicBool::new(false));
    let flag = done.clone();
    let task = tokio::spawn(async move {
        let big = Full::new(Bytes::from(create_body(&"x".repeat(COPY_TEST_LEN))));
        let response = grpc.serve(dispatcher(), request(CREATE, big), client()).await;
        flag.store(true, Ordering::SeqCst);
        answer(response).await.0
    });
    tokio::task::yield_now().await;
    assert!(!done.load(Ordering::SeqCst));
    drop(held);
    assert_eq!(task.await.unwrap(), 0);
}

#[test]
fn long_text_is_cut_between_characters() {
    let mut text = "a".repeat(4095);
    text.push('ü');
    let response = respond::failure(Status::internal(text), &[]);
    assert_eq!(response.headers()["grpc-message"].len(), 4095);
}

#[test]
fn recognises_grpc_by_its_content_type() {
    let is = |value: &'static str| {
        let mut map = HeaderMap::new();
        map.insert("content-type", value.parse().unwrap());
        is_grpc(&map)
    };
    assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc;x=1"));
    assert!(!is("application/grpc-web") && !is("text/html") && !is_grpc(&HeaderMap::new()));
}

#[tokio::test]
async fn the_prefix_of_a_large_reply_stands_alone() {
    let mut expected = BytesMut::new();
    expected.extend_from_slice(&[0, 0, 1, 0, 0]);
    let response = respond::unary(Bytes::from(vec![1u8; 1 << 16]), &[]);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, expected.freeze());
}
