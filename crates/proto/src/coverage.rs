//! The list of which RPCs are served, as a page of the documentation.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::CLIENT_VERSION;
use crate::rpc::{Access, COMMAND_ROUTER, Kind, MODAL_CLIENT, Rpc, TABLE};

/// The page, from the RPCs that are served. Deterministic, so that a check can compare it.
pub fn markdown<'a>(served: impl IntoIterator<Item = &'a Rpc>) -> String {
    let served: BTreeSet<usize> = served.into_iter().map(|rpc| rpc.index).collect();
    let mut page = format!(
        "# Protocol coverage\n\n\
         Which RPCs of the official client {CLIENT_VERSION} this version serves. The others are answered with \
         UNIMPLEMENTED by name. Written by `cargo xtask coverage`; do not edit.\n"
    );
    for service in [MODAL_CLIENT, COMMAND_ROUTER] {
        let mut rows: Vec<&Rpc> = TABLE.iter().filter(|rpc| rpc.service == service).collect();
        rows.sort_by_key(|rpc| rpc.name);
        let count = rows.iter().filter(|rpc| served.contains(&rpc.index)).count();
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {service}\n\n{count} of {} served.\n\n", rows.len());
        let _ = write!(page, "| RPC | kind | callers | served |\n|---|---|---|---|\n");
        for rpc in rows {
            let kind = match rpc.kind {
                Kind::Unary => "unary",
                Kind::ServerStream => "server stream",
                Kind::ClientStream => "client stream",
                Kind::Bidirectional => "streams both ways",
            };
            let callers = match rpc.access {
                Access::Client => "clients",
                Access::Container => "containers",
                Access::Both => "clients, containers",
                Access::Public => "anybody",
            };
            let mark = if served.contains(&rpc.index) { "yes" } else { "" };
            let _ = writeln!(page, "| {} | {kind} | {callers} | {mark} |", rpc.name);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Method;

    #[test]
    fn lists_every_rpc_and_marks_the_served() {
        let page = markdown([crate::api::rpc::AppCreate::RPC]);
        assert!(page.contains("1 of 285 served."));
        assert!(page.contains("| AppCreate | unary | clients, containers | yes |"));
        assert!(page.contains("| ContainerHello | unary | containers |  |"));
        assert_eq!(page.lines().filter(|line| line.starts_with("| ")).count(), 285 + 23 + 2);
    }
}
