//! The rules that a container's request must keep, before anything of it is used.

use super::folders::is_plain_name;
use crate::{
    BINDS_MAX, ContainerSpec, GPUS_MAX, LAYERS_MAX, LISTENERS_MAX, ListenerSpec, MEMORY_FOLDERS_MAX, Nest,
    Network, Owner, RuntimeError, SERVED_MAX, SUPPLIED_BYTES_MAX, VOLUMES_MAX, Volume,
};

/// Memory a container may be limited to at least, in bytes; with less its init cannot start.
const MEMORY_MIN: u64 = 8 * 1024 * 1024;
/// Processes at least: the init, a program, and what a shell needs.
const PIDS_MIN: u32 = 8;
/// Bytes of a path in the container at most; the bound of a socket's.
const PATH_MAX: usize = 1024;
const SOCKET_PATH_MAX: usize = 107;
/// Lines added to `/etc/hosts` and name servers at most.
const HOSTS_MAX: usize = 64;
const NAMESERVERS_MAX: usize = 3;
/// An hour: longer is a mistake.
const GRACE_MAX_MS: u64 = 3_600_000;

/// Whether `id` can be a container's name.
pub(super) fn id(id: &str) -> Result<(), RuntimeError> {
    require(is_plain_name(id, 64) && !id.contains('.'), || {
        format!("'{}' is not a container's name", printable(id))
    })
}

fn require(rule: bool, otherwise: impl FnOnce() -> String) -> Result<(), RuntimeError> {
    if rule { Ok(()) } else { Err(RuntimeError::Refused(otherwise())) }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

/// Checks everything of a request that can be checked without looking at the machine.
pub(super) fn spec(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    id(&spec.id)?;
    require(is_plain_name(&spec.hostname, 63), || {
        format!("'{}' is not a host name", printable(&spec.hostname))
    })?;
    require((1..=LAYERS_MAX).contains(&spec.layers.len()), || {
        format!("a container has 1 to {LAYERS_MAX} layers, not {}", spec.layers.len())
    })?;
    require(spec.binds.len() <= BINDS_MAX, || format!("more than {BINDS_MAX} binds"))?;
    for bind in &spec.binds {
        target(&bind.target)?;
        require(bind.owner != Owner::Canonical || bind.read_only, || {
            format!("{} would be a layer that can be written", printable(&bind.target))
        })?;
    }
    in_memory(spec)?;
    require(spec.served.len() <= SERVED_MAX, || format!("more than {SERVED_MAX} served mounts"))?;
    for (index, one) in spec.served.iter().enumerate() {
        target(&one.target)?;
        // What is mounted inside would wait for a process that serves only later.
        let others = spec.served[..index].iter().map(|other| &other.target);
        let others = others.chain(spec.binds.iter().map(|bind| &bind.target));
        let mut others = others.chain(spec.volumes.iter().map(|volume| &volume.target));
        require(others.all(|other| !inside(other, &one.target) && !inside(&one.target, other)), || {
            format!("the mount at {} would lie inside another one or hold one", printable(&one.target))
        })?;
    }
    require(spec.gpus.len() <= GPUS_MAX, || format!("more than {GPUS_MAX} GPUs"))?;
    for gpu in &spec.gpus {
        require(is_plain_name(gpu, 128), || format!("'{}' is not a GPU's name", printable(gpu)))?;
    }
    require(spec.volumes.len() <= VOLUMES_MAX, || format!("more than {VOLUMES_MAX} volumes"))?;
    for (index, one) in spec.volumes.iter().enumerate() {
        volume(one)?;
        let others = spec.volumes[..index].iter();
        require(others.clone().all(|other| other.id != one.id), || format!("the volume {} twice", one.id))?;
        let mut targets = others.map(|other| &other.target).chain(spec.binds.iter().map(|bind| &bind.target));
        require(targets.all(|other| !inside(other, &one.target) && !inside(&one.target, other)), || {
            format!("a volume at {} would lie inside another mount", printable(&one.target))
        })?;
    }
    require(spec.listeners.len() <= LISTENERS_MAX, || format!("more than {LISTENERS_MAX} listeners"))?;
    for listener in &spec.listeners {
        if let ListenerSpec::Unix { path } = listener {
            target(path)?;
            require(path.len() <= SOCKET_PATH_MAX, || {
                format!("the socket path {} is too long", printable(path))
            })?;
        }
    }
    limits(spec)?;
    nest(spec)?;
    require(spec.grace_ms <= GRACE_MAX_MS, || "a grace of more than an hour".to_owned())?;
    require(spec.hosts.len() <= HOSTS_MAX, || format!("more than {HOSTS_MAX} host names"))?;
    for (address, name) in &spec.hosts {
        let fine = address.parse::<std::net::IpAddr>().is_ok() && is_plain_name(name, 253);
        require(fine, || format!("'{} {}' is no line for /etc/hosts", printable(address), printable(name)))?;
    }
    require(spec.nameservers.len() <= NAMESERVERS_MAX, || {
        format!("more than {NAMESERVERS_MAX} name servers")
    })?;
    for server in &spec.nameservers {
        let fine = server.parse::<std::net::IpAddr>().is_ok();
        require(fine, || format!("'{}' is not a name server's address", printable(server)))?;
    }
    Ok(())
}

/// Checks a volume's description.
pub(super) fn volume(volume: &Volume) -> Result<(), RuntimeError> {
    volume_id(&volume.id)?;
    target(&volume.target)?;
    require((1..=LAYERS_MAX).contains(&volume.trees.len()), || {
        format!("a volume has 1 to {LAYERS_MAX} trees, not {}", volume.trees.len())
    })?;
    require(volume.trees.iter().all(|tree| tree.owner != Owner::Canonical), || {
        "a layer is not part of a volume".to_owned()
    })?;
    let sub_path = evoke_guest::tree::components(volume.sub_path.as_bytes());
    require(sub_path.is_ok() && volume.sub_path.len() <= PATH_MAX, || {
        format!("'{}' is not a path in a volume", printable(&volume.sub_path))
    })
}

/// Whether `id` can be a volume's name.
pub(super) fn volume_id(id: &str) -> Result<(), RuntimeError> {
    let fine = is_plain_name(id, 64) && !id.contains(['.', '_']);
    require(fine, || format!("'{}' is not a volume's name", printable(id)))
}

/// Whether the path `inner` is `outer` or lies below it.
fn inside(inner: &str, outer: &str) -> bool {
    let outer = outer.trim_end_matches('/');
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn in_memory(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    require(spec.memory.len() <= MEMORY_FOLDERS_MAX, || {
        format!("more than {MEMORY_FOLDERS_MAX} folders in memory")
    })?;
    for folder in &spec.memory {
        target(&folder.target)?;
    }
    let supplied: usize = spec.files.iter().map(|file| file.path.len() + file.content.len()).sum();
    require(supplied <= SUPPLIED_BYTES_MAX, || format!("files of more than {SUPPLIED_BYTES_MAX} bytes"))?;
    for file in &spec.files {
        target(&file.path)?;
    }
    Ok(())
}

fn nest(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    match &spec.nest {
        Nest::Machine => Ok(()),
        Nest::Inside(around) => {
            id(around)?;
            require(*around != spec.id, || "a container inside of itself".to_owned())
        }
        Nest::Around => {
            // What runs there may enter others: it has nothing but its root.
            let has_more = !spec.volumes.is_empty() || !spec.served.is_empty() || !spec.gpus.is_empty();
            require(!has_more && spec.network == Network::Loopback, || {
                "a container that others are made in has its root and nothing else".to_owned()
            })
        }
    }
}

fn limits(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    let limits = &spec.limits;
    let memory = limits.memory_max;
    require(memory.is_none_or(|bytes| bytes >= MEMORY_MIN), || {
        format!("a memory limit below {MEMORY_MIN} bytes")
    })?;
    require(limits.pids_max >= PIDS_MIN, || format!("a limit of fewer than {PIDS_MIN} processes"))?;
    require(limits.cpu_max_milli != Some(0), || "a processor limit of zero".to_owned())?;
    require(limits.shm_bytes >= 4096, || "a /dev/shm of less than a page".to_owned())
}

/// A path in the container: absolute, without `..`, not the root itself and not what the kernel shows there.
pub(super) fn target(path: &str) -> Result<(), RuntimeError> {
    let refuse = || format!("'{}' cannot be a path in the container", printable(path));
    let parts =
        evoke_guest::tree::components(path.as_bytes()).map_err(|_| RuntimeError::Refused(refuse()))?;
    let fine = path.starts_with('/') && path.len() <= PATH_MAX && !parts.is_empty();
    let kernels = parts.first().is_some_and(|first| [b"proc".as_slice(), b"sys"].contains(first));
    require(fine && !kernels && !path.bytes().any(|b| b < 0x20), refuse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bind, Layer, MemoryFolder, Served, SuppliedFile};

    fn supplied(path: &str, content: &str) -> SuppliedFile {
        SuppliedFile { path: path.to_owned(), content: content.to_owned(), mode: 0o400, owner: (0, 0) }
    }

    fn valid() -> ContainerSpec {
        ContainerSpec::new("ta-1", vec![Layer { path: "/d/layers/x".into(), owner: Owner::Canonical }])
    }

    #[test]
    fn what_others_are_made_in_has_nothing_but_its_root() {
        let around = ContainerSpec { nest: Nest::Around, network: Network::Loopback, ..valid() };
        let bare = ContainerSpec { volumes: Vec::new(), served: Vec::new(), gpus: Vec::new(), ..around };
        assert!(spec(&bare).is_ok());
        assert!(spec(&ContainerSpec { network: Network::Bridged, ..bare.clone() }).is_err());
        assert!(spec(&ContainerSpec { gpus: vec!["0".into()], ..bare.clone() }).is_err());
        let inside = |id: &str| spec(&ContainerSpec { nest: Nest::Inside(id.to_owned()), ..valid() });
        assert!(inside("template-1").is_ok());
        assert!(inside("../x").is_err());
        assert!(inside(&valid().id).is_err());
    }

    #[test]
    fn the_defaults_pass_and_each_broken_rule_is_refused() {
        assert_eq!(spec(&valid()), Ok(()));
        let bind = |target: &str| Bind {
            source: "/d/x".into(),
            target: target.to_owned(),
            read_only: false,
            owner: Owner::Single { uid: 1, gid: 1 },
        };
        let broken: Vec<fn(&mut ContainerSpec)> = vec![
            |s| s.id = "../x".to_owned(),
            |s| s.id = String::new(),
            |s| s.gpus = vec!["../x".to_owned()],
            |s| s.served = vec![Served { target: "/proc/x".to_owned(), read_only: true }],
            |s| {
                s.served = vec![
                    Served { target: "/a".to_owned(), read_only: true },
                    Served { target: "/a/b".to_owned(), read_only: true },
                ]
            },
            |s| s.gpus = vec!["0".to_owned(); GPUS_MAX + 1],
            |s| s.id = ".trash".to_owned(),
            |s| s.id = "a\n".to_owned(),
            |s| s.hostname = "a b".to_owned(),
            |s| s.layers.clear(),
            |s| s.layers = vec![s.layers[0].clone(); LAYERS_MAX + 1],
            |s| s.limits.memory_max = Some(1),
            |s| s.limits.pids_max = 1,
            |s| s.limits.cpu_max_milli = Some(0),
            |s| s.listeners = vec![ListenerSpec::Unix { path: "x".to_owned() }],
            |s| s.listeners = vec![ListenerSpec::Tcp { port: 1 }; LISTENERS_MAX + 1],
            |s| s.hosts = vec![("1.2.3.4".to_owned(), "a\nevil".to_owned())],
            |s| s.nameservers = vec!["127.0.0.1\noptions".to_owned()],
            |s| s.grace_ms = u64::MAX,
            |s| s.memory = vec![MemoryFolder { target: "/proc/x".to_owned(), bytes_max: None }],
            |s| s.files = vec![supplied("/a/../b", "")],
            |s| s.files = vec![supplied("/a", &"x".repeat(SUPPLIED_BYTES_MAX))],
        ];
        for (index, breaks) in broken.into_iter().enumerate() {
            let mut request = valid();
            breaks(&mut request);
            assert!(matches!(spec(&request), Err(RuntimeError::Refused(_))), "rule {index}");
        }
        for target in ["x", "/", "/..", "/a/../b", "/proc/1", "/sys/x", "/a\nb"] {
            let mut request = valid();
            request.binds = vec![bind(target)];
            assert!(spec(&request).is_err(), "{target}");
        }
        let mut request = valid();
        request.binds = vec![bind("/data")];
        assert_eq!(spec(&request), Ok(()));
    }
}
