//! What makes a device usable where no specification says it: the driver's nodes, libraries and programs, by
//! the names that they have on every distribution.

use super::edits::{Edits, Mount, Node};
use super::inventory::Card;
use std::path::{Path, PathBuf};

/// The nodes that all cards share.
const SHARED_NODES: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
/// What no program that computes can do without. The driver makes it when it is first used by root.
pub(super) const NEEDED: [&str; 2] = ["/dev/nvidiactl", "/dev/nvidia-uvm"];
/// Where distributions put the driver's libraries.
const LIBRARY_FOLDERS: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
];
/// The driver's programs.
const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];
/// Where they are.
const PROGRAM_FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/nvidia/bin", "/run/current-system/sw/bin"];
/// By this socket a driver is kept initialised.
const PERSISTENCE: &str = "/run/nvidia-persistenced/socket";

/// The installed driver.
#[derive(Debug)]
pub(super) struct Driver {
    root: PathBuf,
    version: String,
}

impl Driver {
    /// The driver that is loaded; none where there is none. `root` is `/` but in tests.
    pub(super) fn loaded(root: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(root.join("proc/driver/nvidia/version")).ok()?;
        Some(Self { root: root.to_owned(), version: version(&text)? })
    }

    /// What makes a card usable.
    pub(super) fn device(&self, card: &Card) -> Edits {
        let mut edits = Edits::default();
        let own = card.minor.map(|minor| format!("nvidia{minor}"));
        for name in own.iter().map(String::as_str).chain(SHARED_NODES) {
            let (path, host) = (format!("/dev/{name}"), self.root.join("dev").join(name));
            if host.exists() {
                edits.nodes.push(Node { path, host });
            }
        }
        edits.mounts = self.libraries();
        // Programs ask for it without its number, too, for which packages of developers have a link.
        edits.links.push(("libcuda.so.1".to_owned(), format!("{}/libcuda.so", super::LIBRARIES)));
        let programs = PROGRAMS.iter().filter_map(|name| {
            let folder = PROGRAM_FOLDERS.iter().find(|folder| self.host(folder).join(name).is_file())?;
            Some(self.mount(&self.host(folder).join(name), format!("/usr/bin/{name}")))
        });
        edits.mounts.extend(programs);
        let firmware = format!("/lib/firmware/nvidia/{}", self.version);
        for path in [firmware.as_str(), PERSISTENCE] {
            if self.host(path).exists() {
                edits.mounts.push(self.mount(&self.host(path), path.to_owned()));
            }
        }
        edits
    }

    /// Every library whose name ends in the driver's version, in the first folder that has the main one. In the
    /// container they are where its distribution's loader looks: their own folder may not be one of those.
    fn libraries(&self) -> Vec<Mount> {
        let main = format!("libcuda.so.{}", self.version);
        let Some(folder) = LIBRARY_FOLDERS.iter().find(|folder| self.host(folder).join(&main).is_file())
        else {
            return Vec::new();
        };
        let ending = format!(".so.{}", self.version);
        let Ok(entries) = std::fs::read_dir(self.host(folder)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        let libraries = names.into_iter().filter(|name| name.starts_with("lib") && name.ends_with(&ending));
        libraries
            .map(|name| self.mount(&self.host(folder).join(&name), format!("{}/{name}", super::LIBRARIES)))
            .collect()
    }

    fn host(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn mount(&self, host: &Path, path: String) -> Mount {
        // Debian's alternatives are links; what is bound is what they lead to.
        Mount { host: std::fs::canonicalize(host).unwrap_or_else(|_| host.to_owned()), path }
    }
}

/// The version in the first line: the last word of digits and dots before the date.
fn version(text: &str) -> Option<String> {
    let words = text.lines().next()?.split_whitespace();
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    words.skip_while(|word| *word != "NVIDIA").find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n\
                           GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n";

    #[test]
    fn versions_of_both_flavours_are_read() {
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (dvs)\n";
        assert_eq!(version(VERSION).as_deref(), Some("550.54.15"));
        assert_eq!(version(open).as_deref(), Some("570.86.10"));
        assert_eq!(version("nothing"), None);
    }

    #[test]
    fn a_card_gets_its_node_and_what_all_share() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(Driver::loaded(root.path()).is_none());
        write("proc/driver/nvidia/version", VERSION);
        for name in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
            write(&format!("dev/{name}"), "");
        }
        for name in ["libcuda.so.550.54.15", "libnvidia-ml.so.550.54.15", "libcuda.so.1", "libc.so.6"] {
            write(&format!("usr/lib64/{name}"), "");
        }
        write("usr/bin/nvidia-smi", "");
        write("lib/firmware/nvidia/550.54.15/gsp_ga10x.bin", "");
        let card = Card { uuid: "GPU-a".into(), kind: "T4".into(), model: "T4".into(), minor: Some(1) };
        let edits = Driver::loaded(root.path()).unwrap().device(&card);
        let nodes: Vec<_> = edits.nodes.iter().map(|node| node.path.as_str()).collect();
        assert_eq!(nodes, ["/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"]);
        let mounts: Vec<_> =
            edits.mounts.iter().map(|mount| mount.path.rsplit('/').next().unwrap()).collect();
        assert_eq!(mounts, ["libcuda.so.550.54.15", "libnvidia-ml.so.550.54.15", "nvidia-smi", "550.54.15"]);
    }
}
