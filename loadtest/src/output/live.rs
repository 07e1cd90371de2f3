//! The live view: on stderr, only on a terminal, gone when the run is over.
//!
//! ```text
//! [########--------] 5 s of 10 s · 64 in flight
//!   rate     21453/s now · 20981/s so far   ▁▅▇█▇
//!   latency  p50 1.20ms · p90 2.11ms · p99 5.30ms (4.90ms now) · max 12.1ms
//!   status   2xx 104.9k · 5xx 3
//!   errors   3 timeout, 1 reset
//! ```
//!
//! What is summed up comes from complete seconds, so that showing it costs the generator nothing.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::collect::{Interval, Row};
use crate::engine::Progress;
use crate::latency::{histogram, microseconds, quantile_us};
use crate::settings::{Mode, Settings};
use crate::tally::{ErrorKind, Tally};
use crate::units::{count, micros};

/// Seconds whose rates are drawn.
const RATES_MAX: usize = 30;
/// Heights of a drawn rate, from nothing to the highest.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A live view, or nothing where there is no terminal to show it on.
pub(crate) struct LiveView {
    bar: Option<ProgressBar>,
    lines: Lines,
}

/// What the view says, apart from the terminal.
struct Lines {
    warmup_ms: u64,
    measured_ms: Option<u64>,
    requests: Option<u64>,
    /// Which latency is shown: a connection has no response in connect mode.
    connect_only: bool,
    planned: bool,
    tally: Tally,
    latency: Histogram<u64>,
    last_p99_us: Option<f64>,
    /// Requests answered in each of the last seconds.
    rates: VecDeque<u64>,
    before: (Duration, u64),
    per_s: f64,
}

impl LiveView {
    pub(crate) fn new(settings: &Settings, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:24} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar
        });
        Self { bar, lines: Lines::new(settings) }
    }

    /// Takes in a complete second.
    pub(crate) fn second(&mut self, interval: &Interval, row: &Row) {
        if self.bar.is_some() {
            self.lines.second(interval, row);
        }
    }

    /// Shows where the run stands.
    pub(crate) fn show(&mut self, progress: &Progress) {
        let Some(bar) = &self.bar else {
            return;
        };
        bar.set_position(self.lines.permille(progress));
        bar.set_message(self.lines.text(progress));
    }

    /// Takes the view away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn new(settings: &Settings) -> Self {
        Self {
            warmup_ms: settings.warmup_ms,
            measured_ms: settings.duration_ms,
            requests: settings.requests,
            connect_only: settings.mode == Mode::Connect,
            planned: matches!(settings.load, crate::settings::Load::Open { .. }),
            tally: Tally::default(),
            latency: histogram(),
            last_p99_us: None,
            rates: VecDeque::new(),
            before: (Duration::ZERO, 0),
            per_s: 0.0,
        }
    }

    fn second(&mut self, interval: &Interval, row: &Row) {
        let latencies = &interval.latencies;
        let (part, p99_us) = match self.connect_only {
            true => (&latencies.connect, row.connect_p99_us),
            false => (&latencies.response, row.response_p99_us),
        };
        self.tally.add(&interval.tally);
        self.latency.add(part).expect("all histograms have the same bounds");
        self.last_p99_us = p99_us;
        if self.rates.len() == RATES_MAX {
            self.rates.pop_front();
        }
        self.rates.push_back(row.completed);
    }

    fn text(&mut self, progress: &Progress) -> String {
        let (before, completed) = self.before;
        let step = progress.elapsed.saturating_sub(before);
        if step >= Duration::from_secs(1) {
            self.per_s = progress.completed.saturating_sub(completed) as f64 / step.as_secs_f64();
            self.before = (progress.elapsed, progress.completed);
        }
        let lines = [
            Some(self.headline(progress)),
            Some(self.rate(progress)),
            self.latency(),
            self.status(),
            Some(self.errors(progress)),
        ];
        lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }

    fn headline(&self, progress: &Progress) -> String {
        let elapsed_s = progress.elapsed.as_secs();
        let in_flight = progress.in_flight;
        let warmup = Duration::from_millis(self.warmup_ms);
        if progress.elapsed < warmup {
            return format!("warm-up, {elapsed_s} s · {in_flight} in flight");
        }
        let end = match (self.measured_ms, self.requests) {
            (Some(ms), _) => format!(" of {} s", (self.warmup_ms + ms).div_ceil(1000)),
            (None, Some(requests)) => format!(" · {} to answer", count(requests)),
            (None, None) => String::new(),
        };
        format!("{elapsed_s} s{end} · {in_flight} in flight")
    }

    fn rate(&self, progress: &Progress) -> String {
        let elapsed_s = progress.elapsed.as_secs_f64().max(0.1);
        let so_far = progress.completed as f64 / elapsed_s;
        let (now, so_far) = (count(rounded(self.per_s)), count(rounded(so_far)));
        let most = self.rates.iter().copied().max().unwrap_or(0).max(1);
        let height = |rate: &u64| {
            let place = rate * (HEIGHTS.len() as u64 - 1) / most;
            HEIGHTS[usize::try_from(place).unwrap_or(0).min(HEIGHTS.len() - 1)]
        };
        let drawn: String = self.rates.iter().map(height).collect();
        format!("  rate     {now}/s now · {so_far}/s so far   {drawn}")
    }

    fn latency(&self) -> Option<String> {
        let all = &self.latency;
        if all.is_empty() {
            return None;
        }
        let at = |quantile| micros(quantile_us(all, quantile));
        let (p50, p90, p99) = (at(0.5), at(0.9), at(0.99));
        let max = micros(microseconds(all.max()));
        let last = self.last_p99_us.map_or_else(|| "-".to_owned(), micros);
        Some(format!("  latency  p50 {p50} · p90 {p90} · p99 {p99} ({last} now) · max {max}"))
    }

    fn status(&self) -> Option<String> {
        let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let seen = classes.into_iter().zip(self.tally.statuses).filter(|(_, number)| *number > 0);
        let words: Vec<String> =
            seen.map(|(class, number)| format!("{class} {}", count(number))).collect();
        (!words.is_empty()).then(|| format!("  status   {}", words.join(" · ")))
    }

    fn errors(&self, progress: &Progress) -> String {
        let kinds = ErrorKind::ALL.into_iter().zip(self.tally.errors);
        let words: Vec<String> = kinds
            .filter(|(_, number)| *number > 0)
            .map(|(kind, number)| format!("{number} {}", kind.words()))
            .collect();
        let mut line = match (words.is_empty(), progress.failed) {
            (false, _) => format!("  errors   {}", words.join(", ")),
            (true, 0) => "  errors   none".to_owned(),
            (true, failed) => format!("  errors   {failed}"),
        };
        if self.planned {
            line.push_str(&format!(" · {} starts late", progress.late));
        }
        line
    }

    fn permille(&self, progress: &Progress) -> u64 {
        let by_time = self.measured_ms.map_or(0.0, |measured_ms| {
            progress.elapsed.as_secs_f64() * 1e6 / (self.warmup_ms + measured_ms).max(1) as f64
        });
        let by_count = self
            .requests
            .map_or(0.0, |requests| progress.completed as f64 * 1e3 / requests.max(1) as f64);
        rounded(by_time.max(by_count).min(1000.0))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a saturating cast of a value that is only shown"
)]
fn rounded(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Load;

    #[test]
    fn the_view_says_rate_latency_statuses_and_errors_within_80_columns() {
        let target = "127.0.0.1:1".parse().expect("a target");
        let mut lines = Lines::new(&Settings::new(target, Load::Closed { connections: 9 }));
        let progress = |seconds: u64| Progress {
            elapsed: Duration::from_secs(seconds),
            completed: seconds * 20_000,
            failed: 5,
            in_flight: 9,
            ..Progress::default()
        };
        let text = lines.text(&progress(0));
        assert!(text.contains("0 s of 10 s") && !text.contains("latency"), "{text}");
        for second in 1..=40 {
            let mut interval = Interval { second, ..Interval::default() };
            interval.tally.statuses = [0, 0, 20_000, 0, 0, 1];
            interval.tally.errors[ErrorKind::Timeout as usize] = 2;
            interval.latencies.response.saturating_record(second * 1_000_000);
            let row = Row { completed: second * 1000, ..Row::default() };
            lines.second(&interval, &row);
        }
        let text = lines.text(&progress(8));
        let shown: Vec<&str> = text.lines().collect();
        assert!(shown[0].contains("8 s of 10 s · 9 in flight"), "{text}");
        assert!(shown[1].contains("20000/s now") && shown[1].ends_with('█'), "{text}");
        assert!(shown[2].contains("p50 20.0ms") && shown[2].contains("max 40.0ms"), "{text}");
        assert!(shown[3].contains("2xx 800.0k · 5xx 40"), "{text}");
        assert!(shown[4].contains("80 timeout"), "{text}");
        assert!(shown.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(lines.permille(&progress(8)), 800);
    }
}
