//! Runs every mechanism under every load and records how connections were spread.
//!
//! Each run has fresh server and generator processes. Owns the order: all mechanisms run one load
//! before the next load begins, repeat by repeat, so that a temporary disturbance affects a row of
//! the matrix and not a single mechanism.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys::signal::Signal;
use serde::Serialize;

use super::balance::Balance;
use super::environment::Environment;
use super::generator;
use super::interrupt::{Halt, Interrupt};
use super::matrix::{Case, Cell, Extent, Run};
use super::other_load::OtherLoad;
use super::placement::Placement;
use super::server::{Server, Setup};
use super::target::Target;
use crate::error::{Error, Result};

/// The name and version of the report's machine-readable form.
pub const SCHEMA: &str = "clusterlb-imbalance/1";
/// Findings of the generator that do not apply to a matrix: its loops are closed, so no rate can be
/// missed, and a busy generator does not change how connections are spread.
const OF_NO_MATTER: [&str; 1] = ["generator_busy"];

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The rows.
    pub targets: Vec<Target>,
    /// The columns.
    pub cases: Vec<Case>,
    /// Runs per cell.
    pub repeats: usize,
    /// Worker processes of each server.
    pub workers: usize,
    /// Seed of the programs that take one.
    pub seed: u64,
    /// Name of the selection.
    pub extent: Extent,
}

/// The result of a matrix.
#[derive(Clone, Debug, Serialize)]
pub struct ImbalanceReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Start time, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// Duration in seconds.
    pub took_s: f64,
    /// A signal ended the run early; cells are missing.
    pub interrupted: bool,
    /// Name of the selection of loads.
    pub extent: Extent,
    /// Worker processes of each server.
    pub workers: usize,
    /// Planned runs per cell.
    pub repeats: usize,
    /// The machine and the build.
    pub environment: Environment,
    /// The rows, in order.
    pub targets: Vec<Target>,
    /// The columns, in order.
    pub loads: Vec<Case>,
    /// The matrix, row by row.
    pub cells: Vec<Cell>,
    /// Requested rows that could not run, with the reasons.
    pub missing: Vec<String>,
    /// Share of the two busiest workers above which a cell is marked.
    pub called_out_above: f64,
    /// Explanatory text, one string per paragraph.
    pub words: Vec<String>,
}

impl ImbalanceReport {
    /// The cell at a row and column, both counted from 0.
    #[must_use]
    pub fn cell(&self, row: usize, column: usize) -> Option<&Cell> {
        self.cells.get(row * self.loads.len() + column)
    }
}

/// Milliseconds of Unix time.
#[must_use]
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Runs the plan. `progress` is called at each step with its name and the fraction done.
///
/// A signal ends the run early; the report then holds the finished cells and is returned with the
/// signal.
///
/// # Errors
/// No mechanism could run.
pub fn run(
    plan: &Plan,
    environment: Environment,
    interrupt: &mut Interrupt,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<(ImbalanceReport, Option<Signal>)> {
    let (started_unix_ms, begun) = (unix_ms(), std::time::Instant::now());
    let placement = environment.placement.clone();
    let mut report = ImbalanceReport {
        schema: SCHEMA,
        started_unix_ms,
        took_s: 0.0,
        interrupted: false,
        extent: plan.extent,
        workers: plan.workers,
        repeats: plan.repeats,
        environment,
        targets: plan.targets.clone(),
        loads: plan.cases.clone(),
        cells: empty(plan),
        missing: Vec::new(),
        called_out_above: super::matrix::SHARE_CALLED_OUT,
        words: Vec::new(),
    };
    let signal = fill(plan, &placement, &mut report.cells, interrupt, progress)?;
    report.interrupted = signal.is_some();
    report.took_s = begun.elapsed().as_secs_f64();
    report.words = super::explain::of_matrix(&report.targets, &report.cells, report.workers);
    Ok((report, signal))
}

fn empty(plan: &Plan) -> Vec<Cell> {
    let pairs =
        plan.targets.iter().flat_map(|target| plan.cases.iter().map(move |case| (target, case)));
    pairs.map(|(target, case)| Cell::new(*target, case, plan.workers, plan.seed)).collect()
}

fn fill(
    plan: &Plan,
    placement: &Placement,
    cells: &mut [Cell],
    interrupt: &mut Interrupt,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<Option<Signal>> {
    let (rows, columns) = (plan.targets.len(), plan.cases.len());
    let all = plan.repeats * columns * rows;
    let mut last_error = None;
    for number in 0..all {
        let (repeat, column) = (number / (rows * columns), number / rows % columns);
        // Every other repeat runs in reverse order.
        let row = if repeat % 2 == 0 { number % rows } else { rows - 1 - number % rows };
        let (target, case) = (plan.targets[row], &plan.cases[column]);
        progress(number, all, &format!("{target}, {}", case.name));
        let cell = &mut cells[row * columns + column];
        match one(plan, placement, target, case, repeat, interrupt) {
            Ok(run) => cell.enter(run, plan.seed),
            Err(Halt::Interrupted(signal)) => return Ok(Some(signal)),
            Err(Halt::Failed(error)) => {
                cell.failures.push(error.to_string());
                last_error = Some(error);
            }
        }
    }
    match last_error {
        Some(error) if cells.iter().all(|cell| cell.summary.is_none()) => Err(error),
        _ => Ok(None),
    }
}

/// Runs one cell once.
fn one(
    plan: &Plan,
    placement: &Placement,
    target: Target,
    case: &Case,
    repeat: usize,
    interrupt: &mut Interrupt,
) -> std::result::Result<Run, Halt> {
    let setup = Setup {
        workers: plan.workers,
        cpus: placement.server_cpus.clone(),
        work: case.work.clone(),
        seed: plan.seed + repeat as u64,
        // What accept mechanisms do is compared with servers that do not wait for a request.
        accept_at_once: true,
    };
    let other_load = OtherLoad::look([&*placement.server_cpus, &*placement.load_cpus].concat());
    let server = Server::start(target, &setup, interrupt)?;
    let mut during = |_: Duration| ();
    let load = case.load();
    let loaded = generator::run(&load, server.address, placement, interrupt, &mut during);
    let books = server.end();
    let (loaded, books) = (loaded?, books?);
    let lost = |why: &str| {
        Halt::Failed(Error::Workers {
            what: format!("{target} {why}"),
            hint: "start it by hand and look at what it says".into(),
        })
    };
    if let Some(failure) = &loaded.failure {
        return Err(lost(&format!("could not be loaded: {}", failure.cause)));
    }
    let connections = books.connections.ok_or_else(|| lost("did not tell who got what"))?;
    let balance = Balance::of(&connections).ok_or_else(|| lost("counted no connection"))?;
    let reasons = loaded.validity.reasons.iter();
    let reasons = reasons.filter(|reason| !OF_NO_MATTER.contains(&&*reason.code));
    let mut problems: Vec<String> = reasons.map(|reason| reason.text.clone()).collect();
    problems.extend(other_load.objection());
    if books.restarted > 0 {
        problems.push(format!("workers ended and were replaced: {}", books.restarted));
    }
    // Held connections carry no requests; the single measured request is not a distribution.
    let latency = Some(&loaded.latency.response).filter(|_| !case.held);
    Ok(Run {
        repeat,
        connections,
        balance,
        rate_per_s: Some(loaded.rates.completed_per_s).filter(|_| !case.held),
        p50_us: latency.and_then(|latency| latency.p50_us),
        p99_us: latency.and_then(|latency| latency.p99_us),
        max_us: latency.and_then(|latency| latency.max_us),
        problems,
    })
}
