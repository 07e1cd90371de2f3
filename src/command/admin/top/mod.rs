//! `clusterlb top`: a live table with a bar per worker; plain text without a terminal, or on one
//! that cannot move its cursor.
//!
//! Owns the terminal while it runs, and the interval between samples.

mod rows;

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use clusterlb::{Error, Result};
use clusterlb_sys::error::errno_of;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};
use ratatui::{DefaultTerminal, Frame};

use super::client::Client;
use super::views::{ListenersView, WorkersView};
use crate::command::output;
use rows::{Column, Row, Scroll, VisibleRows, columns, fold};

/// Width of a table without a terminal.
pub(super) const TEXT_COLUMNS: u16 = 100;

/// Most lines that one of those above the table takes.
const LINES_MAX: usize = 3;
/// Lines below which a terminal is low.
const LOW: u16 = 16;

/// A sample of a run and its time.
#[derive(Debug)]
struct RunSample {
    at: Instant,
    run: WorkersView,
    listeners: ListenersView,
}

/// An earlier sample and its age.
pub(super) type Earlier<'a> = Option<(&'a WorkersView, Duration)>;

impl RunSample {
    fn take(client: &Client) -> Result<Self> {
        let run = client.look("/workers")?;
        Ok(Self { run, listeners: client.look("/listeners")?, at: Instant::now() })
    }

    /// This sample as the one before `later`.
    fn before(&self, later: &Self) -> (&WorkersView, Duration) {
        (&self.run, later.at.duration_since(self.at))
    }
}

/// Shows tables until `count` is reached, the run ends, or the user quits.
///
/// # Errors
/// No run answers, or it ended; the terminal cannot be used.
pub(super) fn run(client: &Client, interval: Duration, count: Option<u32>) -> Result<()> {
    output::ensure_open()?;
    let first = RunSample::take(client)?;
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if is_dumb || !io::stdout().is_terminal() {
        return print(client, first, interval, count);
    }
    let terminal = ratatui::try_init()
        .map_err(|error| Error::system("take the terminal over", errno_of(&error)))?;
    let result = draw(terminal, client, first, interval, count);
    ratatui::restore();
    result
}

/// Prints tables one below the other, until the reader closes.
fn print(client: &Client, first: RunSample, interval: Duration, count: Option<u32>) -> Result<()> {
    let mut earlier: Option<RunSample> = None;
    let mut now = first;
    let mut shown = 0;
    loop {
        let before = earlier.as_ref().map(|one| one.before(&now));
        let mut lines = heading(&now.run, before);
        lines.extend(backlogs(&now.listeners));
        let text = format!("{}\n{}\n", lines.join("\n"), table(&now.run, before, TEXT_COLUMNS));
        if !output::pass_on(text.as_bytes())? {
            return Ok(());
        }
        shown += 1;
        if count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        std::thread::sleep(interval);
        earlier = Some(std::mem::replace(&mut now, RunSample::take(client)?));
    }
}

fn draw(
    mut terminal: DefaultTerminal,
    client: &Client,
    first: RunSample,
    interval: Duration,
    count: Option<u32>,
) -> Result<()> {
    let failed = |error: io::Error| Error::system("draw on the terminal", errno_of(&error));
    let mut earlier: Option<RunSample> = None;
    let mut now = first;
    let mut shown = 0;
    let mut window = VisibleRows::default();
    loop {
        let before = earlier.as_ref().map(|one| one.before(&now));
        terminal.draw(|frame| screen(frame, &now, before, &mut window)).map_err(failed)?;
        let next = now.at + interval;
        match wait_for_key(next).map_err(failed)? {
            Key::Quit => return Ok(()),
            Key::Move(step) => {
                window.scroll(step);
                continue;
            }
            Key::Redraw => continue,
            Key::None => {}
        }
        shown += 1;
        if count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        earlier = Some(std::mem::replace(&mut now, RunSample::take(client)?));
    }
}

/// A key of the user.
enum Key {
    Quit,
    Redraw,
    /// Further down or up in the table.
    Move(Scroll),
    None,
}

fn wait_for_key(until: Instant) -> io::Result<Key> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if !event::poll(left)? {
            return Ok(Key::None);
        }
        match event::read()? {
            Event::Resize(..) => return Ok(Key::Redraw),
            Event::Key(key) if key.kind == KeyEventKind::Press => {
                if let Some(meant) = meaning(key) {
                    return Ok(meant);
                }
            }
            _ => {}
        }
    }
}

/// What a key does, as in pagers.
fn meaning(key: KeyEvent) -> Option<Key> {
    Some(match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Down | KeyCode::Char('j') => Key::Move(Scroll::Rows(1)),
        KeyCode::Up | KeyCode::Char('k') => Key::Move(Scroll::Rows(-1)),
        KeyCode::PageDown | KeyCode::Char(' ') => Key::Move(Scroll::Pages(1)),
        KeyCode::PageUp | KeyCode::Char('b') => Key::Move(Scroll::Pages(-1)),
        KeyCode::Home | KeyCode::Char('g') => Key::Move(Scroll::First),
        KeyCode::End | KeyCode::Char('G') => Key::Move(Scroll::Last),
        _ => return None,
    })
}

fn screen(frame: &mut Frame<'_>, now: &RunSample, before: Earlier<'_>, window: &mut VisibleRows) {
    let width = usize::from(frame.area().width);
    // A low terminal has room for the workers first.
    let lines_max = if frame.area().height < LOW { 1 } else { LINES_MAX };
    let mut lines = heading(&now.run, before);
    lines.extend(backlogs(&now.listeners));
    let lines: Vec<String> = lines.iter().flat_map(|line| fold(line, width, lines_max)).collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let [above, below, last] =
        Layout::vertical([Constraint::Length(height), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(
        Paragraph::new(lines.into_iter().map(Line::from).collect::<Vec<_>>()),
        above,
    );
    let columns = columns(below.width);
    let widths = columns.iter().map(|(_, width)| Constraint::Length(*width));
    let names = columns.iter().map(|(column, width)| column.name(*width));
    let rows = rows::rows(&now.run, before);
    let shown = window.of(rows.len(), usize::from(below.height.saturating_sub(1)));
    let table = Table::new(rows[shown.clone()].iter().map(|row| table_row(row, &columns)), widths)
        .header(TableRow::new(names).style(Style::new().add_modifier(Modifier::REVERSED)))
        .column_spacing(1);
    frame.render_widget(table, below);
    let hint = match shown.len() == rows.len() {
        true => "q quits".to_owned(),
        false => format!(
            "q quits; arrows and page keys move: {} to {} of {}",
            shown.start + 1,
            shown.end,
            rows.len()
        ),
    };
    frame.render_widget(Paragraph::new(hint).style(Style::new().fg(Color::DarkGray)), last);
}

fn table_row(row: &Row, columns: &[(Column, u16)]) -> TableRow<'static> {
    let style = match &*row.state {
        "serving" => Style::new(),
        "hung" | "given-up" => Style::new().fg(Color::Red),
        _ => Style::new().fg(Color::Yellow),
    };
    let cells = columns.iter().map(|(column, width)| {
        let cell = Cell::new(column.cell(row, *width));
        match column {
            Column::Bar => cell.style(Style::new().fg(Color::Green)),
            _ => cell,
        }
    });
    TableRow::new(cells).style(style)
}

/// The lines about the whole run.
pub(super) fn heading(run: &WorkersView, before: Earlier<'_>) -> Vec<String> {
    let totals = &run.totals;
    let ready = if run.ready { "ready" } else { "not ready" };
    let reloading = if run.reloading { ", replacing workers" } else { "" };
    let uptime = Duration::from_secs(run.uptime_ms / 1000);
    let rate = before.map_or_else(String::new, |(earlier, time)| {
        let new = totals.accepted.saturating_sub(earlier.totals.accepted);
        format!(" ({:.0}/s)", rows::rate(new, time))
    });
    let skips = totals.skips.iter().filter(|(_, count)| *count > 0);
    let skips: Vec<String> = skips.map(|(stage, count)| format!("{stage} {count}")).collect();
    let skips = if skips.is_empty() { "none".into() } else { skips.join(", ") };
    vec![
        format!(
            "clusterlb: {}, {ready}{reloading}; policy {}; pid {}; up {}",
            run.stage,
            run.policy,
            run.pid,
            humantime::format_duration(uptime)
        ),
        format!(
            "accepted {}{rate}, waiting {}, redispatched {}, dropped {}, pauses {}",
            totals.accepted, totals.waiting, totals.redispatched, totals.dropped, totals.pauses
        ),
        format!("skips: {skips}"),
    ]
}

fn backlogs(listeners: &ListenersView) -> Option<String> {
    let shown = listeners.listeners.iter().map(|one| {
        let waiting = one.backlog.map_or_else(|| "-".into(), |waiting| waiting.to_string());
        format!("{} {waiting}/{}", one.address, one.backlog_max)
    });
    let shown: Vec<String> = shown.collect();
    (!shown.is_empty()).then(|| format!("backlog: {}", shown.join(", ")))
}

/// The workers as text.
pub(super) fn table(run: &WorkersView, before: Earlier<'_>, width: u16) -> String {
    let columns = columns(width);
    let line = |cells: Vec<String>| format!("{}\n", cells.join(" ").trim_end());
    let names = columns.iter().map(|(column, width)| column.name(*width)).collect();
    let mut text = line(names);
    for row in rows::rows(run, before) {
        text += &line(columns.iter().map(|(column, width)| column.cell(&row, *width)).collect());
    }
    text
}
