//! Client bundles from an index on this machine, from wheels at hand, and what is said when there is neither.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use common::{Answer, Server, files_below, wheel};
use evoke_files::{
    ContentHash, HostEnv,
    bundles::{Bundle, BundleError, Bundles, Bytecode},
    fetch::{Fetcher, Limits},
    pypi::{IndexConfig, Libc, PackageIndex},
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Mutex,
    time::Duration,
};

const METADATA: &str = "Metadata-Version: 2.4\nName: modal\nRequires-Dist: click~=8.1\n\
    Requires-Dist: synchronicity~=0.12.7\nRequires-Dist: x[y]>=2; extra == \"z\"\n\nRequires-Dist: synchronicity==9\n";

fn modal_wheel() -> Vec<u8> {
    wheel(&[
        ("modal/__init__.py", "X = 1\n"),
        ("modal/.hidden", ""),
        ("modal/__pycache__/__init__.cpython-311.pyc", "from the wheel"),
        (
            "modal/builder/2025.06.txt",
            "dep==2.5 # why\nold==1 ; python_version < \"3.11\"\nlag==2026.10.19\n",
        ),
        ("modal_proto/api.py", "Y = 2\n"),
        ("modal_version/__init__.py", "__version__ = '1.6.4'\n"),
        ("modal_docs/x.md", ""),
        ("modal-1.6.4.dist-info/METADATA", METADATA),
    ])
}

/// The files of an index: project, file name, content.
type Files = BTreeMap<String, Vec<u8>>;

fn index_files() -> Files {
    let simple = |module: &str| wheel(&[(&format!("{module}/__init__.py"), "Z = 3\n")]);
    BTreeMap::from([
        ("modal-1.6.4-py3-none-any.whl".to_owned(), modal_wheel()),
        ("synchronicity-0.12.6-py3-none-any.whl".to_owned(), simple("wrong")),
        ("synchronicity-0.12.9-py3-none-any.whl".to_owned(), simple("synchronicity")),
        ("synchronicity-0.13.0-py3-none-any.whl".to_owned(), simple("wrong")),
        ("dep-2.5-cp311-cp311-manylinux_2_17_x86_64.whl".to_owned(), simple("dep")),
        ("dep-2.5-cp311-cp311-manylinux_2_17_aarch64.whl".to_owned(), simple("dep")),
        ("lag-2025.1.1-py3-none-any.whl".to_owned(), simple("wrong")),
        ("lag-2026.7.22-py3-none-any.whl".to_owned(), simple("lag")),
        ("lag-2026.11.1-py3-none-any.whl".to_owned(), simple("wrong")),
    ])
}

fn index(files: Files) -> Server {
    Server::start(move |request, _| {
        let path = request.target.trim_matches('/');
        if let Some(project) = path.strip_prefix("simple/") {
            let links: String = files
                .iter()
                .filter(|(name, _)| name.starts_with(&format!("{project}-")))
                .map(|(name, body)| {
                    format!("<a href=\"../../files/{name}#sha256={}\">{name}</a>\n", ContentHash::of(body))
                })
                .collect();
            let found = if links.is_empty() { Answer::status(404) } else { Answer::ok(links) };
            return found.header("content-type", "text/html");
        }
        let file = path.strip_prefix("files/").and_then(|name| files.get(name));
        file.map_or_else(|| Answer::status(404), |body| Answer::ok(body.clone()))
    })
}

fn bundles(root: &Path, index_url: &str, host: &HostEnv) -> Bundles {
    let backoff = Duration::from_millis(1);
    let fetcher =
        Fetcher::with_limits(host, Limits { backoff, attempts_max: 2, ..Limits::default() }).unwrap();
    let config = IndexConfig { index_url: index_url.into(), extra_index_urls: vec![] };
    Bundles::open(root, host, PackageIndex::new(fetcher, config)).unwrap()
}

fn quiet(_: &str) {}

fn versions(bundle: &Bundle) -> Vec<String> {
    bundle.packages.iter().map(|p| format!("{} {}", p.name, p.version)).collect()
}

#[test]
fn a_client_and_its_dependencies_from_an_index() {
    let server = index(index_files());
    let folder = tempfile::tempdir().unwrap();
    let url = format!("{}/simple", server.url);
    let bundles = bundles(folder.path(), &url, &HostEnv::default());
    let lines = Mutex::new(Vec::new());
    let talk = |line: &str| lines.lock().unwrap().push(line.to_owned());
    let client = bundles.client_mount("1.6.4", &talk).unwrap();
    assert_eq!(versions(&client), ["modal 1.6.4", "synchronicity 0.12.9"]);
    assert_eq!(
        files_below(&client.tree),
        [
            "pkg/modal/__init__.py",
            "pkg/modal/builder/2025.06.txt",
            "pkg/modal_proto/api.py",
            "pkg/modal_version/__init__.py",
            "pkg/synchronicity/__init__.py",
        ]
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&client.tree), mode(&client.tree.join("pkg/modal/__init__.py"))), (0o755, 0o644));

    let deps = |minor| bundles.dependencies("1.6.4", "2025.06", minor, Libc::MANYLINUX_2_17, &talk);
    let eleven = deps(11).unwrap().unwrap();
    assert_eq!(versions(&eleven), ["dep 2.5", "lag 2026.7.22"]);
    assert_eq!(eleven.packages[1].instead_of.as_deref(), Some("2026.10.19"));
    let (own, theirs): (Vec<_>, Vec<_>) =
        files_below(&eleven.tree).into_iter().partition(|path| path.starts_with("pkg/"));
    assert_eq!(theirs, ["__modal/deps/dep/__init__.py", "__modal/deps/lag/__init__.py"]);
    for path in ["pkg/sitecustomize.py", "pkg/evoke_runtime/__main__.py"] {
        assert!(own.iter().any(|own| own == path), "{own:?}");
    }
    let said = lines.lock().unwrap().join("\n");
    assert!(said.contains("lag: the package index does not have the version 2026.10.19"), "{said}");
    let error = evoke_core::Error::from(deps(10).unwrap_err()).to_string();
    assert!(
        error.contains("no wheel of dep ==2.5 fits CPython 3.10") || error.contains("project old"),
        "{error}"
    );
    assert!(error.contains("PIP_INDEX_URL") && error.contains("bundles/wheels"), "{error}");
    assert_eq!(bundles.dependencies("1.6.4", "2024.10", 11, Libc::MUSLLINUX_1_2, &talk).unwrap(), None);
    let unknown = bundles.dependencies("1.6.4", "2031.01", 11, Libc::MANYLINUX_2_17, &talk);
    assert!(matches!(unknown, Err(BundleError::UnknownBuilder { .. })));

    // Everything is at hand now: no request any more, not even by another server process.
    let asked = server.requests().len();
    drop(bundles);
    let again = self::bundles(folder.path(), "http://127.0.0.1:1/simple", &HostEnv::default());
    assert_eq!(again.client_mount("1.6.4", &quiet).unwrap(), client);
    let same = again.dependencies("1.6.4", "2025.06", 11, Libc::MANYLINUX_2_17, &quiet).unwrap();
    assert_eq!((same.unwrap(), server.requests().len()), (eleven, asked));
}

#[test]
fn many_callers_share_one_build() {
    let server = index(index_files());
    let folder = tempfile::tempdir().unwrap();
    let bundles = bundles(folder.path(), &format!("{}/simple", server.url), &HostEnv::default());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| bundles.client_mount("1.6.4", &quiet).unwrap());
        }
    });
    assert_eq!(server.requests().len(), 4, "two pages and two wheels");
}

#[test]
fn without_an_index_wheels_at_hand_will_do_and_else_the_mend_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let wheels = folder.path().join("seed");
    fs::create_dir(&wheels).unwrap();
    let named = wheels.join("modal-1.6.4-py3-none-any.whl");
    fs::write(&named, modal_wheel()).unwrap();
    let host = HostEnv::of_pairs([("EVOKE_MODAL_WHEEL", named.to_str().unwrap())]);
    let nowhere = "http://user:secret@127.0.0.1:1/simple";
    let bundles = bundles(&folder.path().join("bundles"), nowhere, &host);
    let error = evoke_core::Error::from(bundles.client_mount("1.6.4", &quiet).unwrap_err()).to_string();
    assert!(error.contains("needs synchronicity") && error.contains("beside the wheel"), "{error}");
    let error = evoke_core::Error::from(bundles.client_mount("1.6.5", &quiet).unwrap_err()).to_string();
    assert!(error.contains("EVOKE_MODAL_WHEEL") && error.contains("PIP_INDEX_URL"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    let files = index_files();
    let name = "synchronicity-0.12.9-py3-none-any.whl";
    fs::write(wheels.join(name), &files[name]).unwrap();
    assert_eq!(bundles.client_mount("1.6.4", &quiet).unwrap().packages.len(), 2);
    assert!(matches!(bundles.client_mount("../1", &quiet), Err(BundleError::Version(_))));
    assert_eq!(fs::read_dir(folder.path().join("bundles/tmp")).unwrap().count(), 0);
}

#[test]
fn only_bytecode_is_taken_from_a_container() {
    let server = index(index_files());
    let folder = tempfile::tempdir().unwrap();
    let bundles = bundles(folder.path(), &format!("{}/simple", server.url), &HostEnv::default());
    let client = bundles.client_mount("1.6.4", &quiet).unwrap();
    let Bytecode::Needed(job) = bundles.bytecode(&client, 11, "im-abc").unwrap() else { panic!() };
    let modal = job.tree().join("pkg/modal");
    let good = [b"magi".as_slice(), &[1, 0, 0, 0], &[0; 8], b"code"].concat();
    fs::create_dir(modal.join("__pycache__")).unwrap();
    let cache = modal.join("__pycache__");
    fs::write(cache.join("__init__.cpython-311.pyc"), &good).unwrap();
    fs::write(cache.join("__init__.cpython-312.pyc"), &good).unwrap();
    fs::write(cache.join("nosource.cpython-311.pyc"), &good).unwrap();
    // Everything else that a hostile container may leave.
    fs::write(modal.join("__init__.py"), "evil").unwrap();
    fs::write(modal.join("extra.py"), "evil").unwrap();
    symlink("/etc", job.tree().join("pkg/evil")).unwrap();
    let proto = job.tree().join("pkg/modal_proto");
    fs::create_dir(proto.join("__pycache__")).unwrap();
    symlink("/etc/passwd", proto.join("__pycache__/api.cpython-311.pyc")).unwrap();
    fs::remove_dir_all(job.tree().join("pkg/synchronicity")).unwrap();
    symlink("/etc", job.tree().join("pkg/synchronicity")).unwrap();
    let compiled = job.finish().unwrap();
    assert_eq!(compiled.key, "client-1.6.4-cp311-pyc-im-abc");
    let mut wanted = files_below(&client.tree);
    wanted.push("pkg/modal/__pycache__/__init__.cpython-311.pyc".into());
    wanted.sort();
    assert_eq!(files_below(&compiled.tree), wanted);
    for tree in [&client.tree, &compiled.tree] {
        assert_eq!(fs::read_to_string(tree.join("pkg/modal/__init__.py")).unwrap(), "X = 1\n");
    }
    assert!(matches!(bundles.bytecode(&client, 11, "im-abc").unwrap(), Bytecode::Ready(b) if b == compiled));
    let Bytecode::Needed(idle) = bundles.bytecode(&client, 12, "im-abc").unwrap() else { panic!() };
    assert!(matches!(idle.finish(), Err(BundleError::NoBytecode(12))));
    assert!(bundles.bytecode(&client, 11, "../x").is_err());
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

/// Needs a `python3` on the path, as every machine that runs the end-to-end suite has.
#[test]
#[ignore = "needs python3"]
fn our_sitecustomize_appends_and_hands_on() {
    let folder = tempfile::tempdir().unwrap();
    let (pkg, user) = (folder.path().join("pkg"), folder.path().join("user"));
    fs::create_dir(&pkg).unwrap();
    fs::create_dir(&user).unwrap();
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bundles/sitecustomize.py");
    fs::copy(ours, pkg.join("sitecustomize.py")).unwrap();
    let run = || {
        let path = format!("{}:{}", pkg.display(), user.display());
        let output = Command::new("python3")
            .args(["-c", "import sys; print(sys.path[-1], getattr(sys, 'theirs', None), sys.modules['sitecustomize'].__file__)"])
            .env("PYTHONPATH", path)
            .output()
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    assert!(run().starts_with("/__modal/deps None"), "{}", run());
    fs::write(user.join("sitecustomize.py"), "import sys; sys.theirs = __name__\n").unwrap();
    let wanted = format!("/__modal/deps sitecustomize {}", user.join("sitecustomize.py").display());
    assert_eq!(run().trim(), wanted);
}
