//! Containers inside of others: a template's container has room for those whose programs it forks. Their user and pid
//! namespaces lie in its own, so that its programs may enter them, and each has host ids of its own.

use super::ids::Range;
use super::net::Slot;
use super::sys::Step;
use super::{Helper, container};
use crate::{ContainerSpec, Nest, Network, RuntimeError};
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

/// Containers that one has room for. The map of its user namespace has a line for each.
const ROOM: usize = 32;
/// Networks kept ready for each container that others are made in.
const READY: usize = 2;

/// What a container has for those inside of it.
#[derive(Debug)]
pub(super) struct Room {
    /// The ranges of host ids, by their numbers in its user namespace's map.
    pub(super) ranges: Vec<Range>,
    /// The numbers that nobody has.
    free: BTreeSet<usize>,
    /// Networks that belong to its user namespace, made ahead of need.
    ready: VecDeque<Slot>,
}

impl Helper {
    /// A range of host ids for a container; inside of another one that one's init and the range's number there.
    pub(super) fn lease_range(
        &mut self,
        spec: &ContainerSpec,
    ) -> Result<(Range, Option<(OwnedFd, usize)>), RuntimeError> {
        let Nest::Inside(around) = &spec.nest else {
            let own = self.ids.lease()?;
            if spec.nest == Nest::Around {
                let mut ranges = Vec::with_capacity(ROOM);
                for _ in 0..ROOM {
                    match self.ids.lease() {
                        Ok(range) => ranges.push(range),
                        Err(error) => {
                            ranges.into_iter().chain([own]).for_each(|range| self.ids.release(range));
                            return Err(error);
                        }
                    }
                }
                let room = Room { ranges, free: (0..ROOM).collect(), ready: VecDeque::new() };
                self.note(&spec.id, |container| container.room = Some(room));
            }
            return Ok((own, None));
        };
        let init = self.init_of(around)?;
        let room = self.containers.get_mut(around).and_then(|container| container.room.as_mut());
        let room = room.ok_or_else(|| RuntimeError::NotFound(format!("room in container {around}")))?;
        let full = || RuntimeError::Exhausted(format!("container {around} has {ROOM} others in it"));
        let index = room.free.pop_first().ok_or_else(full)?;
        let range = room.ranges[index];
        let around = around.clone();
        self.note(&spec.id, |container| container.around = Some(around));
        Ok((range, Some((init, index))))
    }

    /// The init of a container that lives on.
    fn init_of(&mut self, id: &str) -> Result<OwnedFd, RuntimeError> {
        let gone = || RuntimeError::NotFound(format!("container {id}"));
        let container = self.containers.get_mut(id).filter(|container| container.ending.is_none());
        let process = container.and_then(|container| container.process.as_mut()).ok_or_else(gone)?;
        if container::Process::look(process) {
            return Err(gone());
        }
        process.pidfd.try_clone().step("keeping the init of a template's container")
    }

    /// A network for a container inside of `around`.
    pub(super) fn take_network_inside(
        &mut self,
        around: &str,
        network: Network,
    ) -> Result<Slot, RuntimeError> {
        if network == Network::Bridged {
            let room = self.containers.get_mut(around).and_then(|container| container.room.as_mut());
            if let Some(slot) = room.and_then(|room| room.ready.pop_front()) {
                return Ok(slot);
            }
        }
        let init = self.init_of(around)?;
        self.networks.make_for(network, init.as_fd())
    }

    /// Gives a range back to where it is from.
    pub(super) fn release_range(&mut self, around: Option<&str>, range: Range) {
        let room = around.and_then(|id| self.containers.get_mut(id)).and_then(|c| c.room.as_mut());
        match room.and_then(|room| room.ranges.iter().position(|own| *own == range).map(|at| (room, at))) {
            Some((room, index)) => drop(room.free.insert(index)),
            None => self.ids.release(range),
        }
    }

    /// Gives back what there was for others, but for what they still have.
    pub(super) fn close_room(&mut self, room: Room) {
        for index in room.free {
            self.ids.release(room.ranges[index]);
        }
        for number in room.ready.iter().filter_map(|slot| slot.address.map(|(number, _)| number)) {
            self.networks.release(number);
        }
    }

    /// The containers that others are in.
    pub(super) fn inhabited(&self) -> BTreeSet<String> {
        self.containers.values().filter_map(|container| container.around.clone()).collect()
    }

    /// One that lives and has fewer networks ready than it should.
    pub(super) fn wanting_nest(&self) -> Option<String> {
        if !self.networks.has_bridge() {
            return None;
        }
        let wanting = self.containers.iter().find(|(_, container)| {
            let lives = container.ending.is_none() && container.process.as_ref().is_some_and(|p| !p.ended);
            lives && container.room.as_ref().is_some_and(|room| room.ready.len() < READY)
        });
        wanting.map(|(id, _)| id.clone())
    }

    /// Makes one network ahead of need.
    pub(super) fn refill_nest(&mut self, id: &str) -> Result<(), RuntimeError> {
        let init = self.init_of(id)?;
        let slot = self.networks.make_for(Network::Bridged, init.as_fd())?;
        if let Some(room) = self.containers.get_mut(id).and_then(|container| container.room.as_mut()) {
            room.ready.push_back(slot);
        }
        Ok(())
    }
}
