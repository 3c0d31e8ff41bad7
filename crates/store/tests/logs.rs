//! Logs: paging, filters, times, offsets, damage, retention.
#![allow(clippy::unwrap_used)] // In a test a failure to set up is a failure of the test.

use bytes::Bytes;
use evoke_core::{AppId, CallId, FunctionId, InputId, SeededEntropy, SystemClock, TaskId, UnixMs};
use evoke_store::StoreError;
use evoke_store::logs::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const ALL: TimeRange = TimeRange { since_ns: 0, until_ns: u64::MAX };

struct World {
    folder: tempfile::TempDir,
    logs: Logs,
    app: StreamName,
    tasks: [TaskId; 2],
    function: FunctionId,
    call: CallId,
    input: InputId,
}

fn world(segment_bytes: u64) -> World {
    let folder = tempfile::tempdir().unwrap();
    let mut entropy = SeededEntropy::new(8);
    let now = UnixMs(1_700_000_000_000);
    let entropy = &mut entropy;
    World {
        logs: open(folder.path(), segment_bytes),
        folder,
        app: AppId::new(now, entropy).into(),
        tasks: [TaskId::new(now, entropy), TaskId::new(now, entropy)],
        function: FunctionId::new(now, entropy),
        call: CallId::new(now, entropy),
        input: InputId::new(now, entropy),
    }
}

fn open(folder: &Path, segment_bytes: u64) -> Logs {
    Logs::open(&folder.join("logs"), LogsConfig { segment_bytes, ..LogsConfig::default() }).unwrap()
}

impl World {
    fn reopen(&mut self, segment_bytes: u64) {
        self.logs = open(self.folder.path(), segment_bytes);
    }
    fn entry(&self, n: u64) -> NewEntry {
        NewEntry {
            at_ns: n,
            task: Some(self.tasks[(n % 2) as usize]),
            function: Some(self.function),
            call: (n % 3 == 0).then_some(self.call),
            input: (n % 6 == 0).then_some(self.input),
            fd: (n % 3 + 1) as u8,
            spool_offset: None,
            data: Bytes::from(format!("number {n}\n")),
        }
    }
    fn append(&self, numbers: std::ops::Range<u64>) -> Cursor {
        let entries: Vec<NewEntry> = numbers.map(|n| self.entry(n)).collect();
        self.logs.append(&self.app, &entries).unwrap()
    }
    fn spooled(&self, fd: u8, offset: u64, text: &str) -> NewEntry {
        NewEntry {
            fd,
            task: Some(self.tasks[0]),
            spool_offset: Some(offset),
            data: Bytes::copy_from_slice(text.as_bytes()),
            ..NewEntry::default()
        }
    }
    async fn all(&self, filter: Filter) -> Vec<LogEntry> {
        let (mut entries, mut from) = (Vec::new(), Cursor::START);
        loop {
            let page = self.logs.read_from(self.app.clone(), from, filter.clone()).await.unwrap();
            entries.extend(page.entries);
            if page.at_end {
                return entries;
            }
            assert!(page.next > from);
            from = page.next;
        }
    }
    async fn numbers(&self, filter: Filter) -> Vec<u64> {
        self.all(filter).await.iter().map(|entry| entry.at_ns).collect()
    }
    async fn text(&self) -> String {
        let all = self.all(Filter::default()).await;
        all.iter().map(|entry| String::from_utf8_lossy(&entry.data).into_owned()).collect()
    }
    fn segments(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("logs").join(self.app.to_string()))
        else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().unwrap() == "log");
        paths.sort();
        paths
    }
}

#[tokio::test]
async fn reads_on_from_any_cursor_over_segments_and_restarts() {
    let mut world = world(20_000);
    world.append(0..500);
    world.reopen(20_000);
    for n in 500..1_500 {
        world.append(n..n + 1);
    }
    assert!(world.segments().len() > 4, "{:?}", world.segments());
    let all = world.all(Filter::default()).await;
    assert_eq!(all.iter().map(|entry| entry.at_ns).collect::<Vec<_>>(), (0..1_500).collect::<Vec<_>>());
    assert_eq!(&all[6].data[..], b"number 6\n");
    assert_eq!((all[6].task, all[6].function), (Some(world.tasks[0]), Some(world.function)));
    assert_eq!((all[6].call, all[6].input, all[6].fd), (Some(world.call), Some(world.input), 1));
    assert_eq!((all[7].call, all[7].input), (None, None));
    for at in [0, 1, 499, 500, 777, 1_498, 1_499] {
        let cursor: Cursor = all[at].next.to_string().parse().unwrap();
        let page = world.logs.read_from(world.app.clone(), cursor, Filter::default()).await.unwrap();
        assert_eq!(page.entries.first().map(|entry| entry.at_ns), (at < 1_499).then_some(at as u64 + 1));
    }
    assert!(
        "".parse::<Cursor>().is_err() && "1".parse::<Cursor>().is_err() && "a-1".parse::<Cursor>().is_err()
    );
}

#[tokio::test]
async fn filters() {
    let world = world(20_000);
    world.append(0..600);
    let count = async |filter| world.numbers(filter).await.len();
    assert_eq!(count(Filter { task: Some(world.tasks[1]), ..Filter::default() }).await, 300);
    assert_eq!(count(Filter { call: Some(world.call), ..Filter::default() }).await, 200);
    assert_eq!(count(Filter { input: Some(world.input), ..Filter::default() }).await, 100);
    assert_eq!(
        count(Filter { functions: vec![world.function], fd: Some(2), ..Filter::default() }).await,
        200
    );
    let text = Filter { text: Some("number 59".to_owned()), ..Filter::default() };
    assert_eq!(count(text.clone()).await, 11);
    let found = world.logs.read_range(world.app.clone(), ALL, text, Wanted::Lines(3)).await.unwrap();
    assert_eq!(found.entries.iter().map(|entry| entry.at_ns).collect::<Vec<_>>(), [597, 598, 599]);
    assert!(found.truncated);
}

#[tokio::test]
async fn finds_the_newest_of_a_time_and_counts() {
    let mut world = world(300_000);
    for n in 0..200 {
        world.append(n * 100..n * 100 + 100);
    }
    for _ in 0..2 {
        let time = TimeRange { since_ns: 3_000, until_ns: 15_000 };
        let range = world
            .logs
            .read_range(world.app.clone(), time, Filter::default(), Wanted::Lines(250))
            .await
            .unwrap();
        let numbers: Vec<u64> = range.entries.iter().map(|entry| entry.at_ns).collect();
        assert_eq!(numbers, (14_750..15_000).collect::<Vec<_>>());
        assert!(range.truncated);
        let range = world
            .logs
            .read_range(world.app.clone(), time, Filter::default(), Wanted::Everything)
            .await
            .unwrap();
        assert_eq!((range.entries.len(), range.truncated), (12_000, false));
        let buckets = world.logs.count(world.app.clone(), time, Filter::default(), 9_000).await.unwrap();
        let sums: Vec<(u64, u64)> =
            buckets.iter().map(|b| (b.start_ns, b.stdout + b.stderr + b.system)).collect();
        assert_eq!(sums, [(0, 6_000), (9_000, 6_000)]);
        assert_eq!((buckets[0].stdout, buckets[0].stderr, buckets[0].system), (2_000, 2_000, 2_000));
        let fine = world.logs.count(world.app.clone(), ALL, Filter::default(), 1).await;
        assert!(matches!(fine, Err(StoreError::TooMuch(_))));
        // Again with the indexes made anew.
        for path in world.segments() {
            let _ = std::fs::remove_file(path.with_extension("idx"));
        }
        world.reopen(300_000);
    }
}

#[tokio::test]
async fn what_is_dense_is_read_as_it_was_written() {
    let world = world(1 << 20);
    let text: String = (0..30_000).map(|n| format!("line {n}\n")).collect();
    let half = text.len() / 2;
    for piece in [&text[..half], &text[half..]] {
        let entry = NewEntry {
            at_ns: 5,
            fd: 1,
            data: Bytes::copy_from_slice(piece.as_bytes()),
            ..NewEntry::default()
        };
        world.logs.append(&world.app, &[entry]).unwrap();
    }
    let read =
        async |filter, wanted| world.logs.read_range(world.app.clone(), ALL, filter, wanted).await.unwrap();
    let everything = read(Filter::default(), Wanted::Everything).await;
    assert_eq!((everything.entries.len(), everything.truncated), (2, false));
    let buckets = world.logs.count(world.app.clone(), ALL, Filter::default(), 10).await.unwrap();
    // No more than who counts would read at a time, for it can be read at a time.
    assert!(buckets[0].stdout <= RANGE_ENTRIES_MAX as u64 && buckets[0].stdout > 19_000, "{buckets:?}");
    let newest = read(Filter::default(), Wanted::Lines(2)).await;
    let texts: Vec<&[u8]> = newest.entries.iter().map(|entry| &entry.data[..]).collect();
    assert_eq!(texts, [b"line 29998\n", b"line 29999\n"]);
    let found = Filter { text: Some("line 777".to_owned()), ..Filter::default() };
    assert_eq!(read(found.clone(), Wanted::Everything).await.entries.len(), 11);
    let counted = world.logs.count(world.app.clone(), ALL, found, 10).await.unwrap();
    assert_eq!(counted[0].stdout, 11);
}

#[tokio::test]
async fn takes_over_each_byte_of_a_spool_once() {
    let mut world = world(600);
    let task = world.tasks[0];
    let append = |world: &World, entry| world.logs.append(&world.app, &[entry]).unwrap();
    append(&world, world.spooled(1, 0, "hello "));
    append(&world, world.spooled(2, 0, "<err>"));
    append(&world, world.spooled(1, 0, "hello "));
    append(&world, world.spooled(1, 3, "lo world"));
    assert_eq!(world.logs.taken_over(&world.app, task).unwrap(), (11, 5));
    let twice = [world.spooled(1, 11, "!"), world.spooled(1, 11, "!?")];
    world.logs.append(&world.app, &twice).unwrap();
    assert_eq!(world.text().await, "hello <err>world!?");
    // Offsets outlive rotations and restarts, until the task is forgotten.
    for n in 0..40 {
        world.append(n..n + 1);
    }
    world.reopen(600);
    assert_eq!(world.logs.taken_over(&world.app, task).unwrap(), (13, 5));
    world.logs.forget_task(&world.app, task);
    for n in 0..40 {
        world.append(n..n + 1);
    }
    world.reopen(600);
    assert_eq!(world.logs.taken_over(&world.app, task).unwrap(), (0, 0));
}

#[tokio::test]
async fn splits_a_huge_line_between_characters() {
    let mut world = world(1024 * 1024);
    let text = format!("a{}", "é".repeat(4_000_000));
    world.logs.append(&world.app, &[world.spooled(1, 0, &text)]).unwrap();
    let all = world.all(Filter::default()).await;
    assert!(all.len() >= 8);
    assert!(all.iter().all(|entry| std::str::from_utf8(&entry.data).is_ok()));
    assert_eq!(world.text().await, text);
    world.reopen(1024 * 1024);
    assert_eq!(world.logs.taken_over(&world.app, world.tasks[0]).unwrap().0, text.len() as u64);
}

#[tokio::test]
async fn wakes_whoever_follows() {
    let world = world(600);
    let woken = Arc::new(AtomicUsize::new(0));
    let (counter, name) = (woken.clone(), world.app.clone());
    let first = world.logs.on_append(move |stream| {
        assert_eq!(*stream, name);
        counter.fetch_add(1, Ordering::Relaxed);
    });
    assert!(first && !world.logs.on_append(|_| ()));
    let mut follow = world.logs.subscribe(&world.app).unwrap();
    assert_eq!(*follow.borrow_and_update(), Cursor::START);
    let logs = world.logs.clone();
    let (app, entries) = (world.app.clone(), vec![world.entry(1)]);
    let appending = tokio::task::spawn_blocking(move || logs.append(&app, &entries).unwrap());
    follow.changed().await.unwrap();
    let end = appending.await.unwrap();
    assert_eq!(*follow.borrow(), end);
    assert_eq!(world.logs.end(&world.app).unwrap(), end);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn cuts_off_a_torn_end_and_goes_on() {
    let mut world = world(1 << 20);
    world.append(0..10);
    let before = world.logs.end(&world.app).unwrap();
    world.append(10..11);
    let path = world.segments().remove(0);
    let size = std::fs::metadata(&path).unwrap().len();
    for cut in 1..40 {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(size - cut).unwrap();
        world.reopen(1 << 20);
        assert_eq!(world.logs.end(&world.app).unwrap(), before, "{cut} bytes cut");
        world.append(10..11);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        assert_eq!(world.numbers(Filter::default()).await, (0..11).collect::<Vec<_>>());
    }
    // Zeroes at the end, as a loss of power leaves them.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(size + 5_000).unwrap();
    world.reopen(1 << 20);
    world.append(11..12);
    assert_eq!(world.numbers(Filter::default()).await, (0..12).collect::<Vec<_>>());
    // A cursor from beyond the end stands at the end.
    let beyond: Cursor = "1-99999999".parse().unwrap();
    let page = world.logs.read_from(world.app.clone(), beyond, Filter::default()).await.unwrap();
    assert!(page.entries.is_empty() && page.at_end);
}

#[tokio::test]
async fn an_unfinished_segment_is_made_again() {
    let mut world = world(1_000);
    world.append(0..1);
    world.logs.append(&world.app, &[world.spooled(1, 0, "abc")]).unwrap();
    let path = world.segments().remove(0);
    for torn in [&b""[..], b"EVOKELOG", b"EVOKELOG\x01\0\0\0\0\0\0\0\x09\0"] {
        std::fs::write(path.with_file_name("0000000002.log"), torn).unwrap();
        world.reopen(1_000);
        assert_eq!(world.logs.taken_over(&world.app, world.tasks[0]).unwrap().0, 3);
        assert_eq!(world.segments().len(), 1);
    }
    world.append(1..30);
    assert_eq!(world.numbers(Filter { fd: Some(2), ..Filter::default() }).await.len(), 10);
}

#[tokio::test]
async fn skips_damage_in_the_middle() {
    let mut world = world(200_000);
    for n in 0..80 {
        world.append(n * 100..n * 100 + 100);
    }
    let paths = world.segments();
    assert!(paths.len() >= 3);
    let mut bytes = std::fs::read(&paths[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    std::fs::write(&paths[0], bytes).unwrap();
    world.reopen(200_000);
    let numbers = world.numbers(Filter::default()).await;
    // At most the rest of one block is lost.
    assert!(numbers.len() < 8_000 && numbers.len() > 7_000, "{}", numbers.len());
    assert_eq!(numbers.last(), Some(&7_999));
    let range = world
        .logs
        .read_range(world.app.clone(), ALL, Filter::default(), Wanted::Lines(10_000))
        .await
        .unwrap();
    assert_eq!(range.entries.len(), numbers.len());
}

#[tokio::test]
async fn forgets_by_size_and_by_age() {
    use evoke_core::Clock;
    let world = world(10_000);
    world.append(0..100);
    for n in 100..1_000 {
        world.append(n..n + 1);
    }
    let start = world.all(Filter::default()).await[0].next;
    let before = world.segments().len();
    let now = SystemClock.now();
    let keep = Retention { age_ms_max: 1_000_000, stream_bytes_max: 35_000 };
    let expired = world.logs.expire(now, keep).await.unwrap();
    assert_eq!(world.segments().len(), before - expired.segments as usize);
    assert!(expired.segments > 0 && expired.bytes > 9_000);
    let numbers = world.numbers(Filter::default()).await;
    assert_eq!(numbers, (numbers[0]..1_000).collect::<Vec<_>>());
    // An old cursor goes on with what is kept.
    let page = world.logs.read_from(world.app.clone(), start, Filter::default()).await.unwrap();
    assert_eq!(page.entries[0].at_ns, numbers[0]);
    // A stream that somebody follows keeps its last segment; else everything old goes.
    let later = UnixMs(now.0 + 2_000_000);
    let follow = world.logs.subscribe(&world.app).unwrap();
    world.logs.expire(later, keep).await.unwrap();
    assert_eq!(world.segments().len(), 1);
    drop(follow);
    world.logs.expire(later, keep).await.unwrap();
    assert_eq!(world.segments().len(), 0);
    assert!(world.numbers(Filter::default()).await.is_empty());
    world.append(0..3);
    assert_eq!(world.numbers(Filter::default()).await, [0, 1, 2]);
}

#[tokio::test]
async fn many_streams_need_few_files_and_bounded_memory() {
    let world = world(1 << 20);
    let config = LogsConfig { streams_max: 100, ..LogsConfig::default() };
    let logs = Logs::open(&world.folder.path().join("many"), config).unwrap();
    let mut entropy = SeededEntropy::new(77);
    let apps: Vec<StreamName> = (0..300).map(|n| AppId::new(UnixMs(n), &mut entropy).into()).collect();
    // Whoever follows is woken, however many other streams were used since.
    let follow = logs.subscribe(&apps[0]).unwrap();
    for _ in 0..3 {
        for app in &apps {
            logs.append(app, &[world.spooled(1, 0, "once")]).unwrap();
            logs.append(app, &[world.entry(1)]).unwrap();
        }
    }
    assert_eq!(*follow.borrow(), logs.end(&apps[0]).unwrap());
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 400, "{open}");
    for app in apps.iter().step_by(49) {
        let page = logs.read_from(app.clone(), Cursor::START, Filter::default()).await.unwrap();
        assert_eq!(page.entries.len(), 4);
    }
}

#[tokio::test]
async fn who_follows_with_a_text_gets_the_lines_that_have_it() {
    let world = world(1 << 20);
    let entry = NewEntry { data: Bytes::from_static(b"one\ntwo\nonce\nthree"), ..world.entry(1) };
    world.logs.append(&world.app, &[entry, world.entry(2)]).unwrap();
    let filter = Filter { text: Some("on".into()), ..Filter::default() };
    let page = world.logs.read_from(world.app.clone(), Cursor::START, filter).await.unwrap();
    let texts: Vec<_> = page.entries.iter().map(|entry| entry.data.as_ref()).collect();
    assert_eq!(texts, [b"one\nonce\n".as_slice()]);
    assert_eq!(page.next, world.logs.end(&world.app).unwrap());
}
