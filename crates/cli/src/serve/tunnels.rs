//! The ports of tunnels: bound on the address that clients use, kept by the holder so that a tunnel lives through a
//! server's death as its container does, and served by the gateway. The names under which they are kept say all that
//! there is to know of them.

use evoke_core::{Error, ErrorCode, TaskId, UnixMs};
use evoke_gateway::{LocalAuthority, serve_tunnel};
use evoke_proto::tunnels::{Entrance, Mouth, Tunnel, Tunnels};
use evoke_runtime::fdstore::FdStoreClient;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What the names of these listeners begin with in the descriptor store.
const KEPT: &str = "tunnel/";
/// Tunnels of one container at a time.
const TUNNELS_MAX: usize = 64;
const HTTP_2: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The tunnels.
pub(super) struct TunnelPorts {
    /// Where they are bound.
    ip: IpAddr,
    /// The name or address by which they are reached.
    host: String,
    folder: PathBuf,
    now: UnixMs,
    keeper: FdStoreClient,
    open: Mutex<BTreeMap<Tunnel, Open>>,
    /// What former servers left.
    kept: Mutex<Vec<(Tunnel, Mouth, OwnedFd)>>,
    /// Made when the first tunnel needs it, not by every server.
    authority: tokio::sync::OnceCell<Certificates>,
}

/// An open tunnel; its mouths are told to stop by being dropped.
#[derive(Default)]
struct Open(Vec<(Mouth, watch::Sender<bool>)>);

struct Certificates {
    plain: Arc<rustls::ServerConfig>,
    http2: Arc<rustls::ServerConfig>,
}

impl TunnelPorts {
    /// Tunnels beside the public listener, whose certificates' authority is in `folder`. Takes over what former
    /// servers left, out of all that the holder keeps.
    pub(super) fn new(
        public: &TcpListener,
        folder: PathBuf,
        now: UnixMs,
        keeper: FdStoreClient,
        kept: &mut Vec<(String, OwnedFd)>,
    ) -> io::Result<Self> {
        let mut mine = Vec::new();
        for (name, fd) in std::mem::take(kept) {
            match parse(&name) {
                Some((tunnel, mouth)) => mine.push((tunnel, mouth, fd)),
                None => kept.push((name, fd)),
            }
        }
        let ip = public.local_addr()?.ip();
        let host = if ip.is_unspecified() { Ipv4Addr::LOCALHOST.to_string() } else { ip.to_string() };
        let open = Mutex::default();
        let kept = Mutex::new(mine);
        Ok(Self { ip, host, folder, now, keeper, open, kept, authority: Default::default() })
    }

    fn open_ones(&self) -> MutexGuard<'_, BTreeMap<Tunnel, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves on what former servers left, where its container lives on: `address` knows it.
    pub(super) async fn adopt(&self, address: impl Fn(TaskId) -> Option<IpAddr>) -> Result<(), Error> {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        for (tunnel, mouth, fd) in kept {
            match address(tunnel.task) {
                Some(ip) => {
                    let target = SocketAddr::new(ip, tunnel.port);
                    let stop = self.serve(tunnel, mouth, TcpListener::from(fd), target).await?;
                    self.open_ones().entry(tunnel).or_default().0.push((mouth, stop));
                }
                None => self.forget(tunnel, mouth).await,
            }
        }
        Ok(())
    }

    async fn serve(
        &self,
        tunnel: Tunnel,
        mouth: Mouth,
        listener: TcpListener,
        target: SocketAddr,
    ) -> Result<watch::Sender<bool>, Error> {
        let tls = match mouth {
            Mouth::Raw => None,
            Mouth::Tls => Some(self.certificates().await?.plain.clone()),
            Mouth::TlsHttp2 => Some(self.certificates().await?.http2.clone()),
        };
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            if let Err(error) = serve_tunnel(listener, target, tls, stopped).await {
                tracing::error!(task = %tunnel.task, port = tunnel.port, %error, "a tunnel cannot be served");
            }
        });
        Ok(stop)
    }

    async fn certificates(&self) -> Result<&Certificates, Error> {
        let make = || async {
            let (folder, now) = (self.folder.clone(), self.now);
            let mut names = vec![self.host.clone(), "localhost".to_owned(), "127.0.0.1".to_owned()];
            names.extend(rustix::system::uname().nodename().to_str().ok().map(str::to_owned));
            names.retain(|name| !name.is_empty());
            names.dedup();
            let made = tokio::task::spawn_blocking(move || {
                let authority = LocalAuthority::load_or_make(&folder, now)?;
                let plain = authority.server(&names, &[], now)?;
                let http2 = authority.server(&names, HTTP_2, now)?;
                Ok(Certificates { plain, http2 })
            });
            made.await.map_err(|error| Error::internal(format!("making certificates: {error}")))?
        };
        self.authority.get_or_try_init(make).await
    }

    async fn begin(&self, tunnel: Tunnel, target: SocketAddr, mouth: Mouth) -> Result<Entrance, Error> {
        let failed = |why: &dyn std::fmt::Display| {
            Error::new(ErrorCode::Unavailable, format!("no port could be opened for a tunnel: {why}"))
        };
        let listener = TcpListener::bind((self.ip, 0)).map_err(|error| failed(&error))?;
        let port = listener.local_addr().map_err(|error| failed(&error))?.port();
        let name = name(tunnel, mouth);
        self.keeper.put(&name, listener.as_fd()).await.map_err(|error| failed(&error))?;
        let stop = self.serve(tunnel, mouth, listener, target).await?;
        self.open_ones().entry(tunnel).or_default().0.push((mouth, stop));
        Ok(Entrance { host: self.host.clone(), port })
    }

    async fn forget(&self, tunnel: Tunnel, mouth: Mouth) {
        if let Err(error) = self.keeper.remove(&name(tunnel, mouth)).await {
            tracing::warn!(task = %tunnel.task, port = tunnel.port, %error, "the holder still keeps a tunnel's port");
        }
    }
}

#[async_trait::async_trait]
impl Tunnels for TunnelPorts {
    async fn open(
        &self,
        tunnel: Tunnel,
        target: SocketAddr,
        mouths: &[Mouth],
    ) -> Result<Option<Vec<Entrance>>, Error> {
        {
            let mut open = self.open_ones();
            if open.contains_key(&tunnel) {
                return Ok(None);
            }
            if open.keys().filter(|other| other.task == tunnel.task).count() >= TUNNELS_MAX {
                let text = format!("a container can forward {TUNNELS_MAX} ports at a time");
                return Err(Error::new(ErrorCode::ResourceExhausted, text));
            }
            // Taken, so that nobody else opens it meanwhile.
            open.insert(tunnel, Open::default());
        }
        let mut entrances = Vec::new();
        for mouth in mouths {
            match self.begin(tunnel, target, *mouth).await {
                Ok(entrance) => entrances.push(entrance),
                Err(error) => {
                    self.close(tunnel).await;
                    return Err(error);
                }
            }
        }
        Ok(Some(entrances))
    }

    async fn close(&self, tunnel: Tunnel) -> bool {
        let Some(Open(mouths)) = self.open_ones().remove(&tunnel) else { return false };
        for (mouth, stop) in mouths {
            drop(stop);
            self.forget(tunnel, mouth).await;
        }
        true
    }

    async fn close_all(&self, task: TaskId) {
        let of_task: Vec<Tunnel> =
            self.open_ones().keys().filter(|tunnel| tunnel.task == task).copied().collect();
        for tunnel in of_task {
            self.close(tunnel).await;
        }
    }
}

fn name(tunnel: Tunnel, mouth: Mouth) -> String {
    let kind = match mouth {
        Mouth::Tls => "tls",
        Mouth::TlsHttp2 => "h2",
        Mouth::Raw => "raw",
    };
    format!("{KEPT}{}/{}/{kind}", tunnel.task, tunnel.port)
}

fn parse(name: &str) -> Option<(Tunnel, Mouth)> {
    let mut parts = name.strip_prefix(KEPT)?.split('/');
    let tunnel = Tunnel { task: parts.next()?.parse().ok()?, port: parts.next()?.parse().ok()? };
    let mouth = match parts.next()? {
        "tls" => Mouth::Tls,
        "h2" => Mouth::TlsHttp2,
        "raw" => Mouth::Raw,
        _ => return None,
    };
    Some((tunnel, mouth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_listener_is() {
        for mouth in [Mouth::Tls, Mouth::TlsHttp2, Mouth::Raw] {
            let tunnel = Tunnel { task: TaskId::from_bits(7), port: 8000 };
            assert_eq!(parse(&name(tunnel, mouth)), Some((tunnel, mouth)));
        }
        for other in ["web/24000", "tunnel/ta-1", "tunnel/x/1/tls", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
