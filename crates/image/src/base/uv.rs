//! `ghcr.io/astral-sh/uv` from the Python package index: the wheel of uv holds the same static programs.

use super::{Bases, Found, Miss, Reference, architecture, blob, blocking};
use crate::digest::{Hasher, sha256};
use crate::error::{ImageError, Result};
use crate::log::{LogSink, say};
use crate::spec::ImageSpec;
use crate::steps::Root;
use evoke_files::fetch::{Fetcher, join_url};
use serde::Deserialize;
use std::io::Read;

/// Bytes of an index page at most.
const PAGE_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of the wheel at most.
const WHEEL_MAX: u64 = 256 * 1024 * 1024;

/// A wheel of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wheel {
    version: Vec<u64>,
    name: String,
    url: String,
    sha256: Option<String>,
}

/// Whether the reference is the image of uv.
pub(super) fn is_uv(reference: &Reference) -> bool {
    reference.registry == "ghcr.io" && reference.repository == "astral-sh/uv"
}

impl Bases {
    pub(super) async fn uv(&self, reference: &Reference, log: &dyn LogSink) -> Found {
        let wanted = match reference.tag.as_deref() {
            None if reference.digest.is_some() => {
                return Err(Miss::NotMine("a digest names an image of the registry only".into()));
            }
            None | Some("latest") => Vec::new(),
            Some(tag) => match version(tag) {
                Some(version) => version,
                None => return Err(Miss::NotMine(format!("the tag {tag} names no plain version of uv"))),
            },
        };
        let index = self.tools.network.index_url().to_owned();
        let fetcher = self.tools.fetcher.clone();
        let wheel = blocking("look for uv", move || choose(&fetcher, &index, &wanted)).await?;
        let mut hasher = Hasher::new("evoke-uv-1");
        hasher.text(&wheel.name).text(wheel.sha256.as_deref().unwrap_or_default());
        let key = hasher.finish();
        let mut image =
            ImageSpec { provenance: vec![format!("{} for {reference}", wheel.name)], ..ImageSpec::default() };
        if let Some(layer) = self.tools.layer(&key).await? {
            image.layers.push(layer);
            return Ok(image);
        }
        say(log, format!("Taking uv from {}", wheel.name));
        let fetcher = self.tools.fetcher.clone();
        let origin = wheel.name.clone();
        let piped = blob::pipe_through(origin.clone(), move |out| {
            let bytes = fetcher.get_bytes(&wheel.url, &[], WHEEL_MAX)?;
            if let Some(expected) = &wheel.sha256 {
                let got = sha256(&bytes);
                if got != *expected {
                    return Err(ImageError::Digest { what: wheel.url, expected: expected.clone(), got });
                }
            }
            write_tar(&wheel.name, bytes, out)
        })?;
        image.layers.push(self.tools.unpack(&Root::default(), piped, &key, origin, log).await?);
        Ok(image)
    }
}

/// The programs of the wheel as a tar stream: `/uv` and `/uvx`.
fn write_tar(name: &str, wheel: Vec<u8>, out: &mut dyn std::io::Write) -> Result<()> {
    let broken = |e: &dyn std::fmt::Display| ImageError::malformed(name, e);
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(wheel)).map_err(|e| broken(&e))?;
    let mut tar = tar::Builder::new(out);
    let mut found = 0;
    for at in 0..zip.len() {
        let mut file = zip.by_index(at).map_err(|e| broken(&e))?;
        let program = match file.name().rsplit_once(".data/scripts/") {
            Some((_, program @ ("uv" | "uvx"))) => program.to_owned(),
            _ => continue,
        };
        let mut bytes = Vec::new();
        file.by_ref().take(WHEEL_MAX).read_to_end(&mut bytes).map_err(|e| broken(&e))?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, program, bytes.as_slice()).map_err(|e| broken(&e))?;
        found += 1;
    }
    if found == 0 {
        return Err(broken(&"the wheel holds no uv"));
    }
    tar.finish().map_err(|e| broken(&e))
}

/// `0.5`, `0.5.4` as numbers; suffixes (`-alpine`, `rc1`) are other images.
fn version(text: &str) -> Option<Vec<u64>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

fn choose(fetcher: &Fetcher, index: &str, wanted: &[u64]) -> Result<Wheel> {
    let url = format!("{}/uv/", index.trim_end_matches('/'));
    let accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
    let reply = fetcher.get(&url, &[("accept", accept)])?.success()?;
    let json = reply.header("content-type").is_some_and(|t| t.contains("json"));
    let base = reply.url.clone();
    let page = reply.bytes(PAGE_MAX)?;
    let wheels = if json { of_json(&base, &page)? } else { of_html(&base, &String::from_utf8_lossy(&page)) };
    newest(wheels, wanted).ok_or_else(|| {
        let asked: Vec<String> = wanted.iter().map(u64::to_string).collect();
        let asked = if asked.is_empty() { "uv".to_owned() } else { format!("uv {}", asked.join(".")) };
        ImageError::fetch(&url, format!("the index has no wheel of {asked} for this machine"))
    })
}

fn newest(wheels: Vec<Wheel>, wanted: &[u64]) -> Option<Wheel> {
    wheels.into_iter().filter(|w| w.version.starts_with(wanted)).max_by(|a, b| a.version.cmp(&b.version))
}

/// A wheel for this machine, by its file name. The musl build is static and runs on any C library.
fn wheel(base: &str, name: &str, url: &str, sha256: Option<String>) -> Option<Wheel> {
    let machine = match architecture() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    let rest = name.strip_prefix("uv-")?.strip_suffix(".whl")?;
    let (text, tags) = rest.split_once('-')?;
    if !tags.contains("musllinux") || !tags.ends_with(machine) {
        return None;
    }
    Some(Wheel { version: version(text)?, name: name.to_owned(), url: join_url(base, url)?, sha256 })
}

fn of_json(base: &str, page: &[u8]) -> Result<Vec<Wheel>> {
    #[derive(Deserialize)]
    struct Page {
        files: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        filename: String,
        url: String,
        #[serde(default)]
        hashes: std::collections::BTreeMap<String, String>,
        #[serde(default)]
        yanked: serde_json::Value,
    }
    let page: Page = serde_json::from_slice(page).map_err(|e| ImageError::malformed(base, e))?;
    let kept = page
        .files
        .into_iter()
        .filter(|f| matches!(f.yanked, serde_json::Value::Null | serde_json::Value::Bool(false)));
    Ok(kept.filter_map(|f| wheel(base, &f.filename, &f.url, f.hashes.get("sha256").cloned())).collect())
}

fn of_html(base: &str, page: &str) -> Vec<Wheel> {
    page.split("<a ")
        .skip(1)
        .filter_map(|anchor| {
            let (attributes, rest) = anchor.split_once('>')?;
            let name = rest.split('<').next()?.trim();
            let href = attributes.split_once("href=\"")?.1.split('"').next()?.replace("&amp;", "&");
            if attributes.contains("data-yanked") {
                return None;
            }
            let (url, fragment) = href.split_once('#').unwrap_or((&href, ""));
            wheel(base, name, url, fragment.strip_prefix("sha256=").map(str::to_owned))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_by_version() {
        let machine = if architecture() == "arm64" { "aarch64" } else { "x86_64" };
        let names = ["0.4.9", "0.5.10", "0.5.9", "0.6.0rc1", "1.0.0"];
        let page: String = names
            .iter()
            .map(|v| {
                let file = format!("uv-{v}-py3-none-musllinux_1_1_{machine}.whl");
                format!("<a href=\"../../f/{file}#sha256=ab\">{file}</a><br/>")
            })
            .collect();
        let wheels = of_html("http://x.org/simple/uv/", &page);
        assert_eq!(wheels.len(), 4);
        assert!(
            wheels[0].url.starts_with("http://x.org/f/uv-0.4.9") && wheels[0].sha256.as_deref() == Some("ab")
        );
        assert_eq!(newest(wheels.clone(), &[]).unwrap().version, [1, 0, 0]);
        assert_eq!(newest(wheels.clone(), &[0, 5]).unwrap().version, [0, 5, 10]);
        assert_eq!(newest(wheels.clone(), &[0, 5, 9]).unwrap().version, [0, 5, 9]);
        assert_eq!(newest(wheels, &[2]), None);
    }

    #[test]
    fn takes_the_programs_out() {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        for name in ["uv/__init__.py", "uv-1.0.data/scripts/uv", "uv-1.0.data/scripts/uvx"] {
            zip.start_file(name, options).unwrap();
            std::io::Write::write_all(&mut zip, name.as_bytes()).unwrap();
        }
        let mut out = Vec::new();
        write_tar("x", zip.finish().unwrap().into_inner(), &mut out).unwrap();
        let mut archive = tar::Archive::new(out.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["uv", "uvx"]);
        assert!(write_tar("x", b"junk".to_vec(), &mut Vec::new()).is_err());
    }
}
