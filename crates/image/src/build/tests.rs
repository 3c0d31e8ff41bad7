//! Builds with a builder that makes folders: what runs, what is shared, what a failure leaves.

use super::*;
use crate::context::ContextEntry;
use crate::log::tests::Kept;
use crate::recipe::ContextMount;
use crate::steps::Mount;
use crate::testing::{FakeBuilder, tools};
use async_trait::async_trait;
use std::time::Duration;

struct World {
    folder: tempfile::TempDir,
    fake: Arc<FakeBuilder>,
    builder: ImageBuilder,
}

struct Tree(PathBuf);

#[async_trait]
impl Context for Tree {
    async fn tree(&self, _: &str) -> Result<PathBuf> {
        Ok(self.0.clone())
    }
}

fn world(fake: FakeBuilder) -> World {
    let folder = tempfile::tempdir().unwrap();
    let fake = Arc::new(fake);
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("a.txt"), "from the mount").unwrap();
    let tools = BuildTools {
        base: tools(folder.path(), fake.clone()),
        context: Arc::new(Tree(tree)),
        staging: folder.path().join("staging"),
        caches: folder.path().join("caches"),
        pythons: folder.path().join("pythons"),
        steps_at_once: 4,
    };
    let builder = ImageBuilder::new(BaseConfig::default(), tools).unwrap();
    World { folder, fake, builder }
}

fn request(text: &str) -> BuildRequest {
    let recipe = Recipe {
        lines: text.split('\n').map(str::to_owned).collect(),
        bases: [("base".to_owned(), ImageSpec::default())].into(),
        context_files: [("/.r.txt".to_owned(), b"inline".to_vec())].into(),
        context_mount: Some(ContextMount {
            id: "mo-1".into(),
            entries: vec![ContextEntry { path: "a.txt".into(), sha256: "h".into(), mode: None }],
        }),
        builder_version: "2025.06".into(),
        ..Recipe::default()
    };
    BuildRequest { recipe, ..BuildRequest::default() }
}

impl World {
    async fn build(&self, request: BuildRequest) -> (Result<ImageSpec>, String) {
        let kept = Arc::new(Kept::default());
        let image = self.builder.build(request, kept.clone()).await;
        (image, kept.text())
    }

    fn entries(&self, part: &str) -> usize {
        std::fs::read_dir(self.folder.path().join(part)).unwrap().count()
    }
}

#[tokio::test]
async fn builds_once_and_tells_each_step() {
    let world = world(FakeBuilder::default());
    let text = "FROM base\nRUN one\nENV A=1\nCOPY /.r.txt /r\nCOPY a.txt /a\nCOPY --from=base /x /y\nRUN two";
    let (image, log) = world.build(request(text)).await;
    let image = image.unwrap();
    assert_eq!(
        world.fake.asked(),
        [
            "run one",
            "copy tree [\"inline\"] to /r",
            "copy tree [\"from the mount\"] to /a",
            "copy image [\"x\"] to /y",
            "run two"
        ]
    );
    assert_eq!(image.layers.len(), 5);
    assert_eq!(image.python.as_ref().map(|p| p.version.as_str()), Some("Python 3.11.2"));
    assert_eq!(
        (image.libc, image.builder_version.as_str()),
        (Some(crate::Libc::Glibc(Some("2.36".into()))), "2025.06")
    );
    assert!(
        log.contains("=> Step 0: FROM base\n=> Step 1: RUN one\noutput of one\n=> Step 2: ENV A=1\n"),
        "{log}"
    );
    assert_eq!(world.entries("staging"), 0);
    let (_, log) = world.build(request(text)).await;
    assert_eq!(log, "=> The image is cached\n");
    let (_, log) = world.build(request("FROM base\nRUN one\nRUN three")).await;
    assert!(log.contains("=> Step 1: RUN one  (cached)"), "{log}");
    assert_eq!(world.fake.asked().len(), 6);
}

#[tokio::test]
async fn the_layers_that_brought_the_interpreter_are_known() {
    let world = world(FakeBuilder::default());
    let (first, _) = world.build(request("FROM base\nRUN one\nRUN two")).await;
    let first = first.unwrap();
    assert_eq!(first.python.as_ref().map(|p| p.layers), Some(2));
    // It is the same one in what is built on top of it.
    let mut on_top = request("FROM base\nRUN three");
    on_top.recipe.bases.insert("base".into(), first);
    let (second, _) = world.build(on_top).await;
    let second = second.unwrap();
    assert_eq!((second.layers.len(), second.python.as_ref().map(|p| p.layers)), (3, Some(2)));
}

#[tokio::test]
async fn a_failing_run_is_told_and_not_kept() {
    let world = world(FakeBuilder::default());
    for _ in 0..2 {
        let (image, _) = world.build(request("FROM base\nRUN one\n\nRUN fail here\nRUN two")).await;
        let error = image.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ImageError::Run { line: 4, .. }), "{text}");
        assert!(
            text.contains("exit code 3") && text.contains("RUN fail here") && text.contains("output of fail")
        );
    }
    assert_eq!(world.fake.asked(), ["run one", "run fail here", "run fail here"]);
    assert_eq!(world.entries("layers"), 1);
}

#[tokio::test]
async fn identical_builds_at_once_share_one_run() {
    let world = world(FakeBuilder { delay: Duration::from_millis(30), ..FakeBuilder::default() });
    let build = || world.build(request("FROM base\nRUN one"));
    let ((a, log_a), (b, log_b), (c, log_c)) = tokio::join!(build(), build(), build());
    assert_eq!(a.unwrap(), b.unwrap());
    c.unwrap();
    assert_eq!(world.fake.asked(), ["run one"]);
    assert!(log_a.contains("output of one") && log_a == log_b && log_b == log_c);
}

#[tokio::test]
async fn builds_that_share_a_step_wait_for_it() {
    let world = world(FakeBuilder { delay: Duration::from_millis(30), ..FakeBuilder::default() });
    let ((a, _), (b, log)) = tokio::join!(
        world.build(request("FROM base\nRUN one\nRUN two")),
        world.build(request("FROM base\nRUN one\nRUN three"))
    );
    assert_eq!(a.unwrap().layers[0], b.unwrap().layers[0]);
    assert_eq!(world.fake.asked().iter().filter(|a| *a == "run one").count(), 1);
    assert!(log.contains("waiting for another build"), "{log}");
}

#[tokio::test]
async fn stages_run_side_by_side_and_wait_for_what_they_copy() {
    // Each of them ends only once all three run.
    let together = Arc::new(tokio::sync::Barrier::new(3));
    let world = world(FakeBuilder { together: Some(together), ..FakeBuilder::default() });
    let text = "FROM base AS one\nRUN meet one\nFROM base AS two\nRUN meet two\n\
                FROM base\nRUN meet three\nCOPY --from=one /x /x\nCOPY --from=two /y /y";
    let build = world.build(request(text));
    let (image, log) = tokio::time::timeout(Duration::from_secs(10), build).await.unwrap();
    assert_eq!(image.unwrap().layers.len(), 3);
    let asked = world.fake.asked();
    assert_eq!(asked[3..], ["copy image [\"x\"] to /x", "copy image [\"y\"] to /y"]);
    for line in
        ["one | => Step 1: RUN meet one", "two | output of meet two", "stage-2 | => Step 0: FROM base"]
    {
        assert!(log.contains(line), "{log}");
    }
}

#[tokio::test]
async fn the_failure_of_a_stage_ends_the_others() {
    let world = world(FakeBuilder { delay: Duration::from_secs(60), ..FakeBuilder::default() });
    let text = "FROM base AS one\nRUN slow\nFROM base AS two\nRUN at once: fail\n\
                FROM base\nCOPY --from=one /x /x\nCOPY --from=two /y /y";
    let build = world.build(request(text));
    let (image, _) = tokio::time::timeout(Duration::from_secs(10), build).await.unwrap();
    assert!(matches!(image.unwrap_err(), ImageError::Run { line: 4, .. }));
    assert_eq!(world.fake.dropped.load(Ordering::SeqCst), 1);
    assert_eq!(world.entries("layers"), 0);
}

#[tokio::test]
async fn no_more_steps_run_at_once_than_may() {
    let delay = Duration::from_millis(20);
    let world = world(FakeBuilder { delay, ..FakeBuilder::default() });
    let stages: String = (0..9).map(|n| format!("FROM base AS s{n}\nRUN {n}\n")).collect();
    let copies: String = (0..9).map(|n| format!("COPY --from=s{n} /x /x{n}\n")).collect();
    world.build(request(&format!("{stages}FROM base\n{copies}"))).await.0.unwrap();
    assert_eq!(world.fake.most.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_dropped_build_ends() {
    let world = world(FakeBuilder { delay: Duration::from_secs(60), ..FakeBuilder::default() });
    let build = world.build(request("FROM base\nRUN one"));
    assert!(tokio::time::timeout(Duration::from_millis(50), build).await.is_err());
    assert_eq!(world.fake.dropped.load(Ordering::SeqCst), 1);
    assert_eq!(world.entries("layers"), 0);
}

#[tokio::test]
async fn what_a_kill_left_is_removed() {
    let world = world(FakeBuilder::default());
    let (image, _) = world.build(request("FROM base\nRUN one")).await;
    let layer = image.unwrap().layers[0].clone();
    // A layer folder that the index does not tell of: its build was killed before it was remembered.
    let record = world.folder.path().join(format!("index/layers/{}.json", layer.digest));
    std::fs::remove_file(record).unwrap();
    let (image, _) = world.build(request("FROM base\nRUN one\nRUN two")).await;
    image.unwrap();
    assert_eq!(world.fake.asked(), ["run one", "remove", "run one", "run two"]);
}

#[tokio::test]
async fn forced_builds_replace_and_uncached_ones_do_not() {
    let world = world(FakeBuilder::default());
    let plain = || request("FROM base\nRUN one");
    let first = world.build(plain()).await.0.unwrap();
    let aside = world.build(BuildRequest { ignore_cache: true, ..plain() }).await.0.unwrap();
    assert_ne!(first.layers, aside.layers);
    assert_eq!(world.build(plain()).await.0.unwrap(), first);
    let forced = world.build(BuildRequest { force_build: true, ..plain() }).await.0.unwrap();
    assert_ne!(forced.layers, first.layers);
    assert_eq!(world.build(plain()).await.0.unwrap(), forced);
    assert_eq!(world.builder.cached(&plain().recipe).await.unwrap(), Some(forced));
}

#[tokio::test]
async fn secrets_reach_commands_and_nothing_else() {
    let world = world(FakeBuilder::default());
    let mut request = request("FROM base\nENV A=1\nRUN one");
    request.secret_env = vec![("TOKEN".into(), "s3cret".into())];
    let (image, log) = world.build(request).await;
    let image = image.unwrap();
    let commands = world.fake.commands.lock().unwrap();
    let run = commands.iter().find(|c| c.commit.is_some()).unwrap();
    assert!(run.env.contains(&("TOKEN".into(), "s3cret".into())));
    let probe = commands.iter().find(|c| c.commit.is_none()).unwrap();
    assert!(probe.env.iter().all(|(k, _)| k != "TOKEN"));
    assert!(!format!("{image:?}{log}").contains("s3cret"));
    let files = std::fs::read_dir(world.folder.path().join("index/images")).unwrap();
    for file in files {
        assert!(!std::fs::read_to_string(file.unwrap().path()).unwrap().contains("s3cret"));
    }
}

#[tokio::test]
async fn mounts_are_there_while_a_command_runs_and_gone_then() {
    let world = world(FakeBuilder::default());
    let text = "FROM base\nRUN --mount=source=a.txt,target=/a --mount=type=cache,target=/c,sharing=private \
                --mount=type=secret,id=token --mount=type=secret,id=none go";
    let mut request = request(text);
    request.secret_env = vec![("TOKEN".into(), "s3cret".into())];
    let (image, log) = world.build(request).await;
    image.unwrap();
    assert!(log.contains("has no secret none") && !log.contains("s3cret"), "{log}");
    let commands = world.fake.commands.lock().unwrap();
    let run = commands.iter().find(|c| c.commit.is_some()).unwrap();
    let [Mount::Bind { source, .. }, Mount::Bind { source: cache, writable: true, .. }, Mount::File(file)] =
        run.mounts.as_slice()
    else {
        panic!("{:?}", run.mounts)
    };
    assert!(source.ends_with("a.txt") && !source.exists());
    assert!(cache.is_dir());
    assert_eq!((file.path.as_str(), file.content.as_str()), ("/run/secrets/token", "s3cret"));
    assert_eq!(world.entries("staging"), 0);
}

#[tokio::test]
async fn a_secret_that_is_needed_and_missing_is_named() {
    let world = world(FakeBuilder::default());
    let text = "FROM base\nRUN --mount=type=secret,id=token,required=true go";
    let error = world.build(request(text)).await.0.unwrap_err().to_string();
    assert!(error.contains("no secret token") && error.contains("modal.Secret.from_dict"), "{error}");
    assert!(world.fake.asked().is_empty());
}

#[tokio::test]
async fn an_unknown_base_says_what_was_tried() {
    let world = world(FakeBuilder::default());
    let mirrors = [("docker.io".to_owned(), vec![])].into();
    let config = BaseConfig {
        order: vec![crate::BaseSource::Local, crate::BaseSource::Debian, crate::BaseSource::Host],
        registry: crate::base::RegistryConfig { mirrors, ..Default::default() },
        ..BaseConfig::default()
    };
    let tools = BuildTools {
        base: tools(world.folder.path(), world.fake.clone()),
        context: Arc::new(crate::NoContext),
        staging: world.folder.path().join("staging"),
        caches: world.folder.path().join("caches"),
        pythons: world.folder.path().join("pythons"),
        steps_at_once: 4,
    };
    let builder = ImageBuilder::new(config, tools).unwrap();
    let error = builder.build(request("FROM ubuntu:22.04"), Arc::new(crate::NoLog)).await.unwrap_err();
    let text = error.to_string();
    for part in [
        "ubuntu:22.04",
        "local images: none are configured",
        "Debian archive: it makes",
        "this machine:",
        "docker save",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn a_function_makes_a_layer() {
    let world = world(FakeBuilder::default());
    let mut recipe = request("").recipe;
    recipe.lines.clear();
    recipe.run_function = Some("digest".into());
    let made = world.builder.begin_function_layer(&recipe, None).await.unwrap();
    std::fs::create_dir(&made.layer.path).unwrap();
    let image = world
        .builder
        .finish_function_layer(&recipe, &made, crate::LayerSize::default(), 5, &crate::NoLog)
        .await
        .unwrap();
    assert_eq!(image.layers, vec![made.layer]);
    assert_eq!(world.builder.cached(&recipe).await.unwrap(), Some(image));
}
