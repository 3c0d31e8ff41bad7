//! GPUs, as the driver shows them.

use super::Check;
use std::collections::BTreeMap;

/// The check.
pub(super) fn check() -> Check {
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for card in evoke_runtime::gpus::cards() {
        *counts.entry((card.kind, card.model)).or_default() += 1;
    }
    if counts.is_empty() && std::path::Path::new("/dev/nvidiactl").exists() {
        return Check::warn(
            "gpu",
            "device files exist, but the driver shows no card",
            "load the driver: modprobe nvidia; nvidia-smi says more",
        );
    }
    if counts.is_empty() {
        return Check::ok("gpu", "none; calls of functions that ask for one fail and say so");
    }
    let each = counts.iter().map(|((kind, model), count)| format!("{count} x {kind} ({model})"));
    Check::ok("gpu", each.collect::<Vec<_>>().join(", "))
}
