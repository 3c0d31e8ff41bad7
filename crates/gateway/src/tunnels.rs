//! Tunnels: connections to a port of this machine that lead to a port of a container, with TLS taken off on the way
//! where the tunnel has it. What passes is looked at by nobody.

use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::accept::{ACCEPT_PAUSE_MS, notice_the_dead};
use crate::connection::stopped;

/// Connections at a time through one mouth of a tunnel; further ones wait to be accepted.
const TUNNEL_CONNECTIONS_MAX: usize = 1_024;
/// How long a client may take to agree on how to encrypt, in milliseconds.
const HANDSHAKE_MS_MAX: u64 = 10_000;
/// How long the way to the container may take, in milliseconds.
const CONNECT_MS_MAX: u64 = 5_000;

/// Serves one mouth of a tunnel until `stop` turns true, or its sender is gone; then its connections are cut.
pub async fn serve_tunnel(
    listener: std::net::TcpListener,
    target: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let acceptor = tls.map(TlsAcceptor::from);
    let room = Arc::new(Semaphore::new(TUNNEL_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = room.clone().acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = stopped(&mut stop) => return Ok(()),
        };
        match accepted {
            Ok((stream, _)) => {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = relay(stream, target, acceptor).await {
                        tracing::debug!(%error, %target, "a connection through a tunnel broke off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to a tunnel failed");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}

async fn relay(client: TcpStream, target: SocketAddr, acceptor: Option<TlsAcceptor>) -> io::Result<()> {
    // Only latency is lost where this fails.
    let _ = client.set_nodelay(true);
    notice_the_dead(&client)?;
    match acceptor {
        None => join(client, target).await,
        Some(acceptor) => {
            let handshake = acceptor.accept(client);
            join(timeout(Duration::from_millis(HANDSHAKE_MS_MAX), handshake).await??, target).await
        }
    }
}

async fn join(mut client: impl AsyncRead + AsyncWrite + Unpin, target: SocketAddr) -> io::Result<()> {
    let connect = TcpStream::connect(target);
    let mut server = timeout(Duration::from_millis(CONNECT_MS_MAX), connect).await??;
    let _ = server.set_nodelay(true);
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalAuthority;
    use evoke_core::UnixMs;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    /// A server that answers a whole request with its length and what it was.
    async fn container() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).await.unwrap();
                    stream.write_all(format!("{} ", all.len()).as_bytes()).await.unwrap();
                    stream.write_all(&all).await.unwrap();
                });
            }
        });
        address
    }

    fn tunnel(target: SocketAddr, tls: Option<Arc<ServerConfig>>) -> (SocketAddr, watch::Sender<bool>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(serve_tunnel(listener, target, tls, stopped));
        (address, stop)
    }

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_stop_cuts() {
        let (address, stop) = tunnel(container().await, None);
        assert_eq!(ask(TcpStream::connect(address).await.unwrap()).await, "5 hello");
        let mut open = TcpStream::connect(address).await.unwrap();
        open.write_all(b"x").await.unwrap();
        stop.send_replace(true);
        let mut rest = Vec::new();
        // Reset or ended, but over.
        let _ = open.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn tls_ends_here_under_a_certificate_of_the_local_authority() {
        let folder = tempfile::tempdir().unwrap();
        let authority = LocalAuthority::load_or_make(folder.path(), NOW).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        // Signed by an authority that was read again.
        drop(authority);
        let authority = LocalAuthority::load_or_make(folder.path(), NOW).unwrap();
        let tls = authority.server(&names, &[b"h2", b"http/1.1"], NOW).unwrap();
        let (address, _stop) = tunnel(container().await, Some(tls));

        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.path().join("authority.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        for name in ["localhost", "127.0.0.1"] {
            let stream = TcpStream::connect(address).await.unwrap();
            let stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            assert_eq!(ask(stream).await, "5 hello");
        }
        let stream = TcpStream::connect(address).await.unwrap();
        assert!(connector.connect(ServerName::try_from("other.example").unwrap(), stream).await.is_err());
    }
}
