//! `debian` and slim `python` images from Debian's package archive: packages are fetched and checked,
//! written as one layer with a dpkg database that calls them unpacked, and configured in a container, which
//! makes a second layer.

mod archive;
mod arrivals;
mod assemble;
mod control;
mod deb;
mod mirror;
mod names;
mod resolve;

pub use mirror::DebianConfig;

use super::{BaseTools, Bases, Found, Miss, Reference, architecture, blob, blocking};
use crate::digest::Hasher;
use crate::error::{ImageError, Result};
use crate::log::{LogSink, Tail, say};
use crate::spec::{ImageSpec, LayerRef};
use crate::steps::{Command, Root};
use archive::{Signature, Suite};
use arrivals::{Arrivals, Taker};
use names::{Wanted, Wish};
use resolve::{Catalogue, Package};
use std::path::Path;
use std::sync::Arc;

/// Changes with what is written into images, so that older ones are not taken for new ones.
const RECIPE: &str = "evoke-debian-2";
/// Packages that every image has besides the required ones.
const ALWAYS: [&str; 2] = ["apt", "debian-archive-keyring"];
/// What a Python image has besides.
const FOR_PYTHON: [&str; 6] =
    ["ca-certificates", "netbase", "tzdata", "python3", "python3-venv", "python3-dev"];

/// The packages of an image and where they come from.
struct Selection {
    codename: &'static str,
    suites: Vec<Suite>,
    packages: Vec<Package>,
    /// `3.11`, where it is a Python image.
    python: Option<String>,
    /// What is to be told of signatures.
    notes: Vec<String>,
}

impl Bases {
    pub(super) async fn debian(&self, reference: &Reference, log: &dyn LogSink) -> Found {
        let wanted = match names::read(reference) {
            Wish::Wanted(wanted) => wanted,
            Wish::NotMine(why) => return Err(Miss::NotMine(why)),
        };
        let mirrors = mirror::choose(&self.config.debian);
        say(log, format!("Making {} from Debian's archive ({})", reference.familiar(), mirrors.main));
        let fetcher = self.tools.fetcher.clone();
        let (asked, from) = (wanted.clone(), mirrors.clone());
        let selection = blocking("choose packages", move || select(&fetcher, &asked, &from)).await?;
        for note in &selection.notes {
            say(log, format!("  {note}"));
        }
        if let Some(note) = wanted.patch_note(&selection) {
            say(log, format!("  {note}"));
        }
        let extra = files(&selection, &mirrors);
        let unpacked = self.unpacked(&selection, extra, log).await?;
        let configured = configure(&self.tools, &selection, &unpacked, log).await?;
        let mut image = ImageSpec { layers: vec![unpacked, configured], ..ImageSpec::default() };
        image.cmd = vec![if selection.python.is_some() { "python3" } else { "bash" }.to_owned()];
        if let Some(version) = selection.python_version() {
            image.set_env("PATH", "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin");
            image.set_env("LANG", "C.UTF-8");
            image.set_env("PYTHON_VERSION", &version);
        }
        image.provenance = selection.provenance(reference, &mirrors);
        Ok(image)
    }

    /// The layer of all packages' files.
    async fn unpacked(
        &self,
        selection: &Selection,
        extra: Vec<assemble::Extra>,
        log: &dyn LogSink,
    ) -> Result<LayerRef> {
        let key = selection.digest(&extra);
        if let Some(layer) = self.tools.layer(&key).await? {
            return Ok(layer);
        }
        let folder = self.tools.download_folder("debian")?;
        let arrivals = Arrivals::new(selection.packages.len());
        let taker = Taker(arrivals.clone());
        let piped =
            blob::pipe_through("the Debian layer".into(), move |out| assemble::write(taker, &extra, out))?;
        let origin = format!("{} packages of Debian {}", selection.packages.len(), selection.codename);
        let lower = Root::default();
        let unpack = self.tools.unpack(&lower, piped, &key, origin, log);
        let (fetched, layer) = tokio::join!(self.download(selection, &folder, arrivals, log), unpack);
        fetched?;
        let layer = layer?;
        for file in arrivals::targets(&folder, &selection.packages) {
            std::fs::remove_file(&file).map_err(|e| ImageError::io("remove", &file, &e))?;
        }
        Ok(layer)
    }

    async fn download(
        &self,
        selection: &Selection,
        folder: &Path,
        arrivals: Arc<Arrivals>,
        log: &dyn LogSink,
    ) -> Result<()> {
        let bytes: u64 = selection.packages.iter().map(|p| p.size).sum();
        say(
            log,
            format!(
                "  Downloading and unpacking {} packages, {} MB",
                selection.packages.len(),
                bytes / 1_000_000
            ),
        );
        let (fetcher, suites) = (self.tools.fetcher.clone(), selection.suites.clone());
        let (packages, folder) = (selection.packages.clone(), folder.to_owned());
        let (send, mut receive) = tokio::sync::watch::channel((0u64, bytes));
        let work = blocking("download packages", move || {
            let tell = |done, total| {
                send.send_replace((done, total));
            };
            arrivals.fetch(&fetcher, &suites, &packages, &folder, &tell)
        });
        tokio::pin!(work);
        let mut told = 0;
        loop {
            tokio::select! {
                ended = &mut work => return ended,
                changed = receive.changed() => {
                    if changed.is_err() {
                        return work.await;
                    }
                    let (done, total) = *receive.borrow_and_update();
                    // A line at each quarter.
                    let quarter = done * 4 / total.max(1);
                    if quarter > told {
                        told = quarter;
                        say(log, format!("  {} of {} MB", done / 1_000_000, total / 1_000_000));
                    }
                }
            }
        }
    }
}

impl Selection {
    fn digest(&self, extra: &[assemble::Extra]) -> String {
        let mut hasher = Hasher::new(RECIPE);
        hasher.number(self.packages.len() as u64);
        for package in &self.packages {
            hasher.text(&package.sha256);
        }
        for (path, mode, content) in extra {
            hasher.text(path).number(u64::from(*mode)).bytes(content);
        }
        hasher.finish()
    }

    /// `3.11.2`, from the interpreter's package version.
    fn python_version(&self) -> Option<String> {
        let name = format!("python{}-minimal", self.python.as_ref()?);
        let version = &self.packages.iter().find(|p| p.name == name)?.version;
        Some(version.split(['-', '+', '~']).next().unwrap_or(version).to_owned())
    }

    fn provenance(&self, reference: &Reference, mirrors: &mirror::Mirrors) -> Vec<String> {
        let mut lines = vec![format!("{reference} made from Debian {} at {}", self.codename, mirrors.main)];
        lines.extend(self.notes.iter().cloned());
        lines.extend(self.packages.iter().map(|p| format!("{} {}", p.name, p.version)));
        lines
    }
}

impl Wanted {
    /// Says so where the archive's patch version is another than the one asked for.
    fn patch_note(&self, selection: &Selection) -> Option<String> {
        let (asked, has) = (self.python_full.as_ref()?, selection.python_version()?);
        (*asked != has)
            .then(|| format!("Python {asked} is asked for; Debian {} has {has}", selection.codename))
    }
}

/// Chooses the release and its packages.
fn select(
    fetcher: &evoke_files::fetch::Fetcher,
    wanted: &Wanted,
    mirrors: &mirror::Mirrors,
) -> Result<Selection> {
    let mut lacking = Vec::new();
    for codename in &wanted.codenames {
        let (catalogue, suites, notes) = catalogue(fetcher, codename, mirrors)?;
        let mut names: Vec<&str> = ALWAYS.to_vec();
        let python = match &wanted.python {
            None => None,
            Some(version) => {
                let version =
                    if version.is_empty() { default_python(&catalogue) } else { Some(version.clone()) };
                let found = version.filter(|v| catalogue.get(&format!("python{v}-minimal")).is_some());
                if found.is_none() {
                    let has = default_python(&catalogue).unwrap_or_else(|| "no Python".into());
                    lacking.push(format!("{codename} has {has}"));
                    continue;
                }
                names.extend(FOR_PYTHON);
                found
            }
        };
        // The unversioned packages are those of the release's own Python.
        if python.is_some() && python != default_python(&catalogue) {
            lacking.push(format!("{codename} has it only beside its own Python"));
            continue;
        }
        let packages = catalogue.closure(&names)?.into_iter().cloned().collect();
        return Ok(Selection { codename, suites, packages, python, notes });
    }
    let asked = wanted.python.as_deref().unwrap_or_default();
    let message = format!(
        "it has no Python {asked} ({}): use one of those, or a registry or mirror that has the image",
        lacking.join(", ")
    );
    Err(ImageError::malformed("Debian archive", message))
}

/// `3.11`: what the package `python3` depends on.
fn default_python(catalogue: &Catalogue) -> Option<String> {
    let version = &catalogue.get("python3")?.version;
    let mut parts = version.split(['.', '-', '+', '~']);
    Some(format!("{}.{}", parts.next()?, parts.next()?))
}

fn catalogue(
    fetcher: &evoke_files::fetch::Fetcher,
    codename: &str,
    mirrors: &mirror::Mirrors,
) -> Result<(Catalogue, Vec<Suite>, Vec<String>)> {
    let suite = |mirror: &str, suffix: &str, needed| Suite {
        mirror: mirror.to_owned(),
        name: format!("{codename}{suffix}"),
        needed,
    };
    let suites = vec![
        suite(&mirrors.main, "", true),
        suite(&mirrors.main, "-updates", false),
        suite(&mirrors.security, "-security", false),
    ];
    let mut catalogue = Catalogue::default();
    let mut notes = Vec::new();
    let lists: Vec<_> = std::thread::scope(|scope| {
        let ask = |suite| scope.spawn(move || archive::package_list(fetcher, suite, architecture()));
        let asked: Vec<_> = suites.iter().map(ask).collect();
        let lost = |_| Err(ImageError::builder("read a package list", "its thread died"));
        asked.into_iter().map(|list| list.join().unwrap_or_else(lost)).collect()
    });
    for (origin, (suite, list)) in suites.iter().zip(lists).enumerate() {
        match list {
            Ok(list) => {
                catalogue.add(&list.text, origin);
                let said = match list.signature {
                    Signature::Verified => "signature verified".to_owned(),
                    Signature::Unchecked(why) => format!("signature not checked: {why}"),
                };
                notes.push(format!("{}: {said}", suite.name));
            }
            Err(error) if !suite.needed => notes.push(format!("{}: left out: {error}", suite.name)),
            Err(error) => return Err(error),
        }
    }
    Ok((catalogue, suites, notes))
}

/// Files that the image has besides its packages.
fn files(selection: &Selection, mirrors: &mirror::Mirrors) -> Vec<assemble::Extra> {
    let codename = selection.codename;
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let sources = format!(
        "Types: deb\nURIs: {}\nSuites: {codename} {codename}-updates\nComponents: main\nSigned-By: {key}\n\n\
         Types: deb\nURIs: {}\nSuites: {codename}-security\nComponents: main\nSigned-By: {key}\n",
        mirrors.main, mirrors.security
    );
    let mut slim = String::from("# Documentation and translations are left out, as in other slim images.\n");
    for pattern in assemble::EXCLUDED {
        slim.push_str(&format!("path-exclude={pattern}\n"));
    }
    for pattern in assemble::INCLUDED {
        slim.push_str(&format!("path-include={pattern}\n"));
    }
    let file = |path: &str, mode, content: &str| (path.to_owned(), mode, content.as_bytes().to_vec());
    vec![
        file("etc/apt/sources.list.d/debian.sources", 0o644, &sources),
        file("etc/dpkg/dpkg.cfg.d/evoke", 0o644, &format!("{slim}force-unsafe-io\n")),
        file("etc/apt/apt.conf.d/90evoke", 0o644, APT_CONF),
        file(
            "usr/sbin/policy-rc.d",
            0o755,
            "#!/bin/sh\n# Services are not started in containers.\nexit 101\n",
        ),
        file("etc/hostname", 0o644, "localhost\n"),
        file(CONFIGURE_PATH, 0o755, CONFIGURE),
    ]
}

const APT_CONF: &str = "\
// Package lists are compressed and translations left out: layers stay small.
Acquire::GzipIndexes \"true\";
Acquire::Languages \"none\";
Acquire::Retries \"3\";
Apt::AutoRemove::SuggestsImportant \"false\";
DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true\"; };
Dir::Cache::pkgcache \"\";
Dir::Cache::srcpkgcache \"\";
";

const CONFIGURE_PATH: &str = "var/lib/evoke-configure";
const CONFIGURE: &str = include_str!("configure.sh");

/// Runs the packages' own scripts and makes the system look like the image it stands for.
async fn configure(
    tools: &BaseTools,
    selection: &Selection,
    unpacked: &LayerRef,
    log: &dyn LogSink,
) -> Result<LayerRef> {
    let mut hasher = Hasher::new(RECIPE);
    hasher.text(&unpacked.digest).text("configured").text(selection.python.as_deref().unwrap_or_default());
    let key = hasher.finish();
    if let Some(layer) = tools.layer(&key).await? {
        return Ok(layer);
    }
    say(log, "  Configuring packages");
    let start = tools.clock.now();
    let path = tools.layers.join(&key);
    tools.clear(&path).await?;
    let command = Command {
        root: Root { layers: vec![unpacked.clone()], host_binds: Vec::new() },
        argv: vec!["/bin/sh".into(), format!("/{CONFIGURE_PATH}")],
        env: vec![
            ("PATH".into(), crate::spec::PATH_DEFAULT.into()),
            ("HOME".into(), "/root".into()),
            ("LC_ALL".into(), "C.UTF-8".into()),
            ("EVOKE_PYTHON".into(), selection.python.clone().unwrap_or_default()),
        ],
        cwd: "/".into(),
        user: String::new(),
        binds: Vec::new(),
        mounts: Vec::new(),
        volumes: None,
        network: false,
        commit: Some(path),
    };
    // The scripts' talk is of no interest unless one of them fails.
    let tail = Tail::new(&crate::log::NoLog);
    let (end, size) = tools.builder.run(command, &tail).await?;
    if !end.success() {
        let message = format!("configuring its packages failed ({}):\n{}", end.describe(), tail.text());
        return Err(ImageError::malformed(format!("Debian {}", selection.codename), message));
    }
    let origin = format!("packages of Debian {} configured", selection.codename);
    tools.remember(&key, origin, size, tools.clock.now().since(start)).await
}
