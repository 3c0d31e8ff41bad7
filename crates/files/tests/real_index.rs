//! Against the real package index: the official client's bundles import in an interpreter that has nothing
//! else installed. Needs a network and the interpreter that EVOKE_TEST_PYTHON names (CPython 3.11).
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use evoke_files::{
    HostEnv,
    bundles::{Bundle, Bundles, Bytecode},
    fetch::Fetcher,
    pypi::{IndexConfig, Libc, PackageIndex},
};
use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

const CLIENT: &str = "1.6.4";
const RUNS: usize = 7;

fn import(python: &str, client: &Bundle, deps: &Bundle) -> (Output, Duration) {
    let code = "import sys; sys.path.append(sys.argv[1]); import modal._container_entrypoint; \
                print(modal.__file__, sorted({m.split('.')[0] for m in sys.modules if 'site-packages' in \
                (getattr(sys.modules[m], '__file__', None) or '')}))";
    let start = Instant::now();
    let output = Command::new(python)
        .args(["-s", "-S", "-c", code])
        .arg(deps.tree.join("__modal/deps"))
        .env_clear()
        .env("PYTHONPATH", client.tree.join("pkg"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    (output, start.elapsed())
}

fn median(python: &str, client: &Bundle, deps: &Bundle) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS).map(|_| import(python, client, deps).1).collect();
    times.sort();
    times[RUNS / 2]
}

fn compile(bundles: &Bundles, bundle: &Bundle, python: &str) -> Bundle {
    match bundles.bytecode(bundle, 11, "test").unwrap() {
        Bytecode::Ready(ready) => ready,
        Bytecode::Needed(job) => {
            // Without a container the tree is compiled where it lies.
            let argv = job.argv_at(python, job.tree().to_str().unwrap());
            let start = Instant::now();
            let status = Command::new(&argv[0]).args(&argv[1..]).status().unwrap();
            eprintln!("{}: compiled in {:?}, {status}", bundle.key, start.elapsed());
            job.finish().unwrap()
        }
    }
}

#[test]
#[ignore = "needs a network and an interpreter"]
fn the_client_imports_from_its_bundles_alone() {
    let host = HostEnv::of_this_process();
    let index = PackageIndex::new(Fetcher::from_host(&host).unwrap(), IndexConfig::of_host(&host));
    let folder = tempfile::tempdir().unwrap();
    let root = std::env::var("EVOKE_TEST_BUNDLES").unwrap_or(folder.path().to_str().unwrap().to_owned());
    let bundles = Bundles::open(Path::new(&root), &host, index).unwrap();
    let talk = |line: &str| eprintln!("{line}");
    let start = Instant::now();
    let client = bundles.client_mount(CLIENT, &talk).unwrap();
    let deps = bundles.dependencies(CLIENT, "2025.06", 11, Libc::MANYLINUX_2_17, &talk).unwrap().unwrap();
    eprintln!("made in {:?}: {:#?}", start.elapsed(), deps.packages);
    let musl = bundles.dependencies(CLIENT, "2025.06", 12, Libc::MUSLLINUX_1_2, &talk).unwrap().unwrap();
    eprintln!("{}", musl.key);

    let python = std::env::var("EVOKE_TEST_PYTHON").unwrap_or("python3.11".into());
    let (output, _) = import(&python, &client, &deps);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.trim(), format!("{}/pkg/modal/__init__.py []", client.tree.display()));
    let plain = median(&python, &client, &deps);
    let (client, deps) = (compile(&bundles, &client, &python), compile(&bundles, &deps, &python));
    assert!(import(&python, &client, &deps).0.status.success());
    let compiled = median(&python, &client, &deps);
    eprintln!("import of the entrypoint: {plain:?} without bytecode, {compiled:?} with");
    assert!(compiled < plain);
}
