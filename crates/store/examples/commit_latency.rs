//! How long a commit takes from its submission to its acknowledgement, and how long it takes to open a
//! database with a million inputs. Run with `cargo run --release -p evoke-store --example commit_latency`.

#![allow(clippy::expect_used)] // A measurement: what fails ends it.

use bytes::Bytes;
use evoke_core::{AppId, CallId, FunctionId, InputId, SeededEntropy, UnixMs};
use evoke_store::calls::{CallRow, CallType, CallWrite, InputRow, Invocation, OutputRow, ResultBody};
use evoke_store::calls::{ResultStatus, keys, recover};
use evoke_store::{Grade, SettingWrite, Store, Write};
use std::time::{Duration, Instant};

const INPUTS: i64 = 1_000_000;
const NOW: UnixMs = UnixMs(1_700_000_000_000);

fn percentiles(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{name}: p50 {:?}, p90 {:?}, p99 {:?}, max {:?}", at(0.5), at(0.9), at(0.99), at(1.0));
}

fn setting(n: usize) -> Write {
    SettingWrite::Put { key: format!("{n:010}"), value: vec![1; 200] }.into()
}

async fn one_after_the_other(store: &Store, grade: Grade, pause: Option<Duration>, count: usize) {
    let mut times = Vec::new();
    for n in 0..count {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let start = Instant::now();
        store.submit(vec![setting(n)], grade).await.expect("stored");
        times.push(start.elapsed());
    }
    percentiles(&format!("{grade:?}, one after the other, pause {pause:?}"), times);
}

async fn many_at_a_time(store: &Store, grade: Grade) {
    let start = Instant::now();
    let tickets: Vec<_> = (0..50_000)
        .map(|n| {
            let ticket = store.submit(vec![setting(n)], grade);
            (Instant::now(), ticket)
        })
        .collect();
    let submitted = start.elapsed();
    for (_, ticket) in tickets {
        ticket.await.expect("stored");
    }
    let all = start.elapsed();
    println!("{grade:?}, 50,000 at a time: submitted in {submitted:?}, stored in {all:?}");
}

/// One call of many inputs, all ended but the last few.
fn fill(store: &Store) {
    let mut entropy = SeededEntropy::new(1);
    let call_key = 1;
    let id = |key: i64| keys::Parts { at: NOW, key, salt: 7 };
    let call = CallRow {
        key: call_key,
        id: keys::join::<evoke_core::id::Call>(id(call_key)) as CallId,
        function_id: FunctionId::new(NOW, &mut entropy),
        app_id: AppId::new(NOW, &mut entropy),
        call_type: CallType::Map,
        invocation: Invocation::Sync,
        parent_input: None,
        return_exceptions: false,
        created: NOW,
    };
    let first: Write = CallWrite::Call { row: call, open: true }.into();
    drop(store.submit(vec![first], Grade::Written));
    let mut batch = Vec::new();
    let mut last = None;
    for n in 0..INPUTS {
        let key = 2 + n * 2;
        let input_id: InputId = keys::join(id(key));
        let input = InputRow {
            key,
            id: input_id,
            call: call_key,
            idx: n as i32,
            group: 0,
            created: NOW,
            payload: Bytes::from_static(&[3; 100]),
        };
        batch.push(CallWrite::Input(input).into());
        if n < INPUTS - 1_000 {
            let output = OutputRow {
                entry: key + 1,
                call: call_key,
                input: key,
                input_id,
                idx: n as i32,
                status: ResultStatus::Success,
                body: ResultBody::Container(Bytes::from_static(&[4; 100])),
                retry_count: 0,
                attempt: None,
                task: None,
                started: None,
                finished: NOW,
            };
            batch.push(CallWrite::Output(output).into());
        }
        if batch.len() > 2_000 {
            last = Some(store.submit(std::mem::take(&mut batch), Grade::Written));
        }
    }
    last = Some(store.submit(batch, Grade::Written)).or(last);
    last.expect("submitted").wait().expect("stored");
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("evoke.db");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let measure = |store: &Store| {
        let store = store.clone();
        let measuring = runtime.spawn(async move {
            one_after_the_other(&store, Grade::Written, None, 20_000).await;
            one_after_the_other(&store, Grade::Written, Some(Duration::from_millis(2)), 1_500).await;
            one_after_the_other(&store, Grade::Synced, None, 500).await;
            many_at_a_time(&store, Grade::Written).await;
            many_at_a_time(&store, Grade::Synced).await;
        });
        runtime.block_on(measuring).expect("measured");
    };
    let store = Store::open(&path).expect("opened");
    println!("-- empty");
    measure(&store);
    let start = Instant::now();
    fill(&store);
    println!("-- {INPUTS} inputs, stored in {:?}", start.elapsed());
    measure(&store);
    // As after SIGKILL: with the write-ahead log as it is.
    let copy = folder.path().join("copy.db");
    for end in ["", "-wal"] {
        let name = |base: &std::path::Path| format!("{}{end}", base.display());
        std::fs::copy(name(&path), name(&copy)).expect("copied");
    }
    for path in [&copy, &copy] {
        let start = Instant::now();
        let store = Store::open(path).expect("opened");
        let opened = start.elapsed();
        let recovered = store.read_here(|conn| Ok(recover(conn)?)).expect("recovered");
        println!(
            "opened in {opened:?}, {} inputs recovered in {:?}",
            recovered.inputs.len(),
            start.elapsed()
        );
        let start = Instant::now();
        drop(store);
        println!("closed in {:?}", start.elapsed());
    }
    println!("{} bytes", std::fs::metadata(&copy).expect("a file").len());
}
