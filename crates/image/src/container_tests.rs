//! The adapter over a runtime whose programs are scripts.

use super::*;
use crate::log::tests::Kept;
use crate::spec::LayerRef;
use crate::steps::ReadOnlyBind;
use evoke_runtime::testing::{FakeProcess, FakeRuntime};
use std::io::Write as _;
use std::sync::Mutex;

fn code(code: i32) -> Exit {
    Exit { code: Some(code), signal: None }
}

fn say(process: &FakeProcess, text: &str) {
    let mut out = std::fs::File::from(process.stdout.try_clone().unwrap());
    out.write_all(text.as_bytes()).unwrap();
}

fn root() -> Root {
    let layer = LayerRef { digest: "l".into(), path: "/d/layers/l".into(), owner: LayerOwner::Canonical };
    Root { layers: vec![layer], host_binds: Vec::new() }
}

fn command(commit: Option<&str>) -> Command {
    Command {
        root: root(),
        argv: vec!["sh".into()],
        env: vec![("A".into(), "1".into())],
        cwd: "/w".into(),
        user: "me".into(),
        binds: vec![ReadOnlyBind { source: "/d/network".into(), target: "/__evoke/host".into() }],
        mounts: Vec::new(),
        volumes: None,
        network: true,
        commit: commit.map(PathBuf::from),
    }
}

fn builder(runtime: &FakeRuntime) -> RuntimeBuilder {
    RuntimeBuilder::new(Arc::new(runtime.clone()), 500, 501, "/d/layers".into())
}

#[tokio::test]
async fn runs_and_commits() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let runtime = FakeRuntime::new(move |process| {
        say(&process, "one\ntwo, not ended");
        kept.lock().unwrap().push((process.container.clone(), process.spawn.clone()));
        async { code(0) }
    });
    let log = Kept::default();
    let (end, _) = builder(&runtime).run(command(Some("/d/layers/new")), &log).await.unwrap();
    assert!(end.success());
    assert_eq!(log.text(), "one\ntwo, not ended");
    let (container, spawn) = seen.lock().unwrap()[0].clone();
    assert_eq!((spawn.cwd.as_str(), spawn.user.as_str(), spawn.env.len()), ("/w", "me", 1));
    assert_eq!(container.network, Network::Bridged);
    assert!(container.binds[0].read_only && container.binds[0].owner == Owner::Single { uid: 500, gid: 501 });
    assert!(runtime.list().await.unwrap().is_empty());
    // The name is taken: the layer was made.
    let taken = builder(&runtime).run(command(Some("/d/layers/new")), &log).await.unwrap_err();
    assert!(taken.to_string().contains("exists already"), "{taken}");
}

#[tokio::test]
async fn a_failure_leaves_no_layer_and_no_container() {
    let runtime = FakeRuntime::new(|_| async { code(2) });
    let (end, _) = builder(&runtime).run(command(Some("/d/layers/new")), &crate::NoLog).await.unwrap();
    assert_eq!(end.describe(), "exit code 2");
    let usage = evoke_runtime::Usage { oom_kills: 1, ..Default::default() };
    runtime.set_usage(usage);
    let (end, _) = builder(&runtime).run(command(None), &crate::NoLog).await.unwrap();
    assert!(end.oom);
    runtime.fail_next_start(RuntimeError::DiskFull("making a root".into()));
    let error = builder(&runtime).run(command(None), &crate::NoLog).await.unwrap_err();
    assert!(matches!(error, ImageError::Io { full: true, .. }), "{error}");
    assert!(runtime.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_dropped_step_removes_its_container() {
    let runtime = FakeRuntime::new(|_| std::future::pending());
    let builder = builder(&runtime);
    let run = builder.run(command(None), &crate::NoLog);
    assert!(tokio::time::timeout(Duration::from_millis(100), run).await.is_err());
    for _ in 0..200 {
        if runtime.list().await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the container is still there");
}

#[tokio::test]
async fn sweeps_what_an_earlier_life_left() {
    let runtime = FakeRuntime::idle();
    for id in ["build-0", "ta-1"] {
        let layers = vec![Layer { path: "/d/layers/l".into(), owner: Owner::Canonical }];
        runtime.start(ContainerSpec::new(id, layers)).await.unwrap();
    }
    builder(&runtime).sweep().await.unwrap();
    assert_eq!(runtime.list().await.unwrap(), ["ta-1"]);
}

/// What each copy asked of the guest, and what was bound.
async fn copies(from: CopyFrom, sources: &[&str]) -> Vec<(CopySpec, Vec<Bind>)> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let runtime = FakeRuntime::new(move |process| {
        if let Program::Copy(copy) = &process.spawn.program {
            kept.lock().unwrap().push((copy.clone(), process.container.binds.clone()));
        } else {
            say(&process, "usr/a.so\nusr/b.so\n");
        }
        async { code(0) }
    });
    let copy = Copy {
        onto: Root::default(),
        from,
        sources: sources.iter().map(|s| (*s).to_owned()).collect(),
        destination: "/x/".into(),
        chown: Some("1:2".into()),
        chmod: Some(0o755),
        commit: "/d/layers/new".into(),
    };
    builder(&runtime).copy(copy, &crate::NoLog).await.unwrap();
    assert!(runtime.list().await.unwrap().is_empty());
    seen.lock().unwrap().clone()
}

#[tokio::test]
async fn copies_from_trees_and_single_layers() {
    let seen = copies(CopyFrom::Tree("/d/mounts/m".into()), &["", "a"]).await;
    assert_eq!(seen.len(), 1);
    let (copy, binds) = &seen[0];
    assert_eq!(
        (copy.from.as_str(), copy.sources.as_slice()),
        (FROM, [".".to_owned(), "a".to_owned()].as_slice())
    );
    assert_eq!((copy.owner.as_str(), copy.mode), ("1:2", Some(0o755)));
    assert_eq!(binds[0].owner, Owner::Single { uid: 500, gid: 501 });
    let seen = copies(CopyFrom::Image(root()), &["uv"]).await;
    assert_eq!((seen.len(), seen[0].1[0].owner), (1, Owner::Canonical));
}

#[tokio::test]
async fn gathers_files_of_images_with_several_layers() {
    let mut two = root();
    two.layers.push(LayerRef { digest: "m".into(), ..two.layers[0].clone() });
    let seen = copies(CopyFrom::Image(two), &["usr/bin/uv", "usr/*.so"]).await;
    let gathered: Vec<&str> = seen[..3].iter().map(|(c, _)| c.destination.as_str()).collect();
    assert_eq!(gathered, ["/__evoke/out/0/uv", "/__evoke/out/1/a.so", "/__evoke/out/2/b.so"]);
    assert_eq!(seen[0].0.owner, "");
    assert_eq!(seen[3].0.sources, ["__evoke/out/0/uv", "__evoke/out/1/a.so", "__evoke/out/2/b.so"]);
    assert_eq!(seen[3].0.destination, "/x/");
}

#[test]
fn does_not_split_characters() {
    assert_eq!(whole_characters("aé".as_bytes()), 3);
    assert_eq!(whole_characters(&"aé".as_bytes()[..2]), 1);
    assert_eq!(whole_characters(&[0xff, 0xfe]), 2);
}
