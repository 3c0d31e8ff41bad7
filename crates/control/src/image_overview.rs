//! What people are shown of images: which there are, what each is called, and what its layers brought.

use crate::images::parse_request;
use crate::ports::LayerOverview;
use crate::{Control, parse_id, stored};
use evoke_core::{ImageId, UnixMs};
use evoke_proto::Status;
use evoke_store::{ImageRow, ImageState};

/// Images in the list, the newest.
const IMAGES_MAX: u32 = 10_000;

/// An image in a line.
#[derive(Debug, Clone)]
pub struct ImageOverview {
    /// Its id.
    pub id: ImageId,
    /// How far it is, in a word.
    pub state: &'static str,
    /// When it was first asked for.
    pub created: UnixMs,
    /// When it was last asked for or run.
    pub used: UnixMs,
    /// What it is published as, with environment and tag.
    pub names: Vec<String>,
    /// Its layers.
    pub layers: usize,
    /// Bytes of all its layers, those that other images have too among them.
    pub bytes: u64,
    /// The Python in it; empty for none.
    pub python: String,
    /// The last line of its recipe.
    pub step: String,
    /// Why its build failed; empty otherwise.
    pub error: String,
}

impl Control {
    /// All images, newest first.
    pub async fn image_list(&self) -> Result<Vec<ImageOverview>, Status> {
        let mut list = Vec::new();
        for row in self.store.images().recent(IMAGES_MAX).await.map_err(stored)? {
            list.push(self.image_overview(&row).await?);
        }
        Ok(list)
    }

    /// An image with what each of its layers brought, bottom first.
    pub async fn image_show(&self, id: &str) -> Result<(ImageOverview, Vec<LayerOverview>), Status> {
        let id: ImageId = parse_id(id)?;
        let row = self.image_row(id).await?;
        let layers = match row.state {
            ImageState::Ready => self.builder.layers(&self.built_image(id).await?).await?,
            ImageState::Building | ImageState::Failed => Vec::new(),
        };
        Ok((self.image_overview(&row).await?, layers))
    }

    async fn image_overview(&self, row: &ImageRow) -> Result<ImageOverview, Status> {
        let (layers, bytes, python) = match row.state {
            ImageState::Ready => {
                let built = self.built_image(row.id).await?;
                (built.layers.len(), self.builder.bytes(&built).await?, built.python)
            }
            ImageState::Building | ImageState::Failed => (0, 0, String::new()),
        };
        let state = match row.state {
            ImageState::Building => "building",
            ImageState::Ready => "ready",
            ImageState::Failed => "failed",
        };
        let image = parse_request(row)?.image.unwrap_or_default();
        let by_function = !image.base_images.is_empty() && image.dockerfile_commands.is_empty();
        let step = match image.dockerfile_commands.last() {
            Some(line) => line.clone(),
            None if by_function => "run_function".to_owned(),
            None => String::new(),
        };
        Ok(ImageOverview {
            id: row.id,
            state,
            created: row.created_at,
            used: row.used_at,
            names: self.image_names_of(row.id).await?,
            layers,
            bytes,
            python,
            step,
            error: row.error.clone(),
        })
    }

    /// What an image is published as now, the environment first.
    async fn image_names_of(&self, image: ImageId) -> Result<Vec<String>, Status> {
        let environments: Vec<_> =
            self.registry.lock().environments.values().map(|e| (e.id, e.name.clone())).collect();
        let mut names = Vec::new();
        for (id, environment) in environments {
            let store = self.store.image_names();
            let found = store.list(id, String::new(), Some(image), String::new(), IMAGES_MAX).await;
            let found = found.map_err(stored)?;
            names.extend(found.into_iter().map(|(row, _)| format!("{environment}/{}", row.name)));
        }
        Ok(names)
    }
}
