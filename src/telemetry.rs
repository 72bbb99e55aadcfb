//! Logs, counters and the bounded record of each pod's way through the workflow.
//! Never holds object contents, so no Secret can leak through it.

use crate::clock::Clock;
use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Pods whose steps are remembered; the oldest is forgotten first.
const TRACED_PODS_LIMIT: usize = 512;
/// Steps a live reader may be behind.
const LIVE_LIMIT: usize = 256;
/// Steps remembered per pod.
const STEPS_LIMIT: usize = 64;
/// Of one step; the words of a registry or of libcontainer can be long.
const STEP_LIMIT_CHARS: usize = 300;

/// One step of a pod's way: what happened, which room did it, when.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, PartialEq, Eq)]
pub struct Step {
    pub at: Timestamp,
    pub room: String,
    pub what: String,
    #[serde(skip)]
    turn: u64,
}

impl Step {
    /// What is before it in time, or in its cause where a clock tells no difference.
    pub fn order(&self) -> (Timestamp, u64) {
        (self.at, self.turn)
    }
}

/// When a step was taken that is told later, once it is known to have succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    at: Timestamp,
    turn: u64,
}

#[derive(Default)]
struct Record {
    turns: u64,
    order: VecDeque<String>,
    steps: HashMap<String, Vec<Step>>,
}

/// The steps of recent pods by uid. One per process, shared by every room that handles pods.
pub struct Trace {
    record: Mutex<Record>,
    live: tokio::sync::broadcast::Sender<(String, Step)>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { record: Mutex::default(), live: tokio::sync::broadcast::channel(LIVE_LIMIT).0 }
    }
}

impl Trace {
    /// Steps as they are recorded; a slow reader loses the oldest.
    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<(String, Step)> {
        self.live.subscribe()
    }

    /// Now. Whoever writes takes it before the write: those who act upon it may tell of that first.
    pub fn moment(&self, clock: &Clock) -> Moment {
        let mut record = self.record();
        record.turns += 1;
        Moment { at: clock.now(), turn: record.turns }
    }

    /// Records that `room` did `what` for the pod with this uid, now.
    pub fn mark(&self, clock: &Clock, uid: &str, room: &'static str, what: &str) {
        self.mark_at(self.moment(clock), uid, room, what);
    }

    /// The same, with the moment at which it was done.
    pub fn mark_at(&self, moment: Moment, uid: &str, room: &'static str, what: &str) {
        let what = what.chars().take(STEP_LIMIT_CHARS).collect();
        let step = Step { at: moment.at, room: room.to_owned(), what, turn: moment.turn };
        // Without a reader the step is only remembered.
        let _ = self.live.send((uid.to_owned(), step.clone()));
        let mut record = self.record();
        if !record.steps.contains_key(uid) {
            if record.order.len() >= TRACED_PODS_LIMIT
                && let Some(oldest) = record.order.pop_front()
            {
                record.steps.remove(&oldest);
            }
            record.order.push_back(uid.to_owned());
        }
        let steps = record.steps.entry(uid.to_owned()).or_default();
        if steps.len() >= STEPS_LIMIT {
            // How it began and how it is now count most.
            steps.remove(STEPS_LIMIT / 2);
        }
        steps.push(step);
    }

    /// The steps of one pod in the order they happened; empty when it is unknown.
    pub fn steps(&self, uid: &str) -> Vec<Step> {
        let mut steps = self.record().steps.get(uid).cloned().unwrap_or_default();
        steps.sort_by_key(Step::order);
        steps
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no panic while the trace is locked")
    }
}

/// Starts logging to standard error; `RUST_LOG` selects by level and target (`info`, `edgelet::kubelet=debug,warn`).
/// The journal keeps the time and shows levels itself: it gets lines with a priority and nothing else.
pub fn init(default_filter: &str) {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = selection(&asked);
    let usual = || Targets::new().with_default(tracing::Level::INFO);
    let chosen = match &filter {
        Some(Ok(chosen)) => chosen.clone(),
        Some(Err(_)) => usual(),
        None => default_filter.parse().unwrap_or_else(|_| usual()),
    };
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(std::io::stderr);
    // A second call in one process (tests) keeps the first subscriber.
    let _ = if into_journal() {
        log.with_ansi(false).event_format(JournalFormat::default()).finish().with(chosen).try_init()
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).finish().with(chosen).try_init()
    };
    // What cannot be read is said once there is a log.
    if let Some(Err(error)) = filter {
        tracing::warn!(error, "RUST_LOG is not of the form `info` or `edgelet::kubelet=debug,warn`");
    }
}

/// What `RUST_LOG` selects; `None` when it is empty. A word that is no level would be a target of that name: where
/// nothing else is selected it is a mistake, and the log would be empty.
fn selection(asked: &str) -> Option<Result<Targets, String>> {
    if asked.trim().is_empty() {
        return None;
    }
    let is_level = |word: &str| word.parse::<tracing::level_filters::LevelFilter>().is_ok();
    let selects = |word: &str| is_level(word) || word.starts_with("edgelet");
    if asked.contains('[') || !asked.split(',').map(str::trim).any(selects) {
        return Some(Err(format!("{asked:?} names neither a level nor a part of edgelet")));
    }
    Some(asked.parse::<Targets>().map_err(|error| error.to_string()))
}

/// systemd names the journal's stream by device and inode; a redirected standard error is another one.
fn into_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|own| named == format!("{}:{}", own.st_dev, own.st_ino))
}

/// One line: `<PRIORITY>`, then target, spans, message and fields (sd-daemon(3)).
struct JournalFormat(Format<Compact, ()>);

impl Default for JournalFormat {
    fn default() -> Self {
        Self(format().without_time().with_level(false).compact())
    }
}

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// syslog's: an error is 3, a warning 4, information 6, all below 7.
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_would_stay_empty_is_refused() {
        for asked in ["info", "off", "edgelet::kubelet=debug,warn", "edgelet=debug", "h2=debug,info", " info "] {
            assert!(matches!(selection(asked), Some(Ok(_))), "{asked}");
        }
        for asked in ["bad[", "debgu", "edgelet[x]=debug", "edgelet=debgu", "a=b=c", "h2=debug"] {
            assert!(matches!(selection(asked), Some(Err(_))), "{asked}");
        }
        assert!(selection("").is_none());
    }

    #[test]
    fn a_cause_that_is_told_after_its_effect_comes_before_it() {
        let (trace, clock) = (Trace::default(), Clock::simulated(Timestamp::UNIX_EPOCH));
        let written = trace.moment(&clock);
        trace.mark(&clock, "a", "scheduler", "queued");
        trace.mark_at(written, "a", "apiserver", "created");
        let told = |trace: &Trace| trace.steps("a").into_iter().map(|step| step.what).collect::<Vec<_>>();
        assert_eq!(told(&trace), ["created", "queued"]);
        (0..2 * STEPS_LIMIT).for_each(|n| trace.mark(&clock, "a", "kubelet", &format!("failed {n}")));
        let told = told(&trace);
        assert_eq!((told.len(), told[0].as_str()), (STEPS_LIMIT, "created"));
        assert_eq!(told.last().map(String::as_str), Some(format!("failed {}", 2 * STEPS_LIMIT - 1).as_str()));
    }

    #[test]
    fn the_journal_gets_priorities_and_neither_times_nor_colours() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(JournalFormat::default())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(task = "dns", "task failed");
            tracing::info!("serving");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let target = "edgelet::telemetry::tests";
        assert_eq!(text, format!("<3>{target}: task failed task=\"dns\"\n<6>{target}: serving\n"));
    }
}
