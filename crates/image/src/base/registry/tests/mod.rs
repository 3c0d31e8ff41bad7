//! The distribution protocol against a registry of our own on this machine.

mod access;

use super::*;
use crate::base::{BaseConfig, BaseSource};
use crate::digest::sha256;
use crate::log::NoLog;
use crate::log::tests::Kept;
use crate::testing::{Answer, Asked, FakeBuilder, serve, tools};
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A registry's content: by path below `/v2/<name>/`.
type Content = BTreeMap<String, Vec<u8>>;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

fn layer(name: &str, text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An image of three layers, each compressed in another way, behind an index of two platforms.
fn content(tag: &str) -> Content {
    let layers = [layer("one", "1"), gzip(&layer("two", &"2".repeat(5000))), zstd(&layer("three", "3"))];
    let arch = architecture();
    let config = format!(
        r#"{{"architecture":"{arch}","config":{{"Env":["PATH=/x","A=1"],"Cmd":["run"],"WorkingDir":"/w"}},"rootfs":{{"diff_ids":[]}}}}"#
    )
    .into_bytes();
    let mut content = Content::new();
    let mut blob = |bytes: &[u8]| {
        content.insert(format!("blobs/{}", digest(bytes)), bytes.to_vec());
        format!(r#"{{"digest":"{}","size":{}}}"#, digest(bytes), bytes.len())
    };
    let list: Vec<String> = layers.iter().map(|l| blob(l)).collect();
    let config = blob(&config);
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, list.join(","));
    let index = format!(
        r#"{{"manifests":[{{"digest":"sha256:{}","size":1,"platform":{{"architecture":"s390x","os":"linux"}}}},
        {{"digest":"{}","size":{},"platform":{{"architecture":"{arch}","os":"linux"}}}}]}}"#,
        "0".repeat(64),
        digest(manifest.as_bytes()),
        manifest.len()
    );
    content.insert(format!("manifests/{}", digest(manifest.as_bytes())), manifest.into_bytes());
    content.insert(format!("manifests/{tag}"), index.into_bytes());
    content
}

use crate::base::architecture;

fn answer(content: &Content, name: &str, asked: &Asked) -> Answer {
    let path = asked.path.strip_prefix(&format!("/v2/{name}/")).unwrap_or_default();
    let Some(bytes) = content.get(path) else { return Answer::new(404, "{}") };
    let range =
        asked.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match range {
        Some(start) => {
            let start: usize = start;
            let header = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::new(206, &bytes[start..]).header("content-range", header)
        }
        None => Answer::new(200, bytes.clone()),
    }
}

struct World {
    folder: tempfile::TempDir,
    builder: Arc<FakeBuilder>,
    bases: Bases,
}

fn world(registry: RegistryConfig) -> World {
    let folder = tempfile::tempdir().unwrap();
    let builder = Arc::new(FakeBuilder::default());
    let config = BaseConfig { order: vec![BaseSource::Registry], registry, ..BaseConfig::default() };
    let bases = Bases::new(config, tools(folder.path(), builder.clone()));
    World { folder, builder, bases }
}

impl World {
    async fn get(&self, reference: &str) -> Result<ImageSpec> {
        self.bases.resolve(reference, None, false, &NoLog).await
    }

    async fn get_as(&self, reference: &str, login: &Login) -> Result<ImageSpec> {
        self.bases.resolve(reference, Some(login), false, &NoLog).await
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("downloads/layers")).map_or(0, |d| d.count())
    }
}

#[tokio::test]
async fn pulls_layers_of_every_compression() {
    let content = content("1");
    let address = serve(move |asked| answer(&content, "a/b", asked));
    let world = world(RegistryConfig::default());
    let image = world.get(&format!("{address}/a/b:1")).await.unwrap();
    assert_eq!(image.layers.len(), 3);
    for (layer, name) in image.layers.iter().zip(["one", "two", "three"]) {
        assert!(layer.path.join(name).is_file(), "{name}");
    }
    assert_eq!((image.env("A"), image.workdir.as_str()), (Some("1"), "/w"));
    assert_eq!(world.files(), 0);
    // The second time nothing is asked for.
    assert_eq!(world.get(&format!("{address}/a/b:1")).await.unwrap(), image);
    assert_eq!(world.builder.asked().len(), 3);
}

#[tokio::test]
async fn tries_mirrors_of_docker_hub_first() {
    let content = content("3.11-slim");
    let address = serve(move |asked| answer(&content, "library/python", asked));
    let bad = serve(|_| Answer::new(500, "no"));
    let mirrors = vec![format!("http://{bad}"), format!("http://{address}/")];
    let registry =
        RegistryConfig { mirrors: [("docker.io".to_owned(), mirrors)].into(), ..RegistryConfig::default() };
    assert_eq!(world(registry).get("python:3.11-slim").await.unwrap().layers.len(), 3);
}

#[tokio::test]
async fn renames_registries() {
    let content = content("3.11-slim");
    let address = serve(move |asked| answer(&content, "hub/python", asked));
    let rename = [("docker.io/library".to_owned(), format!("{address}/hub"))].into();
    let registry = RegistryConfig { rename, ..RegistryConfig::default() };
    assert_eq!(world(registry).get("python:3.11-slim").await.unwrap().layers.len(), 3);
}

#[tokio::test]
async fn resumes_where_the_connection_broke() {
    let content = content("1");
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = cuts.clone();
    let address = serve(move |asked| {
        let mut reply = answer(&content, "a", asked);
        if asked.path.contains("/blobs/") && reply.body.len() > 400 && reply.status == 200 {
            counted.fetch_add(1, Ordering::SeqCst);
            reply.cut = Some(300);
        }
        reply
    });
    let world = world(RegistryConfig::default());
    assert_eq!(world.get(&format!("{address}/a:1")).await.unwrap().layers.len(), 3);
    assert!(cuts.load(Ordering::SeqCst) >= 1);
}

async fn failure(change: impl Fn(&Asked, &mut Answer) + Send + Sync + 'static) -> String {
    let content = content("1");
    let address = serve(move |asked| {
        let mut reply = answer(&content, "a", asked);
        change(asked, &mut reply);
        reply
    });
    let world = world(RegistryConfig::default());
    let error = world.get(&format!("{address}/a:1")).await.unwrap_err().to_string();
    let left = std::fs::read_dir(world.folder.path().join("layers")).unwrap().count();
    let asked = world.builder.asked().iter().filter(|a| *a == "unpack").count();
    assert!(left <= asked, "{left} layers of {asked}");
    assert!(
        error.contains("no source has the base image") && error.contains("images.registry.mirrors"),
        "{error}"
    );
    error
}

#[tokio::test]
async fn says_what_is_wrong() {
    let index = |asked: &Asked| asked.path.ends_with("/manifests/1");
    let error = failure(move |asked, reply| {
        if index(asked) {
            reply.body = b"<html>".to_vec();
        }
    })
    .await;
    assert!(error.contains("not an image manifest"), "{error}");
    let error = failure(move |asked, reply| {
        if asked.path.contains("/manifests/sha256") {
            reply.body.push(b' ');
        }
    })
    .await;
    assert!(error.contains("does not match its digest"), "{error}");
    let error = failure(move |asked, reply| {
        if asked.path.contains("/blobs/") && reply.body.starts_with(&[0x1f, 0x8b]) {
            let last = reply.body.len() - 1;
            reply.body[last] ^= 1;
        }
    })
    .await;
    assert!(error.contains("does not match its digest"), "{error}");
    let error = failure(move |asked, reply| {
        if index(asked) {
            reply.hang = Duration::from_secs(2);
        }
    })
    .await;
    assert!(error.contains("could not reach") || error.contains("timeout"), "{error}");
    let error = failure(|_, reply| {
        reply.status = 404;
    })
    .await;
    assert!(error.contains("no such image"), "{error}");
    let error = failure(|_, reply| {
        reply.status = 401;
        reply.headers.push(("www-authenticate".into(), "Digest x".into()));
    })
    .await;
    assert!(error.contains("not supported"), "{error}");
}

#[tokio::test]
async fn an_image_that_the_disk_has_no_room_for_is_refused_before_it_is_downloaded() {
    let mut content = content("1");
    let path = content.keys().find(|path| path.starts_with("manifests/sha256")).unwrap().clone();
    let manifest = String::from_utf8(content.remove(&path).unwrap()).unwrap();
    let (before, after) = manifest.split_once("\"layers\":[").unwrap();
    let sizes: Vec<&str> = after.split("\"size\":").collect();
    let changed = format!(
        "{before}\"layers\":[{}\"size\":{}{}",
        sizes[0],
        u64::MAX >> 2,
        &sizes[1][sizes[1].find('}').unwrap()..]
    );
    let changed =
        format!("{changed}{}", sizes[2..].iter().map(|s| format!("\"size\":{s}")).collect::<String>());
    let index = format!(r#"{{"manifests":[{{"digest":"{}","size":1}}]}}"#, digest(changed.as_bytes()));
    content.insert(format!("manifests/{}", digest(changed.as_bytes())), changed.into_bytes());
    content.insert("manifests/1".to_owned(), index.into_bytes());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let address = serve(move |request| {
        seen.lock().unwrap().push(request.path.clone());
        answer(&content, "a", request)
    });
    let world = world(RegistryConfig::default());
    let error = world.get(&format!("{address}/a:1")).await.unwrap_err();
    assert!(error.to_string().contains("evoke image prune"), "{error}");
    assert_eq!(error.to_core().code, evoke_core::ErrorCode::ResourceExhausted);
    assert_eq!(world.files(), 0);
    assert_eq!(asked.lock().unwrap().len(), 3, "index, manifest and configuration");
}

#[tokio::test]
async fn reads_layouts_and_archives() {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let content = content("1");
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |name: String, bytes: &[u8]| {
        std::fs::write(layout.join(&name), bytes).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, &name, bytes).unwrap();
    };
    for (path, bytes) in &content {
        match path.rsplit_once("sha256:") {
            Some((_, hex)) => put(format!("blobs/sha256/{hex}"), bytes),
            None => {
                put(format!("blobs/sha256/{}", sha256(bytes)), bytes);
                let index = format!(
                    r#"{{"manifests":[{{"digest":"{}","size":1,"annotations":{{"org.opencontainers.image.ref.name":"python:3.11-slim"}}}}]}}"#,
                    digest(bytes)
                );
                put("index.json".into(), index.as_bytes());
            }
        }
    }
    let archive = folder.path().join("image.tar");
    std::fs::write(&archive, tar.into_inner().unwrap()).unwrap();
    for place in [layout, archive] {
        let data = tempfile::tempdir().unwrap();
        let config = BaseConfig {
            order: vec![BaseSource::Local],
            local: vec![place.clone()],
            ..BaseConfig::default()
        };
        let bases = Bases::new(config, tools(data.path(), Arc::new(FakeBuilder::default())));
        let kept = Kept::default();
        let image = bases.resolve("python:3.11-slim", None, false, &kept).await.unwrap();
        assert_eq!(image.layers.len(), 3, "{}", place.display());
        assert!(image.layers[2].path.join("three").is_file());
        let error = bases.resolve("python:3.12-slim", None, false, &kept).await.unwrap_err().to_string();
        assert!(error.contains("none of 1 has it"), "{error}");
    }
}

#[tokio::test]
async fn reads_what_docker_save_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    put("aa/layer.tar", &layer("one", "1"));
    put("c.json", br#"{"config":{"Cmd":["x"]},"rootfs":{"diff_ids":["sha256:aa"]}}"#);
    put("manifest.json", br#"[{"Config":"c.json","RepoTags":["me/x:1"],"Layers":["aa/layer.tar"]}]"#);
    drop(tar);
    let config = BaseConfig { order: vec![BaseSource::Local], local: vec![path], ..BaseConfig::default() };
    let data = tempfile::tempdir().unwrap();
    let bases = Bases::new(config, tools(data.path(), Arc::new(FakeBuilder::default())));
    let image = bases.resolve("me/x:1", None, false, &NoLog).await.unwrap();
    assert!(image.layers[0].path.join("one").is_file());
    assert_eq!(image.cmd, ["x"]);
}
