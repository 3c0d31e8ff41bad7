//! Specifications of the Container Device Interface: files of root's that say what makes a device usable in a
//! container. `nvidia-ctk cdi generate` writes them.
//!
//! What they do by hooks, programs of the host that would run in the container, is done by ourselves or left:
//! links are made, libraries are found without a cache.

use super::GpuError;
use super::edits::{Edits, Mount, Node};
use serde::Deserialize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The kind of our devices.
const KIND: &str = "nvidia.com/gpu";
/// Bytes of a file at most.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// What hooks do that is done without them: see the module.
const KNOWN_HOOKS: [&str; 5] =
    ["create-symlinks", "update-ldcache", "chmod", "enable-cuda-compat", "disable-device-node-modification"];

/// All that the specifications say of GPUs.
#[derive(Debug, Default)]
pub(super) struct Specs {
    /// Lowest precedence first.
    files: Vec<Spec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(skip)]
    path: PathBuf,
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    // Written without quotes an index is a number.
    #[serde(deserialize_with = "text")]
    name: String,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerEdits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<HostMount>,
    hooks: Vec<Hook>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceNode {
    path: String,
    host_path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HostMount {
    host_path: PathBuf,
    container_path: String,
    r#type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    #[serde(default)]
    args: Vec<String>,
}

fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Ok(text),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        _ => Err(serde::de::Error::custom("a device's name is no text")),
    }
}

impl Specs {
    /// Reads the specifications of GPUs in the folders, those of later folders going over those before.
    pub(super) fn read(folders: &[PathBuf]) -> Result<Self, GpuError> {
        let mut files = Vec::new();
        for folder in folders {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let extension = path.extension().and_then(|extension| extension.to_str());
                if extension.is_some_and(|extension| ["json", "yaml", "yml"].contains(&extension)) {
                    files.extend(read(&path)?.filter(|spec| spec.kind == KIND));
                }
            }
        }
        Ok(Self { files })
    }

    /// The names of all devices, and the files that they come from.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.files
            .iter()
            .flat_map(|spec| spec.devices.iter().map(|device| (device.name.as_str(), spec.path.as_path())))
    }

    /// What hooks would do that is not done, for people.
    pub(super) fn unknown_hooks(&self) -> Vec<String> {
        let edits = self.files.iter().flat_map(|spec| {
            spec.devices.iter().map(|device| &device.container_edits).chain([&spec.container_edits])
        });
        let unknown =
            |hook: &&Hook| !hook.args.iter().any(|argument| KNOWN_HOOKS.contains(&argument.as_str()));
        let mut all: Vec<_> =
            edits.flat_map(|edits| &edits.hooks).filter(unknown).map(|hook| hook.args.join(" ")).collect();
        all.dedup();
        all
    }

    /// What makes the device usable that has one of these names, the first that is found.
    pub(super) fn device(&self, names: &[&str]) -> Result<Option<Edits>, GpuError> {
        for name in names {
            for spec in self.files.iter().rev() {
                let Some(device) = spec.devices.iter().find(|device| device.name == *name) else { continue };
                let mut edits = device.container_edits.edits().map_err(|why| spec.refused(why))?;
                edits.merge(&spec.container_edits.edits().map_err(|why| spec.refused(why))?);
                return Ok(Some(edits));
            }
        }
        Ok(None)
    }
}

impl Spec {
    fn refused(&self, why: String) -> GpuError {
        GpuError::Spec { path: self.path.clone(), why }
    }
}

fn read(path: &Path) -> Result<Option<Spec>, GpuError> {
    let refused = |why: String| GpuError::Spec { path: path.to_owned(), why };
    let io = |error: std::io::Error| refused(error.to_string());
    let metadata = std::fs::metadata(path).map_err(io)?;
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err(refused("it has to be root's, and nobody else's to write".to_owned()));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(refused(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    let value = value(&std::fs::read_to_string(path).map_err(io)?).map_err(refused)?;
    // Specifications of other kinds may be of any form.
    if value.get("kind").and_then(|kind| kind.as_str()) != Some(KIND) {
        return Ok(None);
    }
    let mut spec: Spec = serde_json::from_value(value).map_err(|error| refused(error.to_string()))?;
    path.clone_into(&mut spec.path);
    Ok(Some(spec))
}

/// YAML as the JSON that it stands for.
fn value(text: &str) -> Result<serde_json::Value, String> {
    use yaml_rust2::{Yaml, YamlLoader};
    fn convert(yaml: &Yaml) -> serde_json::Value {
        match yaml {
            Yaml::String(text) | Yaml::Real(text) => text.as_str().into(),
            Yaml::Integer(number) => (*number).into(),
            Yaml::Boolean(truth) => (*truth).into(),
            Yaml::Array(items) => items.iter().map(convert).collect(),
            Yaml::Hash(fields) => fields
                .iter()
                .filter_map(|(key, value)| Some((key.as_str()?.to_owned(), convert(value))))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => serde_json::Value::Null,
        }
    }
    let documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    documents.first().map(convert).ok_or_else(|| "it is empty".to_owned())
}

impl ContainerEdits {
    fn edits(&self) -> Result<Edits, String> {
        let mut edits = Edits::default();
        for variable in &self.env {
            let (name, value) =
                variable.split_once('=').ok_or_else(|| format!("'{variable}' is no variable"))?;
            edits.env.push((name.to_owned(), value.to_owned()));
        }
        for node in &self.device_nodes {
            if !is_clean(&node.path) || !node.path.starts_with("/dev/") {
                return Err(format!("the device node {} is not below /dev", node.path));
            }
            let host = node.host_path.clone().unwrap_or_else(|| node.path.clone().into());
            edits.nodes.push(Node { path: node.path.clone(), host });
        }
        for mount in &self.mounts {
            let (host, path) = (&mount.host_path, &mount.container_path);
            if mount.r#type.as_ref().is_some_and(|kind| kind != "bind" && !kind.is_empty()) {
                return Err(format!("the mount at {path} is of another type than bind"));
            }
            if !is_clean(path)
                || !host.is_absolute()
                || ["/proc", "/sys", "/dev"].iter().any(|own| below(path, own))
            {
                return Err(format!("{} cannot be mounted at {path}", host.display()));
            }
            edits.mounts.push(Mount { host: host.clone(), path: path.clone() });
        }
        for hook in
            self.hooks.iter().filter(|hook| hook.args.iter().any(|argument| argument == "create-symlinks"))
        {
            edits.links.extend(hook.links()?);
        }
        Ok(edits)
    }
}

impl Hook {
    fn links(&self) -> Result<Vec<(String, String)>, String> {
        let mut links = Vec::new();
        let mut arguments = self.args.iter();
        while let Some(argument) = arguments.next() {
            let link = match argument.strip_prefix("--link=") {
                Some(link) => link,
                None if argument == "--link" => arguments.next().map_or("", String::as_str),
                None => continue,
            };
            let (target, path) = link.split_once("::").ok_or_else(|| format!("'{link}' is no link"))?;
            if !is_clean(path) || target.is_empty() {
                return Err(format!("'{link}' is no link"));
            }
            links.push((target.to_owned(), path.to_owned()));
        }
        Ok(links)
    }
}

/// Whether a path in a container is absolute, names something, and goes nowhere by `..`.
fn is_clean(path: &str) -> bool {
    let parts = evoke_guest::tree::components(path.as_bytes());
    path.starts_with('/')
        && parts.is_ok_and(|parts| !parts.is_empty())
        && !path.bytes().any(|byte| byte < 0x20)
}

fn below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nvidia-ctk cdi generate` writes it, shortened.
    const YAML: &str = r#"---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - libcuda.so.1::/usr/lib64/libcuda.so
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  - args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib64]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib64/libcuda.so.550.1
    hostPath: /usr/lib64/libcuda.so.550.1
    options: [ro, nosuid, nodev, bind]
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: 0
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
      hostPath: /somewhere/nvidia1
  name: GPU-b
kind: nvidia.com/gpu
"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn specs(files: &[(&str, &str)]) -> Result<Specs, GpuError> {
        Specs::read(&[folder(files).path().to_owned(), "/nonexistent".into()])
    }

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_device_has_its_own_node_and_the_shared_driver() {
        if !root() {
            return;
        }
        let specs =
            specs(&[("nvidia.yaml", YAML), ("other.yaml", "kind: v.com/x\ndevices: 3\n"), ("x.txt", "{")]);
        let specs = specs.unwrap();
        let edits = specs.device(&["GPU-a", "0"]).unwrap().unwrap();
        let nodes: Vec<_> = edits.nodes.iter().map(|node| node.path.as_str()).collect();
        assert_eq!(nodes, ["/dev/nvidia0", "/dev/nvidiactl"]);
        assert_eq!(edits.mounts[0].path, "/usr/lib64/libcuda.so.550.1");
        assert_eq!(edits.links, [("libcuda.so.1".to_owned(), "/usr/lib64/libcuda.so".to_owned())]);
        assert_eq!(edits.env, [("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())]);
        let other = specs.device(&["GPU-b", "1"]).unwrap().unwrap();
        assert_eq!(other.nodes[0].host, Path::new("/somewhere/nvidia1"));
        assert_eq!(specs.device(&["7"]).unwrap(), None);
        assert_eq!(specs.names().map(|(name, _)| name).collect::<Vec<_>>(), ["0", "GPU-b"]);
        assert!(specs.unknown_hooks().is_empty());
        let mut both = edits.clone();
        both.merge(&other);
        assert_eq!((both.nodes.len(), both.mounts.len()), (3, 1));
    }

    #[test]
    fn a_later_folder_goes_over_an_earlier_one() {
        if !root() {
            return;
        }
        let spec = |node: &str| {
            format!(
                "{{\"kind\": \"{KIND}\", \"devices\": [{{\"name\": \"0\", \"containerEdits\": {{\"deviceNodes\": [{{\"path\": \"{node}\"}}]}}}}]}}"
            )
        };
        let (first, second) =
            (folder(&[("a.json", &spec("/dev/a"))]), folder(&[("a.json", &spec("/dev/b"))]));
        let specs = Specs::read(&[first.path().to_owned(), second.path().to_owned()]).unwrap();
        assert_eq!(specs.device(&["0"]).unwrap().unwrap().nodes[0].path, "/dev/b");
    }

    #[test]
    fn what_reaches_elsewhere_or_is_malformed_is_refused_with_its_file() {
        if !root() {
            return;
        }
        let edits = |edits: &str| {
            format!(
                "{{\"kind\": \"{KIND}\", \"devices\": [{{\"name\": \"0\"}}], \"containerEdits\": {edits}}}"
            )
        };
        for broken in [
            "{\"deviceNodes\": [{\"path\": \"/etc/x\"}]}",
            "{\"deviceNodes\": [{\"path\": \"/dev/../etc/x\"}]}",
            "{\"mounts\": [{\"hostPath\": \"/x\", \"containerPath\": \"/proc/x\"}]}",
            "{\"mounts\": [{\"hostPath\": \"x\", \"containerPath\": \"/x\"}]}",
            "{\"mounts\": [{\"hostPath\": \"/x\", \"containerPath\": \"/x\", \"type\": \"tmpfs\"}]}",
            "{\"env\": [\"X\"]}",
            "{\"hooks\": [{\"args\": [\"h\", \"create-symlinks\", \"--link\", \"a::../b\"]}]}",
        ] {
            let specs = specs(&[("bad.json", &edits(broken))]).unwrap();
            let error = specs.device(&["0"]).unwrap_err().to_string();
            assert!(error.contains("bad.json"), "{broken}: {error}");
        }
        assert!(specs(&[("bad.yaml", "a: [\n")]).is_err());
    }

    #[test]
    fn what_others_may_write_is_not_believed() {
        if !root() {
            return;
        }
        let folder = folder(&[("nvidia.yaml", YAML)]);
        let path = folder.path().join("nvidia.yaml");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let error = Specs::read(&[folder.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("root's"), "{error}");
    }
}
