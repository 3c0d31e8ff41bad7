//! SIGKILL at any instant: a process that captures is killed again and again, between splice and shipping
//! and anywhere else, and at the end every byte is there once.

use super::super::spool::{Spool, spool_path};
use super::*;
use crate::testing::{TestClock, ids};
use evoke_core::{Entropy, Error, SeededEntropy, VolumeId};
use evoke_proto::worker::{VolumeChange, VolumeView, WorkerEvent};
use evoke_proto::{CallContext, Reply, Service, Status};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Tells a process of this test binary that it is the one to be killed, and where it works.
const FOLDER: &str = "EVOKE_TEST_CAPTURE_FOLDER";
const KILLS: u64 = 60;
const TOTAL_BYTES: usize = 24 * 1024 * 1024;

/// A log store in a file: records of offset, length and bytes. A record that a kill cut short does not count.
struct FileControl {
    file: Mutex<File>,
}

fn records(path: &Path) -> (Vec<(u64, Vec<u8>)>, u64) {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        file.read_to_end(&mut bytes).unwrap();
    }
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(head) = bytes.get(at..at + 16) {
        let offset = u64::from_le_bytes(head[..8].try_into().unwrap());
        let len = u64::from_le_bytes(head[8..].try_into().unwrap()) as usize;
        let Some(data) = bytes.get(at + 16..at + 16 + len) else { break };
        all.push((offset, data.to_vec()));
        at += 16 + len;
    }
    (all, at as u64)
}

impl FileControl {
    /// Opens the store; how far it has the stream.
    fn open(path: &Path) -> (Self, u64) {
        let (all, end) = records(path);
        let mut file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
        file.set_len(end).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        let taken_over = all.last().map_or(0, |(offset, data)| offset + data.len() as u64);
        (Self { file: Mutex::new(file) }, taken_over)
    }
}

#[async_trait::async_trait]
impl Service for FileControl {
    async fn call(&self, context: CallContext, _: Bytes) -> Result<Reply, Status> {
        Err(Status::unimplemented(context.rpc.name))
    }
}

#[async_trait::async_trait]
impl Control for FileControl {
    async fn report(&self, _: WorkerEvent) {}
    async fn append_logs(&self, chunks: Vec<LogChunk>) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for chunk in chunks {
            bytes.extend_from_slice(&chunk.spool_offset.to_le_bytes());
            bytes.extend_from_slice(&(chunk.data.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&chunk.data);
        }
        self.file.lock().unwrap().write_all(&bytes).unwrap();
        Ok(())
    }
    async fn merge_volume(
        &self,
        _: VolumeId,
        base: u64,
        _: Vec<VolumeChange>,
        _: String,
    ) -> Result<u64, Error> {
        Ok(base)
    }

    async fn volume_view(&self, volume: VolumeId) -> Result<VolumeView, Error> {
        Err(Error::not_found(format!("no volume {volume}")))
    }

    async fn log_offsets(&self, _: TaskId) -> (u64, u64) {
        (0, 0)
    }
}

/// Not a test: what the processes below run, with the pipe as their stdin.
#[tokio::test]
#[ignore = "run by the test below, to be killed"]
async fn captures_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let (control, taken_over) = FileControl::open(&folder.join("log"));
    let (task, app, function) = ids(1);
    let spool = Spool::open(spool_path(&folder, task, OutputFd::Stdout)).unwrap();
    let (capture, work) = Capture::new(CaptureConfig {
        source: Source { task, app, function, fd: OutputFd::Stdout },
        spool,
        pipe: Some(std::io::stdin().as_fd().try_clone_to_owned().unwrap()),
        taken_over,
        control: Arc::new(control),
        clock: Arc::new(TestClock),
    })
    .unwrap();
    work.await;
    assert!(capture.finish().await);
}

fn capturing(folder: &Path, pipe: &OwnedFd) -> std::process::Child {
    let name = format!("{}::captures_until_killed", module_path!().split_once("::").unwrap().1);
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", &name, "--test-threads=1"])
        .env(FOLDER, folder)
        .stdin(Stdio::from(pipe.try_clone().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Numbered lines, so that a missing or repeated piece is seen wherever it is cut.
fn lines() -> Vec<u8> {
    let mut all = Vec::with_capacity(TOTAL_BYTES + 32);
    let mut n = 0u64;
    while all.len() < TOTAL_BYTES {
        writeln!(all, "line {n}").unwrap();
        n += 1;
    }
    all
}

#[test]
fn a_kill_at_any_instant_loses_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let expected = lines();
    let written = expected.clone();
    let writer = std::thread::spawn(move || {
        // Slow enough that the kills fall all over it.
        for piece in written.chunks(TOTAL_BYTES / 400) {
            (&File::from(writer.try_clone().unwrap())).write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
    });
    let mut entropy = SeededEntropy::new(11);
    let mut progress = Vec::new();
    for _ in 0..KILLS {
        let mut child = capturing(folder.path(), &reader);
        std::thread::sleep(Duration::from_micros(2_000 + entropy.next_u64() % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        progress.push(records(&folder.path().join("log")).1);
    }
    // The kills hit a capture that was under way, and not only processes that were starting.
    progress.dedup();
    assert!(progress.len() as u64 > KILLS / 4, "{progress:?}");
    assert!(capturing(folder.path(), &reader).wait().unwrap().success());
    writer.join().unwrap();

    let (all, _) = records(&folder.path().join("log"));
    let mut joined = Vec::with_capacity(expected.len());
    for (offset, data) in all {
        assert_eq!(offset, joined.len() as u64, "a gap or a repeat");
        joined.extend_from_slice(&data);
    }
    assert!(joined == expected, "{} bytes instead of {}", joined.len(), expected.len());
}
