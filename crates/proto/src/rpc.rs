//! The table of RPCs: one row for each, read by the dispatcher, the authorization check, the coverage list
//! and their tests alike.

use evoke_core::Principal;
use std::collections::HashMap;
use std::sync::LazyLock;

use crate::{Code, Status};

include!(concat!(env!("OUT_DIR"), "/table.rs"));

/// The package and name of the service that clients and containers call.
pub const MODAL_CLIENT: &str = "modal.client.ModalClient";
/// The package and name of the service by which clients reach into a running container.
pub const COMMAND_ROUTER: &str = "modal.task_command_router.TaskCommandRouter";

/// One RPC.
#[derive(Debug, PartialEq, Eq)]
pub struct Rpc {
    /// Its place in [`TABLE`].
    pub index: usize,
    /// Its name, such as `AppCreate`.
    pub name: &'static str,
    /// Its service with the package, such as `modal.client.ModalClient`.
    pub service: &'static str,
    /// The path it is called by: `/<service>/<name>`.
    pub path: &'static str,
    /// Which sides stream.
    pub kind: Kind,
    /// The full name of the request message.
    pub request: &'static str,
    /// The full name of the reply message.
    pub reply: &'static str,
    /// Who may call it.
    pub access: Access,
}

/// Which sides of a call send a stream of messages instead of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Neither.
    Unary,
    /// The server.
    ServerStream,
    /// The client.
    ClientStream,
    /// Both.
    Bidirectional,
}

impl Kind {
    /// Whether the request is a stream.
    pub fn client_streams(self) -> bool {
        matches!(self, Kind::ClientStream | Kind::Bidirectional)
    }
    /// Whether the reply is a stream.
    pub fn server_streams(self) -> bool {
        matches!(self, Kind::ServerStream | Kind::Bidirectional)
    }
}

/// Who may call an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Clients with a valid token.
    Client,
    /// Containers, known by their own listener.
    Container,
    /// Clients with a valid token and containers.
    Both,
    /// Anybody.
    Public,
}

impl Access {
    /// Whether `principal` may make the call.
    pub fn admits(self, principal: &Principal) -> bool {
        match self {
            Access::Public => true,
            Access::Client => matches!(principal, Principal::Client { .. }),
            Access::Container => matches!(principal, Principal::Container(_)),
            Access::Both => !matches!(principal, Principal::Anonymous),
        }
    }
}

impl Rpc {
    /// Refuses a caller that may not make this call, with the mend.
    pub fn authorize(&self, principal: &Principal) -> Result<(), Status> {
        if self.access.admits(principal) {
            return Ok(());
        }
        Err(match principal {
            Principal::Anonymous => Status::new(
                Code::Unauthenticated,
                "This server needs its own token, and the request carried none or another one.\n\
                 Set it for this shell with: eval \"$(evoke env)\"\n\
                 From another machine, log in to it with: modal token new",
            ),
            Principal::Client { .. } => Status::new(
                Code::PermissionDenied,
                format!("{} is only for containers, about themselves", self.name),
            ),
            Principal::Container(_) => Status::new(
                Code::PermissionDenied,
                format!("{} is not allowed from inside a container", self.name),
            ),
        })
    }
}

/// An RPC as a type, generated for every row of the table: it ties the messages to the name.
pub trait Method: Copy + Send + Sync + 'static {
    /// What the caller sends.
    type Request: prost::Message + Default + 'static;
    /// What the caller gets.
    type Reply: prost::Message + Default + 'static;
    /// Its row.
    const RPC: &'static Rpc;
}
/// A [`Method`] with one request and one reply.
pub trait UnaryMethod: Method {}
/// A [`Method`] with one request and a stream of replies.
pub trait ServerStreamMethod: Method {}
/// A [`Method`] with a stream of requests and one reply.
pub trait ClientStreamMethod: Method {}
/// A [`Method`] with streams both ways.
pub trait BidirectionalMethod: Method {}

static BY_PATH: LazyLock<HashMap<&'static str, &'static Rpc>> =
    LazyLock::new(|| TABLE.iter().map(|rpc| (rpc.path, rpc)).collect());

/// The RPC that is called by `path`.
pub fn find(path: &str) -> Option<&'static Rpc> {
    BY_PATH.get(path).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::{SeededEntropy, TaskId, UnixMs};

    #[test]
    fn table_holds_both_services_and_is_found_by_path() {
        assert_eq!(TABLE.iter().filter(|rpc| rpc.service == MODAL_CLIENT).count(), 285);
        assert_eq!(TABLE.iter().filter(|rpc| rpc.service == COMMAND_ROUTER).count(), 23);
        for (index, rpc) in TABLE.iter().enumerate() {
            assert_eq!(rpc.index, index);
            assert_eq!(rpc.path, format!("/{}/{}", rpc.service, rpc.name));
            assert!(std::ptr::eq(find(rpc.path).unwrap(), rpc));
        }
        assert!(find("/modal.client.ModalClient/NoSuch").is_none());
    }

    #[test]
    fn markers_point_at_their_own_row() {
        assert_eq!(crate::api::rpc::AppCreate::RPC.name, "AppCreate");
        assert_eq!(crate::api::rpc::AppGetLogs::RPC.kind, Kind::ServerStream);
        assert_eq!(crate::router::rpc::TaskExecStdinWriteStream::RPC.kind, Kind::ClientStream);
        assert_eq!(crate::router::rpc::TaskExecStdinWriteStream::RPC.service, COMMAND_ROUTER);
    }

    #[test]
    fn every_rpc_refuses_the_callers_that_its_class_excludes() {
        let client = Principal::Client { token_id: "ak-1".into(), view: None };
        let container = Principal::Container(TaskId::new(UnixMs(1), &mut SeededEntropy::new(1)));
        for rpc in &TABLE {
            let allowed = [&client, &container, &Principal::Anonymous].map(|p| rpc.authorize(p).is_ok());
            let expected = match rpc.access {
                Access::Client => [true, false, false],
                Access::Container => [false, true, false],
                Access::Both => [true, true, false],
                Access::Public => [true, true, true],
            };
            assert_eq!(allowed, expected, "{}", rpc.name);
        }
        assert_eq!(TABLE.iter().filter(|rpc| rpc.access == Access::Public).count(), 2);
    }
}
