//! The optional configuration: `/etc/evoke/evoke.toml`, then `evoke.toml` in the data folder over it.
//!
//! Everything has a default that works. A key that we do not know is an error that names the closest one, so
//! that a typing mistake is never silently ignored.

use crate::data_folder::DataFolder;
use crate::nearest::nearest;
use anyhow::{Context, Result};
use evoke_core::Error;
use evoke_image::base::find_interpreters;
use evoke_image::{BaseConfig, BaseSource};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Settings for every server of this machine.
const MACHINE_FILE: &str = "/etc/evoke/evoke.toml";
/// Where clients reach the server, if nobody says otherwise.
pub(crate) const LISTEN_DEFAULT: &str = "127.0.0.1:7350";

/// What may be configured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where clients reach the server, `HOST:PORT`; port 0 takes a free one.
    pub listen: String,
    /// Where base images come from.
    pub images: BaseConfig,
    /// What this machine says of itself.
    pub machine: MachineConfig,
    /// What containers run with.
    pub containers: ContainersConfig,
    /// The GPUs of this machine.
    pub gpu: GpuConfig,
    /// Bounds that this machine puts on what runs on it.
    pub limits: LimitsConfig,
    /// When what nothing needs is removed.
    pub collection: CollectionConfig,
}

/// When images, layers, mounts and contents that nothing needs are removed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CollectionConfig {
    /// Days that they stay after their last use.
    pub unused_days: u32,
    /// With less free on the data folder's disk, in MiB, they go after ten minutes.
    pub free_mib: u64,
}

impl Default for CollectionConfig {
    fn default() -> Self {
        Self { unused_days: 30, free_mib: 10_240 }
    }
}

impl CollectionConfig {
    /// The same as the control plane takes it.
    pub(crate) fn policy(&self) -> evoke_control::CollectionConfig {
        evoke_control::CollectionConfig {
            unused_ms: u64::from(self.unused_days) * 24 * 3600 * 1000,
            free_bytes_min: self.free_mib << 20,
        }
    }
}

/// What this machine says of itself: labels that functions may ask for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MachineConfig {
    /// The region that it is in, as in `region="eu-west"`.
    pub region: Option<String>,
    /// The cloud that it is of, as in `cloud="aws"`.
    pub cloud: Option<String>,
}

/// What containers run with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ContainersConfig {
    /// The lean ways between the client's runtime and the platform; none of them is the official way.
    pub lean: Vec<Lean>,
    /// Whether containers are forked by templates: interpreters that have imported the client, one for each image
    /// in use.
    pub templates: bool,
    /// Templates at once; the one that was not used for the longest time gives way.
    pub templates_max: usize,
    /// Memory that each may have.
    pub template_mib: u64,
}

/// A lean way, by the name that the containers' runtime knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lean {
    /// Frames instead of HTTP/2.
    Transport,
    /// Stubs on first use, a greeting that is not waited for.
    Start,
    /// Inputs of plain functions without the way through the client's thread.
    Inputs,
    /// Requests for applications by a server in their container.
    Web,
}

impl Default for ContainersConfig {
    fn default() -> Self {
        Self {
            lean: vec![Lean::Transport, Lean::Start, Lean::Inputs],
            templates: false,
            templates_max: 8,
            template_mib: 512,
        }
    }
}

impl ContainersConfig {
    /// The bounds of templates.
    pub(crate) fn bounds(&self) -> evoke_worker::Templates {
        evoke_worker::Templates { most: self.templates_max, memory_bytes: self.template_mib << 20 }
    }

    /// The same as containers are told.
    pub(crate) fn lean_switch(&self) -> String {
        let names = self.lean.iter().map(|lean| match lean {
            Lean::Transport => "transport",
            Lean::Start => "start",
            Lean::Inputs => "inputs",
            Lean::Web => "web",
        });
        let names: Vec<_> = names.collect();
        if names.is_empty() { "off".into() } else { names.join(",") }
    }
}

/// The GPUs of this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GpuConfig {
    /// Declared instead of asked from the driver: `["H100", "H100"]`. Each stands for the device of its number.
    pub declared: Option<Vec<String>>,
    /// What stands in for a kind that this machine lacks: `"A10G" = "any"`.
    pub substitute: BTreeMap<String, String>,
    /// Folders of device specifications (CDI).
    pub cdi: Vec<PathBuf>,
}

impl Default for GpuConfig {
    fn default() -> Self {
        let cdi = ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec();
        Self { declared: None, substitute: BTreeMap::new(), cdi }
    }
}

impl GpuConfig {
    /// Where the helper finds devices.
    pub(crate) fn devices(&self) -> evoke_runtime::gpus::GpuConfig {
        let declared = self.declared.as_ref().map_or(0, Vec::len);
        evoke_runtime::gpus::GpuConfig { cdi: self.cdi.clone(), declared }
    }
}

/// Bounds that this machine puts on what runs on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsConfig {
    /// Containers that may live at the same time; by default what the machine's memory holds.
    pub containers_max: Option<u32>,
    /// CPU that containers may reserve, in thousandths of a core; by default all cores.
    pub milli_cpu: Option<u32>,
    /// Memory that containers may reserve, in MiB; by default what the machine has less a reserve.
    pub memory_mib: Option<u32>,
    /// What a container may write to its root where its function does not say, in MiB; by default what is free.
    pub disk_mib: Option<u32>,
    /// How many cores may be promised per core that exists.
    pub cpu_oversubscription: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: LISTEN_DEFAULT.to_owned(),
            images: BaseConfig::default(),
            machine: MachineConfig::default(),
            containers: ContainersConfig::default(),
            gpu: GpuConfig::default(),
            limits: LimitsConfig::default(),
            collection: CollectionConfig::default(),
        }
    }
}

impl Config {
    /// The machine's settings with those of the data folder over them.
    pub(crate) fn load(data: &DataFolder) -> Result<Self> {
        let mut merged = toml::Table::new();
        for file in [Path::new(MACHINE_FILE), &data.config_file()] {
            match std::fs::read_to_string(file) {
                Ok(text) => {
                    let table = parse(&text).with_context(|| format!("in {}", file.display()))?;
                    merge(&mut merged, table);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
            }
        }
        let mut config: Self =
            merged.try_into().map_err(|e: toml::de::Error| Error::invalid(e.to_string()))?;
        let images = &mut config.images;
        if images.order.contains(&BaseSource::Host) && images.host.python.is_empty() {
            // Found once and here, so that the helper allows what the builder shows.
            images.host.python = find_interpreters(None);
        }
        Ok(config)
    }
}

/// Parses one file and checks it by itself, so that an error names the right file.
fn parse(text: &str) -> Result<toml::Table> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| Error::invalid(e.to_string()))?;
    refuse_unknown(&table, &known()?, "")?;
    table.clone().try_into::<Config>().map_err(|e| Error::invalid(e.to_string()))?;
    Ok(table)
}

/// Every key there is: the defaults, with those that have none.
fn known() -> Result<toml::Table> {
    let mut all = Config::default();
    all.images.debian.mirror = Some(String::new());
    all.images.debian.security_mirror = Some(String::new());
    all.machine = MachineConfig { region: Some(String::new()), cloud: Some(String::new()) };
    all.gpu.declared = Some(Vec::new());
    all.limits = LimitsConfig {
        containers_max: Some(0),
        milli_cpu: Some(0),
        memory_mib: Some(0),
        disk_mib: Some(0),
        cpu_oversubscription: Some(0.0),
    };
    toml::Table::try_from(all).context("the configuration's own defaults")
}

fn refuse_unknown(given: &toml::Table, known: &toml::Table, above: &str) -> Result<()> {
    for (key, value) in given {
        let Some(expected) = known.get(key) else {
            let near = nearest(key, known.keys().map(String::as_str));
            let all = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let hint =
                near.map_or(format!("known keys here: {all}"), |n| format!("did you mean `{above}{n}`?"));
            return Err(Error::invalid(format!("unknown key `{above}{key}`")).with_hint(hint).into());
        };
        // An empty table among the defaults is a map whose keys are the user's own.
        if let (Some(given), Some(known)) = (value.as_table(), expected.as_table().filter(|t| !t.is_empty()))
        {
            refuse_unknown(given, known, &format!("{above}{key}."))?;
        }
    }
    Ok(())
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("evoke.toml"), text)?;
        Config::load(&DataFolder::at(folder.path()))
    }

    fn refusal(text: &str) -> String {
        let error = load(text).unwrap_err();
        error.chain().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn no_file_gives_working_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::load(&DataFolder::at(folder.path())).unwrap();
        assert_eq!(config.listen, LISTEN_DEFAULT);
        assert_eq!(config.images.order, BaseConfig::default().order);
    }

    #[test]
    fn every_section_is_read() {
        let text = "listen = \"0.0.0.0:1\"\n[images]\norder = [\"host\"]\n\
                    registry.mirrors = { \"docker.io\" = [\"http://m\"] }\ndebian.mirror = \"http://d\"\n\
                    [containers]\nlean = [\"transport\"]\n[gpu]\ndeclared = [\"H100\"]\nsubstitute = { A10G = \"any\" }\n[limits]\nmemory_mib = 512\n";
        let config = load(text).unwrap();
        assert_eq!(config.listen, "0.0.0.0:1");
        assert_eq!(config.images.registry.mirrors["docker.io"], ["http://m"]);
        assert_eq!(config.containers.lean_switch(), "transport");
        assert_eq!(config.gpu.substitute["A10G"], "any");
        assert_eq!(config.limits.memory_mib, Some(512));
    }

    #[test]
    fn unknown_keys_name_the_closest() {
        assert!(refusal("lisen = \"x\"").contains("did you mean `listen`?"));
        assert!(refusal("[images]\nordr = []").contains("did you mean `images.order`?"));
        assert!(refusal("[gpu]\nzzzzzz = 1").contains("known keys here"));
        assert!(
            refusal("[containers]\nlean = [\"fast\"]")
                .contains("expected one of `transport`, `start`, `inputs`")
        );
        assert!(refusal("[limits]\nmemory_mib = \"a\"").contains("memory_mib"));
    }

    #[test]
    fn the_later_file_wins_key_by_key() {
        let mut base: toml::Table =
            "listen = \"a\"\n[images]\norder = [\"host\"]\ndebian.mirror = \"d\"".parse().unwrap();
        merge(&mut base, "[images]\norder = [\"debian\"]".parse().unwrap());
        let config: Config = base.try_into().unwrap();
        assert_eq!((config.listen.as_str(), config.images.debian.mirror.as_deref()), ("a", Some("d")));
        assert_eq!(config.images.order, [evoke_image::BaseSource::Debian]);
    }
}
