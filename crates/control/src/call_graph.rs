//! The tree of calls that a call is part of, as clients draw it.

use crate::definition::Definition;
use crate::results::group_of;
use crate::{Control, parse_id, stored};
use bytes::Bytes;
use evoke_core::{CallId, FunctionId};
use evoke_proto::{CallContext, Status, api};
use evoke_store::calls::{self, GraphInput};
use std::collections::HashMap;
use std::sync::Arc;

/// Inputs in one answer; the tree is cut off after so many and says so.
const GRAPH_INPUTS_MAX: usize = 5_000;

impl Control {
    pub(crate) async fn function_get_call_graph(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionGetCallGraphRequest,
    ) -> Result<api::FunctionGetCallGraphResponse, Status> {
        let id: CallId = parse_id(&request.function_call_id)?;
        self.calls.settled().await?;
        let read = move |db: &_| Ok(calls::call_graph(db, &id, GRAPH_INPUTS_MAX)?);
        let graph = self.store.read(read).await.map_err(stored)?;
        let graph = graph.ok_or_else(|| Status::not_found(format!("There is no call {id}")))?;
        let mut definitions = HashMap::new();
        let mut reply =
            api::FunctionGetCallGraphResponse { truncated: graph.truncated, ..Default::default() };
        for call in &graph.calls {
            let function = call.function_id;
            if let std::collections::hash_map::Entry::Vacant(entry) = definitions.entry(function) {
                entry.insert(self.past_definition(function).await?);
            }
            let first = graph.inputs.iter().find(|input| input.call == call.id);
            let definition = definitions.get(&function).and_then(Option::as_ref);
            reply.function_calls.push(api::FunctionCallCallGraphInfo {
                function_call_id: call.id.to_string(),
                parent_input_id: call.parent_input.map(|input| input.to_string()).unwrap_or_default(),
                function_name: definition.map(|d| called_name(d, first)).unwrap_or_default(),
                module_name: definition.map(|d| d.function.module_name.clone()).unwrap_or_default(),
            });
        }
        reply.inputs = graph.inputs.iter().map(input_info).collect();
        Ok(reply)
    }

    /// What a function ran, also after its app has stopped.
    pub(crate) async fn past_definition(&self, id: FunctionId) -> Result<Option<Arc<Definition>>, Status> {
        if let Some(function) = self.registry.function(id) {
            return Ok(Some(function.definition.clone()));
        }
        let functions = self.store.functions();
        let mut row = functions.by_id(id).await.map_err(stored)?;
        if let Some(base) = row.as_ref().and_then(|row| row.base_id) {
            row = functions.by_id(base).await.map_err(stored)?;
        }
        // A definition that cannot be read any more costs its name in the picture, not the picture.
        Ok(row.and_then(|row| Definition::from_stored(&Bytes::from(row.body)).ok()).map(Arc::new))
    }
}

/// The function's name; for a class the method's.
fn called_name(definition: &Definition, input: Option<&GraphInput>) -> String {
    let method = input.and_then(|input| called_method(definition, input.group));
    let name = method.map_or(&definition.function.function_name, |(_, method)| &method.function_name);
    name.clone()
}

/// The method of a class whose inputs are of this group.
pub(crate) fn called_method(
    definition: &Definition,
    group: u32,
) -> Option<(&String, &api::MethodDefinition)> {
    definition.function.method_definitions.iter().find(|(name, _)| group_of(name) == group)
}

fn input_info(input: &GraphInput) -> api::InputCallGraphInfo {
    api::InputCallGraphInfo {
        input_id: input.id.to_string(),
        status: input.status.map_or(0, |status| i32::from(status.number())),
        function_call_id: input.call.to_string(),
        task_id: input.task.map(|task| task.to_string()).unwrap_or_default(),
    }
}
