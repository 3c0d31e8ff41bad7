//! What every store must do, run on each kind of store: on a file, and in memory.
#![allow(clippy::unwrap_used)] // In a test a failure to set up is a failure of the test.

mod images;

use evoke_core::{
    AppId, BlobId, ClassId, DefinitionId, DictId, EnvironmentId, FunctionId, ImageId, MountId, SecretId,
    SeededEntropy, UnixMs,
};
use evoke_store::vault::{Env, Vault};
use evoke_store::*;
use images::images;
use std::future::Future;

const NOW: UnixMs = UnixMs(1_700_000_000_000);

struct Ids(SeededEntropy, u64);

impl Ids {
    fn new() -> Self {
        Self(SeededEntropy::new(1), NOW.0)
    }
    fn make<K: evoke_core::id::Kind>(&mut self) -> evoke_core::id::Id<K> {
        self.1 += 1;
        evoke_core::id::Id::new(UnixMs(self.1), &mut self.0)
    }
}

fn setting(key: &str, value: &str) -> Write {
    SettingWrite::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }.into()
}

async fn value(store: &Store, key: &str) -> Option<String> {
    let value = store.settings().get(key.to_owned()).await.unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

async fn put(store: &Store, write: impl Into<Write>) {
    store.submit(vec![write.into()], Grade::Written).await.unwrap();
}

fn app(ids: &mut Ids, name: Option<&str>) -> AppRow {
    AppRow {
        id: ids.make(),
        environment_id: EnvironmentId::from_bits(1),
        name: name.map(str::to_owned),
        description: "an app".to_owned(),
        state: 1,
        created_at: NOW,
        heartbeat_at: None,
        stopped_at: None,
        layout: vec![1],
        body: vec![2],
    }
}

fn function(ids: &mut Ids, app: AppId, tag: &str) -> FunctionRow {
    FunctionRow {
        id: ids.make(),
        app_id: app,
        tag: tag.to_owned(),
        definition_id: None,
        generation: 0,
        created_at: NOW,
        deleted_at: None,
        base_id: None,
        variant: None,
        body: vec![7; 10],
        metadata: vec![8],
    }
}

async fn batches_are_atomic_and_in_order(store: &Store) {
    let mut tickets = Vec::new();
    for n in 0..200 {
        tickets.push(store.submit(vec![setting("x", &n.to_string())], Grade::Written));
    }
    let last = store.last_submitted();
    assert!(tickets.windows(2).all(|pair| pair[0].seq() < pair[1].seq()));
    assert_eq!(tickets.last().unwrap().seq(), last);
    store.committed(last).await.unwrap();
    assert_eq!(value(store, "x").await.as_deref(), Some("199"));
    for ticket in tickets {
        ticket.await.unwrap();
    }
}

async fn a_bad_batch_fails_alone_and_as_a_whole(store: &Store) {
    let mut ids = Ids::new();
    let taken = app(&mut ids, Some("mine"));
    let other = app(&mut ids, Some("mine"));
    put(store, AppWrite::Put(taken.clone())).await;
    let before = store.submit(vec![setting("before", "1")], Grade::Written);
    let bad = vec![setting("bad", "1"), AppWrite::Put(other.clone()).into(), setting("bad2", "1")];
    let bad = store.submit(bad, Grade::Synced);
    let after = store.submit(vec![setting("after", "1")], Grade::Synced);
    before.await.unwrap();
    assert!(matches!(bad.await, Err(StoreError::Conflict(_))));
    after.await.unwrap();
    assert_eq!(value(store, "before").await.as_deref(), Some("1"));
    assert_eq!(value(store, "after").await.as_deref(), Some("1"));
    assert_eq!(value(store, "bad").await, None);
    assert_eq!(store.apps().by_id(other.id).await.unwrap(), None);
    // Alone in its group it fails in the same way.
    let alone = store.submit(vec![setting("bad", "1"), AppWrite::Put(other).into()], Grade::Written);
    assert!(matches!(alone.await, Err(StoreError::Conflict(_))));
    assert_eq!(value(store, "bad").await, None);
}

async fn synced_and_written_both_end(store: &Store) {
    for n in 0..20 {
        let grade = if n % 3 == 0 { Grade::Synced } else { Grade::Written };
        let ticket = store.submit(vec![setting("y", &n.to_string())], grade);
        let seq = ticket.seq();
        if n % 2 == 0 {
            ticket.await.unwrap();
        }
        store.committed(seq).await.unwrap();
        assert_eq!(value(store, "y").await, Some(n.to_string()));
    }
    store.room().await;
    assert!(!store.is_saturated());
}

/// Submits one batch and commits it here.
fn led(store: &Store, writes: Vec<Write>, grade: Grade) -> Ticket {
    let (mut tickets, lead) = store.submit_all(vec![(writes, grade)]);
    drop(lead);
    tickets.pop().unwrap()
}

async fn what_is_small_is_committed_by_its_submitter(store: &Store) {
    let mut led_ones = Vec::new();
    for n in 0..100 {
        let ticket = led(store, vec![setting("z", &n.to_string())], Grade::Written);
        led_ones.push(ticket);
    }
    for ticket in led_ones {
        // Nobody else had anything to commit, so nobody else has committed it: it is over already.
        assert!(outcome_now(ticket).is_some_and(|result| result.is_ok()));
    }
    assert_eq!(value(store, "z").await.as_deref(), Some("99"));
    led(store, vec![setting("z", "synced")], Grade::Synced).await.unwrap();
    let mut ids = Ids::new();
    let (first, second) = (app(&mut ids, Some("small")), app(&mut ids, Some("small")));
    led(store, vec![AppWrite::Put(first).into()], Grade::Written).await.unwrap();
    let bad = led(store, vec![setting("z", "bad"), AppWrite::Put(second).into()], Grade::Written);
    assert!(matches!(bad.await, Err(StoreError::Conflict(_))));
    assert_eq!(value(store, "z").await.as_deref(), Some("synced"));
    // What is not small does not wait for its submitter, nor does what others submit behind what does.
    let large = setting("large", &"x".repeat(100_000));
    let (mut tickets, lead) = store.submit_all(vec![(vec![large], Grade::Written)]);
    tickets.pop().unwrap().await.unwrap();
    let (mut tickets, later) = store.submit_all(vec![(vec![setting("z", "1")], Grade::Written)]);
    store.submit(vec![setting("z", "2")], Grade::Written).await.unwrap();
    tickets.pop().unwrap().await.unwrap();
    drop((lead, later));
    assert_eq!(value(store, "z").await.as_deref(), Some("2"));
}

/// The outcome, if it is there.
fn outcome_now(ticket: Ticket) -> Option<Result<(), StoreError>> {
    let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(ticket).poll(&mut nobody) {
        std::task::Poll::Ready(result) => Some(result),
        std::task::Poll::Pending => None,
    }
}

async fn many_commit_in_turns(store: &Store) {
    let threads = (0..4).map(|thread| {
        let store = store.clone();
        tokio::task::spawn_blocking(move || {
            for n in 0..300 {
                let writes = vec![setting(&format!("t{thread}"), &n.to_string()), setting("any", "1")];
                let grade = if n % 50 == 0 { Grade::Synced } else { Grade::Written };
                let ticket = match (thread + n) % 3 {
                    0 => store.submit(writes, grade),
                    _ => led(&store, writes, grade),
                };
                if n % 7 == 0 {
                    ticket.wait().unwrap();
                } else {
                    drop(ticket);
                }
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.await.unwrap();
    }
    store.committed(store.last_submitted()).await.unwrap();
    for thread in 0..4 {
        assert_eq!(value(store, &format!("t{thread}")).await.as_deref(), Some("299"));
    }
}

async fn a_reply_is_found_again(store: &Store) {
    let row = |key: &str, at| IdempotencyRow {
        key: key.to_owned(),
        rpc: "AppCreate".to_owned(),
        reply: key.as_bytes().to_vec(),
        at,
    };
    let later = UnixMs(NOW.0 + 10 * 60 * 1000);
    put(store, row("a", NOW)).await;
    put(store, row("b", later)).await;
    // The effect and its reply are one batch: with a conflict there is neither.
    put(store, row("b", later)).await;
    let find = async |key: &str, rpc: &str, now| {
        store.idempotent_reply(key.to_owned(), rpc.to_owned(), now).await.unwrap()
    };
    assert_eq!(find("a", "AppCreate", later).await, Some(b"a".to_vec()));
    assert_eq!(find("b", "AppCreate", later).await, Some(b"b".to_vec()));
    assert_eq!(find("a", "AppStop", later).await, None);
    assert_eq!(find("c", "AppCreate", later).await, None);
    assert_eq!(find("a", "AppCreate", later + std::time::Duration::from_secs(7200)).await, None);
    // Expiry takes a bounded slice at a time, the oldest first.
    for _ in 0..4 {
        put(store, IdempotencyWrite::Expire { before: UnixMs(NOW.0 + 5 * 60 * 1000) }).await;
    }
    assert_eq!(find("a", "AppCreate", later).await, None);
    assert_eq!(find("b", "AppCreate", later).await, Some(b"b".to_vec()));
}

async fn environments(store: &Store) {
    let mut ids = Ids::new();
    let row = EnvironmentRow {
        id: ids.make(),
        workspace: "w".to_owned(),
        name: "main".to_owned(),
        created_at: NOW,
        deleted_at: None,
        body: vec![1, 2],
    };
    put(store, EnvironmentWrite::Put(row.clone())).await;
    let by_name = async || store.environments().by_name("w".to_owned(), "main".to_owned()).await;
    assert_eq!(by_name().await.unwrap(), Some(row.clone()));
    assert_eq!(store.environments().list("w".to_owned()).await.unwrap(), vec![row.clone()]);
    assert!(store.environments().list("v".to_owned()).await.unwrap().is_empty());
    put(store, EnvironmentWrite::Delete { id: row.id, at: NOW }).await;
    assert_eq!(by_name().await.unwrap(), None);
    let deleted = store.environments().by_id(row.id).await.unwrap().unwrap();
    assert_eq!(deleted.deleted_at, Some(NOW));
    // The name is free again.
    put(store, EnvironmentWrite::Put(EnvironmentRow { id: ids.make(), ..row })).await;
}

async fn apps(store: &Store) {
    let mut ids = Ids::new();
    let (first, nameless) = (app(&mut ids, Some("deployed")), app(&mut ids, None));
    put(store, AppWrite::Put(first.clone())).await;
    put(store, AppWrite::Put(nameless.clone())).await;
    let env = first.environment_id;
    assert_eq!(store.apps().by_id(first.id).await.unwrap(), Some(first.clone()));
    let by_name = async || store.apps().by_name(env, "deployed".to_owned()).await;
    assert_eq!(by_name().await.unwrap(), Some(first.clone()));
    let deployment = DeploymentRow {
        app_id: first.id,
        version: 1,
        deployed_at: NOW,
        layout: vec![9],
        body: vec![3],
        kind: 1,
        deployed_by: "somebody".to_owned(),
    };
    let second = DeploymentRow { version: 2, kind: DEPLOYMENT_STAGED, ..deployment.clone() };
    put(store, AppWrite::Deployed(deployment.clone())).await;
    put(store, AppWrite::Deployed(second.clone())).await;
    let before = store.apps().deployment_before(first.id, 3).await.unwrap();
    assert_eq!(before, Some(deployment.clone()), "a staged one never became live");
    assert_eq!(store.apps().deployment(first.id, 2).await.unwrap(), Some(second.clone()));
    assert_eq!(store.apps().deployments_between(first.id, NOW, NOW.plus_ms(1)).await.unwrap(), 2);
    assert_eq!(store.apps().deployments_between(first.id, UnixMs(0), NOW).await.unwrap(), 0);
    put(store, AppWrite::Heartbeat { id: first.id, at: UnixMs(5) }).await;
    let read = store.apps().by_id(first.id).await.unwrap().unwrap();
    assert_eq!((read.layout, read.heartbeat_at), (vec![1], Some(UnixMs(5))));
    assert_eq!(store.apps().deployments(first.id, 10).await.unwrap(), vec![second, deployment]);
    assert_eq!(store.apps().live().await.unwrap().len(), 2);
    put(store, AppWrite::State { id: first.id, state: 4, stopped_at: None }).await;
    assert_eq!(by_name().await.unwrap(), None, "its name is free while it stops");
    let heir = app(&mut ids, Some("deployed"));
    put(store, AppWrite::Put(heir.clone())).await;
    assert_eq!(by_name().await.unwrap(), Some(heir.clone()));
    put(store, AppWrite::State { id: heir.id, state: 5, stopped_at: Some(UnixMs(1)) }).await;
    put(store, AppWrite::State { id: first.id, state: 6, stopped_at: Some(NOW) }).await;
    let stopped = store.apps().last_stopped(env, "deployed".to_owned()).await.unwrap().unwrap();
    assert_eq!((stopped.id, stopped.state), (first.id, 6));
    assert_eq!(store.apps().live().await.unwrap(), vec![nameless.clone()]);
    let recent = store.apps().recent(env, 2).await.unwrap();
    assert_eq!(recent[1], nameless);
    put(store, AppWrite::Layout { id: nameless.id, layout: vec![4] }).await;
    assert_eq!(store.apps().by_id(nameless.id).await.unwrap().unwrap().layout, vec![4]);
}

async fn functions(store: &Store) {
    let mut ids = Ids::new();
    let app_id: AppId = ids.make();
    let row = function(&mut ids, app_id, "f");
    put(store, FunctionWrite::Put(row.clone())).await;
    assert_eq!(store.functions().by_tag(app_id, "f".to_owned()).await.unwrap(), Some(row.clone()));
    let definition = DefinitionRow {
        id: ids.make::<evoke_core::id::Definition>(),
        function_id: row.id,
        created_at: NOW,
        body: vec![1, 1],
        metadata: vec![2, 2],
    };
    put(store, FunctionWrite::Define(definition.clone())).await;
    assert_eq!(store.functions().by_id(row.id).await.unwrap(), Some(row.clone()));
    let definition_id: DefinitionId = definition.id;
    assert_eq!(store.functions().definition(definition_id).await.unwrap(), Some(definition));
    put(store, FunctionWrite::Live { id: row.id, definition_id, generation: 3 }).await;
    let live = store.functions().by_id(row.id).await.unwrap().unwrap();
    assert_eq!((live.definition_id, live.generation), (Some(definition_id), 3));
    assert_eq!((live.body, live.metadata), (vec![1, 1], vec![2, 2]));
    let variant = FunctionRow {
        base_id: Some(row.id),
        variant: Some(b"params".to_vec()),
        ..function(&mut ids, app_id, "f")
    };
    put(store, FunctionWrite::Put(variant.clone())).await;
    let found = store.functions().variant(row.id, b"params".to_vec()).await.unwrap();
    assert_eq!(found, Some(variant.clone()));
    assert_eq!(store.functions().variants(row.id).await.unwrap(), vec![variant]);
    assert_eq!(store.functions().of_app(app_id).await.unwrap().len(), 2);
    // Settings changed live are the app's until it is published again.
    let change = |body: u8| ScalingWrite::Put { function_id: row.id, app_id, body: vec![body] };
    put(store, change(1)).await;
    put(store, change(2)).await;
    assert_eq!(store.scaling().of_app(app_id).await.unwrap(), [(row.id, vec![2])]);
    put(store, ScalingWrite::ResetApp { app_id }).await;
    assert_eq!(store.scaling().of_app(app_id).await.unwrap(), []);
    // A second deployment may be under way; the newest counts, and comes back when it is live again.
    let again = function(&mut ids, app_id, "f");
    put(store, FunctionWrite::Put(again.clone())).await;
    let by_tag =
        async || store.functions().by_tag(app_id, "f".to_owned()).await.unwrap().map(|found| found.id);
    assert_eq!(by_tag().await, Some(again.id));
    put(store, FunctionWrite::Delete { id: again.id, at: NOW }).await;
    assert_eq!(by_tag().await, Some(row.id));
    put(store, FunctionWrite::Live { id: again.id, definition_id, generation: 1 }).await;
    assert_eq!(by_tag().await, Some(again.id));
}

async fn schedules(store: &Store) {
    let mut ids = Ids::new();
    let app_id: AppId = ids.make();
    let function_id: FunctionId = ids.make();
    let row = ScheduleRow { function_id, app_id, since: NOW, last: None, body: vec![7] };
    put(store, ScheduleWrite::Put(row.clone())).await;
    put(store, ScheduleWrite::Started { function_id, due: UnixMs(9) }).await;
    let started = ScheduleRow { last: Some(UnixMs(9)), ..row.clone() };
    assert_eq!(store.schedules().all().await.unwrap(), vec![started.clone()]);
    // Put again, as a deployment does: what was started stays started.
    let changed = ScheduleRow { body: vec![8], last: Some(UnixMs(9)), ..row };
    put(store, ScheduleWrite::Put(changed.clone())).await;
    assert_eq!(store.schedules().all().await.unwrap(), vec![changed]);
    put(store, ScheduleWrite::Delete { function_id }).await;
    put(store, ScheduleWrite::Put(started)).await;
    put(store, ScheduleWrite::DeleteOfApp { app_id }).await;
    assert_eq!(store.schedules().all().await.unwrap(), vec![]);
}

async fn classes_mounts_and_blobs(store: &Store) {
    let mut ids = Ids::new();
    let class = ClassRow {
        id: ids.make::<evoke_core::id::Class>(),
        app_id: ids.make(),
        tag: "C".to_owned(),
        created_at: NOW,
        body: vec![],
        metadata: vec![5],
    };
    let class_id: ClassId = class.id;
    put(store, ClassWrite::Put(class.clone())).await;
    assert_eq!(store.classes().by_id(class_id).await.unwrap(), Some(class.clone()));
    assert_eq!(store.classes().by_tag(class.app_id, "C".to_owned()).await.unwrap(), Some(class.clone()));
    put(store, ClassWrite::Delete { id: class_id }).await;
    assert!(store.classes().of_app(class.app_id).await.unwrap().is_empty());

    let id: MountId = ids.make();
    let mount = MountRow {
        id,
        digest: "d1".to_owned(),
        files: vec![1; 1000],
        name: None,
        namespace: 0,
        environment_id: None,
        created_at: NOW,
        used_at: NOW,
    };
    let named = MountRow { id: ids.make(), name: Some("client".to_owned()), namespace: 3, ..mount.clone() };
    put(store, MountWrite::Put(mount.clone())).await;
    put(store, MountWrite::Put(named.clone())).await;
    assert_eq!(store.mounts().by_digest("d1".to_owned()).await.unwrap(), Some(mount));
    let by_name = async |env| store.mounts().by_name("client".to_owned(), 3, env).await;
    assert_eq!(by_name(None).await.unwrap(), Some(named.clone()));
    assert_eq!(by_name(Some(ids.make())).await.unwrap(), None);
    put(store, MountWrite::Used { id: named.id, at: UnixMs(7) }).await;
    assert_eq!(store.mounts().by_id(named.id).await.unwrap().unwrap().used_at, UnixMs(7));
    put(store, MountWrite::Delete { id: named.id }).await;
    assert_eq!(store.mounts().by_id(named.id).await.unwrap(), None);

    let id: BlobId = ids.make();
    let blob =
        BlobRow { id, size: 1 << 40, sha256: vec![1; 32], state: BlobState::Uploading, created_at: NOW };
    put(store, BlobWrite::Put(blob.clone())).await;
    put(store, BlobWrite::Complete { id }).await;
    let complete = BlobRow { state: BlobState::Complete, ..blob };
    assert_eq!(store.blobs().by_id(id).await.unwrap(), Some(complete.clone()));
    assert_eq!(store.blobs().older_than(UnixMs(NOW.0 + 1_000), 10).await.unwrap(), vec![complete]);
    assert!(store.blobs().older_than(NOW, 10).await.unwrap().is_empty());
    put(store, BlobWrite::Delete { id }).await;
    assert_eq!(store.blobs().by_id(id).await.unwrap(), None);
}

async fn secrets_and_tokens(store: &Store) {
    let mut ids = Ids::new();
    let vault = Vault::with_key(&[3; 32]);
    let env = Env::new([("TOKEN".to_owned(), "hunter2".to_owned())]);
    let id: SecretId = ids.make();
    let environment: EnvironmentId = ids.make();
    let row = SecretRow {
        id,
        environment_id: Some(environment),
        app_id: None,
        name: Some("s".to_owned()),
        version: 1,
        keys: env.keys(),
        sealed: vault.seal_env(&id.to_string(), &env).unwrap(),
        created_at: NOW,
        updated_at: NOW,
        created_by: "me".to_owned(),
        used_at: None,
    };
    put(store, SecretWrite::Put(row.clone())).await;
    let read = store.secrets().by_name(environment, "s".to_owned()).await.unwrap().unwrap();
    assert_eq!(read, row);
    assert_eq!(vault.unseal_env(&id.to_string(), &read.sealed).unwrap(), env);
    assert!(!format!("{read:?}").contains("hunter2"));
    let anonymous = SecretRow {
        id: ids.make(),
        environment_id: None,
        app_id: Some(ids.make()),
        name: None,
        ..row.clone()
    };
    put(store, SecretWrite::Put(anonymous.clone())).await;
    assert_eq!(store.secrets().list(environment).await.unwrap(), vec![row]);
    put(store, SecretWrite::DeleteOfApp { app_id: anonymous.app_id.unwrap() }).await;
    assert_eq!(store.secrets().by_id(anonymous.id).await.unwrap(), None);
    put(store, SecretWrite::Delete { id }).await;
    assert_eq!(store.secrets().by_id(id).await.unwrap(), None);

    let token = TokenRow::new("ak-1".to_owned(), "as-secret", "local".to_owned(), NOW);
    put(store, TokenWrite::Put(token.clone())).await;
    let read = store.tokens().by_id("ak-1".to_owned()).await.unwrap().unwrap();
    assert!(read.accepts("as-secret", NOW) && !read.accepts("as-secreT", NOW));
    assert_eq!(store.tokens().all().await.unwrap(), vec![token.clone()]);
    let ends = TokenRow { expires_at: Some(NOW), ..token.clone() };
    put(store, TokenWrite::Put(ends.clone())).await;
    assert!(!ends.accepts("as-secret", NOW));
    let revoked = TokenRow { revoked_at: Some(NOW), ..token };
    put(store, TokenWrite::Put(revoked.clone())).await;
    assert_eq!(store.tokens().all().await.unwrap(), vec![revoked.clone()]);
    assert!(!revoked.accepts("as-secret", NOW));
    put(store, TokenWrite::Delete { id: "ak-1".to_owned() }).await;
    assert!(store.tokens().all().await.unwrap().is_empty());
}

fn object<K: DataKind>(ids: &mut Ids, name: &str) -> ObjectRow<K> {
    ObjectRow {
        id: ids.make(),
        environment_id: EnvironmentId::from_bits(1),
        app_id: None,
        name: Some(name.to_owned()),
        created_at: NOW,
        created_by: "me".to_owned(),
        heard_at: None,
    }
}

async fn update(store: &Store, dict: DictId, key: &'static str, value: &'static str, absent: bool) -> bool {
    let entries = vec![DictEntry { key: key.into(), value: Value::Inline(value.into()) }];
    let answer = Answer::new(None);
    let (if_not_exists, now) = (absent, NOW);
    put(store, DictWrite::Update { dict, entries, if_not_exists, now, answer: answer.clone() }).await;
    answer.take().unwrap().unwrap()
}

async fn dicts(store: &Store) {
    let mut ids = Ids::new();
    let row = object::<evoke_core::id::Dict>(&mut ids, "d");
    let dict = row.id;
    put(store, row.clone()).await;
    assert_eq!(store.objects().by_name(row.environment_id, "d".to_owned()).await.unwrap(), Some(row.clone()));
    let again = ObjectRow { id: ids.make(), ..row.clone() };
    let taken = store.submit(vec![again.into()], Grade::Written).await;
    assert!(matches!(taken, Err(StoreError::Conflict(_))));
    let get = |key: &str, now| store.dicts().get(dict, key.as_bytes(), now).unwrap();
    let value = |found: Option<Option<Found>>| found.unwrap().map(|found| found.value);
    assert!(update(store, dict, "a", "1", true).await);
    assert!(!update(store, dict, "a", "2", true).await);
    assert_eq!(value(get("a", NOW)), Some(Value::Inline("1".into())));
    assert!(update(store, dict, "a", "2", false).await);
    assert_eq!(value(get("a", NOW)), Some(Value::Inline("2".into())));
    assert_eq!(value(get("b", NOW)), None);
    // Over its time an entry is as good as gone, and may be put where it was.
    let late = UnixMs(NOW.0 + ENTRY_IDLE_MS_MAX);
    assert_eq!(value(get("a", late)), None);
    assert_eq!(store.dicts().len(dict, late).await.unwrap(), Some(0));
    put(store, DictWrite::Touch { dict, key: "a".into(), now: late }).await;
    assert_eq!(store.dicts().len(dict, late).await.unwrap(), Some(1));
    let answer = Answer::new(None);
    put(store, DictWrite::Pop { dict, key: "a".into(), now: late, answer: answer.clone() }).await;
    assert_eq!(answer.take(), Some(Some(Some(Value::Inline("2".into())))));
    update(store, dict, "x", "1", false).await;
    put(store, ObjectWrite::Clear { id: dict.to_string() }).await;
    assert_eq!(value(get("x", NOW)), None);
    put(store, ObjectWrite::Delete { id: dict.to_string() }).await;
    assert_eq!(get("x", NOW), None);
    // What was cleared and deleted goes piece by piece, to its end.
    for round in 0.. {
        let more = Answer::new(None);
        put(store, ObjectWrite::Sweep { more: more.clone() }).await;
        if more.take() == Some(false) {
            break;
        }
        assert!(round < 10);
    }
}

async fn queues(store: &Store) {
    let mut ids = Ids::new();
    let row = object::<evoke_core::id::Queue>(&mut ids, "q");
    let queue = row.id;
    put(store, row).await;
    let put_items = async |count: usize, ttl: u64| {
        let answer = Answer::new(None);
        let (partition, values) = (bytes::Bytes::new(), (0..count).map(|n| n.to_string().into()).collect());
        let expires_at = UnixMs(NOW.0 + ttl);
        let write =
            QueueWrite::Put { queue, partition, values, now: NOW, expires_at, answer: answer.clone() };
        put(store, write).await;
        answer.take().unwrap().unwrap()
    };
    let pop = async |most, now| {
        let answer = Answer::new(None);
        let partition = bytes::Bytes::new();
        put(store, QueueWrite::Pop { queue, partition, most, now, answer: answer.clone() }).await;
        answer.take().unwrap().unwrap().len()
    };
    let size = async |now| store.queues().size(queue, now).await.unwrap().unwrap();
    assert_eq!(put_items(PARTITION_ITEMS_MAX - 1, 1000).await, Put::Done);
    assert_eq!(put_items(2, 1000).await, Put::PartitionFull);
    assert_eq!(put_items(1, 1000).await, Put::Done);
    assert_eq!(size(NOW).await, QueueSize { partitions: 1, items: PARTITION_ITEMS_MAX as u64 });
    assert_eq!(pop(10, NOW).await, 10);
    assert_eq!(store.queues().len(queue, b"", NOW).unwrap(), Some(PARTITION_ITEMS_MAX as u64 - 10));
    let rest =
        store.queues().items_after(queue, bytes::Bytes::new(), 12, NOW, (3, 100)).await.unwrap().unwrap();
    assert_eq!(rest.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [13, 14, 15]);
    // Over its time a partition is empty, swept or not.
    let late = UnixMs(NOW.0 + 1000);
    assert_eq!(pop(1, late).await, 0);
    assert_eq!(size(late).await, QueueSize { partitions: 0, items: 0 });
    let more = Answer::new(None);
    put(store, QueueWrite::Expire { now: late, more: more.clone() }).await;
    assert_eq!(more.take(), Some(true));
    assert_eq!(size(NOW).await, QueueSize { partitions: 0, items: 0 });
    // Numbers go on, so that who looks on does not miss what comes.
    assert_eq!(put_items(1, 1000).await, Put::Done);
    let next =
        store.queues().items_after(queue, bytes::Bytes::new(), 4990, NOW, (3, 100)).await.unwrap().unwrap();
    assert_eq!(next.first().unwrap().0, PARTITION_ITEMS_MAX as i64 + 1);
    put(store, ObjectWrite::Delete { id: queue.to_string() }).await;
    assert_eq!(store.queues().size(queue, NOW).await.unwrap(), None);
}

async fn a_closed_store_says_so(store: &Store) {
    let ticket = store.submit(vec![setting("last", "1")], Grade::Synced);
    let closing = store.clone();
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
    ticket.await.unwrap();
    assert!(matches!(led(store, vec![setting("late", "1")], Grade::Written).await, Err(StoreError::Closed)));
    let late = store.submit(vec![setting("late", "1")], Grade::Written);
    assert!(matches!(late.await, Err(StoreError::Closed)));
    store.committed(store.last_submitted()).await.unwrap();
    assert_eq!(value(store, "last").await.as_deref(), Some("1"));
    assert_eq!(value(store, "late").await, None);
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod file {
            $(#[tokio::test]
            async fn $name() {
                let folder = tempfile::tempdir().unwrap();
                let store = evoke_store::Store::open(&folder.path().join("evoke.db")).unwrap();
                super::$name(&store).await;
            })*
        }
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                let store = evoke_store::Store::open_in_memory().unwrap();
                super::$name(&store).await;
            })*
        }
    };
}

contract!(
    batches_are_atomic_and_in_order,
    a_bad_batch_fails_alone_and_as_a_whole,
    synced_and_written_both_end,
    what_is_small_is_committed_by_its_submitter,
    many_commit_in_turns,
    a_reply_is_found_again,
    environments,
    apps,
    functions,
    schedules,
    classes_mounts_and_blobs,
    images,
    secrets_and_tokens,
    dicts,
    queues,
    a_closed_store_says_so,
);
