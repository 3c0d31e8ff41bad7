//! GPUs, as the driver shows them.

use super::Check;

/// The check.
pub(super) fn check() -> Check {
    let cards =
        std::fs::read_dir("/proc/driver/nvidia/gpus").map(|entries| entries.flatten().collect::<Vec<_>>());
    match cards {
        Ok(cards) if !cards.is_empty() => {
            let models: Vec<String> = cards
                .iter()
                .filter_map(|card| std::fs::read_to_string(card.path().join("information")).ok())
                .filter_map(|text| {
                    Some(text.lines().find_map(|l| l.strip_prefix("Model:"))?.trim().to_owned())
                })
                .collect();
            Check::ok("gpu", format!("{}: {}", cards.len(), models.join(", ")))
        }
        _ if std::path::Path::new("/dev/nvidiactl").exists() => Check::warn(
            "gpu",
            "device files exist, but the driver shows no card",
            "load the driver: modprobe nvidia; nvidia-smi says more",
        ),
        _ => Check::ok("gpu", "none; calls of functions that ask for one fail and say so"),
    }
}
