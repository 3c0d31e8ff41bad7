//! Debian's archive: the signed list of its files, the package lists, the packages; each checked against
//! the digest that the one before it gives.

use super::control::stanzas;
use super::resolve::Package;
use crate::base::blob::decompress;
use crate::digest::sha256;
use crate::error::{ImageError, Result};
use evoke_files::ContentHash;
use evoke_files::fetch::{Download, Fetcher};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of the signed list at most.
const RELEASE_MAX: u64 = 8 * 1024 * 1024;
/// Bytes of a package list at most, as sent and unpacked.
const PACKAGES_MAX: u64 = 256 * 1024 * 1024;
/// The keyring that the host may have.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite at one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suite {
    /// `http://deb.debian.org/debian`
    pub mirror: String,
    /// `bookworm`, `bookworm-security`
    pub name: String,
    /// An image cannot be made without it.
    pub needed: bool,
}

/// What was said of a suite's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signature {
    Verified,
    /// Not checked, and why.
    Unchecked(String),
}

/// The package list of a suite.
pub(super) struct PackageList {
    pub text: String,
    pub signature: Signature,
}

/// Fetches and checks the package list of `suite`.
pub(super) fn package_list(fetcher: &Fetcher, suite: &Suite, arch: &str) -> Result<PackageList> {
    let base = format!("{}/dists/{}", suite.mirror.trim_end_matches('/'), suite.name);
    let release_url = format!("{base}/InRelease");
    let release = fetcher.get_bytes(&release_url, &[], RELEASE_MAX)?;
    let (signed, signature) = verify(&release_url, &release)?;
    let digests = release_digests(&signed);
    for name in [format!("main/binary-{arch}/Packages.xz"), format!("main/binary-{arch}/Packages.gz")] {
        let Some((expected, size)) = digests.get(&name) else { continue };
        let url = format!("{base}/{name}");
        let bytes = fetch_list(fetcher, &base, &name, expected, (*size).min(PACKAGES_MAX))?;
        let got = sha256(&bytes);
        if got != *expected {
            return Err(ImageError::Digest { what: url, expected: expected.clone(), got });
        }
        let mut text = String::new();
        decompress(&url, std::io::Cursor::new(bytes))?
            .take(PACKAGES_MAX)
            .read_to_string(&mut text)
            .map_err(|e| ImageError::malformed(&url, e))?;
        return Ok(PackageList { text, signature });
    }
    Err(ImageError::malformed(release_url, format!("it lists no packages for {arch}")))
}

/// By digest first: a mirror that is being updated has the old list there still.
fn fetch_list(fetcher: &Fetcher, base: &str, name: &str, digest: &str, size: u64) -> Result<Vec<u8>> {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let by_hash = format!("{base}/{folder}/by-hash/SHA256/{digest}");
    match fetcher.get_bytes(&by_hash, &[], size) {
        Err(error) if matches!(error.status(), Some(403..=410)) => {
            Ok(fetcher.get_bytes(&format!("{base}/{name}"), &[], size)?)
        }
        other => Ok(other?),
    }
}

/// The signed text, by the host's `gpgv` where it has one and Debian's keys.
fn verify(url: &str, release: &[u8]) -> Result<(String, Signature)> {
    let text = String::from_utf8_lossy(release).into_owned();
    if !Path::new(KEYRING).is_file() {
        let why = "this machine has no debian-archive-keyring".to_owned();
        return Ok((signed_part(&text), Signature::Unchecked(why)));
    }
    let child = Command::new("gpgv")
        .args(["--quiet", "--status-fd", "2", "--keyring", KEYRING, "--output", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Ok((signed_part(&text), Signature::Unchecked(format!("gpgv: {error}")))),
    };
    let stdin = child.stdin.take();
    // The list is larger than a pipe: written from a thread while the output is read.
    let writer = std::thread::scope(|scope| {
        let writing = scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(release)));
        let output = child.wait_with_output();
        // A writer that gpgv did not hear out shows in what gpgv says.
        drop(writing.join());
        output
    });
    let output = writer.map_err(|e| ImageError::builder("run gpgv", e))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // A release is signed by several keys, and an older keyring lacks the newest of them: one good
    // signature will do, a bad one never.
    let good = said.contains("[GNUPG:] VALIDSIG") && !said.contains("[GNUPG:] BADSIG");
    if !good {
        let said = said.trim().replace('\n', "; ");
        return Err(ImageError::malformed(url, format!("its signature is not by Debian's keys: {said}")));
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), Signature::Verified))
}

/// The text between the header and the signature of a clear-signed message.
fn signed_part(text: &str) -> String {
    let Some(at) = text.find("-----BEGIN PGP SIGNED MESSAGE-----") else { return text.to_owned() };
    let body = text[at..].split_once("\n\n").map_or("", |(_, body)| body);
    body.split("-----BEGIN PGP SIGNATURE-----").next().unwrap_or_default().to_owned()
}

/// Name to digest and size, of the SHA256 section.
fn release_digests(text: &str) -> BTreeMap<String, (String, u64)> {
    let Some(stanza) = stanzas(text).next() else { return BTreeMap::new() };
    let lines = stanza.get("SHA256").unwrap_or_default().lines();
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let digest = words.next()?.to_owned();
            let size = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), (digest, size)))
        })
        .collect()
}

/// Where a package is kept.
pub(super) fn target(folder: &Path, package: &Package) -> PathBuf {
    // Named by its digest: the names of the archive are not ours to trust as paths.
    folder.join(format!("{}.deb", package.sha256))
}

/// Brings a package, unless it is there and whole.
pub(super) fn fetch_package(
    fetcher: &Fetcher,
    suites: &[Suite],
    package: &Package,
    target: &Path,
) -> Result<()> {
    let wrong = |message: &str| ImageError::malformed(format!("package {}", package.name), message);
    let sha256: ContentHash = package.sha256.parse().map_err(|_| wrong("its digest is not one"))?;
    let suite = suites.get(package.origin).ok_or_else(|| wrong("it comes from no known suite"))?;
    let url = format!("{}/{}", suite.mirror.trim_end_matches('/'), package.filename);
    let download = Download {
        url: &url,
        sha256: Some(sha256),
        length: Some(package.size),
        passing: true,
        ..Download::default()
    };
    fetcher.download(&download, target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_releases() {
        let text = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nSHA256:\n ab 12 main/binary-amd64/Packages.xz\n cd 13 other\n-----BEGIN PGP SIGNATURE-----\nx\n";
        let digests = release_digests(&signed_part(text));
        assert_eq!(digests["main/binary-amd64/Packages.xz"], ("ab".into(), 12));
        assert_eq!(digests.len(), 2);
    }
}
