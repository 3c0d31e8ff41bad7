//! [`Builder`] over the runtime: each step is a container of its own, whose upper folder becomes the layer.

use crate::error::{ImageError, Result};
use crate::glob;
use crate::log::{LogSink, LogStream};
use crate::spec::LayerOwner;
use crate::steps::{
    Builder, Command, CommandEnd, Copy, CopyFrom, LayerSize, Mount, MountOwner, OpenVolumes, Root, Volumes,
};
use crate::survey::{LayerFacts, Surveyor};
use async_trait::async_trait;
use evoke_core::{Entropy as _, SystemEntropy};
use evoke_runtime::{
    Bind, ContainerSpec, CopySpec, Exit, Guest, GuestEvent, Layer, Network, Owner, ProcessSpec, Program,
    Runtime, RuntimeError, SurveySpec,
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::unix::pipe::Receiver;

/// Containers of builds are named so.
const PREFIX: &str = "build-";
/// Where a copy finds its tree.
const FROM: &str = "/__evoke/from";
/// Where files of another image are gathered.
const OUT: &str = "/__evoke/out";
/// How long output may still come once the command has ended: a daemon may hold the pipe open.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a container has to end once its command has.
const END: Duration = Duration::from_secs(20);
/// Bytes of a line that are kept together.
const LINE_MAX: usize = 64 * 1024;
/// Bytes of what is told of a layer at most.
const FACTS_MAX: usize = 16 * 1024 * 1024;
/// Exit code of a command that could not be started, as shells have it.
const NOT_FOUND: i32 = 127;
/// Bytes of a tar stream without entries.
const EMPTY_TAR: usize = 1024;
/// A host user that owns nothing: all files of a bind with this owner are nobody's inside.
const NO_ONE: u32 = 0x6fff_ffff;

/// Runs steps in containers of the runtime.
pub struct RuntimeBuilder {
    runtime: Arc<dyn Runtime>,
    /// Who owns the trees that the server writes.
    service: Owner,
    /// Where gathered files are kept for a moment: below the layers' folder.
    layers: PathBuf,
}

impl RuntimeBuilder {
    /// A builder; `uid` and `gid` are the service user's, `layers` is where layers live.
    pub fn new(runtime: Arc<dyn Runtime>, uid: u32, gid: u32, layers: PathBuf) -> Self {
        Self { runtime, service: Owner::Single { uid, gid }, layers }
    }

    /// Removes containers that builds of an earlier life left. Call once, before the first build.
    pub async fn sweep(&self) -> Result<()> {
        for id in self.runtime.list().await.map_err(|e| failed("list containers", &e))? {
            if id.starts_with(PREFIX) {
                self.runtime.destroy(&id).await.map_err(|e| failed("remove a container", &e))?;
            }
        }
        Ok(())
    }

    async fn start(&self, root: &Root, binds: Vec<Bind>, network: bool) -> Result<Container> {
        self.start_with(root, binds, &[], None, network).await
    }

    async fn start_with(
        &self,
        root: &Root,
        binds: Vec<Bind>,
        mounts: &[Mount],
        volumes: Option<&dyn Volumes>,
        network: bool,
    ) -> Result<Container> {
        let id = format!("{PREFIX}{:016x}", SystemEntropy::default().next_u64());
        let layers = root
            .layers
            .iter()
            .map(|layer| {
                let owner = match layer.owner {
                    LayerOwner::Canonical => Owner::Canonical,
                    LayerOwner::Single { uid, gid } => Owner::Single { uid, gid },
                };
                Layer { path: layer.path.clone(), owner }
            })
            .collect();
        let mut spec = ContainerSpec::new(&id, layers);
        let host = root.host_binds.iter().map(|bind| Bind {
            source: bind.source.clone(),
            target: bind.target.to_string_lossy().into_owned(),
            read_only: true,
            owner: Owner::Single { uid: NO_ONE, gid: NO_ONE },
        });
        spec.binds = host.chain(binds).collect();
        spec.leaves_no_stubs = true;
        for mount in mounts {
            match mount {
                Mount::Bind { source, owner, target, writable } => spec.binds.push(Bind {
                    source: source.clone(),
                    target: target.clone(),
                    read_only: !writable,
                    owner: match owner {
                        MountOwner::Server => self.service,
                        MountOwner::Layer => Owner::Canonical,
                    },
                }),
                Mount::Memory(folder) => spec.memory.push(folder.clone()),
                Mount::File(file) => spec.files.push(file.clone()),
            }
        }
        spec.network = if network { Network::Bridged } else { Network::Loopback };
        spec.hostname = "build".into();
        spec.grace_ms = 0;
        let volumes = match volumes {
            Some(volumes) => Some(volumes.open(&id).await?),
            None => None,
        };
        spec.volumes = volumes.as_ref().map(|volumes| volumes.mounts()).unwrap_or_default();
        // From here on the container is removed, whatever happens to this future.
        let runtime = self.runtime.clone();
        let mut container = Container { id, runtime, guest: None, pidfd: None, volumes };
        let started = self.runtime.start(spec).await.map_err(|e| failed("start a container", &e))?;
        let guest = Guest::new(started.control).map_err(|e| ImageError::builder("start a container", e))?;
        container.guest = Some(guest);
        let pidfd = evoke_runtime::fds::watch(started.pidfd, Interest::READABLE);
        container.pidfd = Some(pidfd.map_err(|e| ImageError::builder("watch a container", e))?);
        Ok(container)
    }

    /// An empty root has no layer, and a container needs one.
    async fn with_layer(&self, root: &Root) -> Result<Root> {
        if !root.layers.is_empty() {
            return Ok(root.clone());
        }
        let path = self.layers.join("empty");
        if !path.is_dir() {
            let (read, write) = plain_pipe()?;
            let end = [0u8; EMPTY_TAR];
            std::io::Write::write_all(&mut std::fs::File::from(write), &end)
                .map_err(|e| ImageError::builder("write a pipe", e))?;
            match self.runtime.unpack_layer(&path, &[], read).await {
                Ok(_) | Err(RuntimeError::Exists(_)) => {}
                Err(error) => return Err(failed("make an empty layer", &error)),
            }
        }
        let layer = crate::LayerRef { digest: "empty".into(), path, owner: LayerOwner::Canonical };
        Ok(Root { layers: vec![layer], host_binds: root.host_binds.clone() })
    }

    /// Copies `sources` below `from` inside a container on `onto`, and keeps the result at `commit`.
    async fn copy_within(
        &self,
        onto: &Root,
        bind: Option<Bind>,
        spec: CopySpec,
        commit: &Path,
        log: &dyn LogSink,
    ) -> Result<LayerSize> {
        let container = self.start(&self.with_layer(onto).await?, bind.into_iter().collect(), false).await?;
        let end = container.run(Program::Copy(spec), Vec::new(), "/", "", log).await?;
        if !end.success() {
            container.remove().await?;
            return Err(ImageError::builder("copy files", end.describe()));
        }
        container.commit(commit).await
    }

    /// Brings files of another image to a folder of its own; gives it and the names to copy from it.
    async fn gather(&self, copy: &Copy, root: &Root, log: &dyn LogSink) -> Result<(PathBuf, Vec<String>)> {
        let path = self.layers.join(format!("gather-{:016x}", SystemEntropy::default().next_u64()));
        let sources = self.expand(root, &copy.sources, log).await?;
        let container = self.start(root, Vec::new(), false).await?;
        let mut names = Vec::new();
        for (at, source) in sources.iter().enumerate() {
            let name = source.rsplit('/').next().unwrap_or(source);
            // A file keeps its name and a folder's contents go below it: the second copy sees what the
            // first one saw.
            let target = format!("{at}/{name}");
            let spec = CopySpec {
                from: "/".into(),
                sources: vec![source.clone()],
                destination: format!("{OUT}/{target}"),
                owner: String::new(),
                mode: None,
            };
            let end = container.run(Program::Copy(spec), Vec::new(), "/", "", log).await?;
            if !end.success() {
                container.remove().await?;
                return Err(ImageError::builder("copy files of another image", end.describe()));
            }
            names.push(format!("{}/{target}", OUT.trim_start_matches('/')));
        }
        container.commit(&path).await?;
        Ok((path, names))
    }

    /// Patterns are matched by the other image's own shell.
    async fn expand(&self, root: &Root, sources: &[String], log: &dyn LogSink) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for source in sources {
            if source.is_empty() {
                let message = "all of another image can be copied to / only, without --chown and --chmod";
                return Err(ImageError::Unsupported(message.into()));
            }
            if !glob::is_pattern(source) {
                found.push(source.clone());
                continue;
            }
            let plain = |c: char| c.is_alphanumeric() || "_./*?[]-+@,:=~^!".contains(c);
            if !source.chars().all(plain) {
                return Err(ImageError::Unsupported(format!(
                    "{source:?} has signs that patterns of --from may not have"
                )));
            }
            let script =
                format!("cd / && for f in {source}; do [ -e \"$f\" ] && printf '%s\\n' \"$f\"; done; true");
            let container = self.start(root, Vec::new(), false).await?;
            let kept = Lines::default();
            let argv = vec!["/bin/sh".into(), "-c".into(), script];
            let env = vec![("PATH".to_owned(), crate::PATH_DEFAULT.to_owned())];
            let end = container.run(Program::Exec { argv }, env, "/", "", &kept).await?;
            container.remove().await?;
            let text = kept.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            if !end.success() || text.is_empty() {
                log.write(LogStream::Stderr, &format!("no file matches {source}\n"));
                return Err(ImageError::builder(
                    "copy files of another image",
                    format!("no file matches {source}"),
                ));
            }
            found.extend(text.lines().map(str::to_owned));
        }
        Ok(found)
    }
}

/// Keeps standard output.
#[derive(Default)]
struct Lines(std::sync::Mutex<String>);

impl LogSink for Lines {
    fn write(&self, stream: LogStream, text: &str) {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if stream == LogStream::Stdout && kept.len() < LINE_MAX * 16 {
            kept.push_str(text);
        }
    }
}

/// Keeps both outputs of a program of the guest's own.
struct Apart<'a> {
    out: &'a Whole,
    err: &'a Whole,
}

impl LogSink for Apart<'_> {
    fn write(&self, stream: LogStream, text: &str) {
        let to = if stream == LogStream::Stdout { self.out } else { self.err };
        let mut kept = to.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.len() + text.len() <= FACTS_MAX {
            kept.push_str(text);
        }
    }
}

/// A text.
#[derive(Default)]
struct Whole(std::sync::Mutex<String>);

fn failed(action: &str, error: &RuntimeError) -> ImageError {
    match error {
        RuntimeError::DiskFull(message) => ImageError::Io {
            action: "write",
            path: PathBuf::from("layers"),
            message: message.clone(),
            full: true,
        },
        other => ImageError::builder(action, other),
    }
}

#[async_trait]
impl Builder for RuntimeBuilder {
    async fn run(&self, command: Command, log: &dyn LogSink) -> Result<(CommandEnd, LayerSize)> {
        let binds = command
            .binds
            .iter()
            .map(|bind| Bind {
                source: bind.source.clone(),
                target: bind.target.to_string_lossy().into_owned(),
                read_only: true,
                owner: self.service,
            })
            .collect();
        let root = self.with_layer(&command.root).await?;
        let volumes = command.volumes.as_deref();
        let mut container = self.start_with(&root, binds, &command.mounts, volumes, command.network).await?;
        let program = Program::Exec { argv: command.argv };
        let end = container.run(program, command.env, &command.cwd, &command.user, log).await?;
        container.commit_volumes().await?;
        let size = match command.commit.filter(|_| end.success()) {
            Some(layer) => container.commit(&layer).await?,
            None => {
                container.remove().await?;
                LayerSize::default()
            }
        };
        Ok((end, size))
    }

    async fn copy(&self, copy: Copy, log: &dyn LogSink) -> Result<LayerSize> {
        let (source, owner, names, gathered) = match &copy.from {
            CopyFrom::Tree(tree) => (tree.clone(), self.service, copy.sources.clone(), None),
            CopyFrom::Image(root) => match root.layers.as_slice() {
                // One layer is what the image looks like: no need to gather from it.
                [only] if root.host_binds.is_empty() && !copy.sources.iter().any(|s| glob::is_pattern(s)) => {
                    (only.path.clone(), Owner::Canonical, copy.sources.clone(), None)
                }
                _ => {
                    let (path, names) = self.gather(&copy, root, log).await?;
                    (path.clone(), Owner::Canonical, names, Some(path))
                }
            },
        };
        let bind = Bind { source, target: FROM.into(), read_only: true, owner };
        let spec = CopySpec {
            from: FROM.into(),
            sources: names.into_iter().map(|n| if n.is_empty() { ".".into() } else { n }).collect(),
            destination: copy.destination.clone(),
            owner: copy.chown.clone().unwrap_or_default(),
            mode: copy.chmod,
        };
        let copied = self.copy_within(&copy.onto, Some(bind), spec, &copy.commit, log).await;
        if let Some(path) = gathered {
            self.remove(&path).await?;
        }
        copied
    }

    async fn unpack(
        &self,
        lower: &Root,
        archive: OwnedFd,
        commit: &Path,
        log: &dyn LogSink,
    ) -> Result<LayerSize> {
        let lower: Vec<Layer> =
            lower.layers.iter().map(|l| Layer { path: l.path.clone(), owner: Owner::Canonical }).collect();
        let stats = self.runtime.unpack_layer(commit, &lower, archive).await.map_err(|e| match e {
            broken if broken.is_of_archive() => ImageError::malformed("a layer's archive", broken),
            other => failed("unpack a layer", &other),
        })?;
        for warning in &stats.warnings {
            log.write(LogStream::Stderr, &format!("note: {warning}\n"));
        }
        Ok(LayerSize { bytes: stats.bytes, entries: stats.entries })
    }

    async fn remove(&self, layer: &Path) -> Result<()> {
        self.runtime.remove_tree(layer).await.map_err(|e| failed("remove a layer", &e))
    }
}

#[async_trait]
impl Surveyor for RuntimeBuilder {
    async fn survey(&self, below: &Root, layer: &crate::LayerRef) -> Result<LayerFacts> {
        let owner = match layer.owner {
            LayerOwner::Canonical => Owner::Canonical,
            LayerOwner::Single { uid, gid } => Owner::Single { uid, gid },
        };
        let bind = Bind { source: layer.path.clone(), target: FROM.into(), read_only: true, owner };
        // The container's own root is what lies below; its overlay shows none of what is mounted on it.
        let container = self.start(&self.with_layer(below).await?, vec![bind], false).await?;
        let spec = SurveySpec { layer: FROM.into(), below: "/".into() };
        let (said, complaints) = (Whole::default(), Whole::default());
        let sink = Apart { out: &said, err: &complaints };
        let end = container.run(Program::Survey(spec), Vec::new(), "/", "", &sink).await?;
        container.remove().await?;
        let text = |whole: Whole| whole.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !end.success() {
            let why = format!("{} ({})", text(complaints).trim(), end.describe());
            return Err(ImageError::builder("look at a layer", why));
        }
        serde_json::from_str(&text(said)).map_err(|e| ImageError::builder("look at a layer", e))
    }
}

/// A container of a build; removed when it is dropped before its end.
struct Container {
    id: String,
    runtime: Arc<dyn Runtime>,
    guest: Option<Guest>,
    /// Readable once all of it has ended.
    pidfd: Option<AsyncFd<OwnedFd>>,
    volumes: Option<Box<dyn OpenVolumes>>,
}

impl Container {
    fn guest(&self) -> Result<&Guest> {
        self.guest.as_ref().ok_or_else(|| ImageError::builder("run a command", "its container has ended"))
    }

    async fn run(
        &self,
        program: Program,
        env: Vec<(String, String)>,
        cwd: &str,
        user: &str,
        log: &dyn LogSink,
    ) -> Result<CommandEnd> {
        let guest = self.guest()?;
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        let spec = ProcessSpec {
            name: "step".into(),
            program,
            env,
            cwd: cwd.into(),
            user: user.into(),
            stdin: None,
            stdout: out,
            stderr: err,
        };
        let proc = match guest.spawn(spec).await {
            Ok(proc) => proc,
            Err(evoke_runtime::GuestError::Refused(message)) => {
                log.write(LogStream::Stderr, &format!("{message}\n"));
                return Ok(CommandEnd { code: Some(NOT_FOUND), signal: None, oom: false });
            }
            Err(error) => return Err(ImageError::builder("run a command", error)),
        };
        let output = async {
            tokio::join!(forward(stdout, LogStream::Stdout, log), forward(stderr, LogStream::Stderr, log));
        };
        tokio::pin!(output);
        let mut drained = false;
        let exit = loop {
            tokio::select! {
                () = &mut output, if !drained => drained = true,
                event = guest.next_event() => match event {
                    Some(GuestEvent::Exited { proc: ended, exit }) if ended == proc => break Some(exit),
                    Some(_) => {}
                    None => break None,
                },
            }
        };
        if !drained && tokio::time::timeout(DRAIN, output).await.is_err() {
            log.write(LogStream::Stderr, "note: a process that the command left behind is ended\n");
        }
        let usage = self.runtime.usage(&self.id).await.map_err(|e| failed("read a container's usage", &e))?;
        let exit = exit.unwrap_or(Exit { code: None, signal: None });
        let oom = usage.oom_kills > 0 && exit.code != Some(0);
        Ok(CommandEnd { code: exit.code, signal: exit.signal, oom })
    }

    /// Ends what still runs.
    async fn end(&self) -> Result<()> {
        let guest = self.guest()?;
        match guest.shutdown(Duration::ZERO).await {
            Ok(()) | Err(evoke_runtime::GuestError::Gone) => {}
            Err(error) => return Err(ImageError::builder("end a container", error)),
        }
        if let Some(pidfd) = &self.pidfd {
            match tokio::time::timeout(END, pidfd.readable()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(ImageError::builder("watch a container", error)),
                Err(_) => return Err(ImageError::builder("end a container", "its processes do not end")),
            }
        }
        Ok(())
    }

    /// Makes what was written to volumes part of them. Where there are any nothing runs any more then.
    async fn commit_volumes(&mut self) -> Result<()> {
        if self.volumes.is_some() {
            self.end().await?;
        }
        match &mut self.volumes {
            Some(volumes) => volumes.commit().await,
            None => Ok(()),
        }
    }

    /// Ends what still runs and makes a layer of what was written.
    async fn commit(self, layer: &Path) -> Result<LayerSize> {
        self.end().await?;
        let stats =
            self.runtime.commit_layer(&self.id, layer).await.map_err(|e| failed("keep a layer", &e))?;
        self.remove().await?;
        Ok(LayerSize { bytes: stats.bytes, entries: stats.entries })
    }

    async fn remove(mut self) -> Result<()> {
        self.guest = None;
        self.runtime.destroy(&self.id).await.map_err(|e| failed("remove a container", &e))?;
        self.id.clear();
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.id.is_empty() {
            return;
        }
        let (id, runtime) = (std::mem::take(&mut self.id), self.runtime.clone());
        self.guest = None;
        // A build was dropped half way. Where no runtime turns any more, the next start sweeps.
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            handle.spawn(async move {
                if let Err(error) = runtime.destroy(&id).await {
                    tracing::warn!(%id, %error, "the container of a dropped build could not be removed");
                }
            });
        }
    }
}

fn pipe() -> Result<(Receiver, OwnedFd)> {
    let (read, write) = plain_pipe()?;
    let read = Receiver::from_owned_fd(read).map_err(|e| ImageError::builder("make a pipe", e))?;
    Ok((read, write))
}

/// A pipe that children do not inherit: its read end, its write end.
pub(crate) fn plain_pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| ImageError::builder("make a pipe", std::io::Error::from(e)))
}

/// Passes output on line by line; a line that is too long goes in pieces.
async fn forward(mut from: Receiver, stream: LogStream, log: &dyn LogSink) {
    let mut buffer: Vec<u8> = Vec::new();
    let mut chunk = vec![0u8; 16 * 1024];
    loop {
        let n = match from.read(&mut chunk).await {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) => {
                tracing::warn!(%error, "the output of a step could not be read");
                break;
            }
        };
        buffer.extend_from_slice(&chunk[..n]);
        let end = match buffer.iter().rposition(|b| *b == b'\n') {
            Some(at) => at + 1,
            None if buffer.len() >= LINE_MAX => whole_characters(&buffer),
            None => continue,
        };
        let rest = buffer.split_off(end);
        log.write(stream, &String::from_utf8_lossy(&buffer));
        buffer = rest;
    }
    if !buffer.is_empty() {
        log.write(stream, &String::from_utf8_lossy(&buffer));
    }
}

/// How much of `bytes` ends with a whole character.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
