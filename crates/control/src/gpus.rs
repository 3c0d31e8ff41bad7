//! What a function's `gpu=` means on this machine: names as the platform documents them, resolved against the
//! kinds of cards that there are. Pure.

use evoke_core::{Error, GpuKind, Gpus, Result};
use evoke_proto::api;

/// The kinds that each documented name may be served by, the most wanted first. What is asked for by its plain
/// name may run on the larger card behind it, as on the platform; a name with `!` is served by its own alone.
const NAMES: &[(&str, &[&str])] = &[
    ("T4", &[]),
    ("L4", &[]),
    ("A10", &["A10G"]),
    ("A10G", &["A10"]),
    ("L40S", &[]),
    ("A100", &["A100-40GB", "A100-80GB"]),
    ("A100-40GB", &["A100-80GB"]),
    ("A100-80GB", &[]),
    ("RTX-PRO-6000", &[]),
    ("H100", &["H200"]),
    ("H200", &[]),
    ("B200", &[]),
    ("B200+", &["B200", "B300"]),
    ("B300", &[]),
];
/// The names that mean the same card, for which `!` does not tell them apart.
const SAME: &[(&str, &[&str])] =
    &[("A10", &["A10G"]), ("A10G", &["A10"]), ("A100", &["A100-40GB", "A100-80GB"])];
/// Whatever there is.
const ANY: &str = "ANY";
/// GPUs of one container at most; more is a typing error.
const COUNT_MAX: u32 = 64;

/// The GPUs of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// How many there are of each kind. The number of a kind is its place here.
    pub kinds: Vec<(String, u32)>,
    /// Pairs of a kind that may be lacking and the one that stands in for it, or [`ANY`].
    pub substitute: Vec<(String, String)>,
}

impl Inventory {
    /// What there is, for people.
    pub fn text(&self) -> String {
        if self.kinds.is_empty() {
            return "no GPU".into();
        }
        let each = self.kinds.iter().map(|(name, count)| format!("{count} x {name}"));
        each.collect::<Vec<_>>().join(", ")
    }

    /// The GPUs that may serve any of the requests, those of the first request first. Empty where this machine
    /// cannot serve one; an error where a request is wrong in itself.
    pub fn resolve(&self, asked: &[api::GpuConfig]) -> Result<Vec<Gpus>> {
        let mut choices: Vec<Gpus> = Vec::new();
        for config in asked {
            let count = config.count;
            if count > COUNT_MAX {
                return Err(Error::invalid(format!(
                    "{count} GPUs in one container are more than {COUNT_MAX}"
                ))
                .with_hint("Write a count after a colon, as in gpu=\"H100:2\""));
            }
            for kind in self.kinds_for(&config.gpu_type)? {
                let gpus = Gpus { kind, count };
                let there = self.kinds.get(usize::from(kind.0)).map_or(0, |(_, number)| *number);
                if there >= count && !choices.contains(&gpus) {
                    choices.push(gpus);
                }
            }
        }
        Ok(choices)
    }

    fn kinds_for(&self, asked: &str) -> Result<Vec<GpuKind>> {
        let asked = asked.trim().to_uppercase();
        let name = asked.trim_end_matches('!');
        let strict = name.len() < asked.len();
        if name.is_empty() || name == ANY {
            return Ok(self.matching(|_| true));
        }
        let own = self.named(name);
        let substitute = self.substitute.iter().find(|(lacking, _)| lacking.eq_ignore_ascii_case(name));
        let known = NAMES.iter().find(|(known, _)| *known == name);
        if known.is_none() && own.is_empty() && substitute.is_none() {
            return Err(self.unknown(&asked));
        }
        let also: &[(&str, &[&str])] = if strict { SAME } else { NAMES };
        let also = also.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, also)| *also);
        let mut kinds = own;
        kinds.extend(also.iter().flat_map(|other| self.named(other)));
        if let (true, Some((_, stand_in))) = (kinds.is_empty(), substitute) {
            kinds = if stand_in.eq_ignore_ascii_case(ANY) {
                self.matching(|_| true)
            } else {
                self.named(stand_in)
            };
        }
        Ok(kinds)
    }

    fn named(&self, name: &str) -> Vec<GpuKind> {
        self.matching(|kind| kind.eq_ignore_ascii_case(name))
    }

    fn matching(&self, wanted: impl Fn(&str) -> bool) -> Vec<GpuKind> {
        let found = self.kinds.iter().enumerate().filter(|(_, (name, _))| wanted(name));
        found.filter_map(|(index, _)| u8::try_from(index).ok().map(GpuKind)).collect()
    }

    fn unknown(&self, asked: &str) -> Error {
        if asked.starts_with("MIG") || asked.contains("GB.") {
            return Error::invalid(format!("'{asked}' is a slice of a GPU; only whole GPUs are given out"))
                .with_hint("Ask for the whole card, as in gpu=\"A100\"");
        }
        let names = NAMES.iter().map(|(name, _)| (*name).to_owned());
        let own = self.kinds.iter().map(|(name, _)| name.clone());
        let mut all: Vec<String> = names.chain(own).chain([ANY.to_owned()]).collect();
        all.sort();
        all.dedup();
        Error::invalid(format!("'{asked}' is not a GPU that is known"))
            .with_hint(format!("Known are: {}", all.join(", ")))
    }
}

/// A request, as its author wrote it.
pub fn written(config: &api::GpuConfig) -> String {
    let name = if config.gpu_type.is_empty() { "any GPU" } else { &config.gpu_type };
    if config.count == 1 { name.to_owned() } else { format!("{} x {name}", config.count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(kinds: &[(&str, u32)], substitute: &[(&str, &str)]) -> Inventory {
        Inventory {
            kinds: kinds.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            substitute: substitute.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        }
    }

    fn resolved(inventory: &Inventory, asked: &[(&str, u32)]) -> Result<Vec<String>> {
        let asked: Vec<_> = asked
            .iter()
            .map(|(name, count)| api::GpuConfig {
                gpu_type: (*name).to_owned(),
                count: *count,
                ..Default::default()
            })
            .collect();
        let name = |gpus: &Gpus| format!("{}:{}", inventory.kinds[usize::from(gpus.kind.0)].0, gpus.count);
        Ok(inventory.resolve(&asked)?.iter().map(name).collect())
    }

    /// What is asked for, and what serves it.
    type Case = (&'static [(&'static str, u32)], &'static [&'static str]);

    #[test]
    fn names_mean_what_the_platform_says() {
        let cards = inventory(&[("H100", 2), ("A100-80GB", 1), ("H200", 8), ("A10G", 1)], &[]);
        let cases: [Case; 14] = [
            (&[("H100", 1)], &["H100:1", "H200:1"]),
            (&[("h100", 2)], &["H100:2", "H200:2"]),
            (&[("H100", 3)], &["H200:3"]),
            (&[("H100!", 1)], &["H100:1"]),
            (&[("H100!", 3)], &[]),
            (&[("A100", 1)], &["A100-80GB:1"]),
            (&[("A100!", 1)], &["A100-80GB:1"]),
            (&[("A100-40GB", 1)], &["A100-80GB:1"]),
            (&[("A100-40GB!", 1)], &[]),
            (&[("A10", 1)], &["A10G:1"]),
            (&[("T4", 1)], &[]),
            (&[("ANY", 1)], &["H100:1", "A100-80GB:1", "H200:1", "A10G:1"]),
            (&[("T4", 1), ("A100", 1), ("H100!", 2)], &["A100-80GB:1", "H100:2"]),
            (&[("H200", 1), ("H100", 1)], &["H200:1", "H100:1"]),
        ];
        for (asked, wanted) in cases {
            assert_eq!(resolved(&cards, asked).unwrap(), wanted, "{asked:?}");
        }
    }

    #[test]
    fn a_card_stands_in_for_what_is_lacking_and_for_nothing_else() {
        let cards = inventory(&[("L4", 2)], &[("A10G", "any"), ("H100", "l4"), ("L4", "H100")]);
        for (asked, wanted) in [("A10G", "L4:1"), ("H100", "L4:1"), ("L4", "L4:1")] {
            assert_eq!(resolved(&cards, &[(asked, 1)]).unwrap(), [wanted], "{asked}");
        }
        assert!(resolved(&cards, &[("H200", 1)]).unwrap().is_empty());
    }

    #[test]
    fn a_card_that_no_cloud_has_is_asked_for_by_its_own_name() {
        let cards = inventory(&[("RTX-4090", 1)], &[]);
        assert_eq!(resolved(&cards, &[("RTX-4090", 1)]).unwrap(), ["RTX-4090:1"]);
        let error = resolved(&inventory(&[], &[]), &[("RTX-4090", 1)]).unwrap_err();
        assert!(error.to_string().contains("not a GPU that is known"), "{error}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let cards = inventory(&[("A100-40GB", 1)], &[]);
        for (asked, words) in [("MIG-1G.5GB", "slice"), ("A1000", "known"), ("A100", "more than")] {
            let count = if asked == "A100" { 65 } else { 1 };
            let error = resolved(&cards, &[(asked, count)]).unwrap_err().to_string();
            assert!(error.contains(words), "{asked}: {error}");
        }
    }
}
