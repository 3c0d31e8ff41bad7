//! What this machine has, and what a function that asks for more is told.

use crate::buckets;
use crate::definition::Definition;
use crate::gpus::{self, Inventory};
use evoke_core::{Gpus, Result};

/// The capacity that containers can be placed on.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// CPU in thousandths of a core.
    pub milli_cpu: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// GPUs.
    pub gpus: Inventory,
    /// What a container may write where its function asks for nothing, in MiB; none where there is no bound.
    pub disk_mib: Option<u32>,
    /// Whether what containers write can be bounded.
    pub bounds_disks: bool,
    /// The region that it says to be in; none where nobody said.
    pub region: Option<String>,
    /// The cloud that it says to be of.
    pub cloud: Option<String>,
}

/// Whether and with what a definition's containers can run on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fit {
    /// What GPUs they may have, the most wanted first; empty where they need none.
    pub gpus: Vec<Gpus>,
    /// Why none can ever run here, where that is so.
    pub refusal: Option<String>,
}

impl Machine {
    /// Measures a definition against this machine. An error where it is wrong in itself.
    pub fn fit(&self, definition: &Definition) -> Result<Fit> {
        let asked = definition.gpus();
        let gpus = self.gpus.resolve(&asked)?;
        let refusal = if gpus.is_empty() && !asked.is_empty() {
            let wanted = asked.iter().map(gpus::written).collect::<Vec<_>>().join(" or ");
            Some(format!(
                "the function asks for {wanted}, and this machine has {}. Ask for what there is, run without \
                 gpu=, or name a card that may stand in under gpu.substitute of evoke.toml",
                self.gpus.text()
            ))
        } else {
            let buckets = || buckets::refusal(&definition.function.cloud_bucket_mounts);
            self.too_large(definition).or_else(|| self.elsewhere(definition)).or_else(buckets)
        };
        Ok(Fit { gpus, refusal })
    }

    /// What the definition asks for and gets without a word of this machine about it, in words for its author.
    pub fn unsure(&self, definition: &Definition) -> Vec<String> {
        let function = &definition.function;
        let regions = function.scheduler_placement.as_ref().map_or(&[][..], |placement| &placement.regions);
        let mut all = Vec::new();
        if self.region.is_none() && !regions.is_empty() {
            all.push(format!(
                "region={} is not checked: this machine has no region (machine.region in evoke.toml gives it one)",
                regions.join(", ")
            ));
        }
        let disk = function.resources.as_ref().map_or(0, |resources| resources.ephemeral_disk_mb);
        if disk > 0 && !self.bounds_disks {
            all.push(format!(
                "ephemeral_disk={disk} is no bound here: containers may fill the disk of the data folder, whose \
                 file system keeps no project quotas (evoke doctor says more)"
            ));
        }
        if self.cloud.is_none() && !function.cloud_provider_str.is_empty() {
            all.push(format!(
                "cloud={} is not checked: this machine has no cloud (machine.cloud in evoke.toml gives it one)",
                function.cloud_provider_str
            ));
        }
        all
    }

    fn too_large(&self, definition: &Definition) -> Option<String> {
        let resources = definition.resources();
        if u64::from(resources.memory_mib) > self.memory_mib {
            return Some(format!(
                "the function asks for {} MiB of memory, and this machine has {} MiB. Lower its memory=",
                resources.memory_mib, self.memory_mib
            ));
        }
        if u64::from(resources.milli_cpu) > self.milli_cpu {
            return Some(format!(
                "the function asks for {} cores, and this machine has {}. Lower its cpu=",
                f64::from(resources.milli_cpu) / 1000.0,
                self.milli_cpu as f64 / 1000.0
            ));
        }
        None
    }

    fn elsewhere(&self, definition: &Definition) -> Option<String> {
        let function = &definition.function;
        let regions = function.scheduler_placement.as_ref().map_or(&[][..], |placement| &placement.regions);
        if let Some(here) = self.region.as_ref().filter(|_| !regions.is_empty()) {
            if !regions.iter().any(|wanted| is_in(here, wanted)) {
                return Some(format!(
                    "the function asks for the region {}, and this machine is in {here}. Ask for that or for none",
                    regions.join(" or ")
                ));
            }
        }
        let wanted = function.cloud_provider_str.as_str();
        let cloud =
            self.cloud.as_ref().filter(|cloud| !wanted.is_empty() && !cloud.eq_ignore_ascii_case(wanted));
        cloud.map(|here| {
            format!("the function asks for the cloud {wanted}, and this machine is of {here}. Ask for that or for none")
        })
    }
}

/// Whether the region `here` is the wanted one or lies in it: `us-east-1` is in `us-east` and in `us`.
fn is_in(here: &str, wanted: &str) -> bool {
    let (here, wanted) = (here.to_lowercase(), wanted.to_lowercase());
    here.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_holds_those_within() {
        for (here, wanted, inside) in [
            ("us-east-1", "us-east", true),
            ("us-east-1", "US", true),
            ("eu-west", "eu-west", true),
            ("us-east", "us-east-1", false),
            ("use", "us", false),
        ] {
            assert_eq!(is_in(here, wanted), inside, "{here} {wanted}");
        }
    }
}
