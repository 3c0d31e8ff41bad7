//! Functions: announced, created with a definition, made live, looked up. Their variants are in `variants.rs`.

use crate::definition::{Definition, precreated_metadata};
use crate::machine::Fit;
use crate::registry::Function;
use crate::{Control, parse_id, stored};
use bytes::Bytes;
use evoke_core::{DefinitionId, FunctionId};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{DefinitionRow, FunctionRow, FunctionWrite, Grade};
use prost::Message;
use std::sync::Arc;

impl Control {
    pub(crate) async fn function_precreate(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionPrecreateRequest,
    ) -> Result<api::FunctionPrecreateResponse, Status> {
        let app = self.running_app(&request.app_id)?;
        let id = match request.existing_function_id.as_str() {
            "" => FunctionId::new(self.now(), &mut *self.entropy()),
            existing => parse_id(existing)?,
        };
        let mut metadata = precreated_metadata(app.row.id, &request);
        let mut announced = api::Function {
            function_name: request.function_name,
            webhook_config: request.webhook_config,
            method_definitions: request.method_definitions,
            ..Default::default()
        };
        self.show_urls(&context.origin, &app, id, &mut metadata, &mut announced).await?;
        Ok(api::FunctionPrecreateResponse { function_id: id.to_string(), handle_metadata: Some(metadata) })
    }

    pub(crate) async fn function_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionCreateRequest,
        body: Bytes,
    ) -> Result<api::FunctionCreateResponse, Status> {
        let app = self.running_app(&request.app_id)?;
        let definition = Definition::from_create_request(&body, &request)?;
        let now = self.now();
        let fit = self.judge(&context, &definition, now)?;
        self.check_python(&context, &definition).await?;
        let id = match request.existing_function_id.as_str() {
            "" => FunctionId::new(now, &mut *self.entropy()),
            existing => parse_id(existing)?,
        };
        let previous = self.registry.function(id);
        if previous.as_ref().is_some_and(|function| function.app_id != app.row.id) {
            return Err(Status::invalid(format!("{id} is a function of another app")));
        }
        let live = previous.as_ref().filter(|function| app.has_published(function));
        // What runs already is not kept a second time: a publication would take it for unchanged anyway.
        let unchanged = live.filter(|function| !function.removed && definition.is_same(&function.definition));
        let definition_id = match unchanged {
            Some(function) => function.definition_id,
            None => DefinitionId::new(now, &mut *self.entropy()),
        };
        let metadata = definition.metadata(app.row.id, definition_id);
        let (mut shown, mut shown_metadata) = (definition.function.clone(), metadata.clone());
        self.show_urls(&context.origin, &app, id, &mut shown_metadata, &mut shown).await?;
        let reply = api::FunctionCreateResponse {
            function_id: id.to_string(),
            function: Some(shown),
            handle_metadata: Some(shown_metadata),
            function_data: Some(definition.data.clone()),
            ..Default::default()
        };
        if unchanged.is_some() {
            // A repetition of the request finds the same.
            return Ok(reply);
        }
        let define = DefinitionRow {
            id: definition_id,
            function_id: id,
            created_at: now,
            body: body.to_vec(),
            metadata: metadata.encode_to_vec(),
        };
        if live.is_some() {
            // What runs stays as it is until the new definition is published.
            self.commit(&context, vec![FunctionWrite::Define(define).into()], Grade::Synced, &reply).await?;
            return Ok(reply);
        }
        let generation = previous.as_ref().map_or(1, |function| function.generation + 1);
        let version = (definition_id, generation);
        let function = Function::of(id, app.row.id, version, Arc::new(definition), fit);
        let row = function_row(&function, None, body.to_vec(), now);
        let writes = vec![FunctionWrite::Define(define).into(), FunctionWrite::Put(row).into()];
        self.commit(&context, writes, Grade::Synced, &reply).await?;
        let builder = function.definition.function.is_builder_function;
        self.registry.lock().functions.insert(id, Arc::new(function));
        if builder {
            // It is not published: the image build that asked for it is about to call it.
            self.make_live(id).await?;
        }
        Ok(reply)
    }

    /// Refuses a definition that can never work, and warns of what will not; how it fits this machine.
    fn judge(
        &self,
        context: &CallContext,
        definition: &Definition,
        now: evoke_core::UnixMs,
    ) -> Result<Fit, Status> {
        let name = &definition.function.function_name;
        if name.is_empty() {
            return Err(Status::invalid("The function has no name"));
        }
        crate::schedules::schedule_of(&definition.function, now)
            .map_err(|why| Status::invalid(format!("The schedule of '{name}' is refused: {why}")))?;
        let fit = self.machine.fit(definition)?;
        if let Some(reason) = &fit.refusal {
            context.warn(format!("{name}: {reason}"));
        }
        for unsure in self.machine.unsure(definition) {
            context.warn(format!("{name}: {unsure}"));
        }
        for ignored in definition.ignored() {
            context.warn(format!("{name}: {ignored}"));
        }
        Ok(fit)
    }

    /// Refuses a pickled function whose image cannot read it: it holds bytecode of the interpreter that pickled it,
    /// and another minor version fails on it in ways that nobody understands, or crashes.
    async fn check_python(&self, context: &CallContext, definition: &Definition) -> Result<(), Status> {
        let function = &definition.function;
        let pickled = function.definition_type() == api::function::DefinitionType::Serialized;
        let local = context.header("x-modal-python-version").and_then(python_minor);
        let (true, Some(local)) = (pickled, local) else { return Ok(()) };
        // An image that is not there is told of where it is needed.
        let Ok(image) = self.built_image(parse_id(&function.image_id)?).await else { return Ok(()) };
        match python_minor(&image.python) {
            Some(there) if there != local => Err(Status::invalid(format!(
                "'{}' is serialized by Python {local} and cannot run in its image, which has Python {there}. Take an \
                 image with Python {local}, such as modal.Image.debian_slim(python_version=\"{local}\"), or run \
                 this program with Python {there}, or leave out serialized=True",
                function.function_name
            ))),
            _ => Ok(()),
        }
    }

    /// Gives a function to the scheduler: from now on its calls run.
    pub(crate) async fn make_live(&self, id: FunctionId) -> Result<(), Status> {
        let Some(function) = self.registry.function(id) else { return Ok(()) };
        let conf = self.registry.lock().scheduled(&function);
        self.calls.put_function(self, conf).await
    }

    pub(crate) async fn function_get(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionGetRequest,
    ) -> Result<api::FunctionGetResponse, Status> {
        let tag = request.object_tag.as_str();
        let (app, pinned) =
            self.lookup(&context, &request.environment_name, &request.app_name, request.app_version).await?;
        let (functions, classes) = match &pinned {
            Some(version) => (&version.functions, &version.classes),
            None => (&app.functions, &app.classes),
        };
        let Some(id) = functions.get(tag).copied() else {
            let status = Status::not_found(format!("App '{}' has no function '{tag}'", request.app_name));
            return Err(if classes.contains_key(tag) { status.class_name_used() } else { status });
        };
        let function = match pinned {
            Some(version) => self.pin(id, &version).await?,
            None => self.function(&id.to_string())?,
        };
        let live = self.registry.lock();
        Ok(api::FunctionGetResponse {
            function_id: function.id.to_string(),
            handle_metadata: Some(self.handle(&live, &context.origin, &function)),
            function: Some(self.data_with_urls(&live, &context.origin, &function)),
            ..Default::default()
        })
    }

    pub(crate) async fn function_get_by_id(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionGetByIdRequest,
    ) -> Result<api::FunctionGetByIdResponse, Status> {
        let function = self.function(&request.function_id)?;
        let live = self.registry.lock();
        Ok(api::FunctionGetByIdResponse {
            function: Some(self.data_with_urls(&live, &context.origin, &function)),
            handle_metadata: Some(self.handle(&live, &context.origin, &function)),
        })
    }

    /// The live function with this id.
    pub(crate) fn function(&self, text: &str) -> Result<Arc<Function>, Status> {
        let id: FunctionId = parse_id(text)?;
        let found = self.registry.function(id).ok_or_else(|| {
            Status::not_found(format!(
                "The function {id} does not exist: its app was stopped, or never ran here"
            ))
        })?;
        if found.removed {
            return Err(Status::not_found(format!(
                "The function '{}' ({id}) is no part of its app any more: a later deployment left it out",
                found.tag
            )));
        }
        Ok(found)
    }

    /// Rebuilds the functions of an app from the store, at start: those that left it too, because they may
    /// have calls to finish.
    pub(crate) async fn load_functions(&self, app: evoke_core::AppId) -> Result<Vec<FunctionId>, Status> {
        let rows = self.store.functions().of_app(app).await.map_err(stored)?;
        let (bases, mut variants): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.base_id.is_none());
        let mut scaling = self.stored_scaling(app).await?;
        let mut loaded = Vec::new();
        for row in bases {
            let Some(definition_id) = row.definition_id else { continue };
            let definition = Definition::from_stored(&Bytes::from(row.body))?;
            let fit = self.machine.fit(&definition)?;
            let version = (definition_id, row.generation);
            let function = Function {
                tag: row.tag,
                scaling: scaling.remove(&row.id).unwrap_or_default(),
                removed: row.deleted_at.is_some(),
                ..Function::of(row.id, row.app_id, version, Arc::new(definition), fit)
            };
            loaded.push(function.id);
            self.registry.lock().functions.insert(function.id, Arc::new(function));
        }
        // A variant may be one of another variant: those whose base is there, until no more are.
        loop {
            let (ready, rest): (Vec<_>, Vec<_>) = variants
                .into_iter()
                .partition(|row| row.base_id.is_some_and(|base| self.registry.function(base).is_some()));
            if ready.is_empty() {
                return Ok(loaded);
            }
            for row in ready {
                let mut function = self.load_variant(&row).await?;
                function.scaling = scaling.remove(&row.id).unwrap_or_default();
                loaded.push(function.id);
                self.registry.lock().functions.insert(function.id, Arc::new(function));
            }
            variants = rest;
        }
    }

    async fn load_variant(&self, row: &FunctionRow) -> Result<Function, Status> {
        let damaged =
            |text: String| Status::new(evoke_proto::Code::DataLoss, format!("stored variant: {text}"));
        let base = row.base_id.and_then(|id| self.registry.function(id));
        let base = base.ok_or_else(|| damaged(format!("{} has no base", row.id)))?;
        let request = api::FunctionBindParamsRequest::decode(row.body.as_slice())
            .map_err(|error| damaged(error.to_string()))?;
        let options = request.function_options.clone().unwrap_or_default();
        match options.pinned_app_version {
            Some(version) if base.pinned.is_none() => self.load_pinned(&base, version).await,
            _ => self.variant(&base, row.id, &request.serialized_params, Arc::new(options)),
        }
    }
}

/// Major and minor of a version, such as `3.12`.
fn python_minor(version: &str) -> Option<&str> {
    let (second_dot, _) = version.match_indices('.').nth(1).unwrap_or((version.len(), ""));
    let minor = &version[..second_dot];
    minor.contains('.').then_some(minor)
}

/// A function as it is stored: `body` is what was asked for, `variant` what tells a variant from others.
pub(crate) fn function_row(
    function: &Function,
    variant: Option<Vec<u8>>,
    body: Vec<u8>,
    now: evoke_core::UnixMs,
) -> FunctionRow {
    FunctionRow {
        id: function.id,
        app_id: function.app_id,
        tag: function.tag.clone(),
        definition_id: Some(function.definition_id),
        generation: function.generation,
        created_at: now,
        deleted_at: None,
        base_id: function.base,
        variant,
        body,
        metadata: function.metadata.encode_to_vec(),
    }
}
