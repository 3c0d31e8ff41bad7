//! Logs of the past: what an app wrote in a span of time, and how much of it there is.

use crate::logs::batches;
use crate::times::{SECOND_NS, nanoseconds, timestamp_ns};
use crate::{Control, parse_id, stored};
use evoke_core::id::ParseIdError;
use evoke_core::{AppId, Phase, TaskId, UnixMs};
use evoke_proto::{CallContext, Status, api};
use evoke_store::logs::{RANGE_ENTRIES_MAX, TimeRange, Wanted};
use std::str::FromStr;
use std::sync::Arc;

impl Control {
    pub(crate) async fn app_fetch_logs(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppFetchLogsRequest,
    ) -> Result<api::AppFetchLogsResponse, Status> {
        let app: AppId = parse_id(&request.app_id)?;
        let time = span(request.since, request.until);
        let wanted = match usize::try_from(request.limit).unwrap_or(usize::MAX) {
            lines @ 1..RANGE_ENTRIES_MAX => Wanted::Lines(lines),
            _ => Wanted::Everything,
        };
        let (stream, mut filter) = self.log_source(app, chosen(&request.task_id)?).await?;
        filter
            .functions
            .extend(self.functions_meant(&request.function_id, &request.parametrized_function_id)?);
        filter.call = chosen(&request.function_call_id)?;
        filter.fd = descriptor(request.source);
        filter.text = (!request.search_text.is_empty()).then_some(request.search_text);
        let found = self.logs.read_range(stream, time, filter, wanted).await.map_err(stored)?;
        Ok(api::AppFetchLogsResponse { batches: batches(found.entries) })
    }

    pub(crate) async fn app_count_logs(
        self: Arc<Self>,
        _context: CallContext,
        request: api::AppCountLogsRequest,
    ) -> Result<api::AppCountLogsResponse, Status> {
        let app: AppId = parse_id(&request.app_id)?;
        let time = span(request.since, request.until);
        let (stream, mut filter) = self.log_source(app, chosen(&request.task_id)?).await?;
        filter
            .functions
            .extend(self.functions_meant(&request.function_id, &request.parametrized_function_id)?);
        filter.call = chosen(&request.function_call_id)?;
        filter.fd = descriptor(request.source);
        filter.text = (!request.search_text.is_empty()).then_some(request.search_text);
        let bucket_ns = u64::from(request.bucket_secs.max(1)) * SECOND_NS;
        let counted = self.logs.count(stream, time, filter, bucket_ns).await.map_err(stored)?;
        let buckets = counted.into_iter().map(|bucket| api::app_count_logs_response::LogBucket {
            bucket_start_at: Some(timestamp_ns(bucket.start_ns)),
            stdout_logs: bucket.stdout,
            stderr_logs: bucket.stderr,
            system_logs: bucket.system,
        });
        Ok(api::AppCountLogsResponse { app_id: request.app_id, buckets: buckets.collect() })
    }

    /// Whose a container is and when it lived, which is where its logs are looked for.
    pub(crate) async fn task_get_info(
        self: Arc<Self>,
        _context: CallContext,
        request: api::TaskGetInfoRequest,
    ) -> Result<api::TaskGetInfoResponse, Status> {
        let id: TaskId = parse_id(&request.task_id)?;
        let row = self
            .store
            .read(move |db| Ok(evoke_store::calls::task_by_id(db, &id)?))
            .await
            .map_err(stored)?
            .ok_or_else(|| Status::not_found(format!("There is no container {id}")))?;
        let reached = |phase| row.phases.iter().find(|(reached, _)| *reached == phase).map(|(_, at)| *at);
        let seconds = |at: Option<UnixMs>| at.map_or(0.0, UnixMs::as_secs_f64);
        let first = row.phases.iter().map(|(_, at)| *at).min();
        let info = api::TaskInfo {
            id: request.task_id,
            enqueued_at: seconds(reached(Phase::Queued).or(first)),
            started_at: seconds(reached(Phase::Ready)),
            // The last output is taken over while the container is taken down.
            finished_at: seconds(row.end.as_ref().map(|end| end.at.plus_ms(1))),
            ..Default::default()
        };
        Ok(api::TaskGetInfoResponse { app_id: row.app_id.to_string(), info: Some(info) })
    }
}

/// The id to look for; none where none is asked for.
pub(crate) fn chosen<T: FromStr<Err = ParseIdError>>(text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() { Ok(None) } else { parse_id(text).map(Some) }
}

pub(crate) fn descriptor(source: i32) -> Option<u8> {
    u8::try_from(source).ok().filter(|fd| *fd != 0)
}

/// From a time on up to another; open where one is missing.
fn span(since: Option<prost_types::Timestamp>, until: Option<prost_types::Timestamp>) -> TimeRange {
    let since_ns = since.map_or(0, nanoseconds);
    let until_ns = until.map_or(u64::MAX, nanoseconds);
    TimeRange { since_ns, until_ns }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_open_where_nothing_is_said() {
        let all = span(None, None);
        assert_eq!((all.since_ns, all.until_ns), (0, u64::MAX));
        let at = timestamp_ns(1_700_000_000_123_456_789);
        let some = span(Some(at), Some(at));
        assert_eq!(some.since_ns, 1_700_000_000_123_456_789);
        assert_eq!(some.until_ns, some.since_ns, "spans that meet have nothing in common");
    }

    #[test]
    fn an_unknown_id_is_not_taken_for_no_filter() {
        assert_eq!(chosen::<TaskId>("").unwrap(), None);
        assert!(chosen::<TaskId>("ta-").is_err());
    }
}
