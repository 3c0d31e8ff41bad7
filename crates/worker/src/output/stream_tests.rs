//! Captures over real pipes and spool files, with a control plane that keeps, stalls or refuses.

use super::super::spool::{Spool, spool_path};
use super::*;
use crate::testing::{FakeControl, PATIENCE, TestClock, ids};
use evoke_core::{CallId, InputId, SeededEntropy};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

struct Rig {
    control: Arc<FakeControl>,
    capture: Capture,
    pipe: Option<File>,
    folder: tempfile::TempDir,
}

fn source() -> Source {
    let (task, app, function) = ids(1);
    Source { task, app, function, fd: OutputFd::Stdout }
}

fn start(control: &Arc<FakeControl>, folder: &Path, pipe: Option<OwnedFd>, taken_over: u64) -> Capture {
    let spool = Spool::open(spool_path(folder, source().task, OutputFd::Stdout)).unwrap();
    let (capture, work) = Capture::new(CaptureConfig {
        source: source(),
        spool,
        pipe,
        taken_over,
        control: control.clone(),
        clock: Arc::new(TestClock),
    })
    .unwrap();
    tokio::spawn(work);
    capture
}

fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let control = Arc::new(FakeControl::default());
    let capture = start(&control, folder.path(), Some(reader), 0);
    Rig { control, capture, pipe: Some(writer.into()), folder }
}

impl Rig {
    fn write(&mut self, bytes: &[u8]) {
        self.pipe.as_mut().unwrap().write_all(bytes).unwrap();
    }
    fn output(&self) -> Vec<u8> {
        self.control.output(source().task, OutputFd::Stdout)
    }
    fn pieces(&self) -> Vec<(String, Option<InputId>)> {
        let logs = self.control.logs.lock().unwrap();
        logs.iter().map(|c| (String::from_utf8_lossy(&c.data).into_owned(), c.input)).collect()
    }
    async fn until_len(&self, len: usize) {
        self.control.until(|c| c.output(source().task, OutputFd::Stdout).len() >= len).await;
    }
}

fn tag(n: u64) -> Tag {
    let mut entropy = SeededEntropy::new(n);
    Some((CallId::new(UnixMs(n), &mut entropy), InputId::new(UnixMs(n), &mut entropy)))
}

#[tokio::test]
async fn lines_come_at_once_and_a_prompt_after_a_moment() {
    let mut rig = rig();
    rig.write(b"first\nsecond\n");
    rig.until_len(13).await;
    rig.write(b"name? ");
    rig.until_len(19).await;
    assert_eq!(rig.pieces(), [("first\nsecond\n".into(), None), ("name? ".into(), None)]);
}

#[tokio::test]
async fn half_a_character_waits_for_its_other_half() {
    let mut rig = rig();
    rig.write(b"caf\xC3");
    rig.until_len(3).await;
    rig.write(b"\xA9 au lait");
    rig.until_len(13).await;
    let pieces = rig.pieces();
    assert!(pieces.iter().all(|piece| !piece.0.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(rig.output(), "caf\u{e9} au lait".as_bytes());
}

#[tokio::test]
async fn bytes_keep_the_tag_in_force_when_they_were_written() {
    let mut rig = rig();
    // Everything below is in the pipe before the capture runs: this test has one thread.
    rig.write(b"importing");
    rig.capture.set_tag(tag(1));
    rig.write(b"one\n");
    rig.capture.set_tag(tag(2));
    rig.write(b"two");
    rig.capture.drain().await;
    rig.write(b"nobody's\n");
    rig.until_len(24).await;
    let input = |n| tag(n).map(|t| t.1);
    assert_eq!(
        rig.pieces(),
        [
            ("importing".into(), None),
            ("one\n".into(), input(1)),
            ("two".into(), input(2)),
            ("nobody's\n".into(), None)
        ]
    );
}

#[tokio::test]
async fn a_drain_returns_once_everything_before_it_is_taken_over() {
    let mut rig = rig();
    rig.control.stall().await;
    rig.write(b"before, without a newline");
    let capture = rig.capture.clone();
    let drained = tokio::spawn(async move { capture.drain().await });
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(!drained.is_finished());
    rig.control.resume();
    tokio::time::timeout(PATIENCE, drained).await.unwrap().unwrap();
    assert_eq!(rig.output(), b"before, without a newline");
}

#[tokio::test]
async fn refused_output_comes_again_without_loss_or_repetition() {
    let mut rig = rig();
    rig.control.refuse.store(3, std::sync::atomic::Ordering::SeqCst);
    rig.write(b"a\n");
    tokio::time::sleep(Duration::from_millis(30)).await;
    rig.write(b"b\n");
    rig.until_len(4).await;
    assert_eq!(rig.output(), b"a\nb\n");
}

#[tokio::test]
async fn the_end_ships_the_rest_and_removes_the_spool() {
    let mut rig = rig();
    rig.write(b"last words");
    rig.pipe = None;
    assert!(tokio::time::timeout(PATIENCE, rig.capture.finish()).await.unwrap());
    assert_eq!(rig.output(), b"last words");
    assert_eq!(std::fs::read_dir(rig.folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_pipe_that_somebody_keeps_open_does_not_keep_the_capture() {
    let mut rig = rig();
    rig.write(b"done\n");
    assert!(tokio::time::timeout(PATIENCE, rig.capture.finish()).await.unwrap());
    assert_eq!(rig.output(), b"done\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_of_100_mb_passes_in_pieces_and_its_space_comes_back() {
    const TOTAL: usize = 100 * 1024 * 1024;
    let mut rig = rig();
    let mut pipe = rig.pipe.take().unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        let piece = vec![b'x'; 1024 * 1024];
        for _ in 0..TOTAL / piece.len() {
            pipe.write_all(&piece).unwrap();
        }
    });
    // Counting instead of comparing, so that the test itself stays small.
    rig.control
        .until(|c| {
            let mut logs = c.logs.lock().unwrap();
            assert!(logs.iter().all(|chunk| chunk.data.len() <= cut::CHUNK_BYTES_MAX));
            let keep = logs.len().saturating_sub(1);
            logs.drain(..keep);
            c.taken.load(std::sync::atomic::Ordering::SeqCst) == TOTAL
        })
        .await;
    writer.await.unwrap();
    let spool = spool_path(rig.folder.path(), source().task, OutputFd::Stdout);
    let on_disk = std::fs::metadata(&spool).unwrap().blocks() * 512;
    assert!(on_disk <= 8 * 1024 * 1024, "{on_disk} bytes of spool kept");
    assert!(rig.capture.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_stalls_stops_the_writer_and_not_the_memory() {
    let mut rig = rig();
    rig.control.stall().await;
    let mut pipe = rig.pipe.take().unwrap();
    rustix::io::ioctl_fionbio(&pipe, true).unwrap();
    rustix::pipe::fcntl_setpipe_size(&pipe, 1024 * 1024).unwrap();
    let piece = vec![b'y'; 64 * 1024];
    let (mut sent, mut blocked) = (0u64, 0);
    // Written until nothing has fitted for a second.
    while blocked < 200 {
        match pipe.write(&piece) {
            Ok(n) => (sent, blocked) = (sent + n as u64, 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                blocked += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let bound = SPOOL_AHEAD_MAX + SPLICE_BYTES_MAX as u64 + 1024 * 1024;
    assert!(sent >= SPOOL_AHEAD_MAX && sent <= bound, "{sent} bytes were accepted");
    assert_eq!(rig.control.taken.load(std::sync::atomic::Ordering::SeqCst), 0);
    rig.control.resume();
    drop(pipe);
    assert!(tokio::time::timeout(PATIENCE, rig.capture.finish()).await.unwrap());
    assert_eq!(rig.control.taken.load(std::sync::atomic::Ordering::SeqCst) as u64, sent);
}

#[tokio::test]
async fn a_spool_without_its_pipe_is_shipped_from_where_control_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = spool_path(folder.path(), source().task, OutputFd::Stdout);
    std::fs::write(&path, b"taken\nleft over").unwrap();
    let control = Arc::new(FakeControl::default());
    let capture = start(&control, folder.path(), None, 6);
    assert!(tokio::time::timeout(PATIENCE, capture.finish()).await.unwrap());
    assert_eq!(control.output(source().task, OutputFd::Stdout), b"left over");
    assert!(!path.exists());
}
