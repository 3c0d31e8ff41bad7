//! What apps and functions did in a span of time, in numbers and input by input.

use crate::call_graph::called_method;
use crate::log_history::chosen;
use crate::registry::read_layout;
use crate::times::{MS_NS, nanoseconds, timestamp};
use crate::{Control, parse_id, stored};
use evoke_core::{AppId, FunctionId, TaskId, UnixMs};
use evoke_proto::{CallContext, Status, api};
use evoke_store::calls::{self, InputStats, Listed, PastInput, ResultStatus, Span, TaskSpan};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The span that is meant where none is named (milliseconds): the client's own default.
const SPAN_MS: u64 = 3_600_000;
/// The longest span of statistics (milliseconds), as documented by the client: as long as calls are kept.
const SPAN_MS_MAX: u64 = 7 * 86_400_000;
/// Inputs of one answer of a listing; the client asks for no more at a time.
const LISTED_MAX: u32 = 20_000;
/// What clients show of a distribution, in hundredths of a percent.
const PERCENTILES: [u32; 3] = [5_000, 9_000, 9_900];
const BYTES_PER_GIB: f64 = (1u64 << 30) as f64;

impl Control {
    pub(crate) async fn app_get_time_range_stats(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppGetTimeRangeStatsRequest,
    ) -> Result<api::AppGetTimeRangeStatsResponse, Status> {
        let span = self.stats_span(request.since, request.until)?;
        let row = self.app_row(&request.app_id).await?;
        let mut members = BTreeMap::new();
        for (tag, id) in read_layout(&row.layout).0 {
            members.insert(tag, self.with_variants(id, true).await?);
        }
        let all = members.values().flatten().copied().collect();
        let past = self.past_of(row.id, all, span, None).await?;
        let mut functions = api::AppFunctionStatsGroup::default();
        let mut total = api::AppFunctionCounts {
            calls: Some(api::AppCallCounts::default()),
            containers: Some(api::AppContainerCounts::default()),
        };
        for (tag, ids) in members {
            let (inputs, tasks) = past.of(&ids);
            let counts = app_counts(&inputs, &tasks, span);
            add_counts(&mut total, &counts);
            let object_id = ids.first().map(ToString::to_string).unwrap_or_default();
            functions.by_name.insert(tag, api::AppFunctionStats { object_id, counts: Some(counts) });
        }
        functions.total = Some(total);
        let apps = self.store.apps();
        let deployments = apps.deployments_between(row.id, span.since, span.until).await.map_err(stored)?;
        Ok(api::AppGetTimeRangeStatsResponse {
            since: Some(timestamp(span.since)),
            until: Some(timestamp(span.until)),
            functions: Some(functions),
            servers: Some(api::AppServerStatsGroup {
                total: Some(api::AppServerCounts::default()),
                ..Default::default()
            }),
            sandboxes: Some(api::AppSandboxCounts::default()),
            lifecycle: Some(self.lifecycle(&row).await?),
            deployment_count: Some(deployments),
        })
    }

    pub(crate) async fn function_get_time_range_stats(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionGetTimeRangeStatsRequest,
    ) -> Result<api::FunctionGetTimeRangeStatsResponse, Status> {
        let span = self.stats_span(request.since, request.until)?;
        let id: FunctionId = parse_id(&request.function_id)?;
        let task = chosen(request.container_id.as_deref().unwrap_or_default())?;
        let app = self.app_of_function(id).await?;
        let family = self.with_variants(id, true).await?;
        let variant_count = family.len().saturating_sub(1) as u32;
        let ids = if request.rollup || task.is_some() { family } else { vec![id] };
        let past = self.past_of(app, ids.clone(), span, task).await?;
        let (inputs, tasks) = past.of(&ids);
        Ok(function_stats(&inputs, &tasks, span, variant_count))
    }

    pub(crate) async fn function_call_count(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionCallCountRequest,
    ) -> Result<api::FunctionCallCountResponse, Status> {
        let span = self.span(request.since, request.until)?;
        let functions = self.with_variants(parse_id(&request.function_id)?, request.all_variants).await?;
        let piece_ms = u64::from(request.bucket_secs.max(1)) * 1000;
        self.calls.settled().await?;
        let read = move |db: &_| Ok(calls::count_inputs(db, &functions, span, piece_ms)?);
        let pieces = self.store.read(read).await.map_err(stored)?;
        let bucket = |(piece, count): (u64, u64)| api::function_call_count_response::InputBucket {
            bucket_start_at: Some(timestamp(UnixMs(piece.saturating_mul(piece_ms)))),
            count,
        };
        Ok(api::FunctionCallCountResponse { buckets: pieces.into_iter().map(bucket).collect() })
    }

    pub(crate) async fn function_call_fetch(
        self: Arc<Self>,
        _context: CallContext,
        request: api::FunctionCallFetchRequest,
    ) -> Result<api::FunctionCallFetchResponse, Status> {
        use api::function_call_fetch_request::QueryOneof as Query;
        let listed = match request.query_oneof {
            Some(Query::Tail(tail)) => Listed::Newest(tail.count.min(LISTED_MAX)),
            Some(Query::Range(range)) => {
                let limit = if range.limit == 0 { LISTED_MAX } else { range.limit.min(LISTED_MAX) };
                Listed::Within(self.span(range.since, range.until)?, limit)
            }
            None => return Err(Status::invalid("Say which inputs: the newest so many, or a span of time")),
        };
        let functions = self.with_variants(parse_id(&request.function_id)?, request.all_variants).await?;
        self.calls.settled().await?;
        let read = move |db: &_| Ok(calls::past_inputs(db, &functions, listed)?);
        let inputs = self.store.read(read).await.map_err(stored)?;
        let mut definitions = HashMap::new();
        let mut infos = Vec::with_capacity(inputs.len());
        for input in &inputs {
            if let std::collections::hash_map::Entry::Vacant(entry) = definitions.entry(input.function) {
                entry.insert(self.past_definition(input.function).await?);
            }
            let definition = definitions.get(&input.function).and_then(Option::as_ref);
            let method = definition.and_then(|d| called_method(d, input.group)).map(|(name, _)| name.clone());
            infos.push(input_info(input, method));
        }
        Ok(api::FunctionCallFetchResponse { function_call_inputs: infos })
    }

    /// The span that a request names; up to now, and the hour before its end, where it does not.
    fn span(
        &self,
        since: Option<prost_types::Timestamp>,
        until: Option<prost_types::Timestamp>,
    ) -> Result<Span, Status> {
        // What is stored has milliseconds; a time within one begins after it.
        let ms = |at: prost_types::Timestamp| UnixMs(nanoseconds(at).div_ceil(MS_NS));
        let until = until.map_or_else(|| self.now(), ms);
        let since = since.map_or(UnixMs(until.0.saturating_sub(SPAN_MS)), ms);
        if since > until {
            return Err(Status::invalid("The span of time ends before it begins"));
        }
        Ok(Span { since, until })
    }

    fn stats_span(
        &self,
        since: Option<prost_types::Timestamp>,
        until: Option<prost_types::Timestamp>,
    ) -> Result<Span, Status> {
        let span = self.span(since, until)?;
        if span.until.since(span.since) > SPAN_MS_MAX {
            return Err(Status::invalid("Statistics are of seven days at most; choose a shorter span"));
        }
        Ok(span)
    }

    /// A function, and its variants where they are meant, too.
    async fn with_variants(&self, function: FunctionId, all: bool) -> Result<Vec<FunctionId>, Status> {
        let mut meant = vec![function];
        let mut at = 0;
        while let Some(base) = meant.get(at).copied().filter(|_| all) {
            let variants = self.store.functions().variants(base).await.map_err(stored)?;
            meant.extend(variants.into_iter().map(|row| row.id));
            at += 1;
        }
        Ok(meant)
    }

    async fn app_of_function(&self, id: FunctionId) -> Result<AppId, Status> {
        if let Some(function) = self.registry.function(id) {
            return Ok(function.app_id);
        }
        let row = self.store.functions().by_id(id).await.map_err(stored)?;
        row.map(|row| row.app_id).ok_or_else(|| Status::not_found(format!("There is no function {id}")))
    }

    /// What these functions of an app did; what one container of theirs did, where one is meant.
    async fn past_of(
        &self,
        app: AppId,
        functions: Vec<FunctionId>,
        span: Span,
        task: Option<TaskId>,
    ) -> Result<Past, Status> {
        self.calls.settled().await?;
        let read = move |db: &_| {
            let inputs = calls::input_stats(db, &functions, span, task)?;
            let mut tasks = calls::tasks_within(db, &app, span)?;
            tasks.retain(|span| task.is_none_or(|task| span.id == task));
            Ok(Past { inputs, tasks })
        };
        self.store.read(read).await.map_err(stored)
    }
}

/// What an app's functions did.
struct Past {
    inputs: HashMap<FunctionId, InputStats>,
    tasks: Vec<TaskSpan>,
}

impl Past {
    /// Of these functions together.
    fn of(&self, functions: &[FunctionId]) -> (InputStats, Vec<TaskSpan>) {
        let inputs = functions.iter().filter_map(|id| self.inputs.get(id)).cloned();
        let tasks = self.tasks.iter().filter(|task| functions.contains(&task.function)).cloned();
        (inputs.fold(InputStats::default(), added), tasks.collect())
    }
}

fn added(mut sum: InputStats, more: InputStats) -> InputStats {
    for (status, count) in more.ended {
        *sum.ended.entry(status).or_default() += count;
    }
    sum.running_at_end += more.running_at_end;
    sum.execution_ms.extend(more.execution_ms);
    sum.latency_ms.extend(more.latency_ms);
    sum
}

/// Inputs that succeeded, failed and took too long. One that was cancelled did none of it.
fn outcomes(inputs: &InputStats) -> (u64, u64, u64) {
    use ResultStatus::{Failure, InitFailure, InternalFailure, Oom, Success, Timeout};
    let count = |wanted: &[ResultStatus]| wanted.iter().filter_map(|s| inputs.ended.get(s)).sum();
    (count(&[Success]), count(&[Failure, InitFailure, InternalFailure, Oom]), count(&[Timeout]))
}

fn errors(tasks: &[TaskSpan], span: Span) -> u64 {
    let ended_here = |task: &&TaskSpan| task.ended.is_some_and(|at| at < span.until);
    tasks.iter().filter(|task| task.failed).filter(ended_here).count() as u64
}

fn app_counts(inputs: &InputStats, tasks: &[TaskSpan], span: Span) -> api::AppFunctionCounts {
    let (succeeded, failed, timeouts) = outcomes(inputs);
    let failed = failed + timeouts;
    api::AppFunctionCounts {
        calls: Some(api::AppCallCounts { total: succeeded + failed, succeeded, failed }),
        containers: Some(api::AppContainerCounts {
            container_errors: errors(tasks, span),
            container_active_count: tasks.len() as u64,
        }),
    }
}

fn add_counts(total: &mut api::AppFunctionCounts, more: &api::AppFunctionCounts) {
    if let (Some(total), Some(more)) = (total.calls.as_mut(), more.calls) {
        total.total += more.total;
        total.succeeded += more.succeeded;
        total.failed += more.failed;
    }
    if let (Some(total), Some(more)) = (total.containers.as_mut(), more.containers) {
        total.container_errors += more.container_errors;
        total.container_active_count += more.container_active_count;
    }
}

fn function_stats(
    inputs: &InputStats,
    tasks: &[TaskSpan],
    span: Span,
    variant_count: u32,
) -> api::FunctionGetTimeRangeStatsResponse {
    let (success, failure, timeout) = outcomes(inputs);
    let seconds = |values: &[u64]| values.iter().map(|ms| *ms as f64 / 1000.0).collect::<Vec<_>>();
    let within = |at: Option<UnixMs>| at.filter(|at| *at >= span.since && *at < span.until);
    let before_end = |at: Option<UnixMs>| at.is_some_and(|at| at < span.until);
    let started = tasks.iter().filter(|task| within(task.ready).is_some());
    let startup = started.clone().filter_map(|task| Some(task.ready?.since(task.queued))).collect::<Vec<_>>();
    let creating = tasks.iter().filter(|task| !before_end(task.ready) && !before_end(task.ended));
    let cores = tasks.iter().filter_map(|task| {
        // What a container uses is known as of its last report, by when it was this old at most.
        let wall = task.ended.unwrap_or(span.until).since(task.queued);
        (wall > 0 && task.cpu_ms > 0).then_some(task.cpu_ms as f64 / wall as f64)
    });
    let memory =
        tasks.iter().map(|task| task.memory_peak_bytes as f64 / BYTES_PER_GIB).filter(|gib| *gib > 0.0);
    api::FunctionGetTimeRangeStatsResponse {
        since: Some(timestamp(span.since)),
        until: Some(timestamp(span.until)),
        input_success_count: success,
        input_failure_count: failure,
        input_timeout_count: timeout,
        input_running_at_end_count: inputs.running_at_end,
        input_percentile_stats: distributions([
            ("Execution time (s)", "s", seconds(&inputs.execution_ms)),
            ("End-to-end latency (s)", "s", seconds(&inputs.latency_ms)),
        ]),
        container_started_count: started.count() as u64,
        container_error_count: errors(tasks, span),
        container_creating_at_end_count: creating.count() as u64,
        container_percentile_stats: distributions([
            ("Startup time (s)", "s", seconds(&startup)),
            ("CPU Usage (cores)", "cores", cores.collect()),
            ("Memory Usage (GiB)", "GiB", memory.collect()),
        ]),
        variant_count,
        container_total_count: tasks.len() as u64,
    }
}

/// Those that have any values.
fn distributions<const N: usize>(
    of: [(&str, &str, Vec<f64>); N],
) -> BTreeMap<String, api::StatsPercentileDistribution> {
    let mut found = BTreeMap::new();
    for (name, unit, mut values) in of {
        values.sort_by(f64::total_cmp);
        let percentiles = PERCENTILES.iter().filter_map(|basis_points| {
            Some(api::StatsPercentile {
                percentile_basis_points: *basis_points,
                value: percentile(&values, *basis_points)?,
            })
        });
        let percentiles: Vec<_> = percentiles.collect();
        if !percentiles.is_empty() {
            let distribution = api::StatsPercentileDistribution { unit: unit.to_string(), percentiles };
            found.insert(name.to_string(), distribution);
        }
    }
    found
}

/// The smallest of the sorted values that so many of them do not exceed.
fn percentile(sorted: &[f64], basis_points: u32) -> Option<f64> {
    let rank = (sorted.len() * basis_points as usize).div_ceil(10_000).max(1);
    sorted.get(rank - 1).copied()
}

fn input_info(input: &PastInput, method: Option<String>) -> api::FunctionCallInputInfo {
    use api::FunctionCallInputStatus as Shown;
    let status = match input.end {
        None if input.running => Shown::Running,
        None => Shown::Pending,
        Some((status, _)) => match status {
            ResultStatus::Success => Shown::Success,
            ResultStatus::Failure => Shown::Failure,
            ResultStatus::Timeout => Shown::Timeout,
            ResultStatus::Terminated => Shown::Terminated,
            ResultStatus::InitFailure => Shown::InitFailure,
            ResultStatus::InternalFailure => Shown::InternalFailure,
            ResultStatus::Oom => Shown::KernelOomKill,
        },
    };
    let seconds = |from: UnixMs, to: UnixMs| to.since(from) as f64 / 1000.0;
    let ran = input.attempt.zip(input.end).map(|((started, _), (_, finished))| seconds(started, finished));
    api::FunctionCallInputInfo {
        enqueued_at: Some(timestamp(input.created)),
        started_at: input.attempt.map(|(at, _)| timestamp(at)),
        container_id: input.attempt.map(|(_, task)| task.to_string()),
        startup_time_seconds: input.start.map(|(from, to)| seconds(from, to)),
        execution_time_seconds: ran,
        status: status as i32,
        function_call_id: input.call.to_string(),
        service_method_name: method,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(queued: u64, ready: Option<u64>, ended: Option<u64>, failed: bool) -> TaskSpan {
        TaskSpan {
            id: TaskId::from_bits(1),
            function: FunctionId::from_bits(1),
            queued: UnixMs(queued),
            ready: ready.map(UnixMs),
            ended: ended.map(UnixMs),
            failed,
            cpu_ms: 50,
            memory_peak_bytes: 1 << 29,
        }
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 5_000), Some(100.0));
        assert_eq!(percentile(&values, 9_900), Some(198.0));
        assert_eq!(percentile(&[7.0], 9_900), Some(7.0));
        assert_eq!(percentile(&[], 5_000), None);
    }

    #[test]
    fn containers_count_where_they_began_failed_or_were_awaited() {
        let span = Span { since: UnixMs(1_000), until: UnixMs(2_000) };
        let tasks = [
            task(100, Some(200), None, false),
            task(1_100, Some(1_600), Some(1_700), true),
            task(1_900, Some(2_500), Some(2_600), true),
            task(1_950, None, None, false),
        ];
        let ended = HashMap::from([
            (ResultStatus::Success, 3),
            (ResultStatus::Oom, 1),
            (ResultStatus::Timeout, 2),
            (ResultStatus::Terminated, 9),
        ]);
        let inputs = InputStats { ended, execution_ms: vec![1_500], ..Default::default() };
        let stats = function_stats(&inputs, &tasks, span, 2);
        assert_eq!((stats.input_success_count, stats.input_failure_count), (3, 1));
        assert_eq!((stats.input_timeout_count, stats.variant_count), (2, 2));
        assert_eq!((stats.container_started_count, stats.container_error_count), (1, 1));
        assert_eq!((stats.container_creating_at_end_count, stats.container_total_count), (2, 4));
        assert_eq!(stats.input_percentile_stats["Execution time (s)"].percentiles[0].value, 1.5);
        assert_eq!(stats.container_percentile_stats["Startup time (s)"].percentiles[2].value, 0.5);
        assert_eq!(stats.container_percentile_stats["Memory Usage (GiB)"].percentiles[0].value, 0.5);
        assert!(!stats.input_percentile_stats.contains_key("End-to-end latency (s)"));
        let counts = app_counts(&inputs, &tasks, span).calls.unwrap();
        assert_eq!((counts.total, counts.succeeded, counts.failed), (6, 3, 3));
    }
}
