//! What this machine has for containers, as it says itself and as the configuration declares.

use crate::config::Config;
use crate::data_folder::DataFolder;
use anyhow::{Context, Result};
use evoke_control::{Gpu, Inventory, Machine};
use evoke_core::{GPU_KINDS_MAX, GpuKind, Gpus, Resources};
use evoke_sched::{WorkerCapacity, WorkerId};
use std::collections::BTreeMap;

/// The machine, in control's words and in the planner's.
pub(super) struct Found {
    /// What a request is measured against.
    pub has: Machine,
    /// What can be reserved.
    pub capacity: WorkerCapacity,
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
}

/// Steps of image builds that run at the same time, per core: many of them wait for a network or a disk.
const STEPS_PER_CORE: u64 = 2;
/// Memory (MiB) that there should be for each of them: a compiler needs as much.
const STEP_MIB: u64 = 1024;

impl Found {
    /// Steps of image builds that may run at the same time.
    pub(super) fn build_steps(&self) -> usize {
        let by_cores = self.has.milli_cpu.div_ceil(1000) * STEPS_PER_CORE;
        usize::try_from(by_cores.min(self.has.memory_mib / STEP_MIB).max(1)).unwrap_or(1)
    }
}

/// Looks at the machine.
pub(super) fn look(config: &Config, data: &DataFolder) -> Result<Found> {
    let cores = std::thread::available_parallelism().context("counting processors")?.get();
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let memory_mib = total_mib(&meminfo).context("/proc/meminfo does not say how much memory there is")?;
    let limits = &config.limits;
    let milli_cpu = limits.milli_cpu.unwrap_or(u32::try_from(cores.saturating_mul(1000)).unwrap_or(u32::MAX));
    let memory_mib = limits.memory_mib.unwrap_or(memory_mib);
    let total = Resources { milli_cpu, memory_mib, gpus: Gpus::NONE };
    let mut capacity = WorkerCapacity::of(WorkerId(0), total);
    if let Some(factor) = limits.cpu_oversubscription.filter(|factor| *factor >= 1.0) {
        capacity.cpu_oversubscription_percent = (factor * 100.0) as u32;
    }
    let (inventory, gpus) = number(cards(config), &config.gpu.substitute);
    let has = Machine {
        milli_cpu: u64::from(milli_cpu),
        memory_mib: u64::from(memory_mib),
        gpus: inventory,
        disk_mib: limits.disk_mib,
        bounds_disks: evoke_runtime::quota::is_kept(data.path()),
        region: config.machine.region.clone(),
        cloud: config.machine.cloud.clone(),
    };
    Ok(Found { has, capacity, gpus })
}

/// A card: its name on this machine, and what it is.
type Card = (String, String);

/// The cards as they are declared, else as the driver shows them. A declared one has its number as its name.
fn cards(config: &Config) -> Vec<Card> {
    match &config.gpu.declared {
        Some(kinds) => kinds.iter().enumerate().map(|(n, kind)| (n.to_string(), kind.clone())).collect(),
        None => evoke_runtime::gpus::cards().into_iter().map(|card| (card.uuid, card.kind)).collect(),
    }
}

/// Numbers the kinds.
fn number(cards: Vec<Card>, substitute: &BTreeMap<String, String>) -> (Inventory, Vec<Gpu>) {
    let mut kinds: Vec<(String, u32)> = Vec::new();
    let mut gpus = Vec::new();
    for (name, kind) in cards {
        let index =
            kinds.iter().position(|(known, _)| known.eq_ignore_ascii_case(&kind)).unwrap_or_else(|| {
                kinds.push((kind.clone(), 0));
                kinds.len() - 1
            });
        if index >= GPU_KINDS_MAX {
            tracing::warn!(name, kind, "more kinds of GPUs than {GPU_KINDS_MAX}: this one is not used");
            kinds.truncate(GPU_KINDS_MAX);
            continue;
        }
        kinds[index].1 += 1;
        gpus.push(Gpu { name, kind: GpuKind(index as u8) });
    }
    let substitute = substitute.iter().map(|(lacking, by)| (lacking.clone(), by.clone())).collect();
    (Inventory { kinds, substitute }, gpus)
}

fn total_mib(meminfo: &str) -> Option<u32> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    u32::try_from(kib / 1024).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_and_counted() {
        let card = |name: &str, kind: &str| (name.to_owned(), kind.to_owned());
        let cards = vec![card("a", "H100"), card("b", "L4"), card("c", "h100")];
        let (inventory, gpus) = number(cards, &BTreeMap::new());
        assert_eq!(inventory.kinds, [("H100".to_owned(), 2), ("L4".to_owned(), 1)]);
        let numbers: Vec<_> = gpus.iter().map(|gpu| (gpu.name.as_str(), gpu.kind.0)).collect();
        assert_eq!(numbers, [("a", 0), ("b", 1), ("c", 0)]);
    }

    #[test]
    fn memory_is_read_in_mebibytes() {
        assert_eq!(total_mib("MemTotal:       24576000 kB\n"), Some(24_000));
        assert_eq!(total_mib(""), None);
    }
}
