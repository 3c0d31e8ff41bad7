//! Networks of containers: one bridge per installation, and a pool of network namespaces with a veth pair
//! each, made ahead of need.
//!
//! Namespaces belong to the machine and not to the container, so its root has no power over them; what it may
//! do without (low ports, ping) is switched on when they are made. A used one is never given to another
//! container: letting go of it makes the kernel delete it in its own time, with every socket, neighbour and
//! connection in it.

mod firewall;
mod links;
mod netlink;
pub(super) mod resolver;
mod rules;

use super::sys::{self, Step};
use crate::{Finding, FindingState, Network, RuntimeError};
use netlink::Netlink;
use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Namespaces kept ready.
const POOL: usize = 4;
/// Bits of the bridge's network: room for 4094 containers.
const PREFIX: u8 = 20;
/// Networks to choose from, the least used first.
const CANDIDATES: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(10, 213, 0, 0), 16),
    (Ipv4Addr::new(172, 29, 0, 0), 16),
    (Ipv4Addr::new(192, 168, 208, 0), 20),
];

/// The networks of this installation.
#[derive(Debug)]
pub(super) struct Networks {
    host: OwnedFd,
    bridge: Option<Bridge>,
    /// Why there is no bridge, or what it lacks.
    problem: Option<String>,
    /// Why web functions cannot be reached from the newest network, if so.
    web_problem: Option<String>,
    ready: VecDeque<Slot>,
    used: BTreeSet<u32>,
}

#[derive(Debug)]
struct Bridge {
    name: String,
    table: String,
    prefix_of_names: String,
    index: u32,
    subnet: Ipv4Addr,
    masquerades: bool,
}

/// One network namespace.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) namespace: OwnedFd,
    /// A sysfs that shows this namespace.
    pub(super) sysfs: OwnedFd,
    /// Its number among the bridge's addresses, and the address; none where there is loopback only.
    pub(super) address: Option<(u32, Ipv4Addr)>,
    /// Why web functions cannot be reached from there, if so.
    web_problem: Option<String>,
}

impl Networks {
    /// Makes the bridge and its rules. What cannot be made is a problem to report, not a failure: containers
    /// without a network can run everywhere.
    pub(super) fn open(tag: &str, wanted: bool) -> Result<Self, RuntimeError> {
        let host = sys::open("/proc/self/ns/net", OFlags::RDONLY).step("opening the host's network")?;
        let mut networks = Self {
            host,
            bridge: None,
            problem: None,
            web_problem: None,
            ready: VecDeque::new(),
            used: BTreeSet::new(),
        };
        if wanted {
            match Bridge::open(tag) {
                Ok(bridge) => networks.bridge = Some(bridge),
                Err(error) => networks.problem = Some(error.to_string()),
            }
        } else {
            networks.problem = Some("switched off by configuration".to_owned());
        }
        Ok(networks)
    }

    /// Marks an address as used by a container that an earlier helper started.
    pub(super) fn adopt(&mut self, number: u32) {
        self.used.insert(number);
    }

    /// A namespace for a container.
    pub(super) fn take(&mut self, network: Network) -> Result<Slot, RuntimeError> {
        match network {
            Network::Loopback => self.make(None, None),
            Network::Bridged => match self.ready.pop_front() {
                Some(slot) => Ok(slot),
                None => self.make_bridged(None),
            },
        }
    }

    /// A namespace that belongs to the user namespace of the process `owner`.
    pub(super) fn make_for(&mut self, network: Network, owner: BorrowedFd<'_>) -> Result<Slot, RuntimeError> {
        match network {
            Network::Loopback => self.make(None, Some(owner)),
            Network::Bridged => self.make_bridged(Some(owner)),
        }
    }

    /// Whether containers have more than loopback.
    pub(super) fn has_bridge(&self) -> bool {
        self.bridge.is_some()
    }

    /// Gives back the number of a container's address. Its namespace goes with the container's last process.
    pub(super) fn release(&mut self, number: u32) {
        self.used.remove(&number);
    }

    /// Whether [`Self::refill`] has something to do.
    pub(super) fn wants_refill(&self) -> bool {
        self.bridge.is_some() && self.ready.len() < POOL
    }

    /// Makes one namespace ahead of need.
    pub(super) fn refill(&mut self) -> Result<(), RuntimeError> {
        let slot = self.make_bridged(None)?;
        self.ready.push_back(slot);
        Ok(())
    }

    fn make_bridged(&mut self, owner: Option<BorrowedFd<'_>>) -> Result<Slot, RuntimeError> {
        let Some(bridge) = &self.bridge else {
            let problem = self.problem.clone().unwrap_or_default();
            return Err(RuntimeError::step("making a network", io::Error::other(problem)));
        };
        // The first address is the bridge's, the last is for broadcasts.
        let last = (1u32 << (32 - PREFIX)) - 2;
        let number = (2..=last).find(|number| !self.used.contains(number));
        let number = number
            .ok_or_else(|| RuntimeError::Exhausted("every address of the bridge is in use".to_owned()))?;
        let address = bridge.address(number);
        self.used.insert(number);
        let made = self.make(Some((number, address)), owner);
        match &made {
            Ok(slot) => self.web_problem.clone_from(&slot.web_problem),
            Err(_) => drop(self.used.remove(&number)),
        }
        made
    }

    fn make(
        &self,
        address: Option<(u32, Ipv4Addr)>,
        owner: Option<BorrowedFd<'_>>,
    ) -> Result<Slot, RuntimeError> {
        let (namespace, sysfs) = {
            let _back = match owner {
                None => enter_new(self.host.as_fd())?,
                Some(owner) => {
                    let theirs = sys::network_of(owner).step("making a network namespace for a template")?;
                    enter(theirs.as_fd(), self.host.as_fd())?
                }
            };
            let namespace =
                sys::open("/proc/self/ns/net", OFlags::RDONLY).step("opening a network namespace")?;
            prepare_namespace()?;
            let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            (namespace, sys::new_mount("sysfs", &[("source", "sysfs")], flags).step("mounting sysfs")?)
        };
        let mut web_problem = None;
        if let (Some((number, address)), Some(bridge)) = (address, &self.bridge) {
            bridge.connect(number, address, namespace.as_fd()).step("connecting a network namespace")?;
            let _back = enter(namespace.as_fd(), self.host.as_fd())?;
            let netlink = Netlink::route().step("opening netlink")?;
            configure(&netlink, address, bridge.address(1)).step("configuring eth0")?;
            // Without it only web functions are out of reach, and only from inside of containers.
            web_problem = rules::lead_home().err().map(|error| error.to_string());
        }
        Ok(Slot { namespace, sysfs, address, web_problem })
    }

    /// Runs `work` inside a namespace.
    pub(super) fn inside<T>(&self, slot: &Slot, work: impl FnOnce() -> T) -> Result<T, RuntimeError> {
        let _back = enter(slot.namespace.as_fd(), self.host.as_fd())?;
        Ok(work())
    }

    /// The address at which containers reach this machine.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let finding = |state, detail: String, mend: Option<&str>| Finding {
            subject: "network".to_owned(),
            state,
            detail,
            mend: mend.map(str::to_owned),
        };
        match (&self.bridge, &self.problem) {
            (Some(bridge), _) if bridge.masquerades => findings.push(finding(
                FindingState::Fine,
                format!("bridge {} at {}/{PREFIX}", bridge.name, bridge.address(1)),
                None,
            )),
            (Some(bridge), _) => findings.push(finding(
                FindingState::Degraded,
                format!(
                    "bridge {} cannot translate addresses, so containers reach this machine only",
                    bridge.name
                ),
                Some("Use a kernel with nf_tables and nft_masq, or install iptables."),
            )),
            (None, problem) => findings.push(finding(
                FindingState::Degraded,
                format!("containers have loopback only: {}", problem.as_deref().unwrap_or("no bridge")),
                Some("Use a kernel with bridge and veth."),
            )),
        }
        if let Some(problem) = &self.web_problem {
            findings.push(finding(
                FindingState::Degraded,
                format!("web functions cannot be reached from inside of containers: {problem}"),
                Some("Use a kernel with nf_tables, nft_chain_nat and nft_redir."),
            ));
        }
        if resolver::falls_back() {
            findings.push(finding(
                FindingState::Degraded,
                "this machine's name servers are on its loopback; containers ask 1.1.1.1 and 8.8.8.8"
                    .to_owned(),
                Some("Put name servers that containers can reach into /etc/resolv.conf."),
            ));
        }
        findings
    }

    /// Takes away bridge and rules.
    pub(super) fn close(&mut self) {
        self.ready.clear();
        if let Some(bridge) = self.bridge.take() {
            bridge.remove();
        }
    }
}

/// Brings this process back to the host's network when it goes out of scope.
struct Back<'a>(BorrowedFd<'a>);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if sys::enter_network(self.0).is_err() {
            // In a container's network the helper can do nothing right; its holder starts another one.
            std::process::abort();
        }
    }
}

fn enter_new(host: BorrowedFd<'_>) -> Result<Back<'_>, RuntimeError> {
    sys::unshare_network().step("making a network namespace")?;
    Ok(Back(host))
}

fn enter<'a>(namespace: BorrowedFd<'_>, host: BorrowedFd<'a>) -> Result<Back<'a>, RuntimeError> {
    sys::enter_network(namespace).step("entering a network namespace")?;
    Ok(Back(host))
}

/// Writes a setting of the network namespace that this process is in, or of the host's.
fn set(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/net/{name}"), value)
}

fn prepare_namespace() -> Result<(), RuntimeError> {
    let netlink = Netlink::route().step("opening netlink")?;
    let loopback = links::find(&netlink, "lo").step("finding the loopback interface")?.unwrap_or(1);
    links::set_up(&netlink, loopback).step("switching loopback on")?;
    // The container's root has no capability over its network, so what needs one elsewhere is open to all.
    set("ipv4/ip_unprivileged_port_start", "0").step("opening low ports")?;
    // Conveniences that a kernel may lack.
    let _ = set("ipv4/ping_group_range", "0 2147483647");
    let _ = set("ipv6/conf/default/disable_ipv6", "1");
    Ok(())
}

fn configure(netlink: &Netlink, address: Ipv4Addr, gateway: Ipv4Addr) -> io::Result<()> {
    let index = links::find(netlink, "eth0")?.ok_or_else(|| io::Error::other("eth0 did not arrive"))?;
    links::set_up(netlink, index)?;
    links::add_address(netlink, index, address, PREFIX)?;
    links::add_default_route(netlink, index, gateway)
}

/// Whether two networks share an address.
fn overlap(a: (Ipv4Addr, u8), b: (Ipv4Addr, u8)) -> bool {
    let bits = u32::MAX.checked_shl(32 - u32::from(a.1.min(b.1))).unwrap_or(0);
    (u32::from(a.0) ^ u32::from(b.0)) & bits == 0
}

/// The first network of the candidates that no route leads to.
fn choose_subnet(routes: &[(Ipv4Addr, u8)]) -> Option<Ipv4Addr> {
    CANDIDATES.iter().find_map(|(network, prefix)| {
        let step = 1u32 << (32 - PREFIX);
        let count = 1u32 << (PREFIX - prefix);
        let networks = (0..count).map(|n| Ipv4Addr::from(u32::from(*network) + n * step));
        networks.into_iter().find(|subnet| !routes.iter().any(|route| overlap(*route, (*subnet, PREFIX))))
    })
}

impl Bridge {
    fn open(tag: &str) -> Result<Self, RuntimeError> {
        let netlink = Netlink::route().step("opening netlink")?;
        let name = format!("evoke-{tag}");
        let (index, subnet) = match links::find(&netlink, &name).step("looking for the bridge")? {
            Some(index) => (index, existing_subnet(&netlink, index)?),
            None => (0, None),
        };
        let (index, subnet) = match subnet {
            Some(subnet) => (index, subnet),
            None => Self::make(&netlink, &name, index)?,
        };
        set("ipv4/ip_forward", "1").step("switching forwarding on")?;
        set(&format!("ipv4/conf/{name}/route_localnet"), "0").step("closing loopback to the bridge")?;
        // Without IPv6 in the kernel there is nothing to close.
        let _ = set(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
        let table = format!("evoke-{tag}");
        let cidr = format!("{subnet}/{PREFIX}");
        let masquerades =
            rules::install(&table, &name, subnet, PREFIX).is_ok() || firewall::masquerade(&name, &cidr);
        firewall::open(&name);
        Ok(Self {
            table,
            prefix_of_names: format!("ev{}-", &tag[..tag.len().min(6)]),
            name,
            index,
            subnet,
            masquerades,
        })
    }

    fn make(netlink: &Netlink, name: &str, found: u32) -> Result<(u32, Ipv4Addr), RuntimeError> {
        if found == 0 {
            links::add_bridge(netlink, name).step("making the bridge")?;
        }
        let index = links::find(netlink, name).step("looking for the bridge")?;
        let index =
            index.ok_or_else(|| RuntimeError::step("making the bridge", io::Error::other("it vanished")))?;
        let routes = links::routes(netlink).step("reading the routes")?;
        let routes: Vec<_> = routes.into_iter().map(|(network, prefix, _)| (network, prefix)).collect();
        let subnet = choose_subnet(&routes).ok_or_else(|| {
            RuntimeError::Exhausted("every network for the bridge has a route already".to_owned())
        })?;
        let own = Ipv4Addr::from(u32::from(subnet) + 1);
        links::add_address(netlink, index, own, PREFIX).step("giving the bridge its address")?;
        links::set_up(netlink, index).step("switching the bridge on")?;
        Ok((index, subnet))
    }

    fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet) + number)
    }

    /// Connects a namespace to the bridge by a new pair.
    fn connect(&self, number: u32, address: Ipv4Addr, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let netlink = Netlink::route()?;
        let name = format!("{}{number}", self.prefix_of_names);
        let [a, b, c, d] = address.octets();
        // One address always has one hardware address, so that what neighbours remember stays right.
        let hardware = [0x02, 0xe0, a, b, c, d];
        match links::add_veth(&netlink, &name, self.index, namespace, hardware) {
            // Left from a namespace that the kernel has not finished deleting.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if let Some(index) = links::find(&netlink, &name)? {
                    links::delete(&netlink, index)?;
                }
                links::add_veth(&netlink, &name, self.index, namespace, hardware)?;
            }
            other => other?,
        }
        let index = links::find(&netlink, &name)?.ok_or_else(|| io::Error::other("the pair vanished"))?;
        links::isolate(&netlink, index)
    }

    fn remove(&self) {
        firewall::close(&self.name, &format!("{}/{PREFIX}", self.subnet));
        // All of this is best effort at the end; what is left is found by its name at the next start.
        let _ = rules::remove(&self.table);
        let Ok(netlink) = Netlink::route() else { return };
        for name in links::names(&netlink).unwrap_or_default() {
            if name.starts_with(&self.prefix_of_names) {
                if let Ok(Some(index)) = links::find(&netlink, &name) {
                    let _ = links::delete(&netlink, index);
                }
            }
        }
        let _ = links::delete(&netlink, self.index);
    }
}

/// The network of a bridge that an earlier helper made, if no other route has come to overlap it.
fn existing_subnet(netlink: &Netlink, index: u32) -> Result<Option<Ipv4Addr>, RuntimeError> {
    let addresses = links::addresses(netlink, index).step("reading the bridge's address")?;
    Ok(addresses.first().map(|address| Ipv4Addr::from(u32::from(*address) & !((1u32 << (32 - PREFIX)) - 1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridges_network_avoids_existing_routes() {
        let ip = Ipv4Addr::new;
        assert_eq!(choose_subnet(&[]), Some(ip(10, 213, 0, 0)));
        assert_eq!(choose_subnet(&[(ip(10, 213, 0, 0), 24)]), Some(ip(10, 213, 16, 0)));
        assert_eq!(choose_subnet(&[(ip(10, 0, 0, 0), 8)]), Some(ip(172, 29, 0, 0)));
        assert_eq!(
            choose_subnet(&[(ip(10, 0, 0, 0), 8), (ip(172, 16, 0, 0), 12)]),
            Some(ip(192, 168, 208, 0))
        );
        assert_eq!(choose_subnet(&[(ip(0, 0, 0, 0), 1), (ip(128, 0, 0, 0), 1)]), None);
    }
}
