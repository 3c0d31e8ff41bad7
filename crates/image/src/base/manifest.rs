//! The documents of registries and OCI layouts: indexes, manifests, configurations.

use super::{architecture, env_pairs};
use crate::error::{ImageError, Result};
use crate::spec::{ImageSpec, PATH_DEFAULT, shell_default};
use serde::Deserialize;

/// Layers of one image at most.
const LAYERS_MAX: usize = 400;

/// What the Accept header of a manifest lists.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A pointer to a document or layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Where the content may be had, if not here.
    #[serde(default)]
    pub urls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    pub architecture: String,
    pub os: String,
    pub variant: Option<String>,
}

/// An index or a manifest, whichever it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Either {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

pub(super) fn read(what: &str, bytes: &[u8]) -> Result<Either> {
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|e| ImageError::malformed(what, format!("not an image manifest: {e}")))?;
    match document {
        Document { manifests: Some(manifests), .. } => Ok(Either::Index(manifests)),
        Document { config: Some(config), layers: Some(layers), .. } => {
            if layers.len() > LAYERS_MAX {
                return Err(ImageError::malformed(what, format!("more than {LAYERS_MAX} layers")));
            }
            for descriptor in layers.iter().chain([&config]) {
                check_digest(what, &descriptor.digest)?;
            }
            // Even an empty archive has bytes. What is downloaded is held to the size that is said here.
            if let Some(layer) = layers.iter().find(|layer| layer.size == 0) {
                let without = format!("the manifest gives no size of layer {}; push it anew", layer.digest);
                return Err(ImageError::malformed(what, without));
            }
            Ok(Either::Manifest(Manifest { config, layers }))
        }
        Document { schema_version: Some(1), .. } => Err(ImageError::malformed(
            what,
            "a schema 1 manifest, which no current tool writes; push it anew",
        )),
        _ => Err(ImageError::malformed(what, "neither an image index nor a manifest")),
    }
}

/// `sha256:` and 64 hex digits: safe as a file name.
pub(super) fn check_digest<'a>(what: &str, digest: &'a str) -> Result<&'a str> {
    match digest.strip_prefix("sha256:") {
        Some(hex)
            if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
        {
            Ok(hex)
        }
        _ => Err(ImageError::malformed(what, format!("{digest:?} is not a sha256 digest"))),
    }
}

/// The manifest of an index that this machine can run.
pub(super) fn choose<'a>(what: &str, manifests: &'a [Descriptor]) -> Result<&'a Descriptor> {
    let fits = |d: &&Descriptor| match &d.platform {
        Some(p) => p.os == "linux" && p.architecture == architecture(),
        None => false,
    };
    // Among variants (arm64/v8) the plain one is first.
    let mut found: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    found.sort_by_key(|d| d.platform.as_ref().and_then(|p| p.variant.clone()));
    if let Some(found) = found.first() {
        return Ok(found);
    }
    let only: Vec<&Descriptor> = manifests.iter().filter(|d| d.platform.is_none()).collect();
    if let ([only], 1) = (only.as_slice(), manifests.len()) {
        return Ok(only);
    }
    let has: Vec<String> = manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .filter(|p| !p.contains("unknown"))
        .collect();
    let message = format!("it has no linux/{} image (it has: {})", architecture(), has.join(", "));
    Err(ImageError::malformed(what, message))
}

#[derive(Debug, Deserialize)]
struct ConfigDocument {
    config: Option<ConfigPart>,
    architecture: Option<String>,
    rootfs: Option<RootFs>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigPart {
    env: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    shell: Option<Vec<String>>,
}

/// An image without its layers, and the digests of the layers' uncompressed content.
pub(super) fn read_config(what: &str, bytes: &[u8]) -> Result<(ImageSpec, Vec<String>)> {
    let document: ConfigDocument = serde_json::from_slice(bytes)
        .map_err(|e| ImageError::malformed(what, format!("not an image configuration: {e}")))?;
    if let Some(arch) = document.architecture.as_deref().filter(|a| !a.is_empty() && *a != architecture()) {
        return Err(ImageError::malformed(
            what,
            format!("the image is for {arch}, this machine is {}", architecture()),
        ));
    }
    let part = document.config.unwrap_or_default();
    let mut image = ImageSpec {
        env: env_pairs(&part.env.unwrap_or_default()),
        cmd: part.cmd.unwrap_or_default(),
        entrypoint: part.entrypoint.unwrap_or_default(),
        workdir: part.working_dir.filter(|w| w.starts_with('/')).unwrap_or_else(|| "/".into()),
        user: part.user.unwrap_or_default(),
        shell: part.shell.filter(|s| !s.is_empty()).unwrap_or_else(shell_default),
        ..ImageSpec::default()
    };
    if image.env("PATH").is_none() {
        image.set_env("PATH", PATH_DEFAULT);
    }
    Ok((image, document.rootfs.map(|r| r.diff_ids).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor(arch: &str) -> Descriptor {
        let platform = Platform { architecture: arch.into(), os: "linux".into(), variant: None };
        Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{}", "0".repeat(64)),
            size: 1,
            platform: Some(platform),
            annotations: Default::default(),
            urls: vec![],
        }
    }

    #[test]
    fn chooses_this_machine() {
        let list = [descriptor("s390x"), descriptor(architecture())];
        assert_eq!(choose("x", &list).unwrap(), &list[1]);
        assert!(choose("x", &list[..1]).unwrap_err().to_string().contains("linux/s390x"));
    }

    #[test]
    fn reads_configurations() {
        let text =
            br#"{"config":{"Env":["PATH=/x","A=b=c"],"Cmd":["sh"],"WorkingDir":"","Entrypoint":null}}"#;
        let (image, _) = read_config("x", text).unwrap();
        assert_eq!((image.env("A"), image.workdir.as_str(), image.cmd.len()), (Some("b=c"), "/", 1));
        assert!(read_config("x", br#"{"architecture":"s390x"}"#).is_err());
    }

    #[test]
    fn refuses_digests_that_are_paths() {
        let text = br#"{"config":{"digest":"sha256:../../x"},"layers":[]}"#;
        assert!(read("x", text).unwrap_err().to_string().contains("not a sha256 digest"));
    }

    #[test]
    fn refuses_layers_without_a_size() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let manifest = |size: &str| {
            let (config, layer) =
                (format!(r#"{{"digest":"{digest}"}}"#), format!(r#"{{"digest":"{digest}"{size}}}"#));
            read("x", format!(r#"{{"config":{config},"layers":[{layer}]}}"#).as_bytes())
        };
        assert!(manifest("").unwrap_err().to_string().contains("no size of layer"));
        assert!(manifest(r#","size":32"#).is_ok());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read("x", &bytes);
            let _ = read_config("x", &bytes);
        }
    }
}
