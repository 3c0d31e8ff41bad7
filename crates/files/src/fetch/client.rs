//! One request with redirects, retries and bounds.

use super::{
    FetchError,
    plain_proxy::{agent_by_proxy, proxy_authorization},
    proxies::Proxies,
    redact_url,
    resolver::Remembering,
    url::{join_url, percent_decode, split_url},
};
use crate::HostEnv;
use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::{
    io::{self, Read},
    sync::Arc,
    time::{Duration, Instant},
};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::transport::DefaultConnector;

/// Redirects followed for one request.
const REDIRECTS_MAX: u32 = 10;
/// Idle connections kept for reuse, in all and to one host.
const IDLE_CONNECTIONS_MAX: usize = 16;
const IDLE_PER_HOST_MAX: usize = 8;
/// Headers that prove who asks: only the host that was asked for gets them.
const PRIVATE_HEADERS: [&str; 3] = ["authorization", "cookie", "x-amz-security-token"];
/// The longest `Retry-After` that is waited for; a longer one counts as a failure.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15);

/// How long and how often a request is tried.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For the connection, with name look-up and TLS.
    pub connect_timeout: Duration,
    /// Until the head of the answer is there.
    pub answer_timeout: Duration,
    /// The longest silence inside a body.
    pub idle_timeout: Duration,
    /// A body that gives less than [`Self::slow_bytes_min`] in this time is given up as one that broke.
    pub slow_window: Duration,
    /// See [`Self::slow_window`].
    pub slow_bytes_min: u64,
    /// Attempts in all, the first included.
    pub attempts_max: u32,
    /// None is begun after so long without a byte that helps.
    pub patience: Duration,
    /// The wait before the second attempt; it doubles with each further one.
    pub backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            answer_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            slow_window: Duration::from_secs(60),
            slow_bytes_min: 64 * 1024,
            attempts_max: 4,
            patience: Duration::from_secs(90),
            backoff: Duration::from_millis(300),
        }
    }
}

/// The client; cheap to clone, its connections are shared.
#[derive(Debug, Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    direct: ureq::Agent,
    by_http_proxy: Option<PlainProxy>,
    by_https_proxy: Option<ureq::Agent>,
    proxies: Proxies,
    limits: Limits,
}

/// The way of `http://` addresses through a proxy.
#[derive(Debug)]
struct PlainProxy {
    agent: ureq::Agent,
    authorization: Option<String>,
}

/// An answer whose body is still on the wire.
pub struct Reply {
    /// The HTTP status, whatever it is.
    pub status: u16,
    /// The headers of the last answer.
    pub headers: HeaderMap,
    /// Where the redirects ended.
    pub url: String,
    body: ureq::BodyReader<'static>,
    pace: Pace,
}

/// Watches that a body does not trickle.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    window: Duration,
    bytes_min: u64,
    since: Instant,
    given: u64,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        Self { window: limits.slow_window, bytes_min: limits.slow_bytes_min, since: Instant::now(), given: 0 }
    }

    /// Takes note of bytes that came; an error where there are too few.
    fn gave(&mut self, bytes: usize) -> io::Result<()> {
        self.given += bytes as u64;
        if self.since.elapsed() < self.window {
            return Ok(());
        }
        if self.given < self.bytes_min {
            let reason = format!("it gave {} bytes in {:?}", self.given, self.window);
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        (self.since, self.given) = (Instant::now(), 0);
        Ok(())
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).field("url", &redact_url(&self.url)).finish()
    }
}

impl Read for Reply {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.body.read(buffer)?;
        if n > 0 {
            self.pace.gave(n)?;
        }
        Ok(n)
    }
}

impl Reply {
    /// The header's value, where it is there and readable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// This reply if its status is a success, else [`FetchError::Status`].
    pub fn success(self) -> Result<Self, FetchError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        Err(FetchError::Status { url: redact_url(&self.url), status: self.status })
    }

    /// The whole body, refused where it is longer than `limit_bytes`.
    pub fn bytes(mut self, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        let url = redact_url(&self.url);
        (&mut self)
            .take(limit_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| FetchError::Unreachable { url: url.clone(), reason: e.to_string() })?;
        if bytes.len() as u64 > limit_bytes {
            return Err(FetchError::TooLarge { url, limit_bytes });
        }
        Ok(bytes)
    }
}

impl Fetcher {
    /// A client as the host's configuration says, with the default limits.
    pub fn from_host(host: &HostEnv) -> Result<Self, FetchError> {
        Self::with_limits(host, Limits::default())
    }

    /// A client as the host's configuration says, with other limits.
    pub fn with_limits(host: &HostEnv, limits: Limits) -> Result<Self, FetchError> {
        let proxies = Proxies::from_host(host)?;
        let roots = trusted_roots()?;
        let config = |proxy: Option<ureq::Proxy>| agent_config(&limits, &roots, proxy);
        let resolver = Remembering::default();
        let agent = |proxy: Option<ureq::Proxy>| {
            ureq::Agent::with_parts(config(proxy), DefaultConnector::default(), resolver.clone())
        };
        let inner = Inner {
            direct: agent(None),
            by_http_proxy: proxies.http.as_ref().map(|proxy| PlainProxy {
                agent: agent_by_proxy(config(None), proxy, resolver.clone()),
                authorization: proxy_authorization(proxy),
            }),
            by_https_proxy: proxies.https.clone().map(|proxy| agent(Some(proxy))),
            proxies,
            limits,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The limits this client works under.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Asks for `url`; any status comes back as a [`Reply`], after retries where it is a transient one.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Reply, FetchError> {
        self.send(Method::GET, url, headers, None)
    }

    /// The whole body behind `url`, which must answer with a success.
    pub fn get_bytes(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        limit_bytes: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let (mut attempt, began) = (1, Instant::now());
        loop {
            let read = self.get(url, headers)?.success()?.bytes(limit_bytes);
            match read {
                Err(FetchError::Unreachable { .. }) if !self.is_last(attempt, began) => {
                    self.back_off(attempt, None);
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// One request of any method, tried again where the failure is transient. Only for requests that may
    /// be repeated.
    pub fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Reply, FetchError> {
        let (mut attempt, began) = (1, Instant::now());
        loop {
            let sent = self.follow(method.clone(), url, headers, body);
            let last = self.is_last(attempt, began);
            let wait = match sent {
                Ok(reply) if !last && is_transient(reply.status) => match retry_after(&reply) {
                    Some(wait) if wait > RETRY_AFTER_MAX => return Ok(reply),
                    wait => wait,
                },
                Err(FetchError::Unreachable { .. }) if !last => None,
                other => return other,
            };
            tracing::debug!(url = %redact_url(url), attempt, "transient failure, trying again");
            self.back_off(attempt, wait);
            attempt += 1;
        }
    }

    /// Whether no attempt follows on this one, the first having begun at `began`.
    pub(super) fn is_last(&self, attempt: u32, began: Instant) -> bool {
        let limits = &self.inner.limits;
        attempt >= limits.attempts_max || began.elapsed() >= limits.patience
    }

    /// Waits before the attempt after `attempt`; a server's wish counts where it gave one.
    pub(super) fn back_off(&self, attempt: u32, wish: Option<Duration>) {
        let doubling = 2u32.saturating_pow(attempt.saturating_sub(1).min(6));
        // There is no event to wait for: the server at the other end does not tell when it is well again.
        // The wait is bounded by the limits, and the attempts by `attempts_max`.
        std::thread::park_timeout(wish.unwrap_or(self.inner.limits.backoff * doubling));
    }

    /// One attempt, through all its redirects.
    fn follow(
        &self,
        mut method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Reply, FetchError> {
        let mut at = url.to_owned();
        let mut body = body;
        let origin = origin_of(url);
        for _ in 0..=REDIRECTS_MAX {
            let trusted = origin_of(&at) == origin;
            let reply = self.once(&method, &at, headers, body, trusted)?;
            let target = match reply.status {
                301 | 302 | 303 | 307 | 308 => reply.header("location").map(str::to_owned),
                _ => None,
            };
            let Some(target) = target else { return Ok(reply) };
            if reply.status == 303 && method != Method::HEAD {
                method = Method::GET;
                body = None;
            }
            at = join_url(&at, &target).ok_or_else(|| FetchError::Url { url: redact_url(&target) })?;
        }
        Err(FetchError::Redirects { url: redact_url(url), limit: REDIRECTS_MAX })
    }

    /// One request to one address. `trusted` says that the caller's credentials are meant for it.
    fn once(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
        trusted: bool,
    ) -> Result<Reply, FetchError> {
        let bad_url = || FetchError::Url { url: redact_url(url) };
        let parts = split_url(url).ok_or_else(bad_url)?;
        let plain = format!("{}://{}{}", parts.scheme, parts.host, parts.rest);
        let mut request = http::Request::builder().method(method.clone()).uri(&plain);
        if let Some(credentials) = parts.credentials {
            let token = base64::engine::general_purpose::STANDARD.encode(percent_decode(credentials));
            request = request.header(header::AUTHORIZATION, format!("Basic {token}"));
        }
        let mut request = request.body(body.unwrap_or_default()).map_err(|_| bad_url())?;
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).map_err(|_| bad_url())?;
            if !trusted && PRIVATE_HEADERS.contains(&name.as_str()) {
                continue;
            }
            request.headers_mut().insert(name, HeaderValue::try_from(*value).map_err(|_| bad_url())?);
        }
        let inner = &*self.inner;
        let agent = if inner.proxies.is_direct(url) {
            &inner.direct
        } else if parts.scheme.eq_ignore_ascii_case("https") {
            inner.by_https_proxy.as_ref().unwrap_or(&inner.direct)
        } else if let Some(proxy) = &inner.by_http_proxy {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            if let Some(value) = &proxy.authorization {
                let value = HeaderValue::try_from(value).map_err(|_| bad_url())?;
                request.headers_mut().insert(header::PROXY_AUTHORIZATION, value);
            }
            &proxy.agent
        } else {
            &inner.direct
        };
        let sent = if body.is_some() { agent.run(request) } else { agent.run(request.map(|_| ())) };
        let response = sent.map_err(|e| FetchError::of_transport(url, &e))?;
        let (head, body) = response.into_parts();
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            url: url.to_owned(),
            body: body.into_with_config().limit(u64::MAX).reader(),
            pace: Pace::new(&inner.limits),
        })
    }
}

/// Scheme and host: credentials stay with these.
fn origin_of(url: &str) -> Option<(String, String)> {
    split_url(url).map(|p| (p.scheme.to_ascii_lowercase(), p.host.to_ascii_lowercase()))
}

/// Whether asking again may help.
fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// The wait that the server asks for, in its form of seconds.
fn retry_after(reply: &Reply) -> Option<Duration> {
    reply.header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

fn agent_config(limits: &Limits, roots: &RootCerts, proxy: Option<ureq::Proxy>) -> ureq::config::Config {
    let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots.clone()).build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .proxy(proxy)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_PER_HOST_MAX)
        .user_agent(concat!("evoke/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(limits.connect_timeout))
        .timeout_recv_response(Some(limits.answer_timeout))
        .timeout_per_read(Some(limits.idle_timeout))
        .timeout_per_write(Some(limits.idle_timeout))
        .build()
}

/// What the host trusts: `SSL_CERT_FILE` and `SSL_CERT_DIR` where set, else the system's bundle.
fn trusted_roots() -> Result<RootCerts, FetchError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let detail = found.errors.first().map(|e| format!(": {e}")).unwrap_or_default();
        return Err(FetchError::NoTrust { detail });
    }
    let certificates: Vec<Certificate<'static>> =
        found.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect();
    Ok(RootCerts::new_with_certs(&certificates))
}
