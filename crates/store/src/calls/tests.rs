//! What is written is read back, what has ended is not read at a start, and what is old is forgotten.

use super::*;
use crate::{Db, Write};
use bytes::Bytes;
use evoke_core::id::Kind;
use evoke_core::{AppId, DefinitionId, FunctionId, Phase, StartPath, TaskId, UnixMs};

fn id<K: Kind>(at: u64, key: Key) -> evoke_core::id::Id<K> {
    keys::join(keys::Parts { at: UnixMs(at), key, salt: key as u32 })
}

fn call(key: Key, at: u64) -> CallRow {
    CallRow {
        key,
        id: id(at, key),
        function_id: FunctionId::from_bits(1),
        app_id: AppId::from_bits(2),
        call_type: CallType::Map,
        invocation: Invocation::Sync,
        parent_input: None,
        return_exceptions: true,
        created: UnixMs(at),
    }
}

fn input(key: Key, call: Key, idx: i32, at: u64) -> InputRow {
    InputRow {
        key,
        id: id(at, key),
        call,
        idx,
        group: 3,
        created: UnixMs(at),
        payload: Bytes::from(format!("{idx}")),
    }
}

fn attempt(key: Key, input: Key) -> AttemptRow {
    AttemptRow {
        key,
        input,
        task: task_id(),
        retry_count: 0,
        poll: u64::MAX,
        claim: key - 1,
        started: UnixMs(50),
    }
}

fn output(entry: Key, of: &InputRow, attempt: Option<Key>) -> OutputRow {
    OutputRow {
        entry,
        call: of.call,
        input: of.key,
        input_id: of.id,
        idx: of.idx,
        status: ResultStatus::Success,
        body: ResultBody::Container(Bytes::from_static(b"result")),
        retry_count: 2,
        attempt,
        task: attempt.map(|_| task_id()),
        started: attempt.map(|_| UnixMs(50)),
        finished: UnixMs(60),
    }
}

fn task_id() -> TaskId {
    TaskId::from_bits(9)
}

fn task() -> TaskRow {
    TaskRow {
        id: task_id(),
        function_id: FunctionId::from_bits(1),
        app_id: AppId::from_bits(2),
        definition_id: DefinitionId::from_bits(3),
        generation: 4,
        worker: 5,
        reason: "because".into(),
        start_path: StartPath::Plain,
        with: Bytes::new(),
        gpus: vec!["GPU-1".into(), "GPU-2".into()],
        stop: StopState::Serving,
        phases: vec![(Phase::Queued, UnixMs(10))],
        end: None,
        usage: TaskUsage::default(),
    }
}

fn commit(db: &Db, writes: Vec<CallWrite>) {
    let writes: Vec<Write> = writes.into_iter().map(Write::from).collect();
    for result in db.commit(&[&writes]) {
        result.unwrap();
    }
}

#[test]
fn a_start_finds_what_has_not_ended() {
    let db = Db::open_in_memory().unwrap();
    let (first, second, third) = (input(2, 1, 0, 20), input(3, 1, 1, 20), input(4, 1, 2, 20));
    let pending = PendingUpdate {
        input: 3,
        retry_count: 1,
        crashes: 2,
        losses: 3,
        not_before: Some(UnixMs(99)),
        cancelled: None,
    };
    commit(
        &db,
        vec![
            CallWrite::Call { row: call(1, 20), open: true },
            CallWrite::Input(first.clone()),
            CallWrite::Input(second),
            CallWrite::Input(third),
            CallWrite::Task(task()),
            CallWrite::TaskPhase { task: task_id(), phase: Phase::Exec, at: UnixMs(12) },
            CallWrite::Attempt(attempt(6, 2)),
            CallWrite::Attempt(attempt(8, 3)),
            CallWrite::Attempt(attempt(10, 4)),
            CallWrite::AttemptEnded { attempt: 8, at: UnixMs(55), end: AttemptEnd::Retried },
            CallWrite::Pending(pending),
            CallWrite::Output(output(11, &first, Some(6))),
            CallWrite::DeclaredInputs { call: 1, inputs: 3 },
            CallWrite::Chunk(ChunkRow { call: 1, direction: Direction::Out, index: 1, body: Bytes::new() }),
        ],
    );
    let found = recover(db.connection()).unwrap();
    assert_eq!(found.next_key, 12);
    assert_eq!(found.calls.len(), 1);
    let open = &found.calls[0];
    assert_eq!((&open.row, open.open, open.declared_inputs), (&call(1, 20), true, Some(3)));
    assert_eq!((&open.ended[..], open.last_entry), (&[(ResultStatus::Success, 1)][..], 11));
    assert_eq!((open.last_out, open.last_in), (1, 0));
    let inputs: Vec<_> =
        found.inputs.iter().map(|i| (i.key, i.pending.retry_count, i.running.clone())).collect();
    assert_eq!(inputs, [(3, 1, None), (4, 0, Some(attempt(10, 4)))]);
    assert_eq!(found.inputs[0].pending, pending);
    assert_eq!(found.tasks.len(), 1);
    assert_eq!(found.tasks[0].phases, [(Phase::Queued, UnixMs(10)), (Phase::Exec, UnixMs(12))]);
}

#[test]
fn an_input_has_one_output_whatever_is_written() {
    let db = Db::open_in_memory().unwrap();
    let row = input(2, 1, 0, 20);
    commit(&db, vec![CallWrite::Call { row: call(1, 20), open: false }, CallWrite::Input(row.clone())]);
    commit(&db, vec![CallWrite::Output(output(3, &row, None)), CallWrite::Output(output(4, &row, None))]);
    let query = OutputsQuery { call: 1, after: 0, range: None, max: 9 };
    assert_eq!(outputs(db.connection(), &query).unwrap(), [output(3, &row, None)]);
    assert!(recover(db.connection()).unwrap().calls.is_empty());
}

#[test]
fn ids_that_do_not_match_their_row_are_unknown() {
    let db = Db::open_in_memory().unwrap();
    let row = input(2, 1, 0, 20);
    commit(&db, vec![CallWrite::Call { row: call(1, 20), open: false }, CallWrite::Input(row.clone())]);
    assert!(call_by_id(db.connection(), &call(1, 20).id).unwrap().is_some());
    assert!(call_by_id(db.connection(), &call(1, 21).id).unwrap().is_none());
    assert!(input_payload(db.connection(), &row.id).unwrap().is_some());
    assert!(input_payload(db.connection(), &input(2, 1, 0, 21).id).unwrap().is_none());
    let view = input_view(db.connection(), &row.id).unwrap().unwrap();
    assert_eq!((view.row, view.call, view.output), (row, call(1, 20).id, None));
}

#[test]
fn only_old_ended_calls_are_forgotten() {
    let db = Db::open_in_memory().unwrap();
    let rows = [input(2, 1, 0, 20), input(4, 3, 0, 20), input(6, 5, 0, 900)];
    commit(
        &db,
        vec![
            CallWrite::Call { row: call(1, 20), open: false },
            CallWrite::Input(rows[0].clone()),
            CallWrite::Output(output(7, &rows[0], None)),
            CallWrite::Call { row: call(3, 20), open: false },
            CallWrite::Input(rows[1].clone()),
            CallWrite::Call { row: call(5, 900), open: false },
            CallWrite::Input(rows[2].clone()),
            CallWrite::Output(output(8, &rows[2], None)),
        ],
    );
    assert_eq!(delete_before(db.connection(), UnixMs(500), 10).unwrap(), Deleted { calls: 1, more: false });
    let left = |key, at| call_by_id(db.connection(), &call(key, at).id).unwrap().is_some();
    assert_eq!((left(1, 20), left(3, 20), left(5, 900)), (false, true, true));
    assert_eq!(input_payload(db.connection(), &rows[0].id).unwrap(), None);
}

/// A start with much history; more of it with a large `EVOKE_HISTORY`.
#[test]
fn a_start_does_not_read_history() {
    let count: i64 = std::env::var("EVOKE_HISTORY").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000);
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(&folder.path().join("db")).unwrap();
    commit(&db, vec![CallWrite::Call { row: call(1, 20), open: false }]);
    let mut key = 1;
    for _ in 0..count / 1_000 {
        let mut writes = Vec::new();
        for _ in 0..1_000 {
            let row = input(key + 1, 1, 0, 20);
            writes.push(CallWrite::Input(row.clone()));
            writes.push(CallWrite::Attempt(attempt(key + 3, row.key)));
            writes.push(CallWrite::Output(output(key + 4, &row, Some(key + 3))));
            key += 4;
        }
        commit(&db, writes);
    }
    let begun = std::time::Instant::now();
    let found = recover(db.connection()).unwrap();
    println!("{count} inputs of history: a start reads for {:?}", begun.elapsed());
    assert_eq!((found.next_key, found.inputs.len(), found.calls.len()), (key + 1, 0, 0));
    assert!(begun.elapsed() < std::time::Duration::from_millis(500));
}

#[test]
fn the_tree_of_a_call_is_found_from_any_of_its_calls_and_cut_off_where_it_is_large() {
    let db = Db::open_in_memory().unwrap();
    let child = |key, parent| CallRow { parent_input: Some(id(10, parent)), ..call(key, 10) };
    let ended = input(2, 1, 0, 10);
    let writes = vec![
        CallWrite::Call { row: call(1, 10), open: false },
        CallWrite::Input(ended.clone()),
        CallWrite::Input(input(3, 1, 1, 10)),
        CallWrite::Attempt(attempt(4, 2)),
        CallWrite::Output(output(5, &ended, Some(4))),
        CallWrite::Call { row: child(6, 2), open: false },
        CallWrite::Input(input(7, 6, 0, 10)),
        CallWrite::Call { row: child(8, 7), open: false },
        CallWrite::Input(input(9, 8, 0, 10)),
        CallWrite::Call { row: call(20, 10), open: false },
    ];
    commit(&db, writes);
    let graph = |key, max| call_graph(db.connection(), &id(10, key), max).unwrap().unwrap();
    for from in [1, 6, 8] {
        let found = graph(from, 100);
        let keys: Vec<Key> = found.calls.iter().map(|call| call.key).collect();
        assert_eq!((keys, found.inputs.len(), found.truncated), (vec![1, 6, 8], 4, false));
    }
    let first = &graph(8, 100).inputs[0];
    assert_eq!((first.status, first.task), (Some(ResultStatus::Success), Some(task_id())));
    assert_eq!(graph(8, 100).inputs[1].status, None);
    let cut = graph(1, 3);
    assert_eq!((cut.inputs.len(), cut.truncated), (3, true));
    assert!(call_graph(db.connection(), &id(11, 1), 9).unwrap().is_none());
}

#[test]
fn a_span_of_time_has_the_inputs_that_were_accepted_and_those_that_ended_in_it() {
    const HOUR: u64 = 3_600_000;
    let db = Db::open_in_memory().unwrap();
    let span = |since, until| Span { since: UnixMs(since), until: UnixMs(until) };
    let ended = |entry, of: &InputRow, attempt, status, at| {
        let row = output(entry, of, Some(attempt));
        CallWrite::Output(OutputRow { status, started: Some(UnixMs(at - 30)), finished: UnixMs(at), ..row })
    };
    let began =
        |key, input, at| CallWrite::Attempt(AttemptRow { started: UnixMs(at), ..attempt(key, input) });
    let (early, late) = (input(2, 1, 0, HOUR), input(3, 1, 1, 2 * HOUR));
    let (running, waiting) = (input(4, 1, 2, 2 * HOUR + 1), input(5, 1, 3, 2 * HOUR + 2));
    let mut inputs = vec![CallWrite::Call { row: call(1, HOUR), open: true }, CallWrite::Task(task())];
    inputs.extend([&early, &late, &running, &waiting].map(|row| CallWrite::Input(row.clone())));
    commit(&db, inputs);
    commit(
        &db,
        vec![
            CallWrite::TaskPhase { task: task_id(), phase: Phase::Ready, at: UnixMs(2 * HOUR + 50) },
            began(6, 2, HOUR),
            ended(7, &early, 6, ResultStatus::Success, HOUR + 40),
            began(8, 3, 2 * HOUR),
            ended(9, &late, 8, ResultStatus::Timeout, 3 * HOUR),
            began(10, 4, 2 * HOUR + 60),
        ],
    );
    let (db, function) = (db.connection(), FunctionId::from_bits(1));
    let stats = |since, until| {
        input_stats(db, &[function], span(since, until), None).unwrap().remove(&function).unwrap_or_default()
    };
    let first = stats(HOUR, 2 * HOUR);
    assert_eq!((first.ended[&ResultStatus::Success], first.running_at_end), (1, 0));
    assert_eq!((first.execution_ms, first.latency_ms), (vec![30], vec![40]));
    let second = stats(2 * HOUR, 3 * HOUR);
    assert_eq!((second.ended.len(), second.running_at_end), (0, 2), "one ended after it, one has not");
    assert_eq!(stats(3 * HOUR, 4 * HOUR).ended[&ResultStatus::Timeout], 1);
    assert!(input_stats(db, &[FunctionId::from_bits(8)], span(0, 9 * HOUR), None).unwrap().is_empty());

    let pieces = count_inputs(db, &[function], span(HOUR, 2 * HOUR + 2), HOUR).unwrap();
    assert_eq!(pieces.into_iter().collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    let newest = past_inputs(db, &[function], Listed::Newest(3)).unwrap();
    let shown: Vec<_> = newest.iter().map(|i| (i.created, i.running, i.end.map(|(s, _)| s))).collect();
    assert_eq!(
        shown,
        [
            (waiting.created, false, None),
            (running.created, true, None),
            (late.created, false, Some(ResultStatus::Timeout))
        ]
    );
    assert_eq!(newest[1].start, Some((running.created, UnixMs(2 * HOUR + 50))), "it waited for the start");
    let within = past_inputs(db, &[function], Listed::Within(span(0, 9 * HOUR), 2)).unwrap();
    assert_eq!(within.iter().map(|i| i.created).collect::<Vec<_>>(), [early.created, late.created]);
    let tasks = tasks_within(db, &AppId::from_bits(2), span(0, HOUR)).unwrap();
    assert_eq!((tasks.len(), tasks[0].ready, tasks[0].failed), (1, Some(UnixMs(2 * HOUR + 50)), false));
}
