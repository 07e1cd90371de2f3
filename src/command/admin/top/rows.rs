//! The numbers of the live table: rates from two samples, shares, bars. Pure.

use std::ops::Range;
use std::time::Duration;

use super::Earlier;
use crate::command::admin::views::{CountsView, SlotView, WorkerView, WorkersView};

/// Widest useful bar.
const BAR_WIDTH_MAX: u16 = 40;
/// Narrowest useful bar.
const BAR_WIDTH_MIN: u16 = 8;

/// One worker, or a slot without one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) slot: u16,
    pub(super) worker: Option<u32>,
    pub(super) pid: Option<u32>,
    pub(super) state: String,
    pub(super) in_flight: u64,
    pub(super) unclaimed: u64,
    pub(super) claimed: u64,
    /// Mean time from handoff to claim, in microseconds.
    pub(super) claim_us: Option<u64>,
    /// Connections per second; needs an earlier sample.
    pub(super) rate: Option<f64>,
    /// Share of all connections received since the earlier sample, or in total.
    pub(super) share: f64,
    /// The bar, from 0 to 1: this share over the largest one.
    pub(super) bar: f64,
    pub(super) restarts: u64,
    /// In percent of one CPU; needs an earlier sample.
    pub(super) cpu: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Slot,
    Worker,
    Pid,
    State,
    InFlight,
    Unclaimed,
    Claimed,
    ClaimTime,
    Rate,
    Share,
    Restarts,
    Cpu,
    Resident,
    Bar,
}

/// Which rows are shown of a table that is higher than the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VisibleRows {
    first: usize,
    height: usize,
}

/// A movement of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scroll {
    Rows(isize),
    Pages(isize),
    First,
    Last,
}

impl VisibleRows {
    /// Moves it. Where the table ends is known when it is drawn.
    pub(super) fn scroll(&mut self, step: Scroll) {
        let page = self.height.cast_signed();
        self.first = match step {
            Scroll::Rows(count) => self.first.saturating_add_signed(count),
            Scroll::Pages(count) => self.first.saturating_add_signed(count.saturating_mul(page)),
            Scroll::First => 0,
            Scroll::Last => usize::MAX,
        };
    }

    /// The rows to show in this height, always as many as fit.
    pub(super) fn of(&mut self, rows: usize, height: usize) -> Range<usize> {
        self.height = height;
        self.first = self.first.min(rows.saturating_sub(height));
        self.first..rows.min(self.first + height)
    }
}

/// A line in pieces that are as wide as the terminal, broken behind commas. What does not fit the
/// last one is cut off there.
pub(super) fn fold(line: &str, width: usize, lines_max: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for part in line.split_inclusive(", ") {
        let last = lines.len() - 1;
        let length = lines[last].chars().count() + part.trim_end().chars().count();
        if length > width && !lines[last].is_empty() && lines.len() < lines_max {
            lines.push(format!("  {part}"));
        } else {
            lines[last].push_str(part);
        }
    }
    lines
}

/// Events per second.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn rate(count: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// A row per worker, ordered by slot, and one per slot without a worker.
pub(super) fn rows(run: &WorkersView, before: Earlier<'_>) -> Vec<Row> {
    let mut rows: Vec<Row> = run.workers.iter().map(|one| row(one, run, before)).collect();
    let weights: Vec<u64> = run.workers.iter().map(|one| received(one, before)).collect();
    let total: u64 = weights.iter().sum();
    let most = weights.iter().max().copied().unwrap_or(0);
    for (row, weight) in rows.iter_mut().zip(weights) {
        row.share = part(weight, total);
        row.bar = part(weight, most);
    }
    let is_empty = |slot: &&SlotView| slot.worker.is_none();
    rows.extend(run.slots.iter().filter(is_empty).map(|slot| Row {
        slot: slot.slot,
        state: slot.state.clone(),
        restarts: slot.restarts,
        ..Row::default()
    }));
    rows.sort_by_key(|row| (row.slot, row.worker));
    rows
}

/// Connections received since the earlier sample, or in total.
fn received(worker: &WorkerView, before: Earlier<'_>) -> u64 {
    let was = earlier(worker, before).map_or(0, |one| one.counts.claimed);
    worker.counts.claimed.saturating_sub(was)
}

/// Mean time from handoff to claim since the earlier sample, or in total.
fn claim_us(worker: &WorkerView, before: Earlier<'_>) -> Option<u64> {
    let was = earlier(worker, before).map_or_else(CountsView::default, |one| one.counts);
    let count = worker.counts.claims_measured.saturating_sub(was.claims_measured);
    worker.counts.claims_us.saturating_sub(was.claims_us).checked_div(count)
}

fn earlier<'a>(worker: &WorkerView, before: Earlier<'a>) -> Option<&'a WorkerView> {
    let (run, _) = before?;
    run.workers.iter().find(|one| one.id == worker.id)
}

fn row(worker: &WorkerView, run: &WorkersView, before: Earlier<'_>) -> Row {
    let slot = run.slots.iter().find(|slot| slot.slot == worker.slot);
    let was = earlier(worker, before);
    let cpu = before.zip(worker.cpu_seconds).map(|((_, time), used)| {
        let was = was.and_then(|one| one.cpu_seconds).unwrap_or(0.0);
        100.0 * (used - was).max(0.0) / time.as_secs_f64().max(1e-9)
    });
    Row {
        slot: worker.slot,
        worker: Some(worker.id),
        pid: Some(worker.pid),
        state: worker.state.clone(),
        in_flight: worker.counts.in_flight,
        unclaimed: worker.counts.unclaimed,
        claimed: worker.counts.claimed,
        claim_us: claim_us(worker, before),
        rate: before.map(|(_, time)| rate(received(worker, before), time)),
        restarts: slot.map_or(0, |slot| slot.restarts),
        cpu,
        resident_bytes: worker.resident_bytes,
        ..Row::default()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn part(count: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { count as f64 / whole as f64 }
}

/// Every column with its width, in order.
const COLUMNS: [(Column, u16); 13] = [
    (Column::Slot, 4),
    (Column::Worker, 6),
    (Column::Pid, 8),
    (Column::State, 8),
    (Column::InFlight, 9),
    (Column::Unclaimed, 9),
    (Column::Claimed, 11),
    (Column::Rate, 8),
    (Column::ClaimTime, 6),
    (Column::Share, 6),
    (Column::Restarts, 8),
    (Column::Cpu, 6),
    (Column::Resident, 7),
];

/// Columns dropped when the table is too wide, the first one first.
const LEFT_OUT: [Column; 9] = [
    Column::Claimed,
    Column::Unclaimed,
    Column::Pid,
    Column::Worker,
    Column::Restarts,
    Column::ClaimTime,
    Column::Resident,
    Column::Cpu,
    Column::Share,
];

/// The columns that fit, with their widths. The bar takes the rest.
pub(super) fn columns(width: u16) -> Vec<(Column, u16)> {
    let mut columns = COLUMNS.to_vec();
    let used = |columns: &[(Column, u16)]| columns.iter().map(|(_, width)| width + 1).sum::<u16>();
    for column in LEFT_OUT {
        if used(&columns) + BAR_WIDTH_MIN <= width {
            break;
        }
        columns.retain(|(one, _)| *one != column);
    }
    let bar = width.saturating_sub(used(&columns)).min(BAR_WIDTH_MAX);
    columns.push((Column::Bar, bar));
    columns
}

impl Column {
    /// The column's heading.
    pub(super) fn name(self, width: u16) -> String {
        let name = match self {
            Self::Slot => "slot",
            Self::Worker => "worker",
            Self::Pid => "pid",
            Self::State => return format!("{:<1$}", "state", usize::from(width)),
            Self::InFlight => "in flight",
            Self::Unclaimed => "unclaimed",
            Self::Claimed => "claimed",
            Self::ClaimTime => "claim",
            Self::Rate => "per s",
            Self::Share => "share",
            Self::Restarts => "restarts",
            Self::Cpu => "CPU %",
            Self::Resident => "memory",
            Self::Bar => return String::new(),
        };
        format!("{name:>0$}", usize::from(width))
    }

    /// The column's value in a row.
    pub(super) fn cell(self, row: &Row, width: u16) -> String {
        let width = usize::from(width);
        let dash = || "-".to_owned();
        let text = match self {
            Self::Slot => row.slot.to_string(),
            Self::Worker => row.worker.map_or_else(dash, |worker| worker.to_string()),
            Self::Pid => row.pid.map_or_else(dash, |pid| pid.to_string()),
            Self::State => return format!("{:<width$}", row.state),
            Self::InFlight => row.in_flight.to_string(),
            Self::Unclaimed => row.unclaimed.to_string(),
            Self::Claimed => row.claimed.to_string(),
            Self::ClaimTime => row.claim_us.map_or_else(dash, time),
            Self::Rate => row.rate.map_or_else(dash, |rate| format!("{rate:.0}")),
            Self::Share => format!("{:.1}%", 100.0 * row.share),
            Self::Restarts => row.restarts.to_string(),
            Self::Cpu => row.cpu.map_or_else(dash, |cpu| format!("{cpu:.0}")),
            Self::Resident => row.resident_bytes.map_or_else(dash, size),
            Self::Bar => return "▇".repeat(bar_length(row.bar, width)),
        };
        format!("{text:>width$}")
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a bar is between 0 and its width, which is small"
)]
fn bar_length(part: f64, width: usize) -> usize {
    (part.clamp(0.0, 1.0) * width as f64).round() as usize
}

/// A time in at most six characters.
fn time(us: u64) -> String {
    match us {
        0..10_000 => format!("{us}us"),
        10_000..10_000_000 => format!("{}ms", us / 1000),
        _ => format!("{}s", us / 1_000_000),
    }
}

/// A size in at most seven characters.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{}K", bytes >> 10),
        mebibytes @ ..10_000 => format!("{mebibytes}M"),
        mebibytes => format!("{}G", mebibytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: u32, slot: u16, claimed: u64, cpu_seconds: f64) -> WorkerView {
        let state = "serving".to_owned();
        let cpu_seconds = Some(cpu_seconds);
        let counts = CountsView { claimed, ..CountsView::default() };
        WorkerView { id, slot, counts, cpu_seconds, state, ..WorkerView::default() }
    }

    #[test]
    fn rates_and_shares_are_of_the_time_between_two_looks() {
        let slots = vec![
            SlotView { slot: 0, worker: Some(1), restarts: 3, ..SlotView::default() },
            SlotView { slot: 1, state: "given-up".into(), ..SlotView::default() },
        ];
        let first = WorkersView { workers: vec![worker(1, 0, 100, 1.0)], ..WorkersView::default() };
        let workers = vec![worker(1, 0, 130, 1.5), worker(2, 0, 10, 0.0)];
        let now = WorkersView { workers, slots, ..WorkersView::default() };
        let rows = rows(&now, Some((&first, Duration::from_secs(2))));
        let numbers = rows.iter().map(|row| (row.slot, row.worker, row.rate, row.share));
        assert_eq!(
            numbers.collect::<Vec<_>>(),
            [(0, Some(1), Some(15.0), 0.75), (0, Some(2), Some(5.0), 0.25), (1, None, None, 0.0)]
        );
        assert_eq!((rows[0].cpu, rows[0].restarts, rows[0].bar), (Some(25.0), 3, 1.0));
        assert_eq!(rows[2].state, "given-up");
    }

    #[test]
    fn every_width_is_kept_to() {
        for width in [20, 40, 60, 80, 100, 120, 160, 300] {
            let columns = columns(width);
            let row = Row { bar: 1.0, state: "serving".into(), ..Row::default() };
            let line: Vec<String> =
                columns.iter().map(|(column, width)| column.cell(&row, *width)).collect();
            let length = line.join(" ").chars().count();
            assert!(length <= usize::from(width.max(33)), "{width}: {length}");
            assert!(width < 42 || line.join(" ").contains("▇▇▇▇▇▇▇▇"), "{width}");
            let has_id = columns.iter().any(|(column, _)| *column == Column::Worker);
            assert!(width < 100 || has_id, "actions name workers by their ids");
        }
    }

    #[test]
    fn a_table_that_is_too_high_is_moved_through() {
        let mut window = VisibleRows::default();
        assert_eq!(window.of(3, 10), 0..3);
        assert_eq!(window.of(40, 10), 0..10);
        for (step, rows) in [
            (Scroll::Rows(1), 1..11),
            (Scroll::Pages(1), 11..21),
            (Scroll::Last, 30..40),
            (Scroll::Rows(1), 30..40),
            (Scroll::Pages(-1), 20..30),
            (Scroll::First, 0..10),
            (Scroll::Rows(-1), 0..10),
        ] {
            window.scroll(step);
            assert_eq!(window.of(40, 10), rows, "{step:?}");
        }
        window.scroll(Scroll::Last);
        assert_eq!((window.of(40, 10), window.of(5, 10), window.of(5, 0)), (30..40, 0..5, 0..0));
    }

    #[test]
    fn lines_are_folded_behind_commas() {
        assert_eq!(fold("one, two", 20, 3), ["one, two"]);
        assert_eq!(fold("one, two, three", 9, 3), ["one, two, ", "  three"]);
        assert_eq!(fold("a, b, c, d", 1, 2), ["a, ", "  b, c, d"]);
        assert_eq!(fold("", 0, 3), [""]);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(5_000), "4K");
        assert_eq!(size(300 << 20), "300M");
        assert_eq!(size(20 << 30), "20G");
    }
}
