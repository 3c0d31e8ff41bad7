//! Which GPUs there are, as the driver says.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use std::path::Path;

/// Where the driver lists its cards.
const LIST: &str = "/proc/driver/nvidia/gpus";

/// A card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name for good, as in `GPU-5a1…`.
    pub uuid: String,
    /// What programs call its kind, as in `H100`.
    pub kind: String,
    /// What its maker calls it.
    pub model: String,
    /// The number of its device node, where that is known.
    pub minor: Option<u32>,
}

/// The driver's own library for asking it.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// The cards of this machine that can be given out whole, in the order of their places on the bus; none where
/// there is no driver.
pub fn cards() -> Vec<Card> {
    match asked() {
        Ok(cards) => cards,
        Err(error) => {
            tracing::debug!(%error, "the GPU driver's library does not answer; its list in /proc counts");
            listed()
        }
    }
}

/// The cards as the driver's library says. One that is cut into slices is none.
fn asked() -> Result<Vec<Card>, NvmlError> {
    let nvml = Nvml::builder().lib_path(LIBRARY.as_ref()).init()?;
    let mut cards = Vec::new();
    for index in 0..nvml.device_count()? {
        // One that has failed does not hide the others.
        let found = nvml.device_by_index(index).and_then(|device| {
            let (model, uuid) = (device.name()?, device.uuid()?);
            let sliced = device.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED);
            Ok((Card { kind: kind_of(&model), uuid, model, minor: device.minor_number().ok() }, sliced))
        });
        match found {
            Ok((card, false)) => cards.push(card),
            Ok((card, true)) => {
                tracing::warn!(card.uuid, card.model, "a GPU is cut into slices (MIG) and is not given out");
            }
            Err(error) => tracing::warn!(index, %error, "a GPU does not answer and is not given out"),
        }
    }
    Ok(cards)
}

/// The library's word for a card that is cut into slices.
const MIG_ENABLED: u32 = 1;

/// The cards as the driver's folder in `/proc` lists them.
pub(super) fn listed() -> Vec<Card> {
    listed_in(Path::new(LIST))
}

fn listed_in(list: &Path) -> Vec<Card> {
    let Ok(entries) = std::fs::read_dir(list) else { return Vec::new() };
    let mut places: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    places.sort();
    let texts = places.iter().filter_map(|place| std::fs::read_to_string(place.join("information")).ok());
    texts.filter_map(|text| card(&text)).collect()
}

fn card(text: &str) -> Option<Card> {
    let field = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
    let (model, uuid) = (field("Model:")?, field("GPU UUID:")?);
    let minor = field("Device Minor:").and_then(|minor| minor.parse().ok());
    Some(Card { kind: kind_of(&model), uuid, model, minor })
}

/// `NVIDIA H100 80GB HBM3` is an `H100`. The A100 comes in two sizes with names of their own; cards of work
/// stations and games have names of several words.
fn kind_of(model: &str) -> String {
    let words: Vec<&str> = model.split(|c: char| c.is_whitespace() || c == '-').collect();
    if let Some(at) = words.iter().position(|word| *word == "RTX" || *word == "GTX") {
        let rest = words[at..]
            .iter()
            .take_while(|word| !["Blackwell", "Ada", "Generation", "Laptop"].contains(word));
        let numbered = words
            .get(at + 1)
            .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()) || *word == "PRO");
        if numbered {
            return rest.copied().collect::<Vec<_>>().join("-").to_uppercase();
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_the_names_that_programs_ask_for() {
        for (model, kind) in [
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
            ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
            ("NVIDIA A10G", "A10G"),
            ("NVIDIA L40S", "L40S"),
            ("Tesla T4", "T4"),
            ("NVIDIA RTX A6000", "A6000"),
            ("NVIDIA GeForce RTX 4090", "RTX-4090"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
            ("NVIDIA RTX 6000 Ada Generation", "RTX-6000"),
        ] {
            assert_eq!(kind_of(model), kind);
        }
    }

    #[test]
    fn the_drivers_list_is_read_in_the_order_of_the_bus() {
        let folder = tempfile::tempdir().unwrap();
        for (place, uuid) in [("0000:82:00.0", "GPU-b"), ("0000:01:00.0", "GPU-a")] {
            let place = folder.path().join(place);
            std::fs::create_dir(&place).unwrap();
            let text =
                format!("Model: \t\t Tesla T4\nIRQ:   \t\t 9\nGPU UUID: \t {uuid}\nDevice Minor: \t 0\n");
            std::fs::write(place.join("information"), text).unwrap();
        }
        std::fs::create_dir(folder.path().join("0000:90:00.0")).unwrap();
        let uuids: Vec<_> = listed_in(folder.path()).into_iter().map(|card| (card.uuid, card.kind)).collect();
        assert_eq!(uuids, [("GPU-a".to_owned(), "T4".to_owned()), ("GPU-b".to_owned(), "T4".to_owned())]);
        assert!(listed_in(Path::new("/nonexistent")).is_empty());
    }
}
