//! Who is asking: every request carries one of these.

use crate::id::ParseIdError;
use crate::{AppId, TaskId};
use std::fmt;
use std::str::FromStr;

/// The identity behind a request. It comes from where the request arrived and what it carried, never from
/// its body.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A client that showed a valid token of the workspace.
    Client {
        /// The token's public part.
        token_id: String,
        /// The version of an app that it sees instead of the live one.
        view: Option<View>,
    },
    /// A container, known by the listener its request came through.
    Container(TaskId),
    /// A client that showed no valid token; it may only be told how to get one.
    Anonymous,
}

/// A version of an app that somebody sees wherever the app is looked up without one, written as `ap-…@3`. It grants
/// nothing: whoever may look an app up may look up every version of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    /// The app.
    pub app: AppId,
    /// Its version.
    pub version: u32,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.app, self.version)
    }
}

impl FromStr for View {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let (app, version) = text.split_once('@').unwrap_or((text, ""));
        let app: AppId = app.parse()?;
        // Without a number there is no such version, which whoever looks it up is told.
        Ok(Self { app, version: version.parse().unwrap_or(0) })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_reads_as_it_is_written() {
        let view = View { app: AppId::from_bits(7), version: 12 };
        assert_eq!(view.to_string().parse(), Ok(view));
        for bad in ["", "ap-", "@3", "fu-1@3"] {
            assert!(bad.parse::<View>().is_err(), "{bad}");
        }
    }
}
