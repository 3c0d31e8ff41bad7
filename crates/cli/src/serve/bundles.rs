//! The client's packages for containers, as control asks for them.

use super::bytecode::{Bytecode, own_layer};
use async_trait::async_trait;
use evoke_control::ports::{BuiltImage, Bundles};
use evoke_core::Error;
use evoke_files::pypi::Libc;
use evoke_proto::worker::LayerRef;

/// Bundles, and their compiled form where there is one.
pub(super) struct ClientBundles {
    bundles: evoke_files::bundles::Bundles,
    bytecode: Bytecode,
}

impl ClientBundles {
    pub(super) fn new(bundles: evoke_files::bundles::Bundles, bytecode: Bytecode) -> Self {
        Self { bundles, bytecode }
    }
}

#[async_trait]
impl Bundles for ClientBundles {
    async fn client(&self, version: &str) -> Result<LayerRef, Error> {
        let (bundles, version) = (self.bundles.clone(), version.to_owned());
        let made = tokio::task::spawn_blocking(move || bundles.client_mount(&version, &say)).await;
        let bundle = made.map_err(|e| Error::internal(format!("preparing the client: {e}")))??;
        own_layer(&bundle.tree)
    }

    async fn dependencies(&self, image: &BuiltImage) -> Result<Option<LayerRef>, Error> {
        if let Some(compiled) = self.bytecode.ready(image)? {
            return Ok(Some(compiled));
        }
        self.bytecode.prepare(image);
        let Some(tree) = plain(&self.bundles, image).await? else { return Ok(None) };
        own_layer(&tree).map(Some)
    }
}

/// The uncompiled dependencies of an image; none where the image has them installed.
pub(super) async fn plain(
    bundles: &evoke_files::bundles::Bundles,
    image: &BuiltImage,
) -> Result<Option<std::path::PathBuf>, Error> {
    let Some(minor) = minor_of(image) else { return Ok(None) };
    let libc = if image.libc.starts_with("musl") { Libc::MUSLLINUX_1_2 } else { Libc::MANYLINUX_2_17 };
    let (bundles, builder) = (bundles.clone(), image.builder_version.clone());
    let client = evoke_proto::CLIENT_VERSION;
    let made =
        tokio::task::spawn_blocking(move || bundles.dependencies(client, &builder, minor, libc, &say)).await;
    let bundle = made.map_err(|e| Error::internal(format!("preparing the client's packages: {e}")))??;
    Ok(bundle.map(|bundle| bundle.tree))
}

/// The 11 of `3.11.2`; none where the image has no Python.
pub(super) fn minor_of(image: &BuiltImage) -> Option<u8> {
    image.python.split('.').nth(1)?.parse().ok()
}

fn say(line: &str) {
    tracing::info!("{line}");
}
