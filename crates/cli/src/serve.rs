//! Role assembly: the one place where the crates of the server meet.

use crate::explain::Explanation;
use crate::launch::Launch;
use crate::token::Token;
use anyhow::Result;
use async_trait::async_trait;
use evoke_core::Error;
use evoke_runtime::Runtime;
use evoke_runtime::fdstore::FdStoreClient;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

/// What a server gets from the holder and its helper.
pub(crate) struct Inherited {
    /// Configuration, address, data folder.
    pub launch: Launch,
    /// Where clients connect.
    pub public: TcpListener,
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// Where descriptors go that must outlive this server.
    pub store: FdStoreClient,
    /// What former servers put there: `task/<id>/…`.
    pub kept: Vec<(String, OwnedFd)>,
    /// The token that clients must show.
    pub token: Token,
}

/// What the local socket tells about the roles.
#[async_trait]
pub(crate) trait Insight: Send + Sync {
    /// Counts for `evoke status`.
    async fn counts(&self) -> Counts;
    /// Where the time of `id` went.
    async fn explain(&self, id: &str) -> Result<Explanation, Error>;
}

/// For `evoke status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Apps that are not stopped.
    pub apps: u64,
    /// Containers that exist.
    pub containers: u64,
}

/// The running roles of this process.
pub(crate) struct Roles {
    insight: Arc<dyn Insight>,
    _inherited: Inherited,
}

impl Roles {
    /// Starts control, gateway and worker, in the order in which they depend on each other.
    pub(crate) async fn start(inherited: Inherited) -> Result<Self> {
        Ok(Self { insight: Arc::new(NoRoles), _inherited: inherited })
    }

    /// What the local socket answers from.
    pub(crate) fn insight(&self) -> Arc<dyn Insight> {
        Arc::clone(&self.insight)
    }

    /// Stops taking requests, then the containers by their grace rules, then flushes.
    pub(crate) async fn stop(self) {}
}

struct NoRoles;

#[async_trait]
impl Insight for NoRoles {
    async fn counts(&self) -> Counts {
        Counts::default()
    }
    async fn explain(&self, id: &str) -> Result<Explanation, Error> {
        Err(Error::not_found(format!("{id} is not known here")))
    }
}

/// `evoke __coverage`: the RPCs that this binary serves, as Markdown.
pub(crate) fn print_coverage() -> Result<ExitCode> {
    anyhow::bail!("no roles are assembled yet")
}
