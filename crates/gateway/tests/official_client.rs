//! The official client against the gateway. Needs a Python with the client installed, so it only runs when
//! asked for: `EVOKE_TEST_PYTHON=…/python cargo test -p evoke-gateway --test official_client -- --ignored`.

mod common;

use common::{Gateway, TOKEN};
use evoke_core::TaskId;
use evoke_proto::worker::{ContainerIngress, ContainerListener};
use std::process::Stdio;
use std::sync::Arc;

const SCRIPT: &str = r#"
import asyncio, os, warnings, sys
import modal
from modal.client import _Client
from modal._utils.blob_utils import blob_upload, blob_download
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

async def client_side(client):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        await client.stub.ClientHello(Empty())
    print("hello", "ärger: 100%" in " ".join(str(w.message) for w in seen))
    try:
        await client.stub.AppList(api_pb2.AppListRequest())
    except Exception as e:
        print(type(e).__name__, e)
    reply = await client.stub.AppCreate(api_pb2.AppCreateRequest(description="x" * 30_000_000))
    print("big", reply.app_id)
    entries = [b.entry_id async for b in client.stub.AppGetLogs.unary_stream(api_pb2.AppGetLogsRequest())]
    print("logs", entries)
    for size in (3_000_000, 20_000_000):
        data = os.urandom(size)
        blob_id = await blob_upload(data, client.stub)
        print("blob", size, await blob_download(blob_id, client.stub) == data)
    calls = [client.stub.AppCreate(api_pb2.AppCreateRequest(description="y" * n)) for n in range(500)]
    waiting = asyncio.create_task(client.stub.AppHeartbeat(api_pb2.AppHeartbeatRequest()))
    while not (await client.stub.WorkspaceNameLookup(Empty())).username == "1 waiting":
        await asyncio.sleep(0.01)
    waiting.cancel()
    while not (await client.stub.WorkspaceNameLookup(Empty())).username == "0 waiting":
        await asyncio.sleep(0.01)
    print("cancelled")
    print("many", sum(int(r.app_id) for r in await asyncio.gather(*calls)))

async def main():
    url = os.environ["URL"]
    good = (os.environ["TOKEN_ID"], os.environ["TOKEN_SECRET"])
    async with _Client(url, api_pb2.CLIENT_TYPE_CLIENT, good) as client:
        await client_side(client)
    async with _Client(url, api_pb2.CLIENT_TYPE_CLIENT, ("ak-bad", "as-bad")) as client:
        try:
            await client.stub.AppCreate(api_pb2.AppCreateRequest())
        except Exception as e:
            print(type(e).__name__, e)
    async with _Client(os.environ["UNIX"], api_pb2.CLIENT_TYPE_CONTAINER, None) as client:
        try:
            await client.stub.ContainerHello(Empty())
        except Exception as e:
            print(type(e).__name__, e)

asyncio.run(main())
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Python with the official client in EVOKE_TEST_PYTHON"]
async fn the_official_client_is_served() {
    let python = std::env::var("EVOKE_TEST_PYTHON").expect("EVOKE_TEST_PYTHON names a Python");
    let gateway = Gateway::start().await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("container.sock");
    let listener = ContainerListener::Unix(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (ingress, stop) = (gateway.ingress.clone(), gateway.stop.subscribe());
    let task = TaskId::from_bits(77);
    tokio::spawn(async move {
        let service = ingress.service.clone();
        ingress.serve_container(task, listener, Arc::from("http://127.0.0.1:9"), service, stop).await
    });
    let output = tokio::process::Command::new(python)
        .args(["-c", SCRIPT])
        .env("URL", gateway.origin())
        .env("UNIX", format!("unix://{}", socket.display()))
        .env("TOKEN_ID", TOKEN.0)
        .env("TOKEN_SECRET", TOKEN.1)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let expected = format!(
        "hello True\n\
         UnimplementedError AppList is not served by this Evoke version\n\
         big 30000000\n\
         logs ['0', '1']\n\
         blob 3000000 True\n\
         blob 20000000 True\n\
         cancelled\n\
         many 124750\n\
         AuthError This server needs its own token, and the request carried none or another one.\n\
         Set it for this shell with: eval \"$(evoke env)\"\n\
         From another machine, log in to it with: modal token new\n\
         NotFoundError Some({task}) at http://127.0.0.1:9\n"
    );
    assert_eq!(text, expected, "{}", String::from_utf8_lossy(&output.stderr));
}
