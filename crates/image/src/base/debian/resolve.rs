//! Which packages an image needs: the closure of what it wants, over the newest version of each package.

use super::control::{Dependency, Stanza, compare_versions, dependencies, stanzas};
use crate::error::{ImageError, Result};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Packages of one image at most.
const PACKAGES_MAX: usize = 2000;

/// A package of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub name: String,
    pub version: String,
    /// Where the archive of this package list is.
    pub origin: usize,
    pub filename: String,
    pub size: u64,
    /// What its files take, roughly.
    pub installed_bytes: u64,
    pub sha256: String,
    pub essential: bool,
    pub required: bool,
    depends: Vec<Vec<Dependency>>,
    provides: Vec<Dependency>,
}

impl Package {
    fn read(stanza: &Stanza, origin: usize) -> Option<Self> {
        let groups = |field: &str| stanza.get(field).map(dependencies).unwrap_or_default();
        let mut depends = groups("Pre-Depends");
        depends.extend(groups("Depends"));
        Some(Self {
            name: stanza.get("Package")?.to_owned(),
            version: stanza.get("Version")?.to_owned(),
            origin,
            filename: stanza.get("Filename")?.to_owned(),
            size: stanza.get("Size")?.parse().ok()?,
            installed_bytes: installed_bytes(stanza),
            sha256: stanza.get("SHA256")?.to_owned(),
            essential: stanza.get("Essential") == Some("yes"),
            required: stanza.get("Priority") == Some("required"),
            depends,
            provides: groups("Provides").into_iter().flatten().collect(),
        })
    }
}

/// The field counts kibibytes; a package that says nothing is taken for a large one.
fn installed_bytes(stanza: &Stanza) -> u64 {
    let kibibytes: Option<u64> = stanza.get("Installed-Size").and_then(|size| size.parse().ok());
    kibibytes.map_or(u64::MAX, |size| size.saturating_mul(1024))
}

/// The newest version of each package.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    packages: BTreeMap<String, Package>,
    /// Who provides a name that is not its own.
    providers: BTreeMap<String, BTreeSet<String>>,
}

impl Catalogue {
    /// Adds the packages of one list.
    pub(super) fn add(&mut self, list: &str, origin: usize) {
        for package in stanzas(list).filter_map(|s| Package::read(&s, origin)) {
            let newer = self
                .packages
                .get(&package.name)
                .is_none_or(|old| compare_versions(&package.version, &old.version) == Ordering::Greater);
            if newer {
                for provided in &package.provides {
                    self.providers.entry(provided.name.clone()).or_default().insert(package.name.clone());
                }
                self.packages.insert(package.name.clone(), package);
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Package> {
        self.packages.get(name)
    }

    /// All essential and required packages, and what `wanted` and they need.
    pub(super) fn closure(&self, wanted: &[&str]) -> Result<Vec<&Package>> {
        let mut chosen: BTreeMap<&str, &Package> = BTreeMap::new();
        let mut open: VecDeque<&Package> = VecDeque::new();
        for package in self.packages.values().filter(|p| p.essential || p.required) {
            chosen.insert(&package.name, package);
            open.push_back(package);
        }
        for name in wanted {
            let package = self.packages.get(*name).ok_or_else(|| {
                ImageError::malformed("Debian archive", format!("it has no package {name}"))
            })?;
            if chosen.insert(&package.name, package).is_none() {
                open.push_back(package);
            }
        }
        while let Some(package) = open.pop_front() {
            for group in &package.depends {
                if group.iter().any(|d| chosen.values().any(|p| satisfies(p, d))) {
                    continue;
                }
                let found = group.iter().find_map(|d| self.find(d)).ok_or_else(|| {
                    let names: Vec<&str> = group.iter().map(|d| d.name.as_str()).collect();
                    let message = format!("{} needs {}, which it lacks", package.name, names.join(" or "));
                    ImageError::malformed("Debian archive", message)
                })?;
                chosen.insert(&found.name, found);
                open.push_back(found);
            }
            if chosen.len() > PACKAGES_MAX {
                return Err(ImageError::malformed(
                    "Debian archive",
                    format!("more than {PACKAGES_MAX} packages"),
                ));
            }
        }
        Ok(chosen.into_values().collect())
    }

    fn find(&self, dependency: &Dependency) -> Option<&Package> {
        let direct = self.packages.get(&dependency.name).filter(|p| dependency.accepts(&p.version));
        direct.or_else(|| {
            let providers = self.providers.get(&dependency.name)?;
            providers.iter().filter_map(|name| self.packages.get(name)).find(|p| satisfies(p, dependency))
        })
    }
}

fn satisfies(package: &Package, dependency: &Dependency) -> bool {
    if package.name == dependency.name {
        return dependency.accepts(&package.version);
    }
    package.provides.iter().any(|provided| {
        provided.name == dependency.name
            && match &provided.version {
                Some((_, version)) => dependency.accepts(version),
                // An unversioned Provides meets only unversioned needs.
                None => dependency.version.is_none(),
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(list: &[(&str, &str, &str)]) -> Catalogue {
        let text: String = list
            .iter()
            .map(|(name, version, more)| {
                format!("Package: {name}\nVersion: {version}\nFilename: f\nSize: 1\nSHA256: x\n{more}\n\n")
            })
            .collect();
        let mut catalogue = Catalogue::default();
        catalogue.add(&text, 0);
        catalogue
    }

    fn names(catalogue: &Catalogue, wanted: &[&str]) -> Vec<String> {
        catalogue.closure(wanted).unwrap().iter().map(|p| p.name.clone()).collect()
    }

    #[test]
    fn closes_over_dependencies() {
        let catalogue = catalogue(&[
            ("base", "1", "Essential: yes\nPre-Depends: libc (>= 2)"),
            ("libc", "2.1", ""),
            ("tool", "1", "Priority: required"),
            ("app", "1", "Depends: awk, x | y, old (>= 1), virtual (>= 3)"),
            ("mawk", "1", "Provides: awk"),
            ("y", "1", "Depends: app"),
            ("newer", "1", "Provides: old (= 2), virtual (= 3)"),
            ("unused", "1", ""),
        ]);
        assert_eq!(names(&catalogue, &["app"]), ["app", "base", "libc", "mawk", "newer", "tool", "y"]);
        assert_eq!(names(&catalogue, &[]), ["base", "libc", "tool"]);
    }

    #[test]
    fn prefers_what_is_chosen_and_the_newest() {
        let mut catalogue = catalogue(&[("app", "1", "Depends: a | b"), ("a", "1", ""), ("b", "1", "")]);
        assert_eq!(names(&catalogue, &["app", "b"]), ["app", "b"]);
        catalogue.add("Package: a\nVersion: 1.5\nFilename: g\nSize: 1\nSHA256: x\n", 1);
        catalogue.add("Package: a\nVersion: 1.2\nFilename: h\nSize: 1\nSHA256: x\n", 2);
        assert_eq!(catalogue.get("a").unwrap().origin, 1);
    }

    #[test]
    fn says_what_is_lacking() {
        let catalogue = catalogue(&[("app", "1", "Depends: a (>= 2) | b"), ("a", "1", "")]);
        assert!(catalogue.closure(&["app"]).unwrap_err().to_string().contains("app needs a or b"));
        assert!(catalogue.closure(&["nope"]).is_err());
    }
}
