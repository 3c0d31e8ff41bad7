//! GPUs, as the driver shows them, and how they get into containers.

use super::Check;
use crate::config::Config;
use crate::data_folder::DataFolder;
use evoke_runtime::gpus::{GENERATE, LOAD};
use std::collections::BTreeMap;
use std::path::Path;

/// The checks.
pub(super) fn checks(data: &DataFolder) -> Vec<Check> {
    let config = match Config::load(data) {
        Ok(config) => config,
        Err(error) => {
            return vec![Check::fail("gpu", format!("{error:#}"), "mend the configuration file")];
        }
    };
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    let declared = config.gpu.declared.clone();
    match &declared {
        Some(kinds) => {
            kinds
                .iter()
                .for_each(|kind| *counts.entry((kind.clone(), "declared".to_owned())).or_default() += 1);
        }
        None => {
            let cards = evoke_runtime::gpus::cards();
            cards.into_iter().for_each(|card| *counts.entry((card.kind, card.model)).or_default() += 1);
        }
    }
    if counts.is_empty() && Path::new("/dev/nvidiactl").exists() {
        return vec![Check::warn(
            "gpu",
            "device files exist, but the driver shows no card",
            "load the driver: modprobe nvidia; nvidia-smi says more",
        )];
    }
    if counts.is_empty() {
        return vec![Check::ok("gpu", "none; calls of functions that ask for one fail and say so")];
    }
    let each = counts.iter().map(|((kind, model), count)| format!("{count} x {kind} ({model})"));
    let found = Check::ok("gpu", each.collect::<Vec<_>>().join(", "));
    vec![found, way(&config, declared.map_or(0, |kinds| kinds.len()))]
}

/// How they get into containers.
fn way(config: &Config, declared: usize) -> Check {
    const SUBJECT: &str = "gpu devices";
    let ways = match evoke_runtime::gpus::ways(&config.gpu.devices()) {
        Ok(ways) => ways,
        Err(error) => return Check::fail(SUBJECT, error.to_string(), GENERATE),
    };
    if ways.driver && !ways.missing.is_empty() {
        let detail = format!("{} is not there: programs would find no GPU", ways.missing.join(" and "));
        return Check::warn(SUBJECT, detail, LOAD);
    }
    if !ways.unknown_hooks.is_empty() {
        let detail = format!("hooks of specifications are not run: {}", ways.unknown_hooks.join("; "));
        return Check::warn(SUBJECT, detail, "what they do has to be in the image");
    }
    if let Some((_, file)) = ways.specified.first() {
        let names: Vec<_> = ways.specified.iter().map(|(name, _)| name.as_str()).collect();
        return Check::ok(SUBJECT, format!("{} of {}", names.join(", "), file.display()));
    }
    if ways.driver {
        return Check::ok(SUBJECT, "the installed driver's, found by name; no specification names them");
    }
    if declared > 0 {
        let mend = format!("for real ones install the driver, or write a specification: {GENERATE}");
        return Check::warn(SUBJECT, "none: containers of the declared GPUs see no device", mend);
    }
    Check::warn(SUBJECT, "the driver is not loaded in full", GENERATE)
}
