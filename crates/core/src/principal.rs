//! Who is asking: every request carries one of these.

use crate::TaskId;

/// The identity behind a request. It comes from where the request arrived and what it carried, never from
/// its body.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A client that showed a valid token of the workspace.
    Client {
        /// The token's public part.
        token_id: String,
    },
    /// A container, known by the listener its request came through.
    Container(TaskId),
    /// A client that showed no valid token; it may only be told how to get one.
    Anonymous,
}

impl Principal {
    /// The container, if it is one.
    pub fn task(&self) -> Option<TaskId> {
        match self {
            Principal::Container(task) => Some(*task),
            _ => None,
        }
    }
}
