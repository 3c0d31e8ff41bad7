//! A bare server for the benchmarks to compare with: it speaks just enough of the protocol for one function's
//! `.remote()` and `.map`, keeps everything in memory, stores nothing, isolates nothing, writes no logs, and
//! runs the container entrypoint as a plain child process, by the official transport or by the lean ways that it is
//! told. It shares Evoke's way in (gRPC over hyper, and frames), so that what differs is what Evoke does behind it.

mod calls;
mod container;
mod service;

use anyhow::{Context, Result};
use clap::Parser;
use evoke_core::{Principal, TaskId};
use evoke_gateway::{Authenticator, HttpBody, HttpRoutes, Identity, Ingress, Listener};
use evoke_proto::grpc::Caller;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use service::Server;

/// The only container's id.
const TASK_BITS: u128 = 1;

/// What the command line says.
#[derive(Parser)]
struct Options {
    /// The interpreter that runs the container entrypoint.
    #[arg(long)]
    python: PathBuf,
    /// Where the container finds the app's module.
    #[arg(long)]
    module_folder: PathBuf,
    /// Where the container's arguments and output go.
    #[arg(long)]
    work_folder: PathBuf,
    /// The lean ways that the container takes, as EVOKE_LEAN lists them; `off` is the official entrypoint.
    #[arg(long, default_value = "off")]
    lean: String,
}

/// Anybody who says anything is a client.
struct Anybody;

impl Authenticator for Anybody {
    fn authenticate(&self, token_id: &str, _token_secret: &str) -> Option<Principal> {
        Some(Principal::Client { token_id: token_id.to_owned(), view: None })
    }
}

/// Nothing but gRPC is served.
struct NoHttp;

#[async_trait::async_trait]
impl HttpRoutes for NoHttp {
    async fn respond(&self, _request: Request<Incoming>, _caller: &Caller) -> Response<HttpBody> {
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    }
}

/// One thread is enough, and the fastest, for two connections.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let public = TcpListener::bind("127.0.0.1:0").await.context("binding the clients' address")?;
    let inside = TcpListener::bind("127.0.0.1:0").await.context("binding the container's address")?;
    let socket = options.work_folder.join("platform.sock");
    let frames = UnixListener::bind(&socket).context("binding the container's socket")?;
    let address = public.local_addr().context("reading the clients' address")?;
    let container_url = format!("http://{}", inside.local_addr().context("reading the container's address")?);
    let task = TaskId::from_bits(TASK_BITS);
    let server = Server::new(container::Launcher {
        python: options.python,
        module_folder: options.module_folder,
        work_folder: options.work_folder,
        server_url: container_url.clone(),
        socket,
        lean: options.lean,
        task,
    });
    let ingress = Ingress {
        service: Arc::new(service::dispatcher(&server)),
        http: Arc::new(NoHttp),
        authenticator: Arc::new(Anybody),
        web: None,
    };
    // Kept to the end: its sender's end would stop the listeners.
    let (stop, stopped) = watch::channel(false);
    for listener in [Listener::Tcp(inside), Listener::Unix(frames)] {
        let (containers, url, stopped) = (ingress.clone(), container_url.clone(), stopped.clone());
        tokio::spawn(async move {
            containers.serve(listener, Identity::Container(task), url, stopped).await;
        });
    }
    println!("ready at http://{address}");
    std::io::stdout().flush().context("saying that it is ready")?;
    ingress.serve(Listener::Tcp(public), Identity::Public, format!("http://{address}"), stopped).await;
    drop(stop);
    Ok(())
}
