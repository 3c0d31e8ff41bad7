//! Name look-ups: each name is looked up once for all that wait for it, remembered for a minute, and looked
//! up again where an answer is late. Resolvers lose questions, above all when many are asked at a time, and
//! the system's own library waits 5 s before it asks again.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long an answer is used.
const REMEMBER: Duration = Duration::from_secs(60);
/// When a question is asked once more beside the one that has no answer yet.
const LATE: Duration = Duration::from_millis(400);
/// Questions at a time for one name.
const ASKED_MAX: usize = 4;
/// Names remembered before the old ones are swept out.
const NAMES_SWEEP: usize = 256;
/// The longest look-up, where the caller sets no bound.
const LOOK_UP_MAX: Duration = Duration::from_secs(30);

type LookUp = fn(&str) -> std::io::Result<Vec<SocketAddr>>;
type Answer = Option<(Instant, Vec<SocketAddr>)>;

/// The resolver; clones share what they remember.
#[derive(Clone)]
pub(super) struct Remembering {
    names: Arc<Mutex<HashMap<String, Arc<Mutex<Answer>>>>>,
    look_up: LookUp,
}

impl std::fmt::Debug for Remembering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remembering").finish_non_exhaustive()
    }
}

impl Default for Remembering {
    fn default() -> Self {
        Self { names: Arc::default(), look_up: |name| Ok(name.to_socket_addrs()?.collect()) }
    }
}

impl Resolver for Remembering {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let parts = uri.scheme().zip(uri.authority());
        let Some(name) = parts.and_then(|(scheme, host)| DefaultResolver::host_and_port(scheme, host)) else {
            return Err(Error::HostNotFound);
        };
        let bound = if timeout.after.is_not_happening() { LOOK_UP_MAX } else { *timeout.after };
        let found = self.addresses(&name, bound)?.ok_or(Error::Timeout(timeout.reason))?;
        let mut addresses = self.empty();
        for address in config.ip_family().keep_wanted(found.into_iter()) {
            // What goes beyond the room for addresses is not tried.
            if addresses.try_push(address).is_err() {
                break;
            }
        }
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

impl Remembering {
    /// The addresses of `host:port`; none where no answer came in time.
    fn addresses(&self, name: &str, bound: Duration) -> std::io::Result<Option<Vec<SocketAddr>>> {
        let slot = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if names.len() >= NAMES_SWEEP {
                names.retain(|_, slot| Arc::strong_count(slot) > 1);
            }
            names.entry(name.to_owned()).or_default().clone()
        };
        // Whoever else wants this name waits here for the one answer.
        let mut answer = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, known)) = answer.as_ref().filter(|(at, _)| at.elapsed() < REMEMBER) {
            tracing::trace!(name, age_ms = at.elapsed().as_millis() as u64, "a remembered name");
            return Ok(Some(known.clone()));
        }
        let found = self.ask(name, bound)?;
        *answer = found.clone().map(|found| (Instant::now(), found));
        Ok(found)
    }

    fn ask(&self, name: &str, bound: Duration) -> std::io::Result<Option<Vec<SocketAddr>>> {
        let (send, receive) = mpsc::channel();
        let end = Instant::now() + bound;
        for asked in 1..=ASKED_MAX {
            let (send, name, look_up) = (send.clone(), name.to_owned(), self.look_up);
            // Nobody listens any more to an answer that comes after the first.
            std::thread::spawn(move || drop(send.send(look_up(&name))));
            let left = end.saturating_duration_since(Instant::now());
            let wait = if asked < ASKED_MAX { LATE.min(left) } else { left };
            match receive.recv_timeout(wait) {
                Ok(found) => return found.map(Some),
                Err(RecvTimeoutError::Timeout) if left > wait => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn address() -> SocketAddr {
        "192.0.2.1:80".parse().unwrap()
    }

    #[test]
    fn a_name_is_looked_up_once_for_all() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let resolver = Remembering {
            look_up: |_| {
                ASKED.fetch_add(1, Ordering::SeqCst);
                Ok(vec![address()])
            },
            ..Remembering::default()
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| resolver.addresses("x:80", LOOK_UP_MAX).unwrap().unwrap());
            }
        });
        assert_eq!(ASKED.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_lost_question_is_asked_again_and_a_failure_is_not_remembered() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let resolver = Remembering {
            look_up: |_| match ASKED.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    std::thread::park_timeout(Duration::from_secs(60));
                    Ok(Vec::new())
                }
                1 => Err(std::io::ErrorKind::NotFound.into()),
                _ => Ok(vec![address()]),
            },
            ..Remembering::default()
        };
        assert!(resolver.addresses("x:80", LOOK_UP_MAX).is_err());
        assert_eq!(resolver.addresses("x:80", LOOK_UP_MAX).unwrap(), Some(vec![address()]));
        assert_eq!(ASKED.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_look_up_is_bounded() {
        let resolver = Remembering {
            look_up: |_| {
                std::thread::park_timeout(Duration::from_secs(60));
                Ok(Vec::new())
            },
            ..Remembering::default()
        };
        assert_eq!(resolver.addresses("x:80", Duration::from_millis(20)).unwrap(), None);
    }
}
