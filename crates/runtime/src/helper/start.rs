//! Starts a container: everything that needs root, in the order in which it can be undone by destroying it.

use super::container::Container;
use super::folders::{self, LAYER_TREE};
use super::ids::{self, IDS_PER_CONTAINER, Range};
use super::net::{Slot, resolver};
use super::record::{Process, Record};
use super::request::Reply;
use super::stubs;
use super::sys::{self, Step};
use super::{Helper, devices, disk, now, rootfs, served, validate};
use crate::{ContainerSpec, Nest, Owner, RuntimeError, StartTimings, fds};
use evoke_guest::wire::{BindTarget, Setup, ToGuest, VolumeTarget};
use rustix::fs::OFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// The namespaces of every container. The cgroup one is made by its init once it is in its groups, the network
/// is entered before.
pub(super) const NAMESPACES: u64 =
    (libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS)
        as u64;

/// A tree of the request, found and allowed.
pub(super) struct Tree {
    pub(super) fd: OwnedFd,
    owner: Owner,
    read_only: bool,
    directory: bool,
}

/// What a container is made of before it has a process.
struct Parts {
    range: Range,
    slot: Slot,
    folder: OwnedFd,
    cgroup: Option<OwnedFd>,
    /// Where it is made in another container's namespaces: that one's init, and its number there.
    around: Option<(OwnedFd, usize)>,
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Helper {
    /// Starts a container. On failure whatever was made is being taken away again.
    pub(super) fn start(&mut self, spec: &ContainerSpec) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
        validate::spec(spec)?;
        if self.containers.contains_key(&spec.id)
            || folders::exists(self.folders.containers.as_fd(), &spec.id)
        {
            return Err(RuntimeError::Exists(format!("container {}", spec.id)));
        }
        let layers = self.find_layers(spec)?;
        let binds = self.find_binds(spec)?;
        let edits = self.devices(spec)?;
        // From here on the container exists, so that one path takes it away, whatever fails.
        let gpu_locks = devices::lock(&spec.gpus)?;
        let container =
            Container { gpus: spec.gpus.clone(), gpu_locks, devices: edits, ..Container::default() };
        self.containers.insert(spec.id.clone(), container);
        let started = self.start_checked(spec, &layers, &binds);
        if started.is_err() {
            self.begin_destroy(&spec.id, None);
        }
        started
    }

    fn find_layers(&self, spec: &ContainerSpec) -> Result<Vec<Tree>, RuntimeError> {
        let find = |layer: &crate::Layer| {
            let fd = self.folders.open_tree(&layer.path, layer.owner, true)?;
            if !rootfs::is_directory(fd.as_fd())? {
                return Err(RuntimeError::Refused(format!("{} is not a directory", layer.path.display())));
            }
            Ok(Tree { fd, owner: layer.owner, read_only: true, directory: true })
        };
        spec.layers.iter().map(find).collect()
    }

    fn find_binds(&self, spec: &ContainerSpec) -> Result<Vec<Tree>, RuntimeError> {
        let find = |bind: &crate::Bind| {
            let fd = self.folders.open_tree(&bind.source, bind.owner, bind.read_only)?;
            let directory = rootfs::is_directory(fd.as_fd())?;
            Ok(Tree { fd, owner: bind.owner, read_only: bind.read_only, directory })
        };
        spec.binds.iter().map(find).collect()
    }

    fn start_checked(
        &mut self,
        spec: &ContainerSpec,
        layers: &[Tree],
        binds: &[Tree],
    ) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
        let began = now();
        let mut timings = StartTimings::default();
        let parts = self.prepare(spec)?;
        let devices =
            self.containers.get(&spec.id).map(|container| container.devices.clone()).unwrap_or_default();
        timings.network_us = micros(began);
        let (control, theirs) = fds::pair().step("making a control socket")?;
        let cloning = now();
        let child = self.clone_guest(&parts, theirs.as_fd())?;
        drop(theirs);
        let pidfd = child.pidfd.try_clone().step("keeping the container's process")?;
        if let Some(container) = self.containers.get_mut(&spec.id) {
            container.process =
                Some(super::container::Process { pid: child.pid, pidfd: child.pidfd, ended: false });
        }
        self.record(&spec.id, &parts, Some(child.pid))?;
        let base = parts.range.base();
        self.take_in(&spec.id, &parts, child.pid)?;
        timings.namespaces_us = micros(cloning);
        let mounting = now();
        let user = sys::open(&format!("/proc/{}/ns/user", child.pid), OFlags::RDONLY);
        let user = user.step("opening the user namespace")?;
        let mut mounts = vec![self.overlay(&parts, layers, user.as_fd())?, rootfs::dev(base, &devices)?];
        let address = parts.slot.address.map(|(_, address)| address);
        mounts.push(parts.slot.sysfs);
        for bind in binds {
            let idmap = self.idmap(parts.range, bind.owner, user.as_fd())?;
            mounts.push(rootfs::mapped_clone(bind.fd.as_fd(), idmap, bind.read_only)?);
        }
        let mut targets: Vec<BindTarget> = bind_targets(spec, binds);
        for file in &devices.mounts {
            let (mount, directory) = devices::driver_mount(file)?;
            mounts.push(mount);
            targets.push(BindTarget { target: file.path.clone(), directory });
        }
        let mut served = vec![pidfd, control];
        for one in &spec.served {
            let (mount, device) = served::mount(one, base)?;
            mounts.push(mount);
            served.push(device);
            targets.push(BindTarget { target: one.target.clone(), directory: true });
        }
        let made = if spec.leaves_no_stubs { stubs::of(spec, layers) } else { Vec::new() };
        let links = spec.volumes.iter().map(|volume| volume.target.clone()).collect();
        self.note(&spec.id, |container| (container.stubs, container.links) = (made, links));
        for volume in &spec.volumes {
            mounts.push(self.volume_mount(parts.folder.as_fd(), parts.range, user.as_fd(), volume)?);
        }
        let doors = if parts.around.is_some() { self.cgroups.doors(&spec.id)? } else { Vec::new() };
        let groups = doors.len();
        mounts.extend(doors);
        timings.root_us = micros(mounting);
        let cgroup2 = parts.cgroup.is_some();
        let orders = Orders { binds: targets, links: devices.links, address, cgroup2, groups };
        send_orders(spec, orders, served[1].as_fd(), &mounts)?;
        timings.helper_us = micros(began);
        Ok((Reply::Started { timings, env: devices.env, root: base, address }, served))
    }

    /// Writes the maps of a new init's user namespace, if that was not done from inside, and leads it into its groups.
    fn take_in(&self, id: &str, parts: &Parts, pid: i32) -> Result<(), RuntimeError> {
        if parts.around.is_some() {
            return self.cgroups.move_in(id, pid);
        }
        let map = match self.containers.get(id).and_then(|container| container.room.as_ref()) {
            Some(room) => ids::map_around(parts.range, &room.ranges),
            None => format!("0 {} {IDS_PER_CONTAINER}", parts.range.base()),
        };
        ids::write_maps(pid, &map, &map).step("writing the id maps")?;
        self.cgroups.join(id, pid)
    }

    /// Leases and makes what the container needs, noting each at once so that it is given back.
    fn prepare(&mut self, spec: &ContainerSpec) -> Result<Parts, RuntimeError> {
        let (range, around) = self.lease_range(spec)?;
        self.note(&spec.id, |container| container.range = Some(range));
        let slot = match &spec.nest {
            Nest::Inside(around) => self.take_network_inside(around, spec.network)?,
            Nest::Machine | Nest::Around => self.networks.take(spec.network)?,
        };
        let number = slot.address.map(|(number, _)| number);
        self.note(&spec.id, |container| container.address = number);
        let containers = self.folders.containers.as_fd();
        let folder =
            folders::new_folder(containers, &spec.id, 0o700).step("making the container's folder")?;
        folders::new_folder(folder.as_fd(), "upper", 0o755).step("making the upper folder")?;
        folders::new_folder(folder.as_fd(), "work", 0o700).step("making the work folder")?;
        let project = disk::bound(folder.as_fd(), spec.limits.disk_max)?;
        self.note(&spec.id, |container| container.project = project);
        let cgroup = self.cgroups.create(&spec.id, &spec.limits)?;
        let parts = Parts { range, slot, folder, cgroup, around };
        self.record(&spec.id, &parts, None)?;
        Ok(parts)
    }

    pub(super) fn note(&mut self, id: &str, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.containers.get_mut(id) {
            change(container);
        }
    }

    fn record(&self, id: &str, parts: &Parts, pid: Option<i32>) -> Result<(), RuntimeError> {
        let process = pid.map(Process::describe).transpose().step("describing the container's process")?;
        let address = parts.slot.address.map(|(number, _)| number);
        let (gpus, devices, project) = match self.containers.get(id) {
            Some(container) => (container.gpus.clone(), container.devices.clone(), container.project),
            None => Default::default(),
        };
        let record = Record { range: parts.range.0, address, process, gpus, project, devices };
        record.write(parts.folder.as_fd()).step("recording the container")
    }

    /// Starts the guest, in the container's network and new namespaces of every other kind.
    fn clone_guest(&self, parts: &Parts, control: BorrowedFd<'_>) -> Result<sys::Child, RuntimeError> {
        let (program, null) = (self.guest.as_fd(), self.null.as_fd());
        if let Some((around, index)) = &parts.around {
            let map = ids::map_inside(*index);
            let cloned = self.networks.inside(&parts.slot, || {
                // Into its control groups it is moved afterwards.
                let execute = || sys::execute_guest(program, control, null);
                sys::fork_inside(around.as_fd(), NAMESPACES, &map, execute)
            })?;
            return cloned.step("making the container's namespaces inside of a template's");
        }
        let cgroup = parts.cgroup.as_ref().map(AsFd::as_fd);
        let cloned = self.networks.inside(&parts.slot, || {
            sys::fork_with(NAMESPACES, cgroup, || sys::execute_guest(program, control, null))
        })?;
        cloned.step("making the container's namespaces")
    }

    fn overlay(
        &mut self,
        parts: &Parts,
        layers: &[Tree],
        user: BorrowedFd<'_>,
    ) -> Result<OwnedFd, RuntimeError> {
        let mut mounts = Vec::with_capacity(layers.len());
        for layer in layers {
            let idmap = self.idmap(parts.range, layer.owner, user)?;
            mounts.push(rootfs::mapped_clone(layer.fd.as_fd(), idmap, true)?);
        }
        let upper = rootfs::mapped_clone(parts.folder.as_fd(), user, false)?;
        self.stage.overlay(&mounts, &upper, parts.range.base())
    }

    /// The user namespace by whose map a tree's owners are translated.
    pub(super) fn idmap<'a>(
        &'a mut self,
        range: Range,
        owner: Owner,
        user: BorrowedFd<'a>,
    ) -> Result<BorrowedFd<'a>, RuntimeError> {
        match owner {
            Owner::Canonical => Ok(user),
            Owner::Single { uid, gid } => self.ids.single(range, (uid, gid)),
        }
    }

    /// The mounts for unpacking over `lower`: an overlay, or the new layer itself where nothing lies below.
    pub(super) fn unpacking_root(
        &mut self,
        range: Range,
        lower: &[crate::Layer],
        folder: BorrowedFd<'_>,
        user: BorrowedFd<'_>,
    ) -> Result<OwnedFd, RuntimeError> {
        if lower.is_empty() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let upper = rustix::fs::openat(folder, LAYER_UPPER, flags, rustix::fs::Mode::empty());
            return rootfs::mapped_clone(upper.step("opening the new layer")?.as_fd(), user, false);
        }
        let mut mounts = Vec::with_capacity(lower.len());
        for layer in lower {
            let fd = self.folders.open_tree(&layer.path, layer.owner, true)?;
            let idmap = self.idmap(range, layer.owner, user)?;
            mounts.push(rootfs::mapped_clone(fd.as_fd(), idmap, true)?);
        }
        let upper = rootfs::mapped_clone(folder, user, false)?;
        self.stage.overlay(&mounts, &upper, range.base())
    }
}

/// The upper folder's name, in a container's folder and in that of a layer being unpacked.
pub(super) const LAYER_UPPER: &str = "upper";
const _: () = assert!(LAYER_TREE.len() < 16);

fn bind_targets(spec: &ContainerSpec, binds: &[Tree]) -> Vec<BindTarget> {
    let targets = spec.binds.iter().zip(binds);
    targets
        .map(|(bind, tree)| BindTarget { target: bind.target.clone(), directory: tree.directory })
        .collect()
}

/// What the guest is told beside the request.
struct Orders {
    binds: Vec<BindTarget>,
    links: Vec<(String, String)>,
    address: Option<std::net::Ipv4Addr>,
    cgroup2: bool,
    /// Files of control groups that come last among the descriptors.
    groups: usize,
}

fn send_orders(
    spec: &ContainerSpec,
    orders: Orders,
    control: BorrowedFd<'_>,
    mounts: &[OwnedFd],
) -> Result<(), RuntimeError> {
    let Orders { binds, links, address, cgroup2, groups } = orders;
    let setup = Setup {
        hostname: spec.hostname.clone(),
        sysfs: true,
        cgroup2,
        binds,
        groups,
        nests: spec.nest == Nest::Around,
        links,
        volumes: spec
            .volumes
            .iter()
            .map(|volume| VolumeTarget { volume: volume.id.clone(), target: volume.target.clone() })
            .collect(),
        memory: spec.memory.clone(),
        files: resolver::files(spec, address).into_iter().chain(spec.files.iter().cloned()).collect(),
        listeners: spec.listeners.clone(),
        shm_bytes: spec.limits.shm_bytes,
        grace_ms: spec.grace_ms,
    };
    let body = serde_json::to_vec(&ToGuest::Setup(Box::new(setup)));
    let body = body.map_err(|error| RuntimeError::Refused(error.to_string()))?;
    let fds: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
    fds::send(control, &body, &fds, true).step("giving the container's init its orders")
}
