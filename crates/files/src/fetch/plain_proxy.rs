//! Plain `http://` addresses through a proxy. The HTTP library tunnels everything with CONNECT, which
//! proxies commonly refuse for port 80; what they want is the whole address in the request line. Here the
//! connection goes to the proxy, and the first line on it is rewritten. Such a connection carries one
//! request (`Connection: close`).

use super::resolver::Remembering;
use base64::Engine as _;
use http::Uri;
use ureq::{
    Error,
    config::Config,
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport},
    },
};

/// An agent all of whose connections go to `proxy`.
pub(super) fn agent_by_proxy(config: Config, proxy: &ureq::Proxy, resolver: Remembering) -> ureq::Agent {
    let connector = Connector::<()>::chain(TcpConnector::default(), WholeAddress);
    ureq::Agent::with_parts(config, connector, ToProxy { proxy: proxy.uri().clone(), resolver })
}

/// The header that carries the proxy's credentials, where its address has some.
pub(super) fn proxy_authorization(proxy: &ureq::Proxy) -> Option<String> {
    let text = format!("{}:{}", proxy.username()?, proxy.password().unwrap_or_default());
    Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)))
}

/// Resolves every host to the proxy's addresses.
#[derive(Debug)]
struct ToProxy {
    proxy: Uri,
    resolver: Remembering,
}

impl Resolver for ToProxy {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.resolver.resolve(&self.proxy, config, timeout)
    }
}

/// Wraps connections so that their request line names the whole address.
#[derive(Debug)]
struct WholeAddress;

impl<In: Transport> Connector<In> for WholeAddress {
    type Out = Rewriting<In>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let authority = details.uri.authority().map(|a| a.as_str()).unwrap_or_default();
        let address = Some(format!("http://{authority}"));
        Ok(chained.map(|inner| Rewriting { inner, address }))
    }
}

/// A connection whose first line is not sent yet, or was.
#[derive(Debug)]
struct Rewriting<T> {
    inner: T,
    /// Scheme and authority; taken when the request line is sent.
    address: Option<String>,
}

impl<T: Transport> Transport for Rewriting<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let Some(address) = self.address.take().filter(|_| amount > 0) else {
            return self.inner.transmit_output(amount, timeout);
        };
        let mut bytes = self.inner.buffers().output()[..amount].to_vec();
        // The library writes the request line first: "GET /path HTTP/1.1".
        let path = bytes.iter().position(|b| *b == b' ').map_or(0, |space| space + 1);
        bytes.splice(path..path, address.into_bytes());
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let buffer = self.inner.buffers().output();
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            self.inner.transmit_output(n, timeout)?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
