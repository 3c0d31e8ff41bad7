//! What containers ask: hello, the next inputs, results, heartbeats. Every answer is about the container that
//! the request's listener belongs to.

use crate::questions::{Answer, Place};
use crate::results::{status_of, stored_failure, stored_item};
use crate::shell::Asked;
use crate::{Control, parse_id, stored};
use evoke_core::{InputId, TaskId, UnixMs};
use evoke_engine::{Claim, Claimed, Invocation, NewOutput, PollRequest};
use evoke_proto::{CallContext, Code, Status, api};
use evoke_store::calls;
use prost::Message;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// How long a heartbeat's answer is held back, so that a cancellation can be told at once. Below the client's
/// own limit of 15.1 s for one attempt.
const HEARTBEAT_HOLD: Duration = Duration::from_secs(12);

impl Control {
    pub(crate) async fn container_hello(
        self: Arc<Self>,
        context: CallContext,
        _request: (),
    ) -> Result<(), Status> {
        // The worker, which passes the request on, has noted the moment.
        task_of(&context).map(|_| ())
    }

    pub(crate) async fn container_heartbeat(
        self: Arc<Self>,
        context: CallContext,
        _request: api::ContainerHeartbeatRequest,
    ) -> Result<api::ContainerHeartbeatResponse, Status> {
        let task = task_of(&context)?;
        let waiter = self.calls.heartbeats.register(task);
        let woken = waiter.woken();
        let cancelled = || {
            let mut cancelled = self.calls.look(|engine| engine.cancelled_inputs(task));
            cancelled.extend(self.web.native.cancelled(task));
            cancelled
        };
        let mut inputs = cancelled();
        if inputs.is_empty() && tokio::time::timeout(HEARTBEAT_HOLD, woken).await.is_ok() {
            inputs = cancelled();
        }
        self.calls.settled().await?;
        let event = (!inputs.is_empty()).then(|| api::CancelInputEvent {
            input_ids: inputs.iter().map(InputId::to_string).collect(),
            ..Default::default()
        });
        Ok(api::ContainerHeartbeatResponse { cancel_input_event: event })
    }

    pub(crate) async fn function_get_inputs(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionGetInputsRequest,
    ) -> Result<api::FunctionGetInputsResponse, Status> {
        let task = task_of(&context)?;
        let max = request.batch_max_size.max(1);
        let key = context.idempotency_key().map_or(0, |key| {
            let mut hash = DefaultHasher::new();
            key.hash(&mut hash);
            hash.finish()
        });
        let poll = PollRequest { task, key, max };
        loop {
            let (claim, ticket) = match self.calls.ask(&self, poll)? {
                Asked::Answered(claim, ticket) => (claim, ticket),
                Asked::Waits(place) if context.is_repeated() => {
                    // The client gives up after a few lost connections in a row (its `Retry.max_retries`), and
                    // any answer starts its count anew: so a container outlives any number of restarts.
                    self.calls.withdraw(&self, task, place.turn)?;
                    return Ok(api::FunctionGetInputsResponse::default());
                }
                Asked::Waits(place) => match self.wait_for_answer(task, place).await {
                    Answer::Decided(claim, ticket) => (claim, ticket),
                    Answer::AskAgain => continue,
                    Answer::Superseded => {
                        return Err(Status::new(Code::Aborted, "The container asked again meanwhile"));
                    }
                    Answer::Refused(status) => return Err(status),
                },
            };
            self.calls.stored(&self, ticket).await?;
            let inputs = match claim {
                Claim::Inputs(claimed) => {
                    let mut inputs = Vec::with_capacity(claimed.len());
                    for claim in claimed {
                        inputs.push(self.input_item(claim).await?);
                    }
                    inputs
                }
                Claim::KillSwitch => {
                    vec![api::FunctionGetInputsItem { kill_switch: true, ..Default::default() }]
                }
                Claim::Wait { .. } => continue,
            };
            return Ok(api::FunctionGetInputsResponse { inputs, ..Default::default() });
        }
    }

    /// Waits until a question has its answer, or has to be asked again.
    async fn wait_for_answer(self: &Arc<Self>, task: TaskId, place: Place) -> Answer {
        let Place { turn, answer, until } = place;
        let mut waiting = Waiting { control: self.clone(), task, turn, armed: true };
        let answer = match until {
            None => answer.await,
            Some(until) => {
                let wait = Duration::from_millis(until.since(self.now()));
                match tokio::time::timeout(wait, answer).await {
                    Ok(answer) => answer,
                    Err(_) => return Answer::AskAgain,
                }
            }
        };
        waiting.armed = false;
        answer.unwrap_or(Answer::AskAgain)
    }

    async fn input_item(&self, claim: Claimed) -> Result<api::FunctionGetInputsItem, Status> {
        let payload = match claim.input {
            Some(payload) => payload,
            None => self
                .store
                .read(move |db| Ok(calls::input_payload(db, &claim.input_id)?))
                .await
                .map_err(stored)?
                .ok_or_else(|| Status::internal(format!("The payload of {} is gone", claim.input_id)))?,
        };
        let input = api::FunctionInput::decode(payload)
            .map_err(|error| Status::new(Code::DataLoss, format!("stored input: {error}")))?;
        Ok(api::FunctionGetInputsItem {
            input_id: claim.input_id.to_string(),
            input: Some(input),
            function_call_id: claim.call_id.to_string(),
            function_call_invocation_type: invocation_number(claim.invocation),
            retry_count: claim.retry_count,
            function_map_idx: Some(claim.idx),
            ..Default::default()
        })
    }

    pub(crate) async fn function_put_outputs(
        self: Arc<Self>,
        context: CallContext,
        request: api::FunctionPutOutputsRequest,
    ) -> Result<(), Status> {
        let task = task_of(&context)?;
        let outputs = request.outputs.iter().map(new_output).collect::<Result<Vec<_>, _>>()?;
        self.calls.apply(&self, |engine, now| engine.put_outputs(task, outputs, now)).await?;
        Ok(())
    }

    pub(crate) async fn task_result(
        self: Arc<Self>,
        context: CallContext,
        request: api::TaskResultRequest,
    ) -> Result<(), Status> {
        let task = task_of(&context)?;
        let result = request.result.unwrap_or_default();
        let (status, body) = (status_of(Some(&result)), stored_failure(&result));
        self.calls.apply(&self, |engine, now| Ok(engine.task_result(task, status, body, now))).await
    }

    pub(crate) async fn container_stop(
        self: Arc<Self>,
        _context: CallContext,
        request: api::ContainerStopRequest,
    ) -> Result<api::ContainerStopResponse, Status> {
        let task: TaskId = parse_id(&request.task_id)?;
        self.calls.apply(&self, |engine, now| Ok(engine.stop_task(task, request.graceful, now))).await?;
        Ok(api::ContainerStopResponse::default())
    }

    pub(crate) async fn function_get_dynamic_concurrency(
        self: Arc<Self>,
        context: CallContext,
        _request: api::FunctionGetDynamicConcurrencyRequest,
    ) -> Result<api::FunctionGetDynamicConcurrencyResponse, Status> {
        let task = task_of(&context)?;
        let concurrency = self.calls.look(|engine| engine.dynamic_concurrency(task));
        Ok(api::FunctionGetDynamicConcurrencyResponse { concurrency: concurrency.max(1) })
    }

    pub(crate) async fn task_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::TaskListRequest,
    ) -> Result<api::TaskListResponse, Status> {
        let wanted = match request.app_id.as_str() {
            "" => None,
            app => Some(parse_id::<evoke_core::AppId>(app)?),
        };
        // An app's id is clear by itself.
        let environment = match (&wanted, request.environment_name.as_str()) {
            (Some(_), _) | (None, "") => None,
            (None, name) => Some(self.environment(name)?.id),
        };
        let apps: Vec<_> = {
            let live = self.registry.lock();
            let apps = live
                .apps
                .values()
                .filter(|app| wanted.is_none_or(|id| id == app.row.id))
                .filter(|app| environment.is_none_or(|id| id == app.row.environment_id));
            apps.map(|app| (app.row.id, app.row.description.clone())).collect()
        };
        let mut tasks = Vec::new();
        for (app, description) in apps {
            for info in self.calls.look(|engine| engine.task_infos(Some(app))) {
                tasks.push(api::TaskStats {
                    task_id: info.task.to_string(),
                    app_id: app.to_string(),
                    app_description: description.clone(),
                    started_at: info.ready.map_or(0.0, UnixMs::as_secs_f64),
                    enqueued_at: info.queued.as_secs_f64(),
                });
            }
        }
        Ok(api::TaskListResponse { tasks })
    }
}

/// A question for inputs that waits. If its connection goes away meanwhile, the engine must know that nobody is
/// there to be woken.
struct Waiting {
    control: Arc<Control>,
    task: TaskId,
    turn: u64,
    armed: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let task = self.task;
        if let Err(status) = self.control.calls.withdraw(&self.control, task, self.turn) {
            tracing::error!(%task, %status, "could not withdraw a question for inputs");
        }
    }
}

/// The container that a request came from.
pub(crate) fn task_of(context: &CallContext) -> Result<TaskId, Status> {
    context.principal.task().ok_or_else(|| {
        Status::new(Code::PermissionDenied, format!("{} is only for containers", context.rpc.name))
    })
}

fn new_output(item: &api::FunctionPutOutputsItem) -> Result<NewOutput, Status> {
    let started = (item.input_started_at > 0.0).then_some(UnixMs((item.input_started_at * 1000.0) as u64));
    Ok(NewOutput {
        input_id: parse_id(&item.input_id)?,
        status: status_of(item.result.as_ref()),
        result: stored_item(item),
        retry_count: item.retry_count,
        started,
    })
}

fn invocation_number(invocation: Invocation) -> i32 {
    i32::from(invocation.number())
}
