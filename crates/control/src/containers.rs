//! What containers ask: hello, the next inputs, results, heartbeats. Every answer is about the container that
//! the request's listener belongs to.

use crate::results::{status_of, stored_failure, stored_item};
use crate::{Control, parse_id, stored};
use evoke_core::{InputId, TaskId, UnixMs};
use evoke_engine::{Claim, Claimed, Engine, Invocation, NewOutput, PollRequest};
use evoke_proto::{CallContext, Status, api};
use evoke_store::calls;
use prost::Message;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
        let mut cancelled = self.calls.look(|engine| engine.cancelled_inputs(task));
        if cancelled.is_empty() && tokio::time::timeout(HEARTBEAT_HOLD, woken).await.is_ok() {
            cancelled = self.calls.look(|engine| engine.cancelled_inputs(task));
        }
        self.calls.settled().await?;
        let event = (!cancelled.is_empty()).then(|| api::CancelInputEvent {
            input_ids: cancelled.iter().map(InputId::to_string).collect(),
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
        let mut waiting = Waiting { control: self.clone(), task, armed: false };
        let turn = self.polls.begin(task);
        // A question that waits here still was asked on a connection that is gone.
        self.calls.tasks.wake(task);
        loop {
            let waiter = self.calls.tasks.register(task);
            let woken = waiter.woken();
            if !self.polls.is_latest(task, turn) {
                waiting.armed = false;
                return Err(Status::new(evoke_proto::Code::Aborted, "The container asked again meanwhile"));
            }
            let poll = PollRequest { task, key, max };
            waiting.armed = true;
            let (claim, ticket) =
                self.calls.decide(&self, |engine, now| engine.poll_inputs(poll, now), |_| Vec::new())?;
            match claim {
                Claim::Inputs(claimed) => {
                    self.calls.stored(&self, ticket).await?;
                    waiting.armed = false;
                    let mut inputs = Vec::with_capacity(claimed.len());
                    for claim in claimed {
                        inputs.push(self.input_item(claim).await?);
                    }
                    return Ok(api::FunctionGetInputsResponse { inputs, ..Default::default() });
                }
                Claim::KillSwitch => {
                    self.calls.stored(&self, ticket).await?;
                    waiting.armed = false;
                    let last = api::FunctionGetInputsItem { kill_switch: true, ..Default::default() };
                    return Ok(api::FunctionGetInputsResponse { inputs: vec![last], ..Default::default() });
                }
                Claim::Wait { until: None } => woken.await,
                Claim::Wait { until: Some(until) } => {
                    let wait = Duration::from_millis(until.since(self.now()));
                    // Woken or due: either way the engine is asked again.
                    let _ = tokio::time::timeout(wait, woken).await;
                }
            }
        }
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
            .map_err(|error| Status::new(evoke_proto::Code::DataLoss, format!("stored input: {error}")))?;
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

/// A question for inputs under way. If its connection goes away while it waits, the engine must know that
/// nobody is there to be woken.
struct Waiting {
    control: Arc<Control>,
    task: TaskId,
    armed: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let task = self.task;
        let dropped = |engine: &mut Engine, now| Ok(engine.poll_dropped(task, now));
        // The ticket is not waited for: the decision only moves a wake-up.
        if let Err(status) = self.control.calls.decide(&self.control, dropped, |()| Vec::new()) {
            tracing::error!(%task, %status, "could not withdraw a question for inputs");
        }
    }
}

/// Which of a container's questions for inputs is its latest.
#[derive(Debug, Default)]
pub(crate) struct Polls(Mutex<HashMap<TaskId, u64>>);

impl Polls {
    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn begin(&self, task: TaskId) -> u64 {
        let mut latest = self.lock();
        let turn = latest.entry(task).or_default();
        *turn += 1;
        *turn
    }
    fn is_latest(&self, task: TaskId, turn: u64) -> bool {
        self.lock().get(&task) == Some(&turn)
    }
    /// The container is gone.
    pub(crate) fn forget(&self, task: TaskId) {
        self.lock().remove(&task);
    }
}

/// The container that a request came from.
pub(crate) fn task_of(context: &CallContext) -> Result<TaskId, Status> {
    context.principal.task().ok_or_else(|| {
        Status::new(
            evoke_proto::Code::PermissionDenied,
            format!("{} is only for containers", context.rpc.name),
        )
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
