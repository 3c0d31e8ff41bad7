//! What this machine has, and what a function that asks for more is told.

use crate::definition::Definition;
use evoke_core::{Error, Result};

/// The names of GPUs that the official client documents. Anything else is a typing error.
const GPU_NAMES: &[&str] = &[
    "ANY",
    "T4",
    "L4",
    "A10",
    "A10G",
    "L40S",
    "A100",
    "A100-40GB",
    "A100-80GB",
    "RTX-PRO-6000",
    "H100",
    "H200",
    "B200",
    "B300",
];

/// The capacity that containers can be placed on.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// CPU in thousandths of a core.
    pub milli_cpu: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// GPUs by type, as the inventory names them.
    pub gpus: Vec<(String, u32)>,
}

impl Machine {
    /// Why no container of this definition can ever run here; none where one can. An error where the
    /// definition is wrong in itself.
    pub fn refusal(&self, definition: &Definition) -> Result<Option<String>> {
        if let Some((asked, count)) = definition.gpu() {
            let name = asked.trim_end_matches('!').to_uppercase();
            if !name.is_empty() && !GPU_NAMES.contains(&name.as_str()) {
                return Err(Error::invalid(format!("'{asked}' is not a GPU that is known"))
                    .with_hint(format!("Known are: {}", GPU_NAMES.join(", "))));
            }
            let fits = |(have, number): &(String, u32)| {
                *number >= count && (name.is_empty() || name == "ANY" || have.eq_ignore_ascii_case(&name))
            };
            if !self.gpus.iter().any(fits) {
                let wanted = if name.is_empty() { "a GPU".to_string() } else { format!("{count} x {name}") };
                return Ok(Some(format!(
                    "the function asks for {wanted}, and this machine has {}. Ask for what there is, or run without gpu=",
                    self.gpu_text()
                )));
            }
        }
        let resources = definition.resources();
        if u64::from(resources.memory_mib) > self.memory_mib {
            return Ok(Some(format!(
                "the function asks for {} MiB of memory, and this machine has {} MiB. Lower its memory=",
                resources.memory_mib, self.memory_mib
            )));
        }
        if u64::from(resources.milli_cpu) > self.milli_cpu {
            return Ok(Some(format!(
                "the function asks for {} cores, and this machine has {}. Lower its cpu=",
                f64::from(resources.milli_cpu) / 1000.0,
                self.milli_cpu as f64 / 1000.0
            )));
        }
        Ok(None)
    }

    fn gpu_text(&self) -> String {
        if self.gpus.is_empty() {
            return "no GPU".into();
        }
        let each = self.gpus.iter().map(|(name, count)| format!("{count} x {name}"));
        each.collect::<Vec<_>>().join(", ")
    }
}
