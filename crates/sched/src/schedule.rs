//! When a scheduled function is due.
//!
//! A schedule is a cron line in a time zone, or a period counted from a deployment. Its due times are fixed
//! by that alone, so that a due time names a run: whoever remembers the last one that was started starts none
//! twice, whatever stopped or started in between. Of the due times that nobody was there for, only the latest
//! is made up for ([`Schedule::due`]).
//!
//! Clocks that are set forward or back for daylight saving: a line with a fixed hour and minute runs once a
//! day; in the hour that does not exist it runs when that hour would have ended. A line with `*` or steps in
//! its minutes or hours follows real time. Days and longer parts of a period are counted in UTC; months and
//! years keep the day of the month where there is one, else take the month's last day.

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use evoke_core::UnixMs;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// The shortest period (milliseconds): what is to run more often is a loop, not a schedule.
pub const PERIOD_MS_MIN: u64 = 1_000;
/// The longest period (years).
const PERIOD_YEARS_MAX: i64 = 100;
/// The zone of a cron line that names none.
const ZONE_DEFAULT: &str = "UTC";

/// The due times of a function.
#[derive(Debug, Clone)]
pub struct Schedule(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Cron { cron: Box<Cron>, zone: TimeZone },
    Period { months: i64, millis: i64 },
}

/// A period as it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)] // The names say it.
pub struct PeriodParts {
    pub years: i32,
    pub months: i32,
    pub weeks: i32,
    pub days: i32,
    pub hours: i32,
    pub minutes: i32,
    pub seconds: f32,
}

/// Why something is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The cron line cannot be read.
    #[error(
        "the cron line '{line}' is malformed: {why}. It has five fields: minute, hour, day, month, weekday"
    )]
    Line {
        /// As it was given.
        line: String,
        /// What is wrong.
        why: String,
    },
    /// No time matches the cron line.
    #[error("the cron line '{0}' never fires: no date matches it")]
    Never(String),
    /// There is no such time zone.
    #[error("there is no time zone '{0}'. Give a name of the IANA database, such as Europe/Berlin")]
    Zone(String),
    /// The period is negative, too short or too long.
    #[error("the period is refused: {0}")]
    Period(String),
}

/// What is to be done at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Due {
    /// The due time that a run is to be started for now.
    pub run: Option<UnixMs>,
    /// When to look again.
    pub next: Option<UnixMs>,
}

impl Schedule {
    /// A cron line of five fields in a time zone of the IANA database (UTC if it is empty). `now` is when it
    /// is taken up: a line that fires at no time after it is refused.
    pub fn cron(line: &str, zone: &str, now: UnixMs) -> Result<Self, ScheduleError> {
        let name = if zone.trim().is_empty() { ZONE_DEFAULT } else { zone.trim() };
        let found = TimeZone::get(name).map_err(|_| ScheduleError::Zone(zone.to_string()))?;
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let malformed = |why: String| ScheduleError::Line { line: line.to_string(), why };
        let cron = parser.parse(line).map_err(|error| malformed(error.to_string()))?;
        match cron.find_next_occurrence(&zoned(now, &found), false) {
            Ok(_) => Ok(Self(Kind::Cron { cron: Box::new(cron), zone: found })),
            Err(CronError::TimeSearchLimitExceeded) => Err(ScheduleError::Never(line.to_string())),
            Err(error) => Err(malformed(error.to_string())),
        }
    }

    /// A period.
    pub fn period(parts: PeriodParts) -> Result<Self, ScheduleError> {
        let refused = |why: &str| Err(ScheduleError::Period(why.to_string()));
        let whole = [parts.years, parts.months, parts.weeks, parts.days, parts.hours, parts.minutes];
        if whole.iter().any(|part| *part < 0) || parts.seconds < 0.0 {
            return refused("no part of it may be negative");
        }
        if !parts.seconds.is_finite() {
            return refused("its seconds are not a number");
        }
        let months = i64::from(parts.years) * 12 + i64::from(parts.months);
        let days = i64::from(parts.weeks) * 7 + i64::from(parts.days);
        let minutes = (days * 24 + i64::from(parts.hours)) * 60 + i64::from(parts.minutes);
        let millis = minutes * 60_000 + (f64::from(parts.seconds) * 1000.0).round() as i64;
        if months == 0 && millis == 0 {
            return refused("it is empty");
        }
        if months == 0 && millis < PERIOD_MS_MIN as i64 {
            return refused("it is shorter than a second");
        }
        if months > PERIOD_YEARS_MAX * 12 || millis > PERIOD_YEARS_MAX * 365 * 86_400_000 {
            return refused("it is longer than a hundred years");
        }
        Ok(Self(Kind::Period { months, millis }))
    }

    /// What is to be done at `now`, for a schedule that holds since `since` and whose last run was started for
    /// the due time `last`. Of several due times that passed, the latest is the one to run.
    pub fn due(&self, since: UnixMs, last: Option<UnixMs>, now: UnixMs) -> Due {
        let seen = last.map_or(since, |last| last.max(since));
        let run = self.latest(since, now).filter(|due| *due > seen);
        // Were the clock set back, what was started already is not started again.
        Due { run, next: self.next(since, now.max(seen)) }
    }

    /// The first due time after `after`.
    fn next(&self, since: UnixMs, after: UnixMs) -> Option<UnixMs> {
        match &self.0 {
            Kind::Cron { cron, zone } => {
                cron.find_next_occurrence(&zoned(after, zone), false).ok().map(|at| unix_ms(&at))
            }
            Kind::Period { .. } => self.nth(since, self.elapsed(since, after) + 1),
        }
    }

    /// The last due time at or before `until`, if there is one after `since`.
    fn latest(&self, since: UnixMs, until: UnixMs) -> Option<UnixMs> {
        let latest = match &self.0 {
            Kind::Cron { cron, zone } => {
                cron.find_previous_occurrence(&zoned(until, zone), true).ok().map(|at| unix_ms(&at))
            }
            Kind::Period { .. } => match self.elapsed(since, until) {
                0 => None,
                count => self.nth(since, count),
            },
        };
        latest.filter(|due| *due > since)
    }

    /// How many periods have passed at `at`.
    fn elapsed(&self, since: UnixMs, at: UnixMs) -> i64 {
        let Kind::Period { months, millis } = &self.0 else { return 0 };
        // No month is shorter than 28 days, so that there cannot be more of them than this.
        let shortest = (months * 28 * 86_400_000 + millis).max(1);
        let (mut low, mut high) = (0, i64::try_from(at.since(since)).unwrap_or(i64::MAX) / shortest);
        while low < high {
            let middle = low + (high - low + 1) / 2;
            match self.nth(since, middle) {
                Some(due) if due <= at => low = middle,
                _ => high = middle - 1,
            }
        }
        low
    }

    /// The end of the `count`th period: counted from the beginning, so that nothing drifts.
    fn nth(&self, since: UnixMs, count: i64) -> Option<UnixMs> {
        let Kind::Period { months, millis } = &self.0 else { return None };
        let months = Span::new().try_months(months.checked_mul(count)?).ok()?;
        let begun = zoned(since, &TimeZone::UTC).checked_add(months).ok()?;
        let millis = millis.checked_mul(count)?;
        begun
            .timestamp()
            .as_millisecond()
            .checked_add(millis)
            .and_then(|ms| u64::try_from(ms).ok())
            .map(UnixMs)
    }
}

/// A time as people read it, in UTC.
pub fn in_words(at: UnixMs) -> String {
    zoned(at, &TimeZone::UTC).timestamp().to_string()
}

fn zoned(at: UnixMs, zone: &TimeZone) -> Zoned {
    let at = i64::try_from(at.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.unwrap_or(Timestamp::MAX).to_zoned(zone.clone())
}

fn unix_ms(at: &Zoned) -> UnixMs {
    UnixMs(u64::try_from(at.timestamp().as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
