//! Image layers: unpacking archives, committing what a container wrote, removing trees.
//!
//! A layer is the folder `layers/<name>/`, closed to everybody but root, with the tree in `fs` in it. It is made
//! elsewhere and renamed into place, so a name either is a whole layer or does not exist.

use super::folders::{self, Folders, LAYER_TREE};
use super::ids::{self, IDS_PER_CONTAINER, Range};
use super::jobs::{Asker, Outcome};
use super::request::Reply;
use super::start::{LAYER_UPPER, NAMESPACES};
use super::sys::{self, Step};
use super::{Helper, validate};
use crate::{LAYERS_MAX, Layer, LayerStats, RuntimeError, fds};
use evoke_guest::wire::{FromGuest, ToGuest, UnpackStats};
use rustix::fs::{Mode, OFlags, RenameFlags};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Archives that are unpacked at once.
const UNPACKING_MAX: usize = 8;

/// An archive being unpacked by a guest of its own.
#[derive(Debug)]
pub(super) struct Unpacking {
    asker: Asker,
    /// The layer to be, and the folder it is made in.
    layer: String,
    folder: String,
    child: sys::Child,
    pub(super) control: OwnedFd,
    range: Range,
}

fn exists(layer: &str) -> RuntimeError {
    RuntimeError::Exists(format!("layer {layer}"))
}

impl Helper {
    /// Begins to unpack an archive; the asker is answered when it is done.
    pub(super) fn begin_unpack(
        &mut self,
        asker: Asker,
        layer: &Path,
        lower: &[Layer],
        archive: OwnedFd,
    ) -> Result<(), RuntimeError> {
        let name = self.folders.layer_name(layer)?;
        if folders::exists(self.folders.layers.as_fd(), &name) {
            return Err(exists(&name));
        }
        if lower.len() > LAYERS_MAX {
            return Err(RuntimeError::Refused(format!("more than {LAYERS_MAX} layers")));
        }
        if self.unpacking.len() >= UNPACKING_MAX {
            return Err(RuntimeError::Exhausted(format!(
                "{UNPACKING_MAX} archives are being unpacked already"
            )));
        }
        let range = self.ids.lease()?;
        self.sequence += 1;
        let folder = format!("{}-{}", std::process::id(), self.sequence);
        match self.start_unpack(&folder, range, lower, archive) {
            Ok((child, control)) => {
                self.unpacking.push(Unpacking { asker, layer: name, folder, child, control, range });
                Ok(())
            }
            Err(error) => {
                self.ids.release(range);
                self.discard_unpacking(&folder);
                Err(error)
            }
        }
    }

    fn start_unpack(
        &mut self,
        folder: &str,
        range: Range,
        lower: &[Layer],
        archive: OwnedFd,
    ) -> Result<(sys::Child, OwnedFd), RuntimeError> {
        let parent = self.folders.unpacking.as_fd();
        let folder = folders::new_folder(parent, folder, 0o700).step("making the new layer's folder")?;
        folders::new_folder(folder.as_fd(), LAYER_UPPER, 0o755).step("making the new layer")?;
        folders::new_folder(folder.as_fd(), "work", 0o700).step("making the work folder")?;
        let (control, theirs) = fds::pair().step("making a control socket")?;
        let (program, null) = (self.guest.as_fd(), self.null.as_fd());
        let flags = NAMESPACES | libc::CLONE_NEWNET as u64;
        let child = sys::fork_with(flags, None, || sys::execute_guest(program, theirs.as_fd(), null));
        let child = child.step("making namespaces for unpacking")?;
        drop(theirs);
        let sent = self.order_unpack(&child, range, lower, folder.as_fd(), control.as_fd(), archive);
        if let Err(error) = sent {
            sys::kill(child.pidfd.as_fd());
            sys::wait(child.pid);
            return Err(error);
        }
        Ok((child, control))
    }

    fn order_unpack(
        &mut self,
        child: &sys::Child,
        range: Range,
        lower: &[Layer],
        folder: BorrowedFd<'_>,
        control: BorrowedFd<'_>,
        archive: OwnedFd,
    ) -> Result<(), RuntimeError> {
        let map = format!("0 {} {IDS_PER_CONTAINER}", range.base());
        ids::write_maps(child.pid, &map, &map).step("writing the id maps")?;
        let user = sys::open(&format!("/proc/{}/ns/user", child.pid), OFlags::RDONLY);
        let user = user.step("opening the user namespace")?;
        let root = self.unpacking_root(range, lower, folder, user.as_fd())?;
        let body = serde_json::to_vec(&ToGuest::Unpack).map_err(|e| RuntimeError::Refused(e.to_string()))?;
        fds::send(control, &body, &[root.as_fd(), archive.as_fd()], true)
            .step("ordering the archive unpacked")
    }

    /// Takes the word of the `index`-th unpacking guest, whose socket is readable.
    pub(super) fn finish_unpack(&mut self, index: usize) {
        let Unpacking { asker, layer, folder, child, control, range } = self.unpacking.remove(index);
        let said = fds::recv(control.as_fd(), true);
        // It has nothing more to do, and nothing of it must be left when its ids go to somebody else.
        sys::kill(child.pidfd.as_fd());
        sys::wait(child.pid);
        self.ids.release(range);
        let outcome = match said.ok().flatten().map(|packet| serde_json::from_slice(&packet.body)) {
            Some(Ok(FromGuest::Unpacked(stats))) => Ok(stats),
            Some(Ok(FromGuest::Failed { step, errno: Some(libc::ENOSPC | libc::EDQUOT), .. })) => {
                Err(RuntimeError::DiskFull(step))
            }
            Some(Ok(FromGuest::Failed { step, detail, .. })) => Err(RuntimeError::Step { step, detail }),
            _ => Err(RuntimeError::Step {
                step: "unpacking an archive".to_owned(),
                detail: "it ended".to_owned(),
            }),
        };
        let queued = outcome.and_then(|stats| self.queue_install(asker, &layer, &folder, stats));
        if let Err(error) = queued {
            self.answer(asker, Err(error), Vec::new());
            self.discard_unpacking(&folder);
        }
    }

    fn queue_install(
        &mut self,
        asker: Asker,
        layer: &str,
        folder: &str,
        stats: UnpackStats,
    ) -> Result<(), RuntimeError> {
        let from = open_folder(self.folders.unpacking.as_fd(), folder)?;
        let stats = LayerStats { entries: stats.entries, bytes: stats.bytes, warnings: stats.warnings };
        self.install(asker, layer, from, Some(stats), Some(folder.to_owned()))
    }

    /// Queues the job that makes `upper` of a folder the tree of a new layer.
    fn install(
        &mut self,
        asker: Asker,
        layer: &str,
        from: OwnedFd,
        stats: Option<LayerStats>,
        emptied: Option<String>,
    ) -> Result<(), RuntimeError> {
        let duplicate = |fd: &OwnedFd| fd.try_clone().step("keeping a folder for a job");
        let fds = vec![from, duplicate(&self.folders.layers)?, duplicate(&self.folders.unpacking)?];
        let layer = layer.to_owned();
        self.sequence += 1;
        let temporary = format!(".new-{}-{}", std::process::id(), self.sequence);
        self.jobs.push(asker, fds, move |fds| {
            let outcome = install_tree(&layer, &temporary, fds, stats);
            if let Some(folder) = emptied {
                // Whatever could not be removed now is removed at the next start.
                let _ = CString::new(folder).map(|name| evoke_guest::tree::remove(fds[2].as_fd(), &name));
            }
            outcome
        })
    }

    /// Makes what a container wrote a layer. Its processes must have ended.
    pub(super) fn begin_commit(&mut self, asker: Asker, id: &str, layer: &Path) -> Result<(), RuntimeError> {
        validate::id(id)?;
        let name = self.folders.layer_name(layer)?;
        let Some(container) = self.containers.get_mut(id) else {
            return Err(RuntimeError::NotFound(format!("container {id}")));
        };
        if container.process.as_mut().is_some_and(|process| !process.look()) {
            return Err(RuntimeError::StillRunning(id.to_owned()));
        }
        if folders::exists(self.folders.layers.as_fd(), &name) {
            return Err(exists(&name));
        }
        let (links, devices) = (container.links.clone(), container.devices.clone());
        let stubs = container.stubs.clone();
        let from = open_folder(self.folders.containers.as_fd(), id)?;
        let upper = open_folder(from.as_fd(), LAYER_UPPER)?;
        super::volumes::remove_links(upper.as_fd(), &links);
        super::devices::remove_traces(upper.as_fd(), &devices);
        super::stubs::remove(upper.as_fd(), &stubs);
        self.install(asker, &name, from, None, None)
    }

    /// Removes a tree: out of the way at once, from the disk in a job.
    pub(super) fn begin_remove(&mut self, asker: Asker, path: &Path) -> Result<(), RuntimeError> {
        let (parent, name) = self.folders.removable(path)?;
        if self.containers.contains_key(&name) && path.parent().is_some_and(|p| p.ends_with("containers")) {
            return Err(RuntimeError::Refused(format!("container {name} has to be destroyed")));
        }
        let Some(name) = self.folders.discard(parent, &name).step("discarding a tree")? else {
            self.answer(asker, Ok(Reply::Done), Vec::new());
            return Ok(());
        };
        let trash = self.folders.trash.try_clone().step("keeping a folder for a job")?;
        self.jobs.push(asker, vec![trash], move |fds| remove_one(fds[0].as_fd(), &name))
    }

    /// Queues the removal of something in the trash. If it can't be queued, the next start removes it.
    pub(super) fn empty_trash(&mut self, name: CString) {
        if let Ok(trash) = self.folders.trash.try_clone() {
            let _ = self.jobs.push(None, vec![trash], move |fds| remove_one(fds[0].as_fd(), &name));
        }
    }

    fn discard_unpacking(&mut self, folder: &str) {
        if let Ok(Some(name)) = self.folders.discard(self.folders.unpacking.as_fd(), folder) {
            self.empty_trash(name);
        }
    }

    /// Removes what an earlier helper was unpacking, installing or removing when it ended.
    pub(super) fn remove_leftovers(&mut self) -> Result<(), RuntimeError> {
        let unfinished =
            |folder: &OwnedFd| evoke_guest::tree::names(folder.as_fd()).step("listing leftovers");
        for (name, _) in unfinished(&self.folders.unpacking)? {
            self.discard_unpacking(&name.to_string_lossy());
        }
        for (name, _) in unfinished(&self.folders.layers)? {
            if name.to_bytes().starts_with(b".new-") {
                discard_into(&self.folders, self.folders.layers.as_fd(), &name)?;
            }
        }
        for (name, _) in unfinished(&self.folders.trash)? {
            self.empty_trash(name);
        }
        Ok(())
    }
}

fn discard_into(folders: &Folders, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), RuntimeError> {
    folders.discard(parent, &name.to_string_lossy()).step("discarding a leftover").map(drop)
}

fn open_folder(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, RuntimeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).step("opening a folder")
}

fn remove_one(trash: BorrowedFd<'_>, name: &CStr) -> Outcome {
    evoke_guest::tree::remove(trash, name).step("removing a tree").map(|()| Reply::Done)
}

/// In a job: measures if need be, writes everything to the disk, and gives the layer its name.
fn install_tree(layer: &str, temporary: &str, fds: &[OwnedFd], stats: Option<LayerStats>) -> Outcome {
    let [from, layers, _] = fds else {
        return Err(RuntimeError::Refused("a job without its folders".to_owned()));
    };
    let upper = open_folder(from.as_fd(), LAYER_UPPER)?;
    let stats = match stats {
        Some(stats) => stats,
        None => {
            let (entries, bytes) = evoke_guest::tree::measure(upper.as_fd()).step("measuring the layer")?;
            LayerStats { entries, bytes, warnings: Vec::new() }
        }
    };
    let new = folders::new_folder(layers.as_fd(), temporary, 0o700).step("making the layer's folder")?;
    rustix::fs::renameat(from, LAYER_UPPER, &new, LAYER_TREE).step("moving the layer")?;
    let named = rustix::fs::syncfs(&new)
        .and_then(|()| rustix::fs::renameat_with(layers, temporary, layers, layer, RenameFlags::NOREPLACE))
        .and_then(|()| rustix::fs::fsync(layers));
    match named {
        Ok(()) => Ok(Reply::Layer(stats)),
        Err(error) => {
            let cleared =
                CString::new(temporary).map(|name| evoke_guest::tree::remove(layers.as_fd(), &name));
            // What could not be cleared is at the next start.
            drop(cleared);
            Err(if error == rustix::io::Errno::EXIST {
                exists(layer)
            } else {
                RuntimeError::step("naming the layer", error)
            })
        }
    }
}
