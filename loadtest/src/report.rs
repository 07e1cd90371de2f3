//! The results of a run: the one object that `--json` prints, versioned, with units in its names.
//!
//! Fields are added under the same schema name; renaming or removing one changes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::collect::{Interval, Row};
use crate::environment::Environment;
use crate::expect::{Checked, Measured};
use crate::latency::{Latency, quantile_us};
use crate::settings::{Load, Settings};
use crate::sys::process::CpuTime;
use crate::tally::{ErrorKind, Tally};
use crate::verdict::{Evidence, Failure, GiveUp, Validity, hint};

/// The name and version of this layout.
pub const SCHEMA: &str = "clusterlb-load/1";

/// The results of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `clusterlb-load/1`.
    pub schema: String,
    /// The generator's version.
    pub version: String,
    /// When the warm-up began, in milliseconds of Unix time.
    pub started_unix_ms: u64,
    /// The run was ended by a signal or its caller.
    pub interrupted: bool,
    /// Why it failed, if it did. What was measured until then is here all the same.
    pub failure: Option<Failure>,
    /// Whether the figures may be trusted.
    pub validity: Validity,
    /// The conditions of `--expect`, compared with what was measured.
    #[serde(default)]
    pub expectations: Vec<Checked>,
    /// The environment of the run.
    pub environment: Environment,
    /// What was asked for.
    pub settings: Settings,
    /// The measured time, without warm-up.
    pub measured_ms: f64,
    /// Counters over the measured time.
    pub totals: Totals,
    /// Rates over the measured time.
    pub rates: Rates,
    /// How well the plan was kept; `null` in a closed loop.
    pub starts: Option<Starts>,
    /// What the generator itself used.
    pub cpu: Cpu,
    /// Latencies.
    pub latency: LatencySet,
    /// One row a second.
    pub series: Vec<Row>,
    /// Rows beyond the bound of a day were left out of `series`; the totals are complete.
    pub series_cut: bool,
}

/// Counters over the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests begun.
    pub started: u64,
    /// Requests answered completely, whatever the status.
    pub completed: u64,
    /// Of those, answered before the measured time was over.
    pub completed_in_time: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that an early end cut off.
    pub unfinished: u64,
    /// Connections established.
    pub connected: u64,
    /// Held connections that the server ended.
    pub held_lost: u64,
    /// Failed requests by kind; every kind is listed.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// The first failure of each kind, in words.
    pub error_examples: BTreeMap<ErrorKind, String>,
    /// Answers by class of status; empty unless HTTP.
    pub status: BTreeMap<String, u64>,
    /// Bytes handed to the kernel.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Latencies beyond the histogram's bound, recorded at the bound.
    pub saturated_values: u64,
}

/// Rates over the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// What was asked for; `null` in a closed loop.
    pub asked_per_s: Option<f64>,
    /// Requests begun.
    pub started_per_s: f64,
    /// Requests answered before the measured time was over.
    pub completed_per_s: f64,
    /// Connections established.
    pub connected_per_s: f64,
    /// The share of the planned requests that was answered in time, from 0 to 1; `null` in a
    /// closed loop. Those planned too shortly before the end to be answered are left out, and
    /// random arrivals are measured by what was drawn, not by the rate asked for.
    pub achieved_ratio: Option<f64>,
}

/// How well an open loop's plan was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Starts {
    /// More than a millisecond after the plan. The delay is part of their latency.
    pub late: u64,
    /// Never made: there was no free connection within half of the timeout.
    pub dropped: u64,
    /// Median delay after the plan.
    pub start_lateness_p50_us: Option<f64>,
    /// 99th percentile of it.
    pub start_lateness_p99_us: Option<f64>,
    /// The longest.
    pub start_lateness_max_us: Option<f64>,
}

/// CPU time of the generator's threads. On loopback it holds part of the server's, too: the sender
/// does the receiver's protocol work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// In user space.
    pub user_ms: f64,
    /// In the kernel.
    pub system_ms: f64,
    /// Of one CPU, over the measured time; may exceed 100 with several threads.
    pub cpu_percent: f64,
    /// The busiest thread's.
    pub busiest_thread_percent: f64,
    /// How long that thread waited for a CPU, in percent; 0 where the kernel does not count it.
    pub busiest_thread_waiting_percent: f64,
    /// For each answered request.
    pub per_request_us: Option<f64>,
}

/// The three latencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySet {
    /// Until the connection was established.
    pub connect: Latency,
    /// Until the answer's first byte.
    pub first_byte: Latency,
    /// Until the answer's last byte.
    pub response: Latency,
}

/// What a report is made of.
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) environment: Environment,
    pub(crate) started_unix_ms: u64,
    pub(crate) interrupted: bool,
    pub(crate) given_up: Option<GiveUp>,
    pub(crate) measured_ns: u64,
    pub(crate) cpu: Vec<CpuTime>,
    pub(crate) total: Interval,
    pub(crate) rows: Vec<Row>,
    pub(crate) rows_cut: bool,
}

impl Report {
    /// Sums up a run.
    pub(crate) fn of(parts: Parts) -> Self {
        let tally = &parts.total.tally;
        let measured_s = (parts.measured_ns as f64 / 1e9).max(1e-9);
        let open = matches!(parts.settings.load, Load::Open { .. });
        let latencies = &parts.total.latencies;
        let latency = LatencySet {
            connect: Latency::of(&latencies.connect, open),
            first_byte: Latency::of(&latencies.first_byte, open),
            response: Latency::of(&latencies.response, open),
        };
        let cpu = cpu(&parts.cpu, measured_s, tally.completed);
        let starts = open.then(|| starts(&parts.total));
        let p10_us = match latencies.response.is_empty() {
            true => 0.0,
            false => quantile_us(&latencies.response, 0.1),
        };
        let evidence = Evidence {
            open_loop: open,
            planned: tally.started + tally.dropped,
            completed: tally.completed,
            completed_in_time: tally.completed_in_time,
            failed: tally.failed(),
            server_errors: tally.statuses[5],
            dropped: tally.dropped,
            lateness_p99_us: starts.and_then(|starts| starts.start_lateness_p99_us).unwrap_or(0.0),
            busiest_cpu_percent: cpu.busiest_thread_percent,
            busiest_waiting_percent: cpu.busiest_thread_waiting_percent,
            listen_overflows: parts.environment.listen_overflows,
            saturated: tally.saturated,
            interrupted: parts.interrupted,
            measured_s,
            response_p10_s: p10_us / 1e6,
        };
        Self {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: parts.started_unix_ms,
            interrupted: parts.interrupted,
            failure: failure(&parts),
            validity: evidence.judge(),
            expectations: expectations(&parts, measured_s),
            measured_ms: (measured_s * 1e6).round() / 1e3,
            totals: totals(tally),
            rates: rates(&parts.settings, &evidence, tally),
            starts,
            cpu,
            latency,
            environment: parts.environment,
            settings: parts.settings,
            series: parts.rows,
            series_cut: parts.rows_cut,
        }
    }

    /// The process's exit code: 1 if the run failed, 4 if a condition is not met, 0 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match &self.failure {
            Some(_) => 1,
            None if self.unmet().next().is_some() => 4,
            None => 0,
        }
    }

    /// The conditions that are not met.
    pub fn unmet(&self) -> impl Iterator<Item = &Checked> {
        self.expectations.iter().filter(|checked| !checked.met)
    }
}

fn expectations(parts: &Parts, measured_s: f64) -> Vec<Checked> {
    let tally = &parts.total.tally;
    let rate_per_s = tally.completed_in_time as f64 / measured_s;
    let measured = Measured { latencies: &parts.total.latencies, tally, rate_per_s };
    parts.settings.expect.iter().map(|condition| condition.check(measured)).collect()
}

fn totals(tally: &Tally) -> Totals {
    let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
    let statuses = classes.into_iter().zip(tally.statuses);
    let http = tally.statuses.iter().any(|count| *count > 0);
    Totals {
        started: tally.started,
        completed: tally.completed,
        completed_in_time: tally.completed_in_time,
        failed: tally.failed(),
        unfinished: tally.unfinished,
        connected: tally.connected,
        held_lost: tally.held_lost,
        errors: ErrorKind::ALL.into_iter().zip(tally.errors).collect(),
        error_examples: tally.examples.clone(),
        status: statuses.filter(|_| http).map(|(class, count)| (class.to_owned(), count)).collect(),
        sent_bytes: tally.bytes_sent,
        received_bytes: tally.bytes_received,
        saturated_values: tally.saturated,
    }
}

fn rates(settings: &Settings, evidence: &Evidence, tally: &Tally) -> Rates {
    let per_s = |count: u64| (count as f64 / evidence.measured_s * 1e3).round() / 1e3;
    let asked_per_s = match settings.load {
        Load::Open { rate_per_s, .. } => Some(rate_per_s),
        Load::Closed { .. } => None,
    };
    Rates {
        asked_per_s,
        started_per_s: per_s(tally.started),
        completed_per_s: per_s(tally.completed_in_time),
        connected_per_s: per_s(tally.connected),
        achieved_ratio: asked_per_s.map(|_| (evidence.achieved() * 1e6).round() / 1e6),
    }
}

fn starts(total: &Interval) -> Starts {
    let lateness = &total.latencies.lateness;
    let at = |quantile| (!lateness.is_empty()).then(|| quantile_us(lateness, quantile));
    Starts {
        late: total.tally.late,
        dropped: total.tally.dropped,
        start_lateness_p50_us: at(0.5),
        start_lateness_p99_us: at(0.99),
        start_lateness_max_us: at(1.0),
    }
}

fn cpu(threads: &[CpuTime], measured_s: f64, completed: u64) -> Cpu {
    let user_us: u64 = threads.iter().map(|time| time.user_us).sum();
    let system_us: u64 = threads.iter().map(|time| time.system_us).sum();
    let busiest = threads.iter().copied().max_by_key(|time| time.wanted_us()).unwrap_or_default();
    let total_us = (user_us + system_us) as f64;
    let percent = |us: f64| (us / measured_s / 1e3).round() / 10.0;
    Cpu {
        user_ms: user_us as f64 / 1e3,
        system_ms: system_us as f64 / 1e3,
        cpu_percent: percent(total_us),
        busiest_thread_percent: percent(busiest.total_us() as f64),
        busiest_thread_waiting_percent: percent(busiest.waiting_us as f64),
        per_request_us: (completed > 0).then(|| (total_us / completed as f64 * 1e2).round() / 1e2),
    }
}

/// Why a run has failed: its target went away, nothing was ever answered, or only errors were.
fn failure(parts: &Parts) -> Option<Failure> {
    let tally = &parts.total.tally;
    let step = format!("load {}", parts.settings.target);
    let given_up = parts.given_up.is_some();
    let most = ErrorKind::ALL
        .into_iter()
        .filter(|kind| tally.examples.contains_key(kind))
        .max_by_key(|kind| tally.errors[*kind as usize]);
    let why = |kind: ErrorKind| match (kind, tally.examples.get(&kind)) {
        // The other kinds need no example.
        (
            ErrorKind::ConnectRefused
            | ErrorKind::ConnectFailed
            | ErrorKind::Local
            | ErrorKind::BadResponse
            | ErrorKind::TlsFailed,
            Some(example),
        ) => format!("{}: {example}", kind.words()),
        _ => kind.words().to_owned(),
    };
    match most {
        Some(kind) if parts.given_up == Some(GiveUp::Gone) => Some(Failure {
            step,
            cause: format!("it went away after {} answers ({})", tally.completed, why(kind)),
            hint: "look at the server's log: it has stopped listening".into(),
        }),
        Some(kind) if tally.completed == 0 && (given_up || tally.unfinished == 0) => {
            Some(Failure {
                step,
                cause: format!("no request was answered ({})", why(kind)),
                hint: hint(kind).into(),
            })
        }
        None if tally.started == 0 && !parts.interrupted => Some(Failure {
            step,
            cause: "no request was planned within the measured time".into(),
            hint: "give a higher --rate or a longer --duration".into(),
        }),
        _ => unsuccessful(&parts.settings, tally).map(|cause| Failure {
            step,
            cause,
            hint: "check the URL and the server's log; --any-status accepts such answers".into(),
        }),
    }
}

/// Says that HTTP was spoken without a single success, if that counts.
fn unsuccessful(settings: &Settings, tally: &Tally) -> Option<String> {
    let [none, _, success, redirect, client, server] = tally.statuses;
    let answers: u64 = tally.statuses.iter().sum();
    if settings.any_status || answers == 0 || success + redirect > 0 {
        return None;
    }
    let classes = [("none", none), ("4xx", client), ("5xx", server)];
    let seen = classes.into_iter().filter(|(_, count)| *count > 0);
    let seen: Vec<String> = seen.map(|(class, count)| format!("{class} {count}")).collect();
    let seen = seen.join(", ");
    Some(format!("none of {answers} answers has a 2xx or 3xx status ({seen})"))
}
