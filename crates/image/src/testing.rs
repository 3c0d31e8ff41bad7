//! Stand-ins for tests: a builder that makes folders instead of containers, tools in a temporary folder,
//! and a tiny HTTP server.

use crate::base::BaseTools;
use crate::error::{ImageError, Result};
use crate::index::FolderIndex;
use crate::log::{LogSink, LogStream};
use crate::network::HostNetwork;
use crate::steps::{Builder, Command, CommandEnd, Copy, CopyFrom, LayerSize, Root};
use async_trait::async_trait;
use evoke_files::HostEnv;
use evoke_files::fetch::{Fetcher, Limits};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Does no work and remembers what it was asked.
#[derive(Default)]
pub(crate) struct FakeBuilder {
    pub asked: Mutex<Vec<String>>,
    pub commands: Mutex<Vec<Command>>,
    /// How long a command takes.
    pub delay: Duration,
    /// Commands that are running, and were dropped before their end.
    pub dropped: Arc<AtomicUsize>,
    /// Commands that say `meet` end once as many of them run as it is for.
    pub together: Option<Arc<tokio::sync::Barrier>>,
    /// Commands that run now, and the most that ever did.
    pub running: AtomicUsize,
    pub most: AtomicUsize,
}

struct Running<'a>(&'a FakeBuilder, bool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl FakeBuilder {
    fn note(&self, text: String) {
        self.asked.lock().unwrap().push(text);
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn make(path: &Path) -> Result<()> {
    std::fs::create_dir(path).map_err(|e| ImageError::io("make", path, &e))
}

#[async_trait]
impl Builder for FakeBuilder {
    async fn run(&self, command: Command, log: &dyn LogSink) -> Result<(CommandEnd, LayerSize)> {
        let text = command.argv.last().cloned().unwrap_or_default();
        self.commands.lock().unwrap().push(command.clone());
        if command.commit.is_some() {
            self.note(format!("run {text}"));
        }
        self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let mut running = Running(self, false);
        if let Some(together) = self.together.as_ref().filter(|_| text.contains("meet")) {
            together.wait().await;
        }
        if !text.contains("at once") {
            tokio::time::sleep(self.delay).await;
        }
        running.1 = true;
        let end = |code| CommandEnd { code: Some(code), signal: None, oom: false };
        if command.commit.is_none() {
            let version = "{\"version\":\"3.11.2\",\"major\":3,\"minor\":11,\"path\":\"/usr/bin/python3\",\
                \"libc\":[\"glibc\",\"2.36\"],\"musl\":false,\"packages\":[[\"pip\",\"23.0\"]]}";
            log.write(LogStream::Stdout, &format!("evoke-probe:{version}\n"));
            return Ok((end(0), LayerSize::default()));
        }
        log.write(LogStream::Stdout, &format!("output of {text}\n"));
        if text.contains("fail") {
            return Ok((end(3), LayerSize::default()));
        }
        if let Some(commit) = &command.commit {
            make(commit)?;
        }
        Ok((end(0), LayerSize { bytes: 10, entries: 1 }))
    }

    async fn copy(&self, copy: Copy, _: &dyn LogSink) -> Result<LayerSize> {
        let what = match &copy.from {
            CopyFrom::Image(_) => format!("image {:?}", copy.sources),
            CopyFrom::Tree(tree) => {
                let read = |s: &String| std::fs::read_to_string(tree.join(s)).unwrap_or_else(|_| s.clone());
                format!("tree {:?}", copy.sources.iter().map(read).collect::<Vec<_>>())
            }
        };
        self.note(format!("copy {what} to {}", copy.destination));
        make(&copy.commit)?;
        Ok(LayerSize::default())
    }

    async fn unpack(&self, _: &Root, archive: OwnedFd, commit: &Path, _: &dyn LogSink) -> Result<LayerSize> {
        let commit = commit.to_owned();
        let unpack = move || {
            make(&commit)?;
            let mut tar = tar::Archive::new(std::fs::File::from(archive));
            let unpacked = tar.unpack(&commit);
            if let Err(error) = unpacked {
                std::fs::remove_dir_all(&commit).map_err(|e| ImageError::io("remove", &commit, &e))?;
                return Err(ImageError::builder("unpack", error));
            }
            Ok(LayerSize::default())
        };
        let result =
            tokio::task::spawn_blocking(unpack).await.map_err(|e| ImageError::builder("unpack", e))?;
        self.note("unpack".into());
        result
    }

    async fn remove(&self, layer: &Path) -> Result<()> {
        self.note("remove".into());
        std::fs::remove_dir_all(layer).map_err(|e| ImageError::io("remove", layer, &e))
    }
}

/// Tools that work in `folder`.
pub(crate) fn tools(folder: &Path, builder: Arc<dyn Builder>) -> BaseTools {
    let limits = Limits {
        answer_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(500),
        attempts_max: 3,
        backoff: Duration::from_millis(1),
        ..Limits::default()
    };
    let fetcher = Fetcher::with_limits(&HostEnv::of_this_process(), limits).unwrap();
    for part in ["layers", "downloads"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    BaseTools {
        fetcher,
        builder,
        index: Arc::new(FolderIndex::open(folder.join("index")).unwrap()),
        clock: Arc::new(evoke_core::SystemClock),
        layers: folder.join("layers"),
        downloads: folder.join("downloads"),
        network: Arc::new(HostNetwork::default()),
        uses: Default::default(),
        ecr_endpoint: None,
    }
}

/// A request as the tiny server sees it.
pub(crate) struct Asked {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

/// What it answers.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send so many bytes of the body and hang up.
    pub cut: Option<usize>,
    /// Say nothing for so long first.
    pub hang: Duration,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, hang: Duration::ZERO }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Serves `answer` on a port of this machine until the test process ends; gives `127.0.0.1:port`.
pub(crate) fn serve(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || drop(talk(stream, &*answer)));
        }
    });
    address
}

fn talk(stream: TcpStream, answer: &dyn Fn(&Asked) -> Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':') {
            headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let answer = answer(&Asked { path, headers });
    std::thread::sleep(answer.hang);
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n",
        answer.status,
        answer.body.len()
    )?;
    for (name, value) in &answer.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])
}
