//! What is collected and what stays, with layers that are plain folders.

use super::*;
use crate::testing::{FakeBuilder, tools};
use crate::{BaseConfig, BuildTools, ImageSpec, LayerOwner, LayerRef, NoContext};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const HOUR_MS: u64 = 3600 * 1000;

struct World {
    folder: tempfile::TempDir,
    builder: ImageBuilder,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let tools = BuildTools {
        base: tools(folder.path(), Arc::new(FakeBuilder::default())),
        context: Arc::new(NoContext),
        staging: folder.path().join("staging"),
        caches: folder.path().join("caches"),
        pythons: folder.path().join("pythons"),
        steps_at_once: 1,
    };
    World { builder: ImageBuilder::new(BaseConfig::default(), tools).unwrap(), folder }
}

/// Makes a file or folder look as if it was last used two days ago.
fn age(path: &Path) {
    let old = SystemTime::now() - Duration::from_secs(48 * 3600);
    std::fs::File::open(path).unwrap().set_modified(old).unwrap();
}

impl World {
    /// A layer of two days ago.
    async fn layer(&self, digest: &str, bytes: u64) {
        let record = LayerRecord {
            digest: digest.into(),
            bytes,
            entries: 1,
            origin: "RUN x".into(),
            took_ms: 1,
            folder: digest.into(),
        };
        self.base().index.put_layer(record).await.unwrap();
        std::fs::create_dir_all(self.path(digest)).unwrap();
        age(&self.path(digest));
        age(&self.entry("layers", digest));
    }

    async fn image(&self, key: &str, layers: &[&str]) {
        let layer = |digest: &&str| LayerRef {
            digest: (*digest).into(),
            path: self.path(digest),
            owner: LayerOwner::Canonical,
        };
        let image = ImageSpec { layers: layers.iter().map(layer).collect(), ..ImageSpec::default() };
        self.base().index.put_image(key, &image).await.unwrap();
        age(&self.entry("images", key));
    }

    fn base(&self) -> &crate::BaseTools {
        &self.builder.inner.tools.base
    }

    fn path(&self, folder: &str) -> std::path::PathBuf {
        self.folder.path().join("layers").join(folder)
    }

    fn entry(&self, part: &str, key: &str) -> std::path::PathBuf {
        self.folder.path().join("index").join(part).join(format!("{key}.json"))
    }

    fn there(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.folder.path().join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn keep(&self, folders: &[&str]) -> Keep {
        Keep {
            folders: folders.iter().map(|name| (*name).to_owned()).collect(),
            unused_before: UnixMs(self.base().clock.now().0 - HOUR_MS),
            ..Keep::default()
        }
    }

    async fn collect(&self, keep: Keep) -> CollectedLayers {
        self.builder.collect(&self.builder.round(), keep).await.unwrap()
    }
}

#[tokio::test]
async fn what_nothing_needs_goes_with_what_is_remembered_of_it() {
    let world = world();
    world.layer("aa", 1).await;
    world.layer("bb", 2).await;
    world.layer("cc", 4).await;
    world.image("01", &["aa", "bb"]).await;
    world.image("02", &["aa"]).await;
    // Left by a server that was killed between the record and the folder.
    std::fs::create_dir(world.path("dd")).unwrap();
    age(&world.path("dd"));
    let dry = Keep { dry_run: true, ..world.keep(&["aa"]) };
    let would = world.collect(dry).await;
    assert_eq!((would.layers, would.layer_bytes, world.there().len()), (3, 6, 4));
    assert_eq!(world.collect(world.keep(&["aa"])).await, would);
    assert_eq!(world.there(), ["aa"]);
    let base = world.base();
    assert!(
        base.index.image("01").await.unwrap().is_none() && base.index.image("02").await.unwrap().is_some()
    );
    assert!(
        base.index.layer("bb").await.unwrap().is_none() && base.index.layer("aa").await.unwrap().is_some()
    );
    assert_eq!(world.collect(world.keep(&["aa"])).await, CollectedLayers::default());
}

#[tokio::test]
async fn what_was_used_lately_or_is_used_now_stays() {
    let world = world();
    for digest in ["aa", "bb", "cc", "dd", "ee"] {
        world.layer(digest, 1).await;
    }
    world.image("01", &["aa"]).await;
    world.image("02", &["bb"]).await;
    assert!(world.base().index.image("01").await.unwrap().is_some(), "a use that is noted");
    assert!(world.base().index.layer("cc").await.unwrap().is_some(), "another one");
    let using = world.builder.begin_use();
    assert!(world.base().is_whole(&world.base().index.images().await.unwrap()[0].1).await);
    assert!(world.base().layer("dd").await.unwrap().is_some());
    age(&world.entry("layers", "dd"));
    let done = world.collect(world.keep(&[])).await;
    let left = world.there();
    assert!(left.contains(&"aa".to_owned()) && left.contains(&"cc".to_owned()), "{left:?}");
    assert!(left.contains(&"dd".to_owned()) && !left.contains(&"ee".to_owned()), "{left:?}");
    assert!(done.layers >= 1);
    drop(using);
    world.collect(world.keep(&["aa"])).await;
    assert!(!world.there().contains(&"dd".to_owned()));
}

#[tokio::test]
async fn a_layer_that_went_while_a_build_looked_is_made_anew() {
    let world = world();
    world.layer("aa", 1).await;
    let round = world.builder.round();
    let claim = world.base().uses.claim("aa", UnixMs(0), &round).unwrap();
    let tools = world.base().clone();
    let mut looking = Box::pin(async move { tools.layer("aa").await });
    assert!(futures::poll!(&mut looking).is_pending(), "it waits for the end of the removal");
    std::fs::remove_dir(world.path("aa")).unwrap();
    drop(claim);
    assert!(looking.await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_on_its_way_and_what_is_shared_stays() {
    let world = world();
    for name in ["empty", "client-12", "gather-1", ".new-1-1"] {
        std::fs::create_dir(world.path(name)).unwrap();
        age(&world.path(name));
    }
    std::fs::create_dir(world.path("gather-2")).unwrap();
    world.collect(Keep { compiled: true, ..world.keep(&[]) }).await;
    assert_eq!(world.there(), [".new-1-1", "client-12", "empty", "gather-2"]);
    world.collect(world.keep(&[])).await;
    assert_eq!(world.there(), [".new-1-1", "empty", "gather-2"]);
}

#[tokio::test]
async fn downloads_that_nobody_went_on_with_go() {
    let world = world();
    let folder = world.folder.path().join("downloads/layers");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["old.part", "new.part"] {
        std::fs::write(folder.join(name), "12345").unwrap();
    }
    age(&folder.join("old.part"));
    let using = world.builder.begin_use();
    assert_eq!(world.collect(world.keep(&[])).await.downloads, 0, "a build may go on with it");
    drop(using);
    let done = world.collect(world.keep(&[])).await;
    assert_eq!((done.downloads, done.download_bytes), (1, 5));
    assert!(!folder.join("old.part").exists() && folder.join("new.part").exists());
}

#[tokio::test]
async fn caches_and_pythons_that_no_build_uses_go() {
    let world = world();
    for home in ["caches", "pythons"] {
        let home = world.folder.path().join(home);
        for name in ["old", "new", ".begun", ".gone-left"] {
            std::fs::create_dir_all(home.join(name).join("sub")).unwrap();
            std::fs::write(home.join(name).join("sub/file"), "12345").unwrap();
        }
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o555);
        std::fs::set_permissions(home.join("old/sub"), closed).unwrap();
        for name in ["old", ".begun"] {
            age(&home.join(name));
        }
    }
    let using = world.builder.begin_use();
    assert_eq!(world.collect(world.keep(&[])).await.downloads, 0, "a build may use them");
    drop(using);
    let dry = Keep { dry_run: true, ..world.keep(&[]) };
    assert_eq!(world.collect(dry).await.downloads, 4);
    let done = world.collect(world.keep(&[])).await;
    assert_eq!((done.downloads, done.download_bytes), (4, 20));
    for home in ["caches", "pythons"] {
        let mut left: Vec<_> = std::fs::read_dir(world.folder.path().join(home))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".begun", "new"]);
    }
}
