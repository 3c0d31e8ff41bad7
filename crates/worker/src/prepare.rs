//! From an assignment to what the runtime and the guest are asked for.

use crate::config::{ARGUMENTS_FILE, CONTAINER_PORT, CONTAINER_SOCKET, INSIDE_FOLDER, WorkerConfig};
use crate::volumes::VolumeRecord;
use evoke_proto::worker::{Assignment, BucketMount, LayerOwner, NetworkMode};
use evoke_runtime::gpus::LIBRARY_PATH;
use evoke_runtime::{Bind, ContainerSpec, Layer, Limits, ListenerSpec, Network, Owner, ProcessSpec, Served};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The name of the container's program with the guest.
pub(crate) const MAIN_PROGRAM: &str = "main";

/// The variable that tells the lean runtime where its platform's socket is.
const SOCKET_VARIABLE: &str = "EVOKE_PLATFORM_SOCKET";

/// A host user and group that own nothing: what is bound for them is nobody's inside.
pub(crate) const NO_ONE: u32 = 0x6fff_ffff;

/// The base of the addresses that a container is given.
pub(crate) fn origin() -> String {
    format!("http://127.0.0.1:{CONTAINER_PORT}")
}

/// The folder on the host that a container sees at [`INSIDE_FOLDER`].
fn inside(task_folder: &Path) -> PathBuf {
    task_folder.join("inside")
}

/// Makes a container's folder with the file of its arguments.
pub(crate) fn make_folder(folder: &Path, assignment: &Assignment) -> io::Result<()> {
    let inside = inside(folder);
    std::fs::create_dir_all(&inside)?;
    if !assignment.container_arguments.is_empty() {
        let file = inside.join(ARGUMENTS_FILE);
        std::fs::write(&file, &assignment.container_arguments)?;
        // Programs of the container that are not its root may read it too.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444))?;
    }
    crate::volumes::write_down(folder, &assignment.volumes)?;
    std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o755))
}

/// What the runtime is asked for. The listeners are the tcp one, then the unix one.
pub(crate) fn container_spec(config: &WorkerConfig, assignment: &Assignment) -> ContainerSpec {
    let layers = assignment.layers.iter().map(|layer| Layer {
        path: layer.path.clone(),
        owner: match layer.owner {
            LayerOwner::Canonical => Owner::Canonical,
            LayerOwner::Single { uid, gid } => Owner::Single { uid, gid },
        },
    });
    let mut spec = ContainerSpec::new(assignment.task_id.to_string(), layers.collect());
    spec.binds = vec![Bind {
        source: inside(&config.task_folder(assignment.task_id)),
        target: INSIDE_FOLDER.to_owned(),
        read_only: true,
        owner: Owner::Single { uid: config.uid, gid: config.gid },
    }];
    spec.binds.extend(assignment.binds.iter().map(|bind| Bind {
        source: bind.source.clone(),
        target: bind.target.to_string_lossy().into_owned(),
        read_only: true,
        owner: Owner::Single { uid: NO_ONE, gid: NO_ONE },
    }));
    spec.binds.extend(assignment.shared.iter().map(|shared| Bind {
        source: shared.source.clone(),
        target: shared.target.to_string_lossy().into_owned(),
        read_only: false,
        owner: Owner::Single { uid: config.uid, gid: config.gid },
    }));
    let volumes = assignment.volumes.iter();
    spec.volumes =
        volumes.map(|mount| VolumeRecord::of(mount).spec(0, &mount.view, (config.uid, config.gid))).collect();
    spec.gpus.clone_from(&assignment.gpus);
    let served = |bucket: &BucketMount| Served { target: bucket.target.clone(), read_only: bucket.read_only };
    spec.served = assignment.buckets.iter().map(served).collect();
    spec.network = match assignment.network {
        NetworkMode::Bridged => Network::Bridged,
        NetworkMode::Loopback => Network::Loopback,
    };
    let limits = &assignment.limits;
    spec.limits = Limits {
        cpu_shares_milli: limits.cpu_shares_milli,
        cpu_max_milli: limits.cpu_max_milli,
        memory_max: limits.memory_max_bytes,
        memory_low: limits.memory_low_bytes,
        pids_max: limits.pids_max,
        shm_bytes: limits.shm_bytes,
        disk_max: limits.disk_max_bytes,
    };
    spec.listeners = vec![
        ListenerSpec::Tcp { port: CONTAINER_PORT },
        ListenerSpec::Unix { path: CONTAINER_SOCKET.to_owned() },
    ];
    spec.grace_ms = assignment.grace_ms;
    spec
}

/// What the guest is asked for: the assignment's program, told where its platform is and, by `devices`, what its
/// devices need.
pub(crate) fn process_spec(
    assignment: &Assignment,
    devices: Vec<(String, String)>,
    (stdout, stderr): (OwnedFd, OwnedFd),
) -> ProcessSpec {
    let mut ours = vec![
        ("MODAL_SERVER_URL".to_owned(), origin()),
        (SOCKET_VARIABLE.to_owned(), CONTAINER_SOCKET.to_owned()),
    ];
    if !assignment.container_arguments.is_empty() {
        let path = format!("{INSIDE_FOLDER}/{ARGUMENTS_FILE}");
        ours.push(("MODAL_CONTAINER_ARGUMENTS_PATH".to_owned(), path));
    }
    for (name, value) in devices {
        let theirs = assignment.env.iter().find(|(theirs, _)| *theirs == name);
        let before =
            theirs.map(|(_, theirs)| theirs).filter(|theirs| name == LIBRARY_PATH && !theirs.is_empty());
        ours.push((name, before.map_or(value.clone(), |before| format!("{before}:{value}"))));
    }
    let theirs = assignment.env.iter().filter(|(name, _)| ours.iter().all(|(own, _)| own != name));
    let mut env: Vec<_> = theirs.cloned().collect();
    env.extend(ours);
    let mut spec = ProcessSpec::new(assignment.argv.clone(), stdout, stderr);
    spec.name = MAIN_PROGRAM.to_owned();
    spec.env = env;
    spec.cwd = assignment.cwd.clone();
    spec
}
