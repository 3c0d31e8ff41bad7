//! Due times: tables of the cases that calendars make hard, and what holds for every schedule.

use super::*;
use proptest::prelude::*;

fn at(text: &str) -> UnixMs {
    let at: Timestamp = text.parse().unwrap();
    UnixMs(at.as_millisecond() as u64)
}

fn cron(line: &str, zone: &str) -> Schedule {
    Schedule::cron(line, zone, at("2026-01-01T00:00:00Z")).unwrap()
}

/// The due times after `since` up to `until`, as a server that is always there starts them.
fn all(schedule: &Schedule, since: UnixMs, until: UnixMs) -> Vec<UnixMs> {
    let (mut found, mut now, mut last) = (Vec::new(), since, None);
    while let Some(next) = schedule.due(since, last, now).next.filter(|next| *next <= until) {
        assert!(next > now, "time goes on");
        now = next;
        let due = schedule.due(since, last, now);
        assert_eq!(due.run, Some(next), "what was announced is due");
        last = due.run;
        found.push(next);
    }
    found
}

#[track_caller]
fn fires(schedule: &Schedule, since: &str, until: &str, expected: &[&str]) {
    let expected: Vec<UnixMs> = expected.iter().map(|text| at(text)).collect();
    assert_eq!(all(schedule, at(since), at(until)), expected);
}

#[test]
fn cron_lines_fire_when_they_say() {
    let nightly = cron("5 4 * * *", "");
    fires(
        &nightly,
        "2026-01-01T04:05:00Z",
        "2026-01-03T04:05:00Z",
        &["2026-01-02T04:05:00Z", "2026-01-03T04:05:00Z"],
    );
    let thursdays = cron("0 9 * * 4", "UTC");
    fires(&thursdays, "2026-01-01T09:00:00Z", "2026-01-10T00:00:00Z", &["2026-01-08T09:00:00Z"]);
    let names = cron("0 0 1 JAN,jul *", "UTC");
    fires(
        &names,
        "2026-01-02T00:00:00Z",
        "2027-01-01T00:00:00Z",
        &["2026-07-01T00:00:00Z", "2027-01-01T00:00:00Z"],
    );
    // A day of the month or a day of the week, where both are given.
    let either = cron("0 0 13 * 5", "UTC");
    fires(
        &either,
        "2026-02-10T00:00:00Z",
        "2026-02-20T00:00:00Z",
        &["2026-02-13T00:00:00Z", "2026-02-20T00:00:00Z"],
    );
    let leap = cron("0 0 29 2 *", "UTC");
    fires(&leap, "2026-01-01T00:00:00Z", "2030-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]);
    let sundays = cron("0 0 * * 7", "UTC");
    fires(&sundays, "2026-01-01T00:00:00Z", "2026-01-05T00:00:00Z", &["2026-01-04T00:00:00Z"]);
    let hourly = cron("@hourly", "UTC");
    fires(&hourly, "2026-01-01T00:30:00Z", "2026-01-01T01:30:00Z", &["2026-01-01T01:00:00Z"]);
}

#[test]
fn a_fixed_time_runs_once_a_day_when_clocks_change() {
    let morning = cron("30 2 * * *", "Europe/Berlin");
    // On 29 March 2026 02:00 is followed by 03:00: it runs when that hour would have ended.
    fires(
        &morning,
        "2026-03-28T12:00:00Z",
        "2026-03-30T12:00:00Z",
        &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
    );
    // On 25 October 2026 there are two of 02:30: the first counts.
    fires(
        &morning,
        "2026-10-24T12:00:00Z",
        "2026-10-26T12:00:00Z",
        &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
    );
    let office = cron("0 6 * * *", "America/New_York");
    fires(
        &office,
        "2026-03-07T00:00:00Z",
        "2026-03-08T23:00:00Z",
        &["2026-03-07T11:00:00Z", "2026-03-08T10:00:00Z"],
    );
}

#[test]
fn steps_follow_real_time_when_clocks_change() {
    let often = cron("*/30 * * * *", "Europe/Berlin");
    for (from, to) in
        [("2026-03-29T00:00:00Z", "2026-03-29T03:00:00Z"), ("2026-10-25T00:00:00Z", "2026-10-25T03:00:00Z")]
    {
        assert_eq!(all(&often, at(from), at(to)).len(), 6);
    }
}

#[test]
fn what_is_no_schedule_is_refused_with_the_reason() {
    let now = at("2026-01-01T00:00:00Z");
    let text = |line: &str, zone: &str| Schedule::cron(line, zone, now).unwrap_err().to_string();
    assert!(text("every day", "").contains("'every day' is malformed"));
    assert!(text("61 * * * *", "").contains("malformed"));
    assert!(text("* * * *", "").contains("malformed"));
    assert!(text("0 * * * * *", "").contains("malformed"), "seconds are no part of it");
    assert!(text("", "").contains("malformed"));
    assert!(text("0 0 30 2 *", "").contains("never fires"));
    assert!(text("0 0 * * *", "Mars/Olympus").contains("'Mars/Olympus'"));
    let period = |parts| Schedule::period(parts).unwrap_err().to_string();
    let none = PeriodParts::default();
    assert!(period(none).contains("empty"));
    assert!(period(PeriodParts { hours: -1, ..none }).contains("negative"));
    assert!(period(PeriodParts { seconds: 0.25, ..none }).contains("shorter than a second"));
    assert!(period(PeriodParts { seconds: f32::NAN, ..none }).contains("not a number"));
    assert!(period(PeriodParts { years: 2000, ..none }).contains("hundred years"));
    assert!(period(PeriodParts { weeks: i32::MAX, ..none }).contains("hundred years"));
}

#[test]
fn periods_keep_the_day_of_the_month_without_drifting() {
    let monthly = Schedule::period(PeriodParts { months: 1, ..Default::default() }).unwrap();
    fires(
        &monthly,
        "2026-01-31T10:00:00Z",
        "2026-05-01T00:00:00Z",
        &["2026-02-28T10:00:00Z", "2026-03-31T10:00:00Z", "2026-04-30T10:00:00Z"],
    );
    let odd = Schedule::period(PeriodParts { seconds: std::f32::consts::PI, ..Default::default() }).unwrap();
    let since = at("2026-01-01T00:00:00Z");
    let found = all(&odd, since, since.plus_ms(10_000));
    assert_eq!(found.iter().map(|due| due.since(since)).collect::<Vec<_>>(), [3142, 6284, 9426]);
}

#[test]
fn of_what_was_missed_only_the_latest_runs() {
    let minutely = cron("* * * * *", "UTC");
    let since = at("2026-01-01T00:00:00Z");
    let last = Some(at("2026-01-01T00:05:00Z"));
    let due = minutely.due(since, last, at("2026-01-01T03:00:30Z"));
    assert_eq!(due.run, Some(at("2026-01-01T03:00:00Z")));
    assert_eq!(due.next, Some(at("2026-01-01T03:01:00Z")));
    // What was due before the deployment was nobody's.
    assert_eq!(minutely.due(since, None, at("2026-01-01T00:00:30Z")).run, None);
    // A clock that is set back starts nothing again.
    let back = minutely.due(since, last, at("2026-01-01T00:03:00Z"));
    assert_eq!(back, Due { run: None, next: Some(at("2026-01-01T00:06:00Z")) });
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    let lines = prop::sample::select(vec![
        "* * * * *",
        "*/7 * * * *",
        "30 2 * * *",
        "15 */3 * * *",
        "0 0 1 * *",
        "0 12 31 * *",
        "5 1 * * 0",
        "0 0 13 * 5",
        "59 23 28-31 2,3 *",
    ]);
    let zones = prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/Sao_Paulo",
    ]);
    let crons = (lines, zones).prop_map(|(line, zone)| cron(line, zone));
    let periods =
        (0..3i32, 0..40i32, 0..30i32, 1..2_000_000i32).prop_map(|(months, days, hours, seconds)| {
            Schedule::period(PeriodParts {
                months,
                days,
                hours,
                seconds: seconds as f32,
                ..Default::default()
            })
            .unwrap()
        });
    prop_oneof![crons, periods]
}

proptest! {
    /// However a server comes and goes, each due time is started at most once, never early, never one that
    /// the schedule does not have, and after each look nothing that passed is left to be started.
    #[test]
    fn each_due_time_is_started_at_most_once(
        schedule in any_schedule(),
        begin in 1_767_225_600_000u64..1_830_297_600_000,
        steps in prop::collection::vec(0u64..40_000_000, 1..40),
    ) {
        let since = UnixMs(begin);
        let (mut now, mut last, mut started) = (since, None, Vec::new());
        for step in steps {
            now = now.plus_ms(step);
            let due = schedule.due(since, last, now);
            if let Some(run) = due.run {
                prop_assert!(run > since && run <= now);
                prop_assert!(last.is_none_or(|last| run > last));
                started.push(run);
                last = Some(run);
            }
            prop_assert_eq!(schedule.due(since, last, now).run, None, "once");
            prop_assert!(due.next.is_some_and(|next| next > now));
        }
        // Those started are among those that one who is always there starts.
        let (Some(first), Some(end)) = (started.first(), started.last()) else { return Ok(()) };
        let every = all(&schedule, UnixMs(first.0 - 1).max(since), *end);
        if matches!(schedule.0, Kind::Cron { .. }) && end.since(*first) < 10 * 86_400_000 {
            prop_assert!(started.iter().all(|run| every.contains(run)));
        }
    }

    /// Looking at the time that was announced finds a run, for exactly that time.
    #[test]
    fn what_is_announced_is_due_then(
        schedule in any_schedule(),
        begin in 1_767_225_600_000u64..1_830_297_600_000,
        wait in 0u64..4_000_000_000,
    ) {
        let since = UnixMs(begin);
        let next = schedule.due(since, None, since.plus_ms(wait)).next.unwrap();
        prop_assert_eq!(schedule.due(since, None, next).run, Some(next));
        prop_assert_ne!(schedule.due(since, None, UnixMs(next.0 - 1)).run, Some(next));
    }
}
