//! Packages to one plain tar stream: their files where a merged-/usr system has them, and a dpkg database
//! that calls each of them unpacked, so that `dpkg --configure -a` is all that is left to do.

use super::control::{Stanza, stanzas};
use super::deb::Deb;
use crate::error::{ImageError, Result};
use crate::tree::TreeWriter;
use md5::{Digest as _, Md5};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

/// Top folders that are links into /usr.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What images leave out of packages, as the official slim ones do; and the marker that keeps pip away.
pub(super) const EXCLUDED: [&str; 9] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/groff/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/linda/*",
    "/usr/share/locale/*",
    "/usr/lib/python3.*/EXTERNALLY-MANAGED",
    "/usr/share/doc-base/*",
];
/// What of it is kept.
pub(super) const INCLUDED: [&str; 2] = ["/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias"];
/// Bytes of a configuration file that is hashed at most.
const CONFFILE_MAX: u64 = 64 * 1024 * 1024;

/// A file that the image has besides its packages: path without a leading slash, mode, content.
pub(super) type Extra = (String, u32, Vec<u8>);

/// Writes all packages, in order, then `extra` and the database.
pub(super) fn write(
    debs: impl Iterator<Item = Result<Deb>>,
    extra: &[Extra],
    out: &mut dyn Write,
) -> Result<()> {
    let mut tree = TreeWriter::new("the Debian layer", out);
    let mut state = Assembly::default();
    for folder in ["usr", "etc", "tmp", "run", "var", "var/lib", "var/lib/dpkg"] {
        state.folder(&mut tree, folder, if folder == "tmp" { 0o1777 } else { 0o755 })?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        state.folder(&mut tree, &format!("usr/{name}"), 0o755)?;
        tree.link(name, &format!("usr/{name}"))?;
    }
    for deb in debs {
        state.package(&mut tree, &mut deb?)?;
    }
    state.shell(&mut tree)?;
    for (path, mode, content) in extra {
        state.parents(&mut tree, path)?;
        tree.file(path, *mode, content)?;
    }
    state.database(&mut tree)?;
    tree.finish()
}

#[derive(Default)]
struct Assembly {
    /// Folders that are written.
    folders: BTreeSet<String>,
    /// `/bin/sh` is there.
    has_shell: bool,
    status: String,
    /// Files of the database's info folder.
    info: Vec<Extra>,
    /// Triggers on paths.
    file_triggers: String,
    /// Named triggers and who waits for them.
    triggers: BTreeMap<String, String>,
    /// The accounts that Debian defines, once they were seen.
    accounts: BTreeMap<String, Vec<u8>>,
}

impl Assembly {
    fn folder<W: Write>(&mut self, tree: &mut TreeWriter<W>, path: &str, mode: u32) -> Result<()> {
        if self.folders.insert(path.to_owned()) { tree.folder(path, mode) } else { Ok(()) }
    }

    fn parents<W: Write>(&mut self, tree: &mut TreeWriter<W>, path: &str) -> Result<()> {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        ends.into_iter().try_for_each(|at| self.folder(tree, &path[..at], 0o755))
    }

    /// Writes a package's files and notes it in the database.
    fn package<W: Write>(&mut self, tree: &mut TreeWriter<W>, deb: &mut Deb) -> Result<()> {
        let what = deb.path().display().to_string();
        let control = deb.control()?;
        let text = control.iter().find(|(name, _, _)| name == "control").map(|(_, _, content)| content);
        let text = text.ok_or_else(|| ImageError::malformed(&what, "it has no control file"))?;
        let mut stanza = stanzas(&String::from_utf8_lossy(text))
            .next()
            .ok_or_else(|| ImageError::malformed(&what, "its control file is empty"))?;
        let name = info_name(&stanza).ok_or_else(|| ImageError::malformed(&what, "it has no name"))?;
        let conffiles: BTreeSet<String> = control
            .iter()
            .filter(|(file, _, _)| file == "conffiles")
            .flat_map(|(_, _, text)| {
                String::from_utf8_lossy(text).lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>()
            })
            .filter(|line| line.starts_with('/'))
            .collect();
        let (list, hashes) = self.files(tree, deb, &what, &conffiles)?;
        self.info.push((format!("{name}.list"), 0o644, list.into_bytes()));
        for (file, mode, content) in control {
            match file.as_str() {
                "control" => continue,
                "triggers" => self.note_triggers(&name, &String::from_utf8_lossy(&content)),
                _ => {}
            }
            self.info.push((format!("{name}.{file}"), mode & 0o777, content));
        }
        stanza.set("Status", "install ok unpacked");
        if !hashes.is_empty() {
            let lines: String = hashes.iter().map(|(path, md5)| format!("\n {path} {md5}")).collect();
            stanza.set("Conffiles", lines);
        }
        for (key, value) in stanza.fields() {
            let gap = if value.starts_with('\n') { "" } else { " " };
            self.status.push_str(&format!("{key}:{gap}{value}\n"));
        }
        self.status.push('\n');
        Ok(())
    }

    /// Writes the files of a package; gives its list and the digests of its configuration files.
    fn files<W: Write>(
        &mut self,
        tree: &mut TreeWriter<W>,
        deb: &mut Deb,
        what: &str,
        conffiles: &BTreeSet<String>,
    ) -> Result<(String, BTreeMap<String, String>)> {
        let broken = |e: std::io::Error| ImageError::malformed(what, e);
        let mut list = String::from("/.\n");
        let mut hashes = BTreeMap::new();
        let mut archive = tar::Archive::new(deb.data()?);
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = crate::context::clean(&String::from_utf8_lossy(&entry.path_bytes()));
            if path.is_empty() {
                continue;
            }
            list.push_str(&format!("/{path}\n"));
            let shown = format!("/{path}");
            let kind = entry.header().entry_type();
            if MERGED.contains(&path.as_str()) && kind == tar::EntryType::Symlink {
                // Newer releases ship the links that are written already.
                continue;
            }
            let path = merged(&path);
            if excluded(&format!("/{path}")) {
                continue;
            }
            let mut header = header_of(&entry, kind).map_err(broken)?;
            match kind {
                tar::EntryType::Directory if !self.folders.insert(path.clone()) => {}
                tar::EntryType::Directory => {
                    tree.entry(&mut header, &format!("{path}/"), std::io::empty())?;
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    self.parents(tree, &path)?;
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    let mut target = String::from_utf8_lossy(&target).into_owned();
                    if kind == tar::EntryType::Link {
                        target = merged(&crate::context::clean(&target));
                    }
                    self.has_shell |= path == "usr/bin/sh";
                    tree.link_entry(&mut header, &path, &target)?;
                }
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    self.parents(tree, &path)?;
                    if conffiles.contains(&shown) {
                        let mut content = Vec::new();
                        entry.by_ref().take(CONFFILE_MAX).read_to_end(&mut content).map_err(broken)?;
                        hashes.insert(shown, evoke_core::hex(&Md5::digest(&content)));
                        tree.entry(&mut header, &path, content.as_slice())?;
                    } else if let Some(account) = path.strip_prefix("usr/share/base-passwd/") {
                        let mut content = Vec::new();
                        entry.by_ref().take(CONFFILE_MAX).read_to_end(&mut content).map_err(broken)?;
                        tree.entry(&mut header, &path, content.as_slice())?;
                        self.accounts.insert(account.to_owned(), content);
                    } else {
                        tree.entry(&mut header, &path, &mut entry)?;
                    }
                }
                // Packages hold no devices; what else there may be is not ours to make.
                _ => {}
            }
        }
        Ok((list, hashes))
    }

    fn note_triggers(&mut self, package: &str, text: &str) {
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(verb), Some(trigger)) = (words.next(), words.next()) else { continue };
            let suffix = match verb {
                "interest" | "interest-await" => "",
                "interest-noawait" => "/noawait",
                _ => continue,
            };
            if trigger.starts_with('/') {
                self.file_triggers.push_str(&format!("{trigger} {package}{suffix}\n"));
            } else if !trigger.contains('/') {
                self.triggers
                    .entry(trigger.to_owned())
                    .or_default()
                    .push_str(&format!("{package}{suffix}\n"));
            }
        }
    }

    /// Older releases leave /bin/sh to a script that needs one.
    fn shell<W: Write>(&mut self, tree: &mut TreeWriter<W>) -> Result<()> {
        if self.has_shell { Ok(()) } else { tree.link("usr/bin/sh", "dash") }
    }

    fn database<W: Write>(mut self, tree: &mut TreeWriter<W>) -> Result<()> {
        for folder in ["info", "updates", "triggers", "alternatives", "parts"] {
            self.folder(tree, &format!("var/lib/dpkg/{folder}"), 0o755)?;
        }
        for (name, content) in [("passwd", "passwd.master"), ("group", "group.master")] {
            if let Some(content) = self.accounts.get(content) {
                tree.file(&format!("etc/{name}"), 0o644, content)?;
            }
        }
        tree.file("var/lib/dpkg/info/format", 0o644, b"1\n")?;
        for (name, mode, content) in &self.info {
            tree.file(&format!("var/lib/dpkg/info/{name}"), *mode, content)?;
        }
        tree.file("var/lib/dpkg/triggers/File", 0o644, self.file_triggers.as_bytes())?;
        tree.file("var/lib/dpkg/triggers/Unincorp", 0o644, b"")?;
        for (name, content) in &self.triggers {
            tree.file(&format!("var/lib/dpkg/triggers/{name}"), 0o644, content.as_bytes())?;
        }
        for name in ["available", "diversions", "statoverride"] {
            tree.file(&format!("var/lib/dpkg/{name}"), 0o644, b"")?;
        }
        tree.file("var/lib/dpkg/status", 0o644, self.status.as_bytes())
    }
}

/// A package's name in the database: with its architecture where several may be installed together.
fn info_name(stanza: &Stanza) -> Option<String> {
    let name = stanza.get("Package")?;
    let fine = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    if name.is_empty() || name.starts_with('.') || !fine(name) {
        return None;
    }
    match (stanza.get("Multi-Arch"), stanza.get("Architecture")) {
        (Some("same"), Some(arch)) if fine(arch) => Some(format!("{name}:{arch}")),
        _ => Some(name.to_owned()),
    }
}

/// Where a file lies once /bin and its kin are links into /usr.
fn merged(path: &str) -> String {
    let top = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&top) { format!("usr/{path}") } else { path.to_owned() }
}

fn excluded(path: &str) -> bool {
    EXCLUDED.iter().any(|pattern| crate::glob::matches_text(pattern, path))
        && !INCLUDED.iter().any(|pattern| crate::glob::matches_text(pattern, path))
}

fn header_of<R: Read>(entry: &tar::Entry<'_, R>, kind: tar::EntryType) -> std::io::Result<tar::Header> {
    let from = entry.header();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(if kind == tar::EntryType::Continuous { tar::EntryType::Regular } else { kind });
    header.set_mode(from.mode()? & 0o7777);
    header.set_uid(from.uid()?);
    header.set_gid(from.gid()?);
    header.set_mtime(from.mtime()?);
    header.set_size(if kind.is_file() { entry.size() } else { 0 });
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_and_excludes() {
        assert_eq!(merged("bin/sh"), "usr/bin/sh");
        assert_eq!(merged("lib64/ld.so"), "usr/lib64/ld.so");
        assert_eq!(merged("etc/x"), "etc/x");
        assert_eq!(merged("library/x"), "library/x");
        assert!(excluded("/usr/share/doc/x/README") && !excluded("/usr/share/doc/x/copyright"));
        assert!(excluded("/usr/lib/python3.11/EXTERNALLY-MANAGED"));
        assert!(!excluded("/usr/share/locale/locale.alias") && excluded("/usr/share/locale/de/x"));
    }

    #[test]
    fn names_packages_as_dpkg_does() {
        let of = |text: &str| info_name(&stanzas(text).next().unwrap());
        assert_eq!(
            of("Package: libc6\nArchitecture: amd64\nMulti-Arch: same\n").as_deref(),
            Some("libc6:amd64")
        );
        assert_eq!(of("Package: bash\nArchitecture: amd64\nMulti-Arch: foreign\n").as_deref(), Some("bash"));
        assert_eq!(of("Package: ../x\n"), None);
    }

    #[test]
    fn notes_triggers() {
        let mut assembly = Assembly::default();
        assembly.note_triggers("libc-bin", "# x\ninterest-noawait ldconfig\nactivate other\n");
        assembly.note_triggers("man", "interest /usr/share/man\n");
        assert_eq!(assembly.triggers["ldconfig"], "libc-bin/noawait\n");
        assert_eq!(assembly.file_triggers, "/usr/share/man man\n");
    }
}
