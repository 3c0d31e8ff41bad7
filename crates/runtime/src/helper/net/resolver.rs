//! `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname` of containers, from the machine's.

use crate::{ContainerSpec, Network, SuppliedFile};
use std::net::{IpAddr, Ipv4Addr};

/// Asked where the machine's own name servers can be reached from the machine only.
const PUBLIC: [&str; 2] = ["1.1.1.1", "8.8.8.8"];
/// Where a stub resolver on the machine says whom it asks itself.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
const HOST: &str = "/etc/resolv.conf";
/// Name servers that a C library looks at.
const SERVERS_MAX: usize = 3;

/// Whether containers fall back to public name servers on this machine.
pub(super) fn falls_back() -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    servers(&read(HOST)).is_empty() && servers(&read(UPSTREAM)).is_empty()
}

/// The files for one container: path and content.
pub(crate) fn files(spec: &ContainerSpec, address: Option<Ipv4Addr>) -> Vec<SuppliedFile> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let resolv = match spec.network {
        Network::Bridged => resolv_conf(&spec.nameservers, &read(HOST), &read(UPSTREAM)),
        Network::Loopback => String::new(),
    };
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let own = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
    hosts.push_str(&format!("{own}\t{}\n", spec.hostname));
    for (address, name) in &spec.hosts {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let file =
        |path: &str, content| SuppliedFile { path: path.to_owned(), content, mode: 0o644, owner: (0, 0) };
    vec![
        file("/etc/resolv.conf", resolv),
        file("/etc/hosts", hosts),
        file("/etc/hostname", format!("{}\n", spec.hostname)),
    ]
}

/// Name servers that can be reached from another network namespace by IPv4.
fn servers(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let servers = lines.filter_map(|rest| rest.split_whitespace().next());
    let reachable =
        |server: &&str| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() && !ip.is_loopback());
    servers.filter(reachable).take(SERVERS_MAX).map(str::to_owned).collect()
}

fn resolv_conf(wanted: &[String], host: &str, upstream: &str) -> String {
    let (servers, settings) = if !wanted.is_empty() {
        (wanted.to_vec(), "")
    } else {
        let (own, behind) = (servers(host), servers(upstream));
        match (own.is_empty(), behind.is_empty()) {
            (false, _) => (own, host),
            (true, false) => (behind, upstream),
            (true, true) => (PUBLIC.map(str::to_owned).to_vec(), host),
        }
    };
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for line in settings.lines().filter(|line| {
        let word = line.split_whitespace().next();
        matches!(word, Some("search" | "domain" | "options"))
    }) {
        // What a stub needs, others may not understand.
        let kept: Vec<_> = line.split_whitespace().filter(|w| !matches!(*w, "trust-ad" | "edns0")).collect();
        if kept.len() > 1 {
            text.push_str(&kept.join(" "));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_on_the_machine_are_replaced_by_whom_they_ask() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch a.example .\n";
        let upstream = "nameserver 10.0.0.2\nnameserver fe80::1\nsearch a.example\n";
        assert_eq!(resolv_conf(&[], stub, upstream), "nameserver 10.0.0.2\nsearch a.example\n");
        assert_eq!(
            resolv_conf(&[], stub, ""),
            "nameserver 1.1.1.1\nnameserver 8.8.8.8\nsearch a.example .\n"
        );
        assert_eq!(
            resolv_conf(&[], "nameserver 9.9.9.9\noptions ndots:2\n", ""),
            "nameserver 9.9.9.9\noptions ndots:2\n"
        );
        assert_eq!(resolv_conf(&["192.0.2.1".to_owned()], stub, upstream), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn isolated_containers_have_no_name_server() {
        let mut spec = ContainerSpec::new("x", Vec::new());
        spec.network = Network::Loopback;
        spec.hosts = vec![("10.1.1.1".to_owned(), "db".to_owned())];
        let files = files(&spec, None);
        assert_eq!(files[0].content, "");
        assert!(
            files[1].content.contains("127.0.0.1\tlocalhost\n")
                && files[1].content.ends_with("10.1.1.1\tdb\n")
        );
        assert_eq!(files[2].content, "evoke\n");
    }
}
