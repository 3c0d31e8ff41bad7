//! Names of images: `name:tag` in an environment stands for an image that was published so.

use crate::registry::Environment;
use crate::{Control, names, parse_id, stored};
use evoke_core::ImageId;
use evoke_proto::{CallContext, Status, api};
use evoke_store::{Grade, ImageNameWrite, ImageState, ImageWrite};
use std::sync::Arc;

/// Names in one answer at most.
const PAGE_MAX: u32 = 1_000;
/// The tag that is meant where none is given.
const TAG_DEFAULT: &str = "latest";

impl Control {
    pub(crate) async fn image_publish(
        self: Arc<Self>,
        context: CallContext,
        request: api::ImagePublishRequest,
    ) -> Result<api::ImagePublishResponse, Status> {
        let (environment, name) = self.named(&request.tag, &request.environment_name)?;
        let image: ImageId = parse_id(&request.image_id)?;
        if self.image_row(image).await?.state != ImageState::Ready {
            return Err(Status::new(
                evoke_proto::Code::FailedPrecondition,
                format!("The image {image} is not built, so it cannot be published. Build it first"),
            ));
        }
        let publish = ImageNameWrite::Publish {
            environment: environment.id,
            name,
            image,
            at: self.now(),
            by: crate::publish::actor(&context),
        };
        let reply = api::ImagePublishResponse::default();
        self.commit(&context, vec![publish.into()], Grade::Synced, &reply).await?;
        Ok(reply)
    }

    pub(crate) async fn image_get_by_tag(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageGetByTagRequest,
    ) -> Result<api::ImageGetByTagResponse, Status> {
        let (environment, name) = self.named(&request.tag, &request.environment_name)?;
        let found = self.store.image_names().current(environment.id, name.clone()).await.map_err(stored)?;
        let found = found.ok_or_else(|| no_name(&name, &environment))?;
        Ok(api::ImageGetByTagResponse { image_id: found.image_id.to_string() })
    }

    pub(crate) async fn image_list_tags(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageListTagsRequest,
    ) -> Result<api::ImageListTagsResponse, Status> {
        let environment = self.environment(&request.environment_name)?;
        let image = match request.image_id.as_str() {
            "" => None,
            id => Some(parse_id(id)?),
        };
        let limit = page(request.max_objects);
        let names = self.store.image_names();
        let mut rows = names
            .list(environment.id, request.tag_prefix, image, request.page_token, limit + 1)
            .await
            .map_err(stored)?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|(row, _)| row.name.clone());
        let items = rows.into_iter().map(|(row, first)| api::ImageListTagsItem {
            tag: row.name,
            image_id: row.image_id.to_string(),
            revision_id: row.number.to_string(),
            created_at: first.as_secs_f64(),
            updated_at: row.published_at.as_secs_f64(),
            last_published_by: row.published_by,
        });
        Ok(api::ImageListTagsResponse {
            items: items.collect(),
            next_page_token: next.unwrap_or_default(),
            environment_name: environment.name.clone(),
        })
    }

    pub(crate) async fn image_tag_revisions(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ImageTagRevisionsRequest,
    ) -> Result<api::ImageTagRevisionsResponse, Status> {
        let (environment, name) = self.named(&request.tag, &request.environment_name)?;
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(
                token.parse().map_err(|_| Status::invalid("The page token is not one of this server's"))?,
            ),
        };
        let limit = page(request.max_objects);
        let names = self.store.image_names();
        let mut rows =
            names.history(environment.id, name.clone(), before, limit + 1).await.map_err(stored)?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|row| row.number.to_string());
        let items = rows.into_iter().map(|row| api::ImageTagRevisionsItem {
            image_id: row.image_id.to_string(),
            revision_id: row.number.to_string(),
            created_at: row.published_at.as_secs_f64(),
            published_by: row.published_by,
        });
        Ok(api::ImageTagRevisionsResponse {
            items: items.collect(),
            next_page_token: next.unwrap_or_default(),
            tag: name,
            environment_name: environment.name.clone(),
        })
    }

    pub(crate) async fn image_name_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::ImageNameDeleteRequest,
    ) -> Result<(), Status> {
        let (environment, name) = self.named(&request.tag, "")?;
        let found = self.store.image_names().current(environment.id, name.clone()).await.map_err(stored)?;
        if found.is_none() {
            return Err(no_name(&name, &environment));
        }
        let delete = ImageNameWrite::Delete { environment: environment.id, name };
        self.commit(&context, vec![delete.into()], Grade::Synced, &()).await
    }

    /// Forgets an image: nothing can use it from now on. Those that it stands on stay.
    pub(crate) async fn image_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::ImageDeleteRequest,
    ) -> Result<(), Status> {
        let id: ImageId = parse_id(&request.image_id)?;
        if self.image_row(id).await?.state == ImageState::Building {
            return Err(Status::new(
                evoke_proto::Code::FailedPrecondition,
                format!("The image {id} is being built. Wait for the end of its build, then delete it"),
            ));
        }
        self.commit(&context, vec![ImageWrite::Delete { id }.into()], Grade::Synced, &()).await
    }

    /// The environment and the full name of `[environment/]name[:tag]`.
    fn named(&self, text: &str, environment: &str) -> Result<(Environment, String), Status> {
        let (prefix, name) = match text.rsplit_once('/') {
            Some((prefix, name)) => (prefix, name),
            None => ("", text),
        };
        if prefix.is_empty() == text.contains('/') || (!prefix.is_empty() && !environment.is_empty()) {
            return Err(Status::invalid(format!(
                "'{text}' is not a name for an image: write it as [environment/]name[:tag]"
            )));
        }
        let (name, tag) = name.split_once(':').unwrap_or((name, TAG_DEFAULT));
        names::check_object_name(name, "image")?;
        names::check_object_name(tag, "tag of an image")?;
        if name.starts_with("im-") {
            return Err(Status::invalid(
                "The name of an image cannot begin with 'im-', as the ids of images do",
            ));
        }
        let environment = self.environment(if prefix.is_empty() { environment } else { prefix })?;
        Ok((environment, format!("{name}:{tag}")))
    }
}

fn page(asked: u32) -> u32 {
    if asked == 0 { PAGE_MAX } else { asked.min(PAGE_MAX) }
}

fn no_name(name: &str, environment: &Environment) -> Status {
    Status::not_found(format!(
        "There is no image named '{name}' in environment '{}'. Publish one with image.publish(\"{name}\"), or \
         list what there is with: evoke image names list",
        environment.name
    ))
}
