//! What needs what: which images and mounts nothing needs any more. Pure.

use evoke_core::{ImageId, MountId, UnixMs};
use std::collections::{HashMap, HashSet};

/// What is known of an image.
#[derive(Debug, Clone)]
pub(crate) struct ImageFact {
    /// Its id.
    pub id: ImageId,
    /// A build of it runs.
    pub building: bool,
    /// When it was last asked for or run.
    pub used: UnixMs,
    /// The images that its recipe begins with.
    pub bases: Vec<ImageId>,
}

/// What is known of a mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MountFact {
    /// Its id.
    pub id: MountId,
    /// It has a name.
    pub named: bool,
    /// When it was last asked for.
    pub used: UnixMs,
}

/// What is needed whatever its age.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Images of functions, and those that have names.
    pub images: HashSet<ImageId>,
    /// Mounts of functions and of builds.
    pub mounts: HashSet<MountId>,
}

/// The images that nothing needs and nobody used since `before`. What an image that stays begins with stays.
pub(crate) fn unused_images(facts: &[ImageFact], held: &HashSet<ImageId>, before: UnixMs) -> Vec<ImageId> {
    let by_id: HashMap<ImageId, &ImageFact> = facts.iter().map(|fact| (fact.id, fact)).collect();
    let needed = |fact: &&ImageFact| fact.building || fact.used >= before || held.contains(&fact.id);
    let mut waiting: Vec<ImageId> = facts.iter().filter(needed).map(|fact| fact.id).collect();
    let mut kept = HashSet::new();
    while let Some(id) = waiting.pop() {
        if kept.insert(id) {
            waiting.extend(by_id.get(&id).into_iter().flat_map(|fact| fact.bases.iter().copied()));
        }
    }
    facts.iter().map(|fact| fact.id).filter(|id| !kept.contains(id)).collect()
}

/// The mounts that nothing needs and nobody used since `before`.
pub(crate) fn unused_mounts(facts: &[MountFact], held: &HashSet<MountId>, before: UnixMs) -> Vec<MountId> {
    let unused = facts.iter().filter(|fact| !fact.named && fact.used < before && !held.contains(&fact.id));
    unused.map(|fact| fact.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(n: u64) -> ImageId {
        ImageId::from_bits(u128::from(n))
    }

    fn fact(n: u64, used: u64, bases: &[u64]) -> ImageFact {
        let bases = bases.iter().map(|n| image(*n)).collect();
        ImageFact { id: image(n), building: false, used: UnixMs(used), bases }
    }

    #[test]
    fn images_stay_that_are_used_held_built_or_begun_with() {
        let mut facts = vec![
            fact(1, 0, &[]),
            fact(2, 0, &[1]),
            fact(3, 0, &[]),
            fact(4, 50, &[3]),
            fact(5, 49, &[]),
            fact(6, 0, &[5, 99]),
        ];
        let held = HashSet::from([image(2)]);
        assert_eq!(unused_images(&facts, &held, UnixMs(50)), [image(5), image(6)]);
        facts[5].building = true;
        assert!(unused_images(&facts, &held, UnixMs(50)).is_empty());
        assert_eq!(unused_images(&facts, &HashSet::new(), UnixMs(100)).len(), 4);
    }

    #[test]
    fn mounts_stay_that_are_used_held_or_named() {
        let mount = |n: u64| MountId::from_bits(u128::from(n));
        let fact = |n, named, used| MountFact { id: mount(n), named, used: UnixMs(used) };
        let facts = [fact(1, false, 0), fact(2, true, 0), fact(3, false, 9), fact(4, false, 0)];
        assert_eq!(unused_mounts(&facts, &HashSet::from([mount(4)]), UnixMs(9)), [mount(1)]);
    }

    proptest! {
        /// Whatever the images begin with, in circles too: nothing that stays needs anything that goes, and
        /// nothing goes that is needed by itself.
        #[test]
        fn nothing_that_stays_needs_what_goes(
            rows in proptest::collection::vec((0u64..100, any::<bool>(), proptest::collection::vec(0u64..20, 0..3)), 1..20),
            held in proptest::collection::hash_set(0u64..20, 0..5),
            before in 0u64..100,
        ) {
            let facts: Vec<ImageFact> = rows.iter().enumerate().map(|(n, (used, building, bases))| {
                ImageFact { building: *building, ..fact(n as u64, *used, bases) }
            }).collect();
            let held: HashSet<ImageId> = held.into_iter().map(image).collect();
            let gone: HashSet<ImageId> = unused_images(&facts, &held, UnixMs(before)).into_iter().collect();
            for fact in &facts {
                if gone.contains(&fact.id) {
                    prop_assert!(!fact.building && fact.used < UnixMs(before) && !held.contains(&fact.id));
                } else {
                    prop_assert!(fact.bases.iter().all(|base| !gone.contains(base)));
                }
            }
            // What goes goes at once: a second look with the rest finds nothing more.
            let rest: Vec<ImageFact> = facts.iter().filter(|fact| !gone.contains(&fact.id)).cloned().collect();
            prop_assert!(unused_images(&rest, &held, UnixMs(before)).is_empty());
        }
    }
}
