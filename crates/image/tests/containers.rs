//! Builds in real containers: starts the privileged helper as the server has it. Needs root, the network and
//! a static guest; run by hand:
//! `EVOKE_TEST_GUEST=/path/to/evoke-guest cargo test -p evoke-image --test containers -- python`.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use evoke_image::{
    BaseConfig, BaseSource, BuildRequest, ContextEntry, ContextMount, ImageBuilder, ImageError, ImageSpec,
    NoContext, Recipe, RuntimeBuilder,
};
use evoke_runtime::{GuestBinary, HelperConfig, HelperRuntime, Runtime, fds};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;
use support::{Print, image_builder_with};

const ROLE: &str = "EVOKE_TEST_HELPER_DATA";

fn main() {
    if let Some(data) = std::env::var_os(ROLE) {
        helper(PathBuf::from(data));
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::var_os("EVOKE_TEST_GUEST").is_none() {
        println!("skipped: EVOKE_TEST_GUEST names no guest");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::start().await;
        for name in ["python", "stages", "failure", "host"] {
            if wanted.is_empty() || wanted.iter().any(|w| w == name) {
                println!("== {name}");
                match name {
                    "python" => python(&world).await,
                    "stages" => stages(&world).await,
                    "failure" => failure(&world).await,
                    _ => host(&world).await,
                }
            }
        }
        assert_eq!(world.runtime.list().await.unwrap(), Vec::<String>::new());
        world.end();
    });
}

/// Becomes the helper; its socket is standard input.
fn helper(data: PathBuf) -> ! {
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let guest = GuestBinary::File(std::env::var_os("EVOKE_TEST_GUEST").unwrap().into());
    let mut config = HelperConfig::new(data, 0, 0, guest);
    config.read_only_roots = std::env::var("EVOKE_TEST_ROOTS")
        .unwrap_or_default()
        .split(':')
        .filter(|r| !r.is_empty())
        .map(PathBuf::from)
        .collect();
    evoke_runtime::helper::main(control, config)
}

struct World {
    data: PathBuf,
    runtime: Arc<dyn Runtime>,
    builder: ImageBuilder,
    tree: PathBuf,
    child: std::process::Child,
    control: Option<std::os::fd::OwnedFd>,
}

struct Tree(PathBuf);

#[async_trait::async_trait]
impl evoke_image::Context for Tree {
    async fn tree(&self, _: &str) -> Result<PathBuf, ImageError> {
        Ok(self.0.clone())
    }
}

impl World {
    async fn start() -> Self {
        let at = std::env::var("EVOKE_TEST_FOLDER").unwrap_or_else(|_| "/var/tmp".into());
        let data = Path::new(&at).join("evoke-image-test");
        let tree = data.join("mounts/tree");
        for folder in [data.clone(), data.join("layers"), data.join("containers"), tree.clone()] {
            std::fs::create_dir_all(&folder).unwrap();
        }
        let (control, theirs) = fds::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, &data)
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (socket, server) = fds::pair().unwrap();
        fds::send(control.as_fd(), b"server", &[server.as_fd()], false).unwrap();
        drop(server);
        let runtime: Arc<dyn Runtime> = Arc::new(HelperRuntime::connect(socket).unwrap());
        let steps = Arc::new(RuntimeBuilder::new(runtime.clone(), 0, 0, data.join("layers")));
        steps.sweep().await.unwrap();
        let bases = BaseConfig { order: vec![BaseSource::Debian], ..BaseConfig::default() };
        let builder = image_builder_with(&data, steps, bases, Arc::new(Tree(tree.clone())));
        let control = Some(control);
        Self { data, runtime, builder, tree, child, control }
    }

    fn end(mut self) {
        self.control = None;
        drop(self.runtime);
        println!(
            "helper: {:?}; the data folder stays at {}",
            self.child.wait().unwrap(),
            self.data.display()
        );
    }

    async fn build(&self, recipe: Recipe) -> Result<ImageSpec, ImageError> {
        let start = Instant::now();
        let request = BuildRequest { recipe, ..BuildRequest::default() };
        let built = self.builder.build(request, Arc::new(Print(start))).await;
        println!("-- {:.2} s", start.elapsed().as_secs_f64());
        built
    }
}

fn recipe(lines: &[&str]) -> Recipe {
    Recipe { lines: lines.iter().map(|l| (*l).to_owned()).collect(), ..Recipe::default() }
}

async fn python(world: &World) {
    let image = world.build(recipe(&["FROM python:3.11.12-slim-bookworm"])).await.unwrap();
    for layer in &image.layers {
        let du = Command::new("du").arg("-sm").arg(&layer.path).output().unwrap();
        println!("{}", String::from_utf8_lossy(&du.stdout).trim());
    }
    let image = world
        .build(recipe(&[
            "FROM python:3.11.12-slim-bookworm",
            "RUN apt-get update",
            "RUN apt-get install -y gcc gfortran build-essential",
            "RUN pip install --upgrade pip wheel uv",
            "RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
            "RUN python -m pip install six",
            "COPY --from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv",
            "RUN /.uv/uv pip install --python $(command -v python) --compile-bytecode idna",
            "RUN python -c 'import six, idna, ssl, sqlite3' && dpkg --audit",
            "CMD [\"sleep\", \"172800\"]",
        ]))
        .await
        .unwrap();
    for layer in &image.layers {
        let left = layer.path.join("fs/__evoke");
        let found = Command::new("find").arg(&left).args(["-type", "f"]).output().unwrap();
        assert!(found.stdout.is_empty(), "a layer keeps what was bound: {}", left.display());
    }
    let names: Vec<&str> = image.packages.iter().map(|p| p.name.as_str()).collect();
    assert!(["six", "idna", "uv", "wheel"].iter().all(|n| names.contains(n)), "{names:?}");
    assert_eq!(image.python.map(|p| p.minor), Some(11));
}

async fn stages(world: &World) {
    std::fs::create_dir_all(world.tree.join("d/e")).unwrap();
    for (path, text) in [("a.txt", "a"), ("d/b.txt", "b"), ("d/e/c.py", "c")] {
        std::fs::write(world.tree.join(path), text).unwrap();
    }
    let mut recipe = recipe(&[
        "FROM debian:bookworm-slim AS one",
        "WORKDIR /work/deep",
        "RUN echo made > file && mkdir -p sub && echo x > sub/x.so && echo y > sub/y.so && pwd",
        "USER nobody",
        "RUN id -un && ! touch /root/x 2>/dev/null",
        "FROM debian:bookworm-slim",
        "COPY --from=one /work/deep/file /copied",
        "COPY --from=one /work/deep/sub /folder",
        "COPY --from=one /work/deep/sub/*.so /globbed/",
        "COPY --chown=nobody:nogroup --chmod=0640 a.txt /owned.txt",
        "COPY d /d/",
        "COPY --exclude=*.txt d /without/",
        "COPY *.txt /usr/local/",
        "COPY . /",
        "COPY <<EOF /text",
        "hello",
        "EOF",
        "COPY /.r.txt /bin/inline.txt",
        "RUN <<EOF",
        "set -ex",
        "test \"$(cat /copied /folder/x.so /globbed/y.so /text)\" = \"$(printf 'made\\nx\\ny\\nhello')\"",
        "test \"$(stat -c '%U:%G %a' /owned.txt)\" = 'nobody:nogroup 640'",
        "test \"$(cat /d/e/c.py /without/e/c.py /usr/local/a.txt /a.txt /usr/bin/inline.txt)\" = \"ccaainline\"",
        "test ! -e /without/b.txt",
        "test -L /bin",
        "EOF",
    ]);
    recipe.context_files.insert("/.r.txt".into(), b"inline".to_vec());
    let entry = |path: &str| ContextEntry { path: path.into(), sha256: path.into(), mode: None };
    let entries = ["a.txt", "d/b.txt", "d/e/c.py"].map(entry).to_vec();
    recipe.context_mount = Some(ContextMount { id: "mo-1".into(), entries });
    world.build(recipe).await.unwrap();
}

async fn failure(world: &World) {
    let lines = ["FROM debian:bookworm-slim", "RUN echo before; sleep 1000 & sh -c 'exit 7'"];
    let error = world.build(recipe(&lines)).await.unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("exit code 7") && error.contains("before"), "{error}");
    let slow = world.build(recipe(&["FROM debian:bookworm-slim", "RUN sleep 1000"]));
    assert!(tokio::time::timeout(std::time::Duration::from_secs(5), slow).await.is_err());
    let end = Instant::now();
    while !world.runtime.list().await.unwrap().is_empty() {
        assert!(end.elapsed().as_secs() < 20, "the container of a dropped build is still there");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn host(world: &World) {
    let python = std::env::var("EVOKE_TEST_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".into());
    let mut bases = BaseConfig { order: vec![BaseSource::Host], ..BaseConfig::default() };
    bases.host.python = vec![python.into()];
    bases.host.never = vec![world.data.clone()];
    let steps = Arc::new(RuntimeBuilder::new(world.runtime.clone(), 0, 0, world.data.join("layers")));
    let builder = image_builder_with(&world.data, steps, bases, Arc::new(NoContext));
    let wanted = std::env::var("EVOKE_TEST_IMAGE").unwrap_or_else(|_| "python:3-slim-bookworm".into());
    let from = format!("FROM {wanted}");
    let recipe = recipe(&[
        &from,
        "RUN apt-get update",
        "RUN apt-get install -y gcc gfortran build-essential",
        "RUN pip install --upgrade pip wheel uv",
        "RUN python -c 'import sys; print(sys.version, sys.prefix, sys.base_prefix)' && id",
        "RUN python -m pip install six && python -c 'import six; print(six.__file__)'",
        "RUN ! ls /root/.ssh /home/* 2>/dev/null && ! cat /etc/shadow && test ! -e /work",
    ]);
    let start = Instant::now();
    let request = BuildRequest { recipe, ..BuildRequest::default() };
    let image = builder.build(request, Arc::new(Print(start))).await.unwrap();
    println!("{:?} {:?}", image.python, image.binds);
    assert!(image.host && image.python.is_some());
}
