//! Images that a function makes: a worker runs it on the base, and what it wrote becomes the layer.

use super::{ImageBuilder, probe};
use crate::digest::Hasher;
use crate::error::{ImageError, Result};
use crate::log::LogSink;
use crate::recipe::Recipe;
use crate::spec::{ImageSpec, LayerOwner, LayerRef};
use crate::steps::LayerSize;

/// Where the layer of a function's image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionLayer {
    /// The image that the function runs on.
    pub base: ImageSpec,
    /// The layer to commit what it wrote to.
    pub layer: LayerRef,
}

impl ImageBuilder {
    /// Prepares an image that a function makes; `salt` makes a forced build's layer another one.
    pub async fn begin_function_layer(&self, recipe: &Recipe, salt: Option<&str>) -> Result<FunctionLayer> {
        let function = recipe
            .run_function
            .as_ref()
            .ok_or_else(|| ImageError::Unsupported("no function makes this image".into()))?;
        let base = recipe.bases.get("base").or_else(|| recipe.bases.values().next());
        let base =
            base.ok_or_else(|| ImageError::Unsupported("an image made by a function needs a base".into()))?;
        let mut hasher = Hasher::new("evoke-function-layer-1");
        hasher.text(&base.root_digest()).text(function).text(&recipe.digest()).text(salt.unwrap_or_default());
        let digest = hasher.finish();
        let path = self.inner.tools.base.layers.join(&digest);
        if self.inner.tools.base.layer(&digest).await?.is_none() {
            self.inner.tools.base.clear(&path).await?;
        }
        let layer = LayerRef { digest, path, owner: LayerOwner::Canonical };
        Ok(FunctionLayer { base: base.clone(), layer })
    }

    /// Completes it once the worker has committed the layer.
    pub async fn finish_function_layer(
        &self,
        recipe: &Recipe,
        made: &FunctionLayer,
        size: LayerSize,
        took_ms: u64,
        log: &dyn LogSink,
    ) -> Result<ImageSpec> {
        let tools = &self.inner.tools.base;
        tools.remember(&made.layer.digest, "run_function".into(), size, took_ms).await?;
        let mut image = made.base.clone();
        image.layers.push(made.layer.clone());
        image.builder_version.clone_from(&recipe.builder_version);
        probe::look(&*tools.builder, &mut image, log).await?;
        tools.index.put_image(&self.inner.key(recipe), &image).await?;
        Ok(image)
    }
}
