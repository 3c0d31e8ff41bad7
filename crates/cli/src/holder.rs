//! The holder: the foreground process of `evoke up`.
//!
//! It owns the listeners and keeps the descriptors that must outlive a server. In order: bind, start the
//! privileged helper while still root, give up root, supervise servers. It stays small, has one thread, and
//! does nothing that could fail for a reason of a client's or a container's.

use crate::config::Config;
use crate::data_folder::{DataFolder, Lock, ServiceUser};
use crate::helper;
use crate::launch::{LOCAL_LISTENER, Launch, PUBLIC_LISTENER};
use crate::names;
use crate::privileges::{drop_root, raise_open_files};
use crate::supervise::Supervisor;
use anyhow::{Context, Result};
use evoke_files::HostEnv;
use evoke_runtime::fdstore::FdStore;
use rustix::fs::Mode;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

/// Who may connect is decided by peer credentials, not by the socket's mode.
const SOCKET_MODE: u32 = 0o666;

/// Runs until it is told to stop. Called as root with one thread.
pub(crate) fn run(
    data: DataFolder,
    user: ServiceUser,
    config: Config,
    mut lock: Lock,
    listener: TcpListener,
) -> Result<ExitCode> {
    let address = address_for_clients(listener.local_addr().context("reading the bound address")?);
    lock.describe(&address).context("writing into the lock file")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let program = own_program(user)?;
    let local = local_listener(&data)?;
    let launch = Launch {
        data: data.path().to_path_buf(),
        config,
        address,
        holder_pid: std::process::id(),
        users: users(user),
        host_env: HostEnv::of_this_process(),
        generation: 0,
    };
    let helper = helper::start(&data, user, &launch.config)?;
    raise_open_files();
    drop_root(user).context("giving up root")?;

    let mut store = FdStore::new();
    store.insert(PUBLIC_LISTENER, listener.into());
    store.insert(LOCAL_LISTENER, local.into());
    let code = Supervisor::new(program, launch, store, helper)?.run();
    drop(lock);
    code
}

/// The binary as an open file: the service user could not reach it by its path if that lies in a closed
/// folder such as /root.
fn own_program(user: ServiceUser) -> Result<std::fs::File> {
    let file = std::fs::File::open("/proc/self/exe").context("opening the evoke binary")?;
    let about = file.metadata().context("reading the evoke binary's mode")?;
    let executable = about.mode() & 0o001 != 0 || (about.uid() == user.uid && about.mode() & 0o100 != 0);
    if !executable {
        let path = std::env::current_exe().unwrap_or_default();
        let what = format!("{} cannot be executed by the service user", path.display());
        let hint = format!("chmod o+rx {}", path.display());
        return Err(evoke_core::Error::precondition(what).with_hint(hint).into());
    }
    Ok(file)
}

/// The local socket. A stale one may be removed: we hold the folder's lock.
fn local_listener(data: &DataFolder) -> Result<UnixListener> {
    let path = data.socket();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    // By way of the opened folder: a socket's path may have 107 letters only.
    let folder =
        std::fs::File::open(data.path()).with_context(|| format!("opening {}", data.path().display()))?;
    let short = format!("/proc/self/fd/{}/evoke.sock", folder.as_raw_fd());
    let listener = UnixListener::bind(short).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("opening {} to local users", path.display()))?;
    Ok(listener)
}

/// Root, the service user, and whoever started this, also through sudo or pkexec.
fn users(user: ServiceUser) -> Vec<u32> {
    let through = [names::SUDO_UID, names::PKEXEC_UID];
    let starter = through.iter().filter_map(|name| names::read(name)?.parse().ok());
    let mut all: Vec<u32> =
        [0, user.uid, rustix::process::getuid().as_raw()].into_iter().chain(starter).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The bound address as a URL; a server on all interfaces is reached by loopback from this machine.
fn address_for_clients(bound: SocketAddr) -> String {
    if bound.ip().is_unspecified() {
        return format!("http://127.0.0.1:{}", bound.port());
    }
    format!("http://{bound}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_an_address_they_can_use() {
        assert_eq!(address_for_clients("0.0.0.0:80".parse().unwrap()), "http://127.0.0.1:80");
        assert_eq!(address_for_clients("10.0.0.5:7350".parse().unwrap()), "http://10.0.0.5:7350");
    }

    #[test]
    fn a_long_data_path_still_has_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let data = DataFolder::at(&long);
        let _first = local_listener(&data).unwrap();
        let _again = local_listener(&data).unwrap();
        assert_eq!(std::fs::metadata(data.socket()).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
    }
}
