//! Bootstraps from Debian's archive over the network, run as root. Ignored by default:
//! `cargo test -p evoke-image --test bootstrap -- --ignored --nocapture`.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use evoke_image::{BaseConfig, BaseSource, BuildRequest, ImageSpec, Recipe};
use std::path::PathBuf;
use std::sync::Arc;
use support::{ChrootBuilder, Print, image_builder};

struct World {
    folder: PathBuf,
    _remove: Option<tempfile::TempDir>,
    builder: evoke_image::ImageBuilder,
}

fn world() -> World {
    // Below /var/tmp unless told otherwise: an overlay needs a real file system.
    let at = std::env::var("EVOKE_TEST_FOLDER").map_or_else(|_| PathBuf::from("/var/tmp"), PathBuf::from);
    let temporary = tempfile::tempdir_in(at).unwrap();
    let folder = temporary.path().to_owned();
    let keep = std::env::var("EVOKE_TEST_KEEP").is_ok();
    let _remove = if keep {
        drop(temporary.keep());
        None
    } else {
        Some(temporary)
    };
    let chroot = Arc::new(ChrootBuilder { work: folder.clone() });
    let bases = BaseConfig { order: vec![BaseSource::Debian], ..BaseConfig::default() };
    let builder = image_builder(&folder, chroot, bases);
    World { folder, _remove, builder }
}

impl World {
    async fn build(&self, lines: &[&str]) -> Result<ImageSpec, evoke_image::ImageError> {
        let recipe = Recipe { lines: lines.iter().map(|l| (*l).to_owned()).collect(), ..Recipe::default() };
        self.builder
            .build(
                BuildRequest { recipe, ..BuildRequest::default() },
                Arc::new(Print(std::time::Instant::now())),
            )
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the network and root"]
async fn python_slim_bookworm() {
    let world = world();
    let start = std::time::Instant::now();
    let image = world.build(&["FROM python:3.11.12-slim-bookworm"]).await.unwrap();
    println!("bootstrap took {:?}", start.elapsed());
    for layer in &image.layers {
        let du = std::process::Command::new("du").arg("-sm").arg(&layer.path).output().unwrap();
        println!("{}", String::from_utf8_lossy(&du.stdout).trim());
    }
    println!("{:?} {:?} {:?}", image.python, image.libc, image.packages);
    assert_eq!(image.python.as_ref().map(|p| p.minor), Some(11));
    let image = world
        .build(&[
            "FROM python:3.11.12-slim-bookworm",
            "RUN python -V && python3 -V && pip --version && test \"$(command -v python)\" = /usr/local/bin/python",
            "RUN apt-get update",
            "RUN apt-get install -y gcc gfortran build-essential",
            "RUN pip install --upgrade pip wheel uv",
            "RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
            "RUN python -m pip install six",
            "COPY --from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv",
            "RUN /.uv/uv pip install --python $(command -v python) --compile-bytecode idna",
            "RUN python -c 'import six, idna; print(six.__file__, idna.__file__)' && python -m venv /v && /v/bin/python -c 'import ssl, sqlite3'",
            "RUN pip install --no-binary :all: --no-deps markupsafe && dpkg --audit",
            "CMD [\"sleep\", \"172800\"]",
        ])
        .await
        .unwrap();
    println!("{:?} in {}", image.packages, world.folder.display());
    println!("all took {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the network and root"]
async fn python_slim_trixie() {
    let world = world();
    let image = world
        .build(&[
            "FROM python:3.13-slim",
            "RUN pip install --upgrade pip wheel uv",
            "RUN apt-get update",
            "RUN apt-get install -y jq",
        ])
        .await
        .unwrap();
    assert_eq!(image.python.map(|p| p.minor), Some(13));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the network"]
async fn a_python_that_debian_lacks() {
    let error = world().build(&["FROM python:3.12-slim-bookworm"]).await.unwrap_err().to_string();
    assert!(
        error.contains("it has no Python 3.12 (bookworm has 3.11)") && error.contains("registry"),
        "{error}"
    );
}
