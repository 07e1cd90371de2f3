//! Output of a run: JSON lines on standard output, or text on standard error.
//!
//! Owns wording and layout. A reader that closes ends the output, never the run.

use std::fmt::Write as _;
use std::time::{Instant, SystemTime};

use serde::Serialize;

use super::admin::Feed;
use super::escape;
use super::event::ConsoleEvent;
use super::log::{Dress, Level, level, time};
use super::printer::{Destination, Printer};
use super::summary::{Summary, WorkerSummary};
use clusterlb::WorkerId;
use clusterlb_schedule::Changes;

/// Longest bar of the summary, in characters.
const BAR_WIDTH: u64 = 24;

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// One JSON object a line.
    Json,
    /// Text.
    Text,
    /// Only the totals of a run that failed.
    Quiet,
}

/// Prints events.
#[derive(Debug)]
pub(super) struct Console {
    style: Style,
    dress: Dress,
    begun: Instant,
    /// Events before the first `listening`, which is printed first: readers wait for it.
    held: Option<Vec<(Moment, ConsoleEvent)>>,
    listeners_left: usize,
    /// Describes the run, printed with the first event as text. A run that cannot start prints only
    /// its error.
    introduction: Vec<String>,
    /// Writes on its own thread, so a slow reader blocks nothing.
    printer: Printer,
    /// Clients that follow the events from outside.
    feed: Feed,
}

/// The time of an event: since the start, and by the clock.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at_ms: u128,
    time: SystemTime,
}

#[derive(Serialize)]
struct EventLine<'a> {
    #[serde(flatten)]
    event: &'a ConsoleEvent,
    at_ms: u128,
    time: String,
    /// Only in a log.
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<Level>,
}

impl<'a> EventLine<'a> {
    fn new(event: &'a ConsoleEvent, at: Moment, level: Option<Level>) -> Self {
        Self { event, at_ms: at.at_ms, time: time(at.time), level }
    }

    fn render(&self) -> String {
        let line = serde_json::to_string(self).expect("events are plain data with string keys");
        escape::in_json(&line).into_owned()
    }
}

impl Console {
    /// A console that has printed nothing.
    #[must_use]
    pub(super) fn new(
        style: Style,
        dress: Dress,
        listeners: usize,
        introduction: Vec<String>,
        printer: Printer,
    ) -> Self {
        let (begun, held, feed) = (Instant::now(), Some(Vec::new()), Feed::new());
        Self { style, dress, begun, held, listeners_left: listeners, introduction, printer, feed }
    }

    /// The feed for clients that follow from outside.
    pub(super) fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Prints an event, or holds it until every listener is announced.
    pub(super) fn emit(&mut self, event: ConsoleEvent) {
        let at = Moment { at_ms: self.begun.elapsed().as_millis(), time: SystemTime::now() };
        match (&mut self.held, &event) {
            (
                Some(held),
                ConsoleEvent::Admin { .. }
                | ConsoleEvent::AgentCheck { .. }
                | ConsoleEvent::Fork { .. }
                | ConsoleEvent::Online { .. },
            ) => {
                held.push((at, event));
            }
            (_, ConsoleEvent::Listening { .. }) => {
                self.write(at, &event);
                self.listeners_left = self.listeners_left.saturating_sub(1);
                if self.listeners_left == 0 {
                    self.release();
                }
            }
            _ => {
                self.release();
                self.write(at, &event);
            }
        }
    }

    fn release(&mut self) {
        for (at, event) in self.held.take().unwrap_or_default() {
            self.write(at, &event);
        }
    }

    fn write(&mut self, at: Moment, event: &ConsoleEvent) {
        if self.style == Style::Json || self.feed.has_readers() {
            let line = EventLine::new(event, at, None).render();
            self.feed.emit(&line);
            if self.style == Style::Json {
                self.printer.line(Destination::Output, &line);
            }
        }
        match (self.style, self.dress) {
            (Style::Text, Dress::Json) => {
                let line = EventLine::new(event, at, Some(level(event))).render();
                self.printer.line(Destination::Log, &line);
            }
            (Style::Text, dress) => {
                for text in std::mem::take(&mut self.introduction) {
                    self.printer
                        .line(Destination::Log, &dress.dressed(&text, Level::Info, at.time));
                }
                if let Some(text) = in_words(event) {
                    // The table is made of our own words and numbers, and has several lines.
                    let is_ours = matches!(event, ConsoleEvent::Summary(_));
                    let text = if is_ours { text.into() } else { escape::on_one_line(&text) };
                    let text = dress.dressed(&text, level(event), at.time);
                    self.printer.line(Destination::Log, &text);
                }
            }
            (Style::Json | Style::Quiet, _) => {}
        }
    }
}

fn in_words(event: &ConsoleEvent) -> Option<String> {
    Some(match event {
        ConsoleEvent::Listening { address, .. } => format!("listening on {address}"),
        ConsoleEvent::Admin { address } => format!("admin interface on {address}"),
        ConsoleEvent::AgentCheck { address } => format!("agent-check on {address}"),
        ConsoleEvent::Fork { id, pid, cpu } => {
            let place = cpu.map_or_else(|| "not pinned".into(), |cpu| format!("CPU {cpu}"));
            format!("worker {id}: pid {pid}, {place}")
        }
        ConsoleEvent::Exit { id, pid, code, signal, refused_call, aborted } => {
            let refused = refused_call.as_deref().unwrap_or("a system call");
            let how = match (code, signal.as_deref()) {
                (_, Some("SIGSYS")) => format!("was ended by SIGSYS: seccomp refused {refused}"),
                (_, Some(signal)) => format!("was ended by {signal}"),
                (Some(0), None) => return aborted_only(*id, *pid, *aborted),
                (code, None) => format!("ended with exit code {}", code.unwrap_or(-1)),
            };
            format!("worker {id}: pid {pid} {how}{}", cut(*aborted))
        }
        ConsoleEvent::Hung { id, pid, taken_back } => format!(
            "worker {id}: pid {pid} hangs; {taken_back} connections went to others, no more for it"
        ),
        ConsoleEvent::Recovered { id, pid } => format!("worker {id}: pid {pid} answers again"),
        ConsoleEvent::Outlier { id, pid, ejected_ms } => {
            let what = ejected_ms.map_or_else(
                || "each counts as load for a while".into(),
                |ejected_ms| format!("ejected for {ejected_ms} ms"),
            );
            format!("worker {id}: pid {pid} closes connections without an answer; {what}")
        }
        ConsoleEvent::OutlierEnded { id, pid } => {
            format!("worker {id}: pid {pid} is no outlier any more")
        }
        ConsoleEvent::Recycle { id, reason } => format!("worker {id}: replaced, since {reason}"),
        ConsoleEvent::Respawn { id, delay_ms: 0 } => format!("worker {id}: replaced at once"),
        ConsoleEvent::Respawn { id, delay_ms } => format!("worker {id}: replaced in {delay_ms} ms"),
        ConsoleEvent::GiveUp { id: Some(id), reason, .. } => {
            format!("worker {id}: not replaced any more: {reason}")
        }
        ConsoleEvent::GiveUp { slot, reason, .. } => format!("slot {slot} stays empty: {reason}"),
        ConsoleEvent::Stopping { reason, delay_ms } => format!(
            "stopping ({reason}): serving goes on for {} s; a second signal ends that",
            delay_ms.div_ceil(1000)
        ),
        ConsoleEvent::Draining { reason, grace_ms } => format!(
            "draining ({reason}): open requests have {} s; a second signal ends at once",
            grace_ms.div_ceil(1000)
        ),
        ConsoleEvent::Kill { ids, reason } => {
            format!("killed worker {}: {reason}", in_a_row(ids))
        }
        ConsoleEvent::Reloading { ids } => {
            format!("replacing worker {}, one after the other", in_a_row(ids))
        }
        ConsoleEvent::Reloaded => "all of them are replaced".into(),
        ConsoleEvent::Scaled { from, to } => format!("{to} workers instead of {from}"),
        ConsoleEvent::Rescheduled { policy, .. } => {
            format!("the scheduling rules have changed, policy {policy}")
        }
        ConsoleEvent::Note { text } => text.clone(),
        ConsoleEvent::Summary(summary) => in_a_table(summary),
        _ => return None,
    })
}

fn aborted_only(id: WorkerId, pid: u32, aborted: u64) -> Option<String> {
    (aborted > 0).then(|| format!("worker {id}: pid {pid} left{}", cut(aborted)))
}

fn in_a_row(ids: &[WorkerId]) -> String {
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn cut(aborted: u64) -> String {
    match aborted {
        0 => String::new(),
        1 => ", 1 connection cut".into(),
        count => format!(", {count} connections cut"),
    }
}

fn in_a_table(summary: &Summary) -> String {
    match summary.stolen {
        _ if !summary.uncounted => table(summary),
        0 => {
            "\nnothing was counted: the workers accepted connections themselves, and do not report \
              them"
                .into()
        }
        _ => format!(
            "\nonly what went to other workers is counted: workers do not report what they accept \
             themselves\n{}",
            table(summary)
        ),
    }
}

/// The totals as a table with a bar per worker.
fn table(summary: &Summary) -> String {
    // Only workers that answer requests count them.
    let counts_requests = summary.requests > 0;
    let mut text = String::from("\nworker      pid   cpu    assigned     claimed    finished");
    text += if counts_requests { "    requests\n" } else { "\n" };
    let given = |worker: &WorkerSummary| worker.assigned - worker.returned;
    let total: u64 = summary.workers.iter().map(given).sum();
    let most = summary.workers.iter().map(given).max().unwrap_or(0);
    for worker in &summary.workers {
        let name = match worker.id {
            0 => "earlier".into(),
            id => id.to_string(),
        };
        let cpu = worker.cpu.map_or_else(|| "-".into(), |cpu| cpu.to_string());
        let share = percent(given(worker), total);
        let requests = match counts_requests {
            true => format!(" {:>11}", worker.requests),
            false => String::new(),
        };
        let bar = "▇".repeat(length(given(worker), most));
        let _ = writeln!(
            text,
            "{name:>6} {:>8} {cpu:>5} {:>11} {:>11} {:>11}{requests}  {share:>5.1} % {bar}",
            worker.pid, worker.assigned, worker.claimed, worker.finished
        );
    }
    let Summary { accepted, stolen, refused, redispatched, dropped, aborted, .. } = summary;
    let stolen = match stolen {
        0 => String::new(),
        stolen => format!(" ({stolen} stolen from workers that did not)"),
    };
    let _ = write!(
        text,
        "accepted {accepted}{stolen}, refused {refused}, redispatched {redispatched}, dropped \
         {dropped}, cut {aborted}; top two {:.1} %, max/mean {:.2}",
        summary.top_two_percent, summary.max_over_mean
    );
    let Changes { workers, stalls, loads } = summary.steered;
    if !summary.steered.is_none() {
        let _ = write!(
            text,
            "\nchanges of the kernel's choice: {workers} because of workers, {stalls} of stalls, \
             {loads} of loads"
        );
    }
    if summary.headers_refused > 0 {
        let count = summary.headers_refused;
        let _ = write!(text, "\nconnections closed for lack of a PROXY protocol header: {count}");
    }
    if counts_requests {
        let _ = write!(text, "\nanswered {} requests on these connections", summary.requests);
    }
    if let Some(slowest) =
        summary.workers.iter().filter_map(|one| one.handoff).max_by_key(|one| one.p99_us)
    {
        let _ = write!(
            text,
            "\naccept to claim, slowest worker: p50 {} µs, p90 {} µs, p99 {} µs, max {} µs",
            slowest.p50_us, slowest.p90_us, slowest.p99_us, slowest.max_us
        );
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

fn length(part: u64, most: u64) -> usize {
    let length = (part * BAR_WIDTH).checked_div(most).unwrap_or(0);
    usize::try_from(length).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clusterlb::WorkerCounts;

    #[test]
    fn the_table_shows_shares_and_sums() {
        let mut summary = Summary { accepted: 40, ..Summary::default() };
        for (id, count) in [(1, 30), (2, 10)] {
            let mut counts = WorkerCounts::default();
            (counts.assigned, counts.claimed, counts.finished) = (count, count, count);
            summary.enter(WorkerSummary::new(WorkerId::new(id), 100, Some(0), counts));
        }
        summary.close();
        let text = table(&summary);
        assert!(text.contains("75.0 %") && text.contains("25.0 %"), "{text}");
        assert!(text.contains("accepted 40") && text.contains("top two 100.0 %"), "{text}");
        assert!(text.contains(&"▇".repeat(24)), "{text}");
        assert!(!text.contains("requests"), "{text}");
        let mut counts = WorkerCounts::default();
        (counts.assigned, counts.requests) = (1, 57_093);
        summary.enter(WorkerSummary::new(WorkerId::new(3), 100, None, counts));
        summary.close();
        let text = table(&summary);
        assert_eq!(text.matches("57093").count(), 2, "{text}");
    }

    #[test]
    fn events_are_one_json_object_with_their_name() {
        let event = ConsoleEvent::Online { id: WorkerId::new(3), pid: 17 };
        let at = Moment { at_ms: 5, time: SystemTime::UNIX_EPOCH };
        let line = EventLine::new(&event, at, None).render();
        let (before, time) = line.split_once(r#","time""#).expect("the time is told");
        assert_eq!(format!("{before}}}"), r#"{"event":"online","id":3,"pid":17,"at_ms":5}"#);
        assert_eq!(time, r#":"1970-01-01T00:00:00.000Z"}"#);
        let logged = EventLine::new(&event, at, Some(Level::Info)).render();
        assert!(logged.ends_with(r#","level":"info"}"#), "{logged}");
    }
}
