//! Class handles: thin objects beside the service function that does a class's work.

use crate::registry::Class;
use crate::{Control, parse_id};
use evoke_core::ClassId;
use evoke_proto::{CallContext, Status, api};
use evoke_store::{ClassRow, ClassWrite, Grade};
use prost::Message;
use std::sync::Arc;

impl Control {
    pub(crate) async fn class_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::ClassCreateRequest,
    ) -> Result<api::ClassCreateResponse, Status> {
        let app = self.running_app(&request.app_id)?;
        let id = match request.existing_class_id.as_str() {
            "" => ClassId::new(self.now(), &mut *self.entropy()),
            existing => parse_id(existing)?,
        };
        let metadata = api::ClassHandleMetadata { methods: request.methods.clone(), ..Default::default() };
        let row = ClassRow {
            id,
            app_id: app.row.id,
            // The request does not carry the tag, which comes with the publication; the id is unique.
            tag: id.to_string(),
            created_at: self.now(),
            body: request.encode_to_vec(),
            metadata: metadata.encode_to_vec(),
        };
        let reply =
            api::ClassCreateResponse { class_id: id.to_string(), handle_metadata: Some(metadata.clone()) };
        self.commit(&context, vec![ClassWrite::Put(row).into()], Grade::Synced, &reply).await?;
        self.registry.lock().classes.insert(id, Class { metadata });
        Ok(reply)
    }

    pub(crate) async fn class_get(
        self: Arc<Self>,
        context: CallContext,
        request: api::ClassGetRequest,
    ) -> Result<api::ClassGetResponse, Status> {
        let (app, pinned) =
            self.lookup(&context, &request.environment_name, &request.app_name, request.app_version).await?;
        let classes = pinned.as_ref().map_or(&app.classes, |version| &version.classes);
        let id = classes.get(&request.object_tag).ok_or_else(|| {
            Status::not_found(format!("App '{}' has no class '{}'", request.app_name, request.object_tag))
        })?;
        let live = self.registry.lock();
        let handle_metadata = live.classes.get(id).map(|class| class.metadata.clone());
        Ok(api::ClassGetResponse { class_id: id.to_string(), handle_metadata, ..Default::default() })
    }
}
