//! What this machine has for containers, as it says itself and as the configuration declares.

use crate::config::Config;
use anyhow::{Context, Result};
use evoke_control::Machine;
use evoke_core::Resources;
use evoke_sched::{WorkerCapacity, WorkerId};
use std::collections::BTreeMap;

/// Where the driver lists its cards.
const NVIDIA_CARDS: &str = "/proc/driver/nvidia/gpus";
/// Substitution of whatever card there is.
const ANY: &str = "any";

/// The machine, in control's words and in the planner's.
pub(super) struct Found {
    /// What a request is measured against.
    pub has: Machine,
    /// What can be reserved.
    pub capacity: WorkerCapacity,
}

/// Looks at the machine.
pub(super) fn look(config: &Config) -> Result<Found> {
    let cores = std::thread::available_parallelism().context("counting processors")?.get();
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let memory_mib = total_mib(&meminfo).context("/proc/meminfo does not say how much memory there is")?;
    let limits = &config.limits;
    let milli_cpu = limits.milli_cpu.unwrap_or(u32::try_from(cores.saturating_mul(1000)).unwrap_or(u32::MAX));
    let memory_mib = limits.memory_mib.unwrap_or(memory_mib);
    let cards = config.gpu.declared.clone().unwrap_or_else(cards);
    let gpus = inventory(&cards, &config.gpu.substitute);
    let total = Resources { milli_cpu, memory_mib, gpus: u32::try_from(cards.len()).unwrap_or(u32::MAX) };
    let mut capacity = WorkerCapacity::of(WorkerId(0), total);
    if let Some(factor) = limits.cpu_oversubscription.filter(|factor| *factor >= 1.0) {
        capacity.cpu_oversubscription_percent = (factor * 100.0) as u32;
    }
    let has = Machine { milli_cpu: u64::from(milli_cpu), memory_mib: u64::from(memory_mib), gpus };
    Ok(Found { has, capacity })
}

fn total_mib(meminfo: &str) -> Option<u32> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    u32::try_from(kib / 1024).ok()
}

/// The kinds of the cards that the driver shows.
fn cards() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NVIDIA_CARDS) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|card| std::fs::read_to_string(card.path().join("information")).ok())
        .filter_map(|text| Some(kind_of(text.lines().find_map(|line| line.strip_prefix("Model:"))?)))
        .collect()
}

/// `NVIDIA H100 80GB HBM3` is an `H100`; the A100 comes in two sizes with names of their own.
fn kind_of(model: &str) -> String {
    let words: Vec<&str> = model.split(|c: char| c.is_whitespace() || c == '-').collect();
    let plain = |word: &&&str| {
        let numbered = word.len() > 1 && word.chars().any(|c| c.is_ascii_digit()) && !word.ends_with("GB");
        numbered && word.starts_with(|c: char| c.is_ascii_uppercase())
    };
    let kind = words.iter().find(plain).map_or(model.trim(), |word| word);
    match (kind, words.contains(&"80GB"), words.contains(&"40GB")) {
        ("A100", true, _) => "A100-80GB".to_owned(),
        ("A100", _, true) => "A100-40GB".to_owned(),
        (kind, ..) => kind.to_owned(),
    }
}

/// How many there are of each kind, and under each other name that one stands in for.
fn inventory(cards: &[String], substitute: &BTreeMap<String, String>) -> Vec<(String, u32)> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for card in cards {
        *counts.entry(card.clone()).or_default() += 1;
        if card.starts_with("A100-") {
            *counts.entry("A100".to_owned()).or_default() += 1;
        }
    }
    for (asked, stand_in) in substitute {
        let number =
            cards.iter().filter(|card| stand_in == ANY || card.eq_ignore_ascii_case(stand_in)).count();
        if number > 0 {
            counts.entry(asked.clone()).or_insert(u32::try_from(number).unwrap_or(u32::MAX));
        }
    }
    counts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_the_names_that_programs_ask_for() {
        for (model, kind) in [
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
            ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
            ("NVIDIA L40S", "L40S"),
            ("Tesla T4", "T4"),
        ] {
            assert_eq!(kind_of(model), kind);
        }
    }

    #[test]
    fn a_card_can_stand_in_for_others() {
        let substitute =
            BTreeMap::from([("A10G".to_owned(), "any".to_owned()), ("H200".to_owned(), "L4".to_owned())]);
        let found = inventory(&["H100".to_owned(), "H100".to_owned()], &substitute);
        assert_eq!(found, [("A10G".to_owned(), 2), ("H100".to_owned(), 2)]);
        assert_eq!(inventory(&[], &substitute), []);
    }

    #[test]
    fn memory_is_read_in_mebibytes() {
        assert_eq!(total_mib("MemTotal:       24576000 kB\n"), Some(24_000));
        assert_eq!(total_mib(""), None);
    }
}
