//! `evoke up`: starts a server, in the foreground or (`--detach`) in the background.

use crate::args::UpOptions;
use crate::background;
use crate::config::{Config, LISTEN_DEFAULT};
use crate::data_folder::DataFolder;
use crate::holder;
use crate::privileges::require_root;
use crate::stdout;
use anyhow::{Context, Result};
use evoke_core::Error;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>, options: &UpOptions) -> Result<ExitCode> {
    require_root("up")?;
    let data = DataFolder::locate(data)?;
    if options.detach {
        return detach(&data, options);
    }
    let user = data.prepare()?;
    let config = Config::load(&data)?;
    let lock = data.lock(user)?;
    let wanted = options.listen.as_deref().unwrap_or(&config.listen);
    let listener = bind(wanted, options.any_port && options.listen.is_none())?;
    holder::run(data, user, config, lock, listener)
}

/// Starts the same in the background and returns once it is ready.
fn detach(data: &DataFolder, options: &UpOptions) -> Result<ExitCode> {
    data.prepare()?;
    let mut more = Vec::new();
    if let Some(listen) = &options.listen {
        more.extend(["--listen", listen.as_str()]);
    }
    if options.any_port {
        more.push("--any-port");
    }
    stdout::write(&(background::launch(data, &more)? + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Binds where clients reach the server. With `any_port` a free port is taken if that one is in use.
fn bind(wanted: &str, any_port: bool) -> Result<TcpListener> {
    let addresses = resolve(wanted)?;
    match TcpListener::bind(addresses.as_slice()) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && any_port => {
            let free: Vec<SocketAddr> = addresses.iter().map(|a| SocketAddr::new(a.ip(), 0)).collect();
            TcpListener::bind(free.as_slice()).context("taking a free port")
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let what = format!("{wanted} is in use by another program");
            let hint = "is it a server of another data folder? Choose another address: sudo evoke up --listen \
                        127.0.0.1:8350 (port 0 takes any free one)";
            Err(Error::precondition(what).with_hint(hint).into())
        }
        Err(error) => Err(Error::precondition(format!("cannot listen on {wanted}: {error}"))
            .with_hint(format!("choose another address: sudo evoke up --listen {LISTEN_DEFAULT}"))
            .into()),
    }
}

/// `HOST:PORT`, where the host may be a name. Not IPv6 literals: the official clients cannot parse them.
fn resolve(wanted: &str) -> Result<Vec<SocketAddr>> {
    let wrong = |why: &str| {
        Error::invalid(format!("`{wanted}` is not an address to listen on: {why}"))
            .with_hint(format!("write HOST:PORT, as in --listen {LISTEN_DEFAULT}"))
    };
    let (host, port) = wanted.rsplit_once(':').ok_or_else(|| wrong("there is no port"))?;
    let port: u16 = port.parse().map_err(|_| wrong("the port is not a number up to 65535"))?;
    if host.is_empty() || host.contains(':') {
        return Err(wrong("the host must be a name or an IPv4 address, which the clients can use").into());
    }
    let found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|e| wrong(&e.to_string()))?
        .filter(SocketAddr::is_ipv4)
        .collect();
    if found.is_empty() {
        return Err(wrong("the name has no IPv4 address").into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_starts() {
        assert_eq!(resolve("127.0.0.1:7350").unwrap(), ["127.0.0.1:7350".parse().unwrap()]);
        for (wrong, why) in
            [("7350", "no port"), ("127.0.0.1:x", "not a number"), ("[::1]:80", "IPv4"), (":80", "name")]
        {
            let error = resolve(wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_taken_port_is_an_error_unless_any_will_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert!(bind(&address, false).unwrap_err().to_string().contains("in use"));
        assert!(bind(&address, true).is_ok());
    }
}
