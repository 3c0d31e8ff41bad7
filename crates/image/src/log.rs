//! Where the lines of a build go, and the fan-out that lets several waiters watch one build.

use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of log kept for those who join a running build late.
const HISTORY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output, and what the builder itself says.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes the log of a build. Called from the build's task: must not block for long.
pub trait LogSink: Send + Sync {
    /// Text as it was written, usually ending in a newline.
    fn write(&self, stream: LogStream, text: &str);
}

/// A sink that drops everything.
#[derive(Debug, Default)]
pub struct NoLog;

impl LogSink for NoLog {
    fn write(&self, _: LogStream, _: &str) {}
}

/// One line of the builder's own.
pub(crate) fn say(log: &dyn LogSink, line: impl AsRef<str>) {
    log.write(LogStream::Stdout, &format!("{}\n", line.as_ref()));
}

/// Passes the log of one build on to all who watch it; who joins late gets what was kept of the past.
#[derive(Default)]
pub(crate) struct LogFan {
    inner: Mutex<Fan>,
}

#[derive(Default)]
struct Fan {
    history: Vec<(LogStream, String)>,
    bytes: usize,
    sinks: Vec<Arc<dyn LogSink>>,
}

impl LogFan {
    /// Adds a watcher and tells it what was said before.
    pub(crate) fn join(&self, sink: Arc<dyn LogSink>) {
        let mut fan = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (stream, text) in &fan.history {
            sink.write(*stream, text);
        }
        fan.sinks.push(sink);
    }
}

impl LogSink for LogFan {
    fn write(&self, stream: LogStream, text: &str) {
        let mut fan = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for sink in &fan.sinks {
            sink.write(stream, text);
        }
        if fan.bytes + text.len() <= HISTORY_BYTES_MAX {
            fan.bytes += text.len();
            fan.history.push((stream, text.to_owned()));
        }
    }
}

/// Puts a name before each line.
pub(crate) struct Tagged<'a> {
    sink: &'a dyn LogSink,
    name: &'a str,
    /// Streams that stand within a line: standard output, standard error.
    within: Mutex<[bool; 2]>,
}

impl<'a> Tagged<'a> {
    pub(crate) fn new(sink: &'a dyn LogSink, name: &'a str) -> Self {
        Self { sink, name, within: Mutex::default() }
    }
}

impl LogSink for Tagged<'_> {
    fn write(&self, stream: LogStream, text: &str) {
        let mut within = self.within.lock().unwrap_or_else(PoisonError::into_inner);
        let within = &mut within[usize::from(stream == LogStream::Stderr)];
        let mut tagged = String::with_capacity(text.len() + 16);
        for line in text.split_inclusive('\n') {
            if !*within {
                tagged.push_str(self.name);
                tagged.push_str(" | ");
            }
            tagged.push_str(line);
            *within = !line.ends_with('\n');
        }
        self.sink.write(stream, &tagged);
    }
}

/// Keeps the last lines of a step, for the error of one that fails.
pub(crate) struct Tail<'a> {
    sink: &'a dyn LogSink,
    kept: Mutex<String>,
}

/// Bytes of a failing step's log that its error quotes.
const TAIL_BYTES_MAX: usize = 8 * 1024;

impl<'a> Tail<'a> {
    pub(crate) fn new(sink: &'a dyn LogSink) -> Self {
        Self { sink, kept: Mutex::new(String::new()) }
    }

    /// What was kept.
    pub(crate) fn text(&self) -> String {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl LogSink for Tail<'_> {
    fn write(&self, stream: LogStream, text: &str) {
        self.sink.write(stream, text);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_str(text);
        if kept.len() > 2 * TAIL_BYTES_MAX {
            let mut cut = kept.len() - TAIL_BYTES_MAX;
            while !kept.is_char_boundary(cut) {
                cut += 1;
            }
            // A whole line where there is one to start with.
            let cut = kept[cut..].find('\n').map_or(cut, |at| cut + at + 1);
            kept.drain(..cut);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A sink that keeps everything.
    #[derive(Default)]
    pub(crate) struct Kept(pub Mutex<String>);

    impl LogSink for Kept {
        fn write(&self, _: LogStream, text: &str) {
            self.0.lock().unwrap().push_str(text);
        }
    }

    impl Kept {
        pub(crate) fn text(&self) -> String {
            self.0.lock().unwrap().clone()
        }
    }

    #[test]
    fn late_watchers_get_the_past() {
        let fan = LogFan::default();
        fan.write(LogStream::Stdout, "a\n");
        let kept = Arc::new(Kept::default());
        fan.join(kept.clone());
        fan.write(LogStream::Stdout, "b\n");
        assert_eq!(kept.text(), "a\nb\n");
    }

    #[test]
    fn each_line_is_tagged_once() {
        let kept = Kept::default();
        let tagged = Tagged::new(&kept, "one");
        for text in ["a\nb", "c\n", "", "d\n"] {
            tagged.write(LogStream::Stdout, text);
        }
        assert_eq!(kept.text(), "one | a\none | bc\none | d\n");
    }

    #[test]
    fn tail_is_bounded_and_starts_at_a_line() {
        let tail = Tail::new(&NoLog);
        for n in 0..5000 {
            tail.write(LogStream::Stdout, &format!("line {n}\n"));
        }
        let text = tail.text();
        assert!(
            text.len() <= 2 * TAIL_BYTES_MAX && text.starts_with("line ") && text.ends_with("line 4999\n")
        );
    }
}
