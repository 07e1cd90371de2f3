//! The progress line: on stderr, only on a terminal, gone when the run is over.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text::{count, micros};
use crate::collect::Row;
use crate::engine::Progress;
use crate::settings::Settings;

/// A progress line, or nothing where there is no terminal to show it on.
pub(crate) struct ProgressLine {
    bar: Option<ProgressBar>,
    warmup_ms: u64,
    measured_ms: Option<u64>,
    requests: Option<u64>,
    last_second: String,
    before: (Duration, u64),
    per_s: f64,
}

impl ProgressLine {
    pub(crate) fn new(settings: &Settings, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:16} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar
        });
        Self {
            bar,
            warmup_ms: settings.warmup_ms,
            measured_ms: settings.duration_ms,
            requests: settings.requests,
            last_second: String::new(),
            before: (Duration::ZERO, 0),
            per_s: 0.0,
        }
    }

    /// Remembers a second's latency for the line.
    pub(crate) fn second(&mut self, row: &Row) {
        if let (Some(p50_us), Some(p99_us)) = (row.response_p50_us, row.response_p99_us) {
            self.last_second = format!(" · p50 {} p99 {}", micros(p50_us), micros(p99_us));
        }
    }

    /// Shows where the run stands.
    pub(crate) fn show(&mut self, progress: &Progress) {
        let Some(bar) = &self.bar else {
            return;
        };
        let (before, completed) = self.before;
        let step = progress.elapsed.saturating_sub(before);
        if step >= Duration::from_secs(1) {
            self.per_s = progress.completed.saturating_sub(completed) as f64 / step.as_secs_f64();
            self.before = (progress.elapsed, progress.completed);
        }
        bar.set_position(self.permille(progress));
        let phase = match progress.elapsed < Duration::from_millis(self.warmup_ms) {
            true => "warm-up ",
            false => "",
        };
        bar.set_message(format!(
            "{phase}{:.0} s · {} answered · {}/s · {} in flight · {} failed · {} late{}",
            progress.elapsed.as_secs_f64(),
            count(progress.completed),
            count(rounded(self.per_s)),
            progress.in_flight,
            progress.failed,
            progress.late,
            self.last_second,
        ));
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

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
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
