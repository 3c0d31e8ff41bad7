//! A builder for tests on a machine where the tests run as root: overlay mounts and chroot by the system's
//! own tools, in a mount namespace of their own. It isolates nothing; it shows what a build does.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // Test support: a failure is the test's.

use async_trait::async_trait;
use evoke_core::SystemClock;
use evoke_files::HostEnv;
use evoke_files::fetch::Fetcher;
use evoke_image::steps::{Builder, Command, CommandEnd, Copy, CopyFrom, LayerSize, Root};
use evoke_image::{
    BaseConfig, BaseTools, BuildTools, Context, FolderIndex, HostNetwork, ImageBuilder, ImageError, LogSink,
    LogStream, NoContext,
};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

pub struct ChrootBuilder {
    pub work: PathBuf,
}

type Result<T> = std::result::Result<T, ImageError>;

fn failed(action: &str, message: impl ToString) -> ImageError {
    ImageError::Builder { action: action.into(), message: message.to_string() }
}

fn size_of(path: &Path) -> LayerSize {
    let count = |args: &[&str]| {
        let output = Process::new("du").args(args).arg(path).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or("0").parse().unwrap_or(0)
    };
    LayerSize { bytes: count(&["-sb"]), entries: count(&["-s", "--inodes"]) }
}

const ENTER: &str = r#"
set -e
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$WORK/upper,workdir=$WORK/work" "$WORK/root"
for folder in dev proc sys; do mkdir -p "$WORK/root/$folder"; done
mount --rbind /dev "$WORK/root/dev"; mount -t proc proc "$WORK/root/proc"
if [ -n "$BIND" ]; then mkdir -p "$WORK/root$BIND_TO"; mount --bind "$BIND" "$WORK/root$BIND_TO"; fi
[ -e "$WORK/root/etc/resolv.conf" ] || : > "$WORK/root/etc/resolv.conf"
cp /etc/resolv.conf /etc/hosts "$WORK/" ; mount --bind "$WORK/resolv.conf" "$WORK/root/etc/resolv.conf"
[ -e "$WORK/root/etc/hosts" ] || : > "$WORK/root/etc/hosts"; mount --bind "$WORK/hosts" "$WORK/root/etc/hosts"
exec env -i "$@"
"#;

impl ChrootBuilder {
    fn enter(&self, root: &Root, bind: Option<(&Path, &Path)>) -> (tempfile::TempDir, Process) {
        let work = tempfile::tempdir_in(&self.work).unwrap();
        for part in ["upper", "work", "root", "empty"] {
            std::fs::create_dir(work.path().join(part)).unwrap();
        }
        let mut lower: Vec<String> = root.layers.iter().rev().map(|l| l.path.display().to_string()).collect();
        lower.push(work.path().join("empty").display().to_string());
        let mut process = Process::new("unshare");
        process.args(["-m", "-p", "-f", "sh", "-c", ENTER, "sh"]);
        process.env("LOWER", lower.join(":")).env("WORK", work.path());
        if let Some((source, target)) = bind {
            process.env("BIND", source).env("BIND_TO", target);
        }
        (work, process)
    }
}

#[async_trait]
impl Builder for ChrootBuilder {
    async fn run(&self, command: Command, log: &dyn LogSink) -> Result<(CommandEnd, LayerSize)> {
        let bind = command.binds.first().map(|b| (b.source.clone(), b.target.clone()));
        let bind = bind.as_ref().map(|(s, t)| (s.as_path(), t.as_path()));
        let (work, mut process) = self.enter(&command.root, bind);
        process.args(command.env.iter().map(|(k, v)| format!("{k}={v}")));
        process.arg("chroot").arg(work.path().join("root")).args(&command.argv).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || process.output())
            .await
            .unwrap()
            .map_err(|e| failed("run", e))?;
        log.write(LogStream::Stdout, &String::from_utf8_lossy(&output.stdout));
        log.write(LogStream::Stderr, &String::from_utf8_lossy(&output.stderr));
        let end = CommandEnd { code: output.status.code(), signal: None, oom: false };
        let mut size = LayerSize::default();
        if let Some(commit) = command.commit.filter(|_| end.success()) {
            std::fs::rename(work.path().join("upper"), &commit).map_err(|e| failed("commit", e))?;
            size = size_of(&commit);
        }
        Ok((end, size))
    }

    async fn copy(&self, copy: Copy, _: &dyn LogSink) -> Result<LayerSize> {
        std::fs::create_dir(&copy.commit).unwrap();
        let target = copy.commit.join(copy.destination.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        for source in &copy.sources {
            let from = match &copy.from {
                CopyFrom::Tree(tree) => tree.join(source),
                CopyFrom::Image(root) => root.layers.last().unwrap().path.join(source),
            };
            let done = Process::new("cp").arg("-a").arg(from).arg(&target).status().unwrap();
            assert!(done.success());
        }
        Ok(size_of(&copy.commit))
    }

    async fn unpack(&self, _: &Root, archive: OwnedFd, commit: &Path, _: &dyn LogSink) -> Result<LayerSize> {
        std::fs::create_dir(commit).map_err(|e| failed("unpack", e))?;
        let mut tar = Process::new("tar");
        tar.args(["-x", "-p", "--numeric-owner", "-C"]).arg(commit).stdin(Stdio::from(archive));
        let output = tokio::task::spawn_blocking(move || tar.output())
            .await
            .unwrap()
            .map_err(|e| failed("unpack", e))?;
        if !output.status.success() {
            std::fs::remove_dir_all(commit).unwrap();
            return Err(failed("unpack", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(size_of(commit))
    }

    async fn remove(&self, layer: &Path) -> Result<()> {
        std::fs::remove_dir_all(layer).map_err(|e| failed("remove", e))
    }
}

/// Prints the log as it comes, with the seconds since the start.
pub struct Print(pub std::time::Instant);

impl LogSink for Print {
    fn write(&self, _: LogStream, text: &str) {
        print!("{:6.2} {text}", self.0.elapsed().as_secs_f64());
    }
}

/// A builder whose data is in `folder`, without context mounts.
pub fn image_builder(folder: &Path, builder: Arc<dyn Builder>, bases: BaseConfig) -> ImageBuilder {
    image_builder_with(folder, builder, bases, Arc::new(NoContext))
}

/// A builder whose data is in `folder`.
pub fn image_builder_with(
    folder: &Path,
    builder: Arc<dyn Builder>,
    bases: BaseConfig,
    context: Arc<dyn Context>,
) -> ImageBuilder {
    let lookup = |name: &str| std::env::var(name).ok();
    let network = HostNetwork::read(&lookup, Path::new("/"), None, &folder.join("network")).unwrap();
    let base = BaseTools {
        fetcher: Fetcher::from_host(&HostEnv::of_this_process()).unwrap(),
        builder,
        index: Arc::new(FolderIndex::open(folder.join("index")).unwrap()),
        clock: Arc::new(SystemClock),
        layers: folder.join("layers"),
        downloads: folder.join("downloads"),
        network: Arc::new(network),
        uses: Default::default(),
        ecr_endpoint: None,
    };
    let tools = BuildTools {
        base,
        context,
        staging: folder.join("staging"),
        caches: folder.join("caches"),
        pythons: folder.join("pythons"),
        steps_at_once: 4,
    };
    ImageBuilder::new(bases, tools).unwrap()
}
