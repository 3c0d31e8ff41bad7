//! Standalone Pythons from an address and from a folder: what is checked, kept, and said where there is none.

use super::*;
use crate::log::NoLog;
use crate::testing::{Answer, serve};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An archive of the project's layout; `extra` adds entries of its own.
fn archive(extra: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header
    };
    for (path, mode, text) in [("python/bin/python3.13", 0o755, "program"), ("python/lib/a.py", 0o644, "a")] {
        let mut header = header(tar::EntryType::Regular, mode, text.len());
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    let mut link = header(tar::EntryType::Symlink, 0o777, 0);
    tar.append_link(&mut link, "python/bin/python3", "python3.13").unwrap();
    extra(&mut tar);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &tar.into_inner().unwrap()).unwrap();
    gz.finish().unwrap()
}

fn name_of_archive() -> String {
    format!("cpython-3.13.0+20241008-{}-unknown-linux-gnu-install_only.tar.gz", std::env::consts::ARCH)
}

fn pythons(source: &str, folder: &Path) -> Arc<StandalonePythons> {
    let limits = evoke_files::fetch::Limits { attempts_max: 1, ..Default::default() };
    let fetcher = Fetcher::with_limits(&evoke_files::HostEnv::default(), limits).unwrap();
    Arc::new(StandalonePythons::open(source, folder.to_owned(), fetcher).unwrap())
}

async fn get(source: &str, folder: &Path) -> Result<StandalonePython> {
    pythons(source, folder).get("20241008.3.13.0-gnu", Arc::new(NoLog)).await
}

#[test]
fn names() {
    let of = |name: &str| Wanted::parse(name).map(|wanted| wanted.archives().swap_remove(0));
    assert_eq!(of("20241008.3.13.0-gnu"), Some(name_of_archive()));
    assert!(of("20251209.3.14.2t-gnu").unwrap().ends_with("-gnu-freethreaded-install_only.tar.gz"));
    for bad in ["", "x.3.13.0-gnu", "20241008.3.13.0-bsd", "20241008.../../x-gnu", "20241008.-gnu", "1.t-gnu"]
    {
        assert!(!StandalonePythons::knows(bad), "{bad}");
    }
}

#[tokio::test]
async fn what_was_fetched_once_is_kept_with_its_links_and_modes() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, asked) = (archive(|_| {}), Arc::new(AtomicUsize::new(0)));
    let (count, body) = (asked.clone(), bytes.clone());
    let address = serve(move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        match request.path.as_str() {
            "/r/20241008/SHA256SUMS" => {
                Answer::new(200, format!("{}  {}\n", sha256(&body), name_of_archive()))
            }
            path if path == format!("/r/20241008/{}", name_of_archive().replace('+', "%2B")) => {
                Answer::new(200, body.clone())
            }
            _ => Answer::new(404, ""),
        }
    });
    let source = format!("http://{address}/r/");
    let python = get(&source, folder.path()).await.unwrap();
    assert_eq!(std::fs::read_link(python.tree.join("python/bin/python3")).unwrap(), Path::new("python3.13"));
    let listed: Vec<_> =
        python.files.iter().map(|f| (f.path.as_str(), f.mode.unwrap() & 0o111 != 0)).collect();
    assert_eq!(
        listed,
        [("python/bin/python3", true), ("python/bin/python3.13", true), ("python/lib/a.py", false)]
    );
    assert_eq!(get(&source, folder.path()).await.unwrap(), python);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [".begun", "20241008.3.13.0-gnu"]);
}

#[tokio::test]
async fn a_wrong_digest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let address = serve(|request| match request.path.ends_with(SUMS) {
        true => Answer::new(200, format!("{}  {}\n", sha256(b"other"), name_of_archive())),
        false => Answer::new(200, archive(|_| {})),
    });
    let error = get(&format!("http://{address}"), folder.path()).await.unwrap_err().to_string();
    assert!(
        error.contains("does not match its digest") && error.contains("images.standalone_python"),
        "{error}"
    );
    assert!(!folder.path().join("20241008.3.13.0-gnu").exists());
}

#[tokio::test]
async fn what_is_not_to_be_had_names_the_mend() {
    let folder = tempfile::tempdir().unwrap();
    // A port that nobody listens on.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let missing = serve(|_| Answer::new(404, ""));
    for source in [format!("http://{gone}"), format!("http://{missing}"), "/nowhere".to_owned()] {
        let error = get(&source, folder.path()).await.unwrap_err().to_string();
        for part in ["Python 3.13.0", &name_of_archive(), "images.standalone_python"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[tokio::test]
async fn a_folder_is_a_source() {
    let (folder, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = source.path().join(name_of_archive());
    std::fs::write(&path, archive(|_| {})).unwrap();
    let python = get(source.path().to_str().unwrap(), folder.path()).await.unwrap();
    assert_eq!(python.files.len(), 3);
    assert!(path.exists());
}

#[tokio::test]
async fn nothing_climbs_out() {
    let (folder, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let climbing = archive(|tar| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "python/out", "/").unwrap();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(1);
        tar.append_data(&mut header, "python/out/climbed", b"x".as_slice()).unwrap();
    });
    std::fs::write(source.path().join(name_of_archive()), climbing).unwrap();
    get(source.path().to_str().unwrap(), folder.path()).await.unwrap_err();
    assert!(!Path::new("/climbed").exists());
}
