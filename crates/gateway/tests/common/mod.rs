//! A gateway over stand-ins for what is behind it, and a plain HTTP/1 client.
#![allow(dead_code)] // Each test file uses its part.
#![allow(clippy::unwrap_used)] // What fails here fails the test.

use bytes::Bytes;
use evoke_core::{AppId, BlobId, Error, ImageId, Result, SystemClock, UnixMs};
use evoke_gateway::{
    AppPage, AppRow, BlobStore, BlobWriter, Identity, ImagePage, Ingress, Listener, PageData, Platform,
    UrlSigner, VolumeStore, WebIngress, WorkspaceToken,
};
use evoke_proto::{CallContext, Dispatcher, Status, api};
use futures::{Stream, StreamExt};
use md5::{Digest, Md5};
use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub const TOKEN: (&str, &str) = ("ak-test", "as-test");

/// A running gateway; it stops with its handle.
pub struct Gateway {
    pub address: SocketAddr,
    pub signer: UrlSigner,
    pub ingress: Ingress,
    pub stop: watch::Sender<bool>,
    pub served: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::with_web(None).await
    }

    pub async fn with_web(web: Option<WebIngress>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = UrlSigner::new(&[3; 32], Arc::new(SystemClock));
        let blobs = Arc::new(Blobs { folder: folder.path().to_owned(), parts: Mutex::default() });
        let ingress = Ingress {
            service: Arc::new(dispatcher(signer.clone())),
            http: Arc::new(Platform::new(signer.clone(), blobs, Arc::new(NoVolumes), Arc::new(Pages))),
            authenticator: Arc::new(WorkspaceToken::new(TOKEN.0, TOKEN.1)),
            web,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let serving = ingress.clone();
        let served = tokio::spawn(async move {
            let origin = format!("http://{address}");
            serving.serve(Listener::Tcp(listener), Identity::Public, origin, stopped).await;
        });
        Self { address, signer, ingress, stop, served, _folder: folder }
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends a request and gives the status, the head and the body of the answer.
    pub async fn http(&self, method: &str, url: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let path = url.strip_prefix(&self.origin()).unwrap_or(url);
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let body = answer.split_off(end);
        let head = String::from_utf8(answer).unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head, body)
    }
}

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Counts the calls that are being waited for.
struct Waiting;

impl Waiting {
    fn new() -> Self {
        WAITING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::SeqCst);
    }
}

fn dispatcher(signer: UrlSigner) -> Dispatcher {
    let get_signer = signer.clone();
    let lines = |_context: CallContext, _request: api::AppGetLogsRequest| async move {
        Ok::<std::pin::Pin<Box<dyn Stream<Item = Result<_, Status>> + Send>>, Status>(
            futures::stream::iter((0..2).map(|n: u32| {
                Ok(api::TaskLogsBatch { entry_id: n.to_string(), app_done: n == 1, ..Default::default() })
            }))
            .boxed(),
        )
    };
    Dispatcher::builder()
        .unary(api::rpc::ClientHello, |context, ()| async move {
            context.warn("ärger: 100%");
            Ok(api::ClientHelloResponse::default())
        })
        .unary(api::rpc::ContainerHello, |context, _request| async move {
            Err(Status::not_found(format!("{:?} at {}", context.principal.task(), context.origin)))
        })
        .unary(api::rpc::BlobCreate, move |context, request: api::BlobCreateRequest| {
            let signer = signer.clone();
            async move {
                let blob = BlobId::from_bits(request.content_length as u128);
                let origin = &context.origin;
                use api::blob_create_response::UploadTypesOneof;
                let upload = if request.content_length < 10 << 20 {
                    UploadTypesOneof::UploadUrls(api::UploadUrlList {
                        items: vec![signer.blob_put(origin, blob)],
                    })
                } else {
                    let half = request.content_length / 2 + 1;
                    UploadTypesOneof::Multiparts(api::MultiPartUploadList {
                        items: vec![api::MultiPartUpload {
                            part_length: half,
                            upload_urls: (1..=2).map(|n| signer.blob_part(origin, blob, n)).collect(),
                            completion_url: signer.blob_complete(origin, blob),
                        }],
                    })
                };
                Ok(api::BlobCreateResponse {
                    blob_ids: vec![blob.to_string()],
                    upload_types_oneof: Some(upload),
                    ..Default::default()
                })
            }
        })
        .unary(api::rpc::BlobGet, move |context, request: api::BlobGetRequest| {
            let blob = request.blob_id.parse().map_err(|_| Status::invalid("not a blob's id"));
            let url = blob.map(|blob| get_signer.blob_get(&context.origin, blob));
            async move { Ok(api::BlobGetResponse { download_url: url? }) }
        })
        .unary(api::rpc::AppHeartbeat, |_context, _request| async {
            let _waiting = Waiting::new();
            futures::future::pending().await
        })
        .unary(api::rpc::WorkspaceNameLookup, |_context, ()| async {
            let username = format!("{} waiting", WAITING.load(Ordering::SeqCst));
            Ok(api::WorkspaceNameLookupResponse { username, ..Default::default() })
        })
        .unary(api::rpc::AppCreate, |_context, request: api::AppCreateRequest| async move {
            Ok(api::AppCreateResponse { app_id: request.description.len().to_string(), ..Default::default() })
        })
        .server_stream(api::rpc::AppGetLogs, lines)
        .build()
}

/// Parts in memory, finished blobs in files.
pub struct Blobs {
    folder: PathBuf,
    parts: Mutex<HashMap<BlobId, Vec<u32>>>,
}

impl Blobs {
    fn path(&self, blob: BlobId) -> PathBuf {
        self.folder.join(blob.to_string())
    }
}

pub struct Writer {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl BlobWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<String> {
        std::fs::write(&self.path, &self.bytes).unwrap();
        Ok(hex(&Md5::digest(&self.bytes)))
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl BlobStore for Blobs {
    fn write_part(&self, blob: BlobId, number: u32) -> Result<Box<dyn BlobWriter>> {
        if self.path(blob).exists() {
            return Err(Error::not_found("finished"));
        }
        self.parts.lock().unwrap().entry(blob).or_default().push(number);
        let path = self.folder.join(format!("{blob}.{number}"));
        Ok(Box::new(Writer { path, bytes: vec![] }))
    }

    fn complete(&self, blob: BlobId) -> Result<String> {
        let mut numbers: Vec<u32> =
            self.parts.lock().unwrap().get(&blob).into_iter().flatten().copied().collect();
        numbers.sort();
        numbers.dedup();
        let parts: Vec<Vec<u8>> = numbers
            .iter()
            .map(|number| std::fs::read(self.folder.join(format!("{blob}.{number}"))))
            .collect::<std::io::Result<_>>()
            .map_err(|_| Error::precondition("a part is missing"))?;
        std::fs::write(self.path(blob), parts.concat()).unwrap();
        Ok(match parts.as_slice() {
            [] => return Err(Error::not_found("no such blob")),
            [only] => hex(&Md5::digest(only)),
            many => {
                let digests: Vec<u8> = many.iter().flat_map(|part| Md5::digest(part).to_vec()).collect();
                format!("{}-{}", hex(&Md5::digest(digests)), many.len())
            }
        })
    }

    fn open(&self, blob: BlobId) -> Result<(File, u64)> {
        let file = File::open(self.path(blob)).map_err(|_| Error::not_found("no such blob"))?;
        let length = file.metadata().unwrap().len();
        Ok((file, length))
    }
}

struct NoVolumes;

impl VolumeStore for NoVolumes {
    fn put_block(&self, hash: &str, _bytes: &[u8]) -> Result<()> {
        Err(Error::invalid(format!("no room for {hash}")))
    }
    fn open(&self, content: &str) -> Result<(File, u64)> {
        Err(Error::not_found(format!("no {content}")))
    }
}

struct Pages;

#[async_trait::async_trait]
impl PageData for Pages {
    async fn apps(&self) -> Result<Vec<AppRow>> {
        Ok(vec![self.app(AppId::from_bits(1)).await?.app])
    }
    async fn app(&self, app: AppId) -> Result<AppPage> {
        if app != AppId::from_bits(1) {
            return Err(Error::not_found(format!("There is no app {app}")));
        }
        let app = AppRow {
            id: app,
            name: "hello".into(),
            environment: "main".into(),
            state: "running".into(),
            created: UnixMs(1_767_225_599_000),
            stopped: None,
            containers: 1,
        };
        Ok(AppPage { app, functions: vec![], calls: vec![], containers: vec![], logs: vec![] })
    }
    async fn image(&self, image: ImageId) -> Result<ImagePage> {
        Err(Error::not_found(format!("There is no image {image}")))
    }
}

/// A gRPC request body of one message.
pub fn framed(message: &impl prost::Message) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((message.encoded_len() as u32).to_be_bytes());
    bytes.extend(message.encode_to_vec());
    bytes.into()
}
