//! The holder's side: holds the descriptors, serves one server at a time.

use super::{ENTRIES_MAX, FromStore, HAND_OVER_BATCH, NAME_MAX, ToStore};
use crate::fds;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Requests served in one call of [`FdStore::serve`], so that the holder's other work is not starved.
const REQUESTS_PER_TURN: usize = 64;
/// Answers that may wait for a server that does not read; beyond it the server is dropped.
const OUTGOING_MAX: usize = 4096;

/// Named descriptors, and the connection of the server that uses them now.
#[derive(Debug, Default)]
pub struct FdStore {
    entries: BTreeMap<String, OwnedFd>,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    outgoing: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl FdStore {
    /// An empty store that nobody is connected to.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a descriptor; a replaced one is closed.
    pub fn insert(&mut self, name: impl Into<String>, fd: OwnedFd) {
        self.entries.insert(name.into(), fd);
    }

    /// Takes a descriptor out.
    pub fn remove(&mut self, name: &str) -> Option<OwnedFd> {
        self.entries.remove(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// A descriptor by its name.
    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.entries.get(name).map(AsFd::as_fd)
    }

    /// Connects a new server (a former one's connection is closed) and queues the whole content for it.
    /// Returns the server's end, for [`super::FdStoreClient::connect`].
    pub fn connect(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = fds::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let mut outgoing = VecDeque::new();
        let entries: Vec<_> = self.entries.iter().collect();
        let mut batches = entries.chunks(HAND_OVER_BATCH).peekable();
        if batches.peek().is_none() {
            outgoing
                .push_back(Outgoing::new(&FromStore::Initial { names: Vec::new(), last: true }, Vec::new())?);
        }
        while let Some(batch) = batches.next() {
            let names = batch.iter().map(|(name, _)| (*name).clone()).collect();
            let fds = batch.iter().map(|(_, fd)| fd.try_clone()).collect::<io::Result<_>>()?;
            let last = batches.peek().is_none();
            outgoing.push_back(Outgoing::new(&FromStore::Initial { names, last }, fds)?);
        }
        self.connection = Some(Connection { socket: ours, outgoing });
        Ok(theirs)
    }

    /// Drops the current server's connection, if there is one.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    /// The socket to poll for reading, and whether to poll it for writing as well; `None` without a server.
    pub fn poll_fd(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.connection.as_ref().map(|c| (c.socket.as_fd(), !c.outgoing.is_empty()))
    }

    /// Serves what is there to serve without blocking; call it when the socket of [`Self::poll_fd`] is ready.
    /// Returns whether a server is still connected. A server that breaks the rules is disconnected.
    pub fn serve(&mut self) -> bool {
        let Some(mut connection) = self.connection.take() else { return false };
        match self.serve_connection(&mut connection) {
            Ok(true) => {
                self.connection = Some(connection);
                true
            }
            // Closed, or failed: to the holder both mean that this server is gone.
            Ok(false) | Err(_) => false,
        }
    }

    fn serve_connection(&mut self, connection: &mut Connection) -> io::Result<bool> {
        connection.flush()?;
        for _ in 0..REQUESTS_PER_TURN {
            let packet = match fds::recv(connection.socket.as_fd(), true) {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let (id, result) = match serde_json::from_slice(&packet.body)? {
                ToStore::Put { id, name } => (id, self.put(name, packet.fds)),
                ToStore::Remove { id, name } => {
                    self.entries.remove(&name);
                    (id, Ok(()))
                }
            };
            if connection.outgoing.len() >= OUTGOING_MAX {
                return Ok(false);
            }
            connection.outgoing.push_back(Outgoing::new(&FromStore::Done { id, result }, Vec::new())?);
        }
        connection.flush()?;
        Ok(true)
    }

    fn put(&mut self, name: String, fds: Vec<OwnedFd>) -> Result<(), String> {
        let [fd] =
            <[OwnedFd; 1]>::try_from(fds).map_err(|_| "a put brings exactly one descriptor".to_owned())?;
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(format!("a name has 1 to {NAME_MAX} bytes"));
        }
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&name) {
            return Err(format!("the store holds {ENTRIES_MAX} descriptors already"));
        }
        self.entries.insert(name, fd);
        Ok(())
    }
}

impl Outgoing {
    fn new(message: &FromStore, fds: Vec<OwnedFd>) -> io::Result<Self> {
        Ok(Self { body: serde_json::to_vec(message)?, fds })
    }
}

impl Connection {
    fn flush(&mut self) -> io::Result<()> {
        while let Some(next) = self.outgoing.front() {
            let fds: Vec<_> = next.fds.iter().map(AsFd::as_fd).collect();
            match fds::send(self.socket.as_fd(), &next.body, &fds, true) {
                Ok(()) => {
                    self.outgoing.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The kernel bounds descriptors in flight; wait until the server has taken some.
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
