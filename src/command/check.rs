//! `clusterlb check`: what this machine allows, as a table, with remedies.
//!
//! Owns gathering the facts, and judging them, which is pure. Changes and prints nothing.

mod cpus;
mod dispatch;
#[cfg(test)]
mod tests;

use std::fs;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;
use serde::Serialize;

use clusterlb::Error;
use clusterlb::topology::{self, Pin, Workers};
use clusterlb::{EngineChoice, EngineDecision, EngineKind, Result};
use clusterlb_sys::cpu::CpuFacts;
use clusterlb_sys::probe::{
    self, Facility, Feature, FeatureLevel, MissingCall, RingSupport, ring_refusal,
};
use clusterlb_sys::steering::{Form, FormDecision};

use super::needs;

/// The name and version of the report's machine-readable form.
pub(super) const SCHEMA: &str = "clusterlb-check/1";

/// Fewer descriptors per process are too few for a busy front end.
const OPEN_FILES_WANTED: u64 = 16_384;

/// The backlog without --backlog.
const BACKLOG_DEFAULT: u32 = 4096;
/// What a run with epoll lacks.
const WITHOUT_RINGS: &str = "works, for more CPU a connection; --accept uring and uring-multishot \
                             and --runtime tokio-uring do not work";

/// Shorter backlogs drop clients in a burst.
const BACKLOG_WANTED: u64 = 4096;

/// The facts about this machine.
#[derive(Clone, Debug)]
struct Facts {
    kernel: String,
    /// The engine that the environment asks for.
    asked: EngineChoice,
    /// None where epoll is asked for.
    ring: Option<RingSupport>,
    missing_calls: Vec<MissingCall>,
    io_uring_disabled: Option<u8>,
    seccomp: Option<u8>,
    open_files: Option<Limit>,
    locked_memory: Option<Limit>,
    /// Whether rings count as locked memory.
    counts_locked_memory: bool,
    /// Other needs of a run, each with its error where it is not met.
    facilities: Vec<(Facility, Option<Error>)>,
    kernel_dispatch: FormDecision,
    may_pin: bool,
    has_proc: bool,
    backlog_max: Option<u64>,
    cpu: Option<CpuFacts>,
}

/// A resource limit; `u64::MAX` is none.
#[derive(Clone, Copy, Debug)]
struct Limit {
    soft: u64,
    hard: u64,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct CheckReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Whether the front end can run here.
    pub can_run: bool,
    /// The engine of a run, if it can run.
    pub engine: Option<&'static str>,
    /// The io_uring features, if it was probed.
    pub io_uring: Option<FeatureLevel>,
    /// One line each.
    pub rows: Vec<Row>,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    /// The subject.
    pub name: &'static str,
    /// The finding.
    pub value: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The remedy, where the verdict is not [`Verdict::Ok`].
    pub remedy: Option<String>,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// As recommended.
    Ok,
    /// It runs, but not as well as it could.
    Note,
    /// It cannot run.
    Cannot,
}

/// Examines this machine. Must run before anything is pinned.
///
/// # Errors
/// The environment asks for an unknown engine.
pub(super) fn run() -> Result<CheckReport> {
    let asked = EngineChoice::from_environment()?;
    Ok(judge(&Facts {
        asked,
        kernel: uname().map_or_else(
            |_| "unknown".into(),
            |names| names.release().to_string_lossy().into_owned(),
        ),
        // A filter may kill a process that tries. This comes first: a closed ring still counts for
        // a moment.
        counts_locked_memory: asked != EngineChoice::Epoll && probe::counts_locked_memory(),
        ring: (asked != EngineChoice::Epoll).then(probe::probe),
        missing_calls: probe::missing_calls(),
        io_uring_disabled: probe::io_uring_disabled(),
        seccomp: probe::seccomp_mode(),
        open_files: limit(Resource::RLIMIT_NOFILE),
        locked_memory: limit(Resource::RLIMIT_MEMLOCK),
        facilities: Facility::ALL.map(|facility| (facility, facility.attempt().err())).into(),
        kernel_dispatch: Form::find(true),
        may_pin: probe::may_pin(),
        has_proc: fs::exists("/proc/self/exe").unwrap_or(false),
        backlog_max: fs::read_to_string("/proc/sys/net/core/somaxconn")
            .ok()
            .and_then(|text| text.trim().parse().ok()),
        cpu: CpuFacts::gather().ok(),
    }))
}

/// The table as text: a line per row and per remedy.
#[must_use]
pub(super) fn render(report: &CheckReport) -> String {
    let width = report.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &report.rows {
        let verdict = match row.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Cannot => "cannot",
        };
        text += &format!("{verdict:<6}  {:<width$}  {}\n", row.name, row.value);
        if let Some(remedy) = &row.remedy {
            text += &format!("{:<6}  {:<width$}  → {remedy}\n", "", "");
        }
    }
    let outcome = if report.can_run { "can" } else { "cannot" };
    let engine = match (report.engine, report.io_uring) {
        (Some("epoll"), _) | (None, None) => "epoll".into(),
        (_, level) => format!("io_uring {}", level.unwrap_or(FeatureLevel::L0)),
    };
    text + &format!("\nclusterlb {outcome} run here ({engine})\n")
}

/// The exit code of the command: 0 if the front end can run here, 3 if not.
#[must_use]
pub(super) fn exit_code(report: &CheckReport) -> u8 {
    if report.can_run { 0 } else { 3 }
}

fn judge(facts: &Facts) -> CheckReport {
    let decision = decide(facts);
    let mut rows = vec![Row::ok("kernel", facts.kernel.clone()), engine_row(&decision)];
    rows.push(calls_row(&facts.missing_calls));
    if let Some(ring) = &facts.ring {
        // Where epoll is used instead, a lack is only a note.
        let weigh = |row: Row| match decision {
            Ok(_) => Row { verdict: row.verdict.min(Verdict::Note), ..row },
            Err(_) => row,
        };
        rows.push(weigh(ring_row(facts, ring)));
        if ring.refusal.is_none() {
            rows.extend(Feature::ALL.map(|feature| weigh(feature_row(facts, ring, feature))));
        }
    }
    rows.push(seccomp_row(facts));
    rows.push(sysctl_row(facts));
    rows.extend(facts.facilities.iter().map(facility_row));
    rows.push(dispatch::row(&facts.kernel_dispatch));
    rows.push(proc_row(facts.has_proc));
    let workers = workers_of(facts);
    rows.push(open_files_row(facts.open_files, workers));
    rows.push(locked_memory_row(facts, workers));
    rows.push(backlog_row(facts.backlog_max));
    rows.push(affinity_row(facts.may_pin));
    match &facts.cpu {
        Some(cpu) => rows.extend(cpus::rows(cpu)),
        None => rows.push(Row::cannot(
            "CPUs",
            "the affinity mask cannot be read".into(),
            "allow sched_getaffinity",
        )),
    }
    CheckReport {
        schema: SCHEMA,
        can_run: rows.iter().all(|row| row.verdict != Verdict::Cannot),
        engine: decision.ok().map(|decision| decision.kind.name()),
        io_uring: facts.ring.as_ref().map(RingSupport::level),
        rows,
    }
}

/// The engine that a run would use.
fn decide(facts: &Facts) -> Result<EngineDecision> {
    let decision = match &facts.ring {
        Some(ring) => facts.asked.decide_by(ring, facts.io_uring_disabled, facts.seccomp),
        None => facts.asked.decide(),
    }?;
    let limit = facts.locked_memory.filter(|_| facts.counts_locked_memory);
    let Some(limit) = limit.filter(|_| decision.kind == EngineKind::IoUring) else {
        return Ok(decision);
    };
    needs::share_of(limit.soft, workers_of(facts), BACKLOG_DEFAULT).map(|_| decision)
}

fn engine_row(decision: &Result<EngineDecision>) -> Row {
    let name = "engine";
    match decision {
        Err(error) => Row::cannot(name, "none".into(), error.hint()),
        Ok(decision) if decision.kind == EngineKind::IoUring => Row::ok(name, decision.to_string()),
        Ok(decision) => Row::note(name, decision.to_string(), WITHOUT_RINGS),
    }
}

fn calls_row(missing: &[MissingCall]) -> Row {
    let name = "system calls";
    if missing.is_empty() {
        return Row::ok(name, "all that are used".into());
    }
    let names: Vec<&str> = missing.iter().map(|call| call.name).collect();
    let value = format!("no {}", names.join(", "));
    let remedy = |call: &MissingCall| {
        let MissingCall { name, since, instead } = call;
        let instead = instead.map(|instead| format!("; without it {instead}")).unwrap_or_default();
        format!("{name} comes with Linux {since}, unless something here refuses it{instead}")
    };
    match missing.iter().find(|call| call.instead.is_none()) {
        Some(vital) => Row::cannot(name, value, remedy(vital)),
        None => Row::note(name, value, missing.iter().map(remedy).collect::<Vec<_>>().join("; ")),
    }
}

fn ring_row(facts: &Facts, ring: &RingSupport) -> Row {
    let name = "io_uring";
    if let Some(errno) = ring.refusal {
        let (cause, hint) = ring_refusal(errno, facts.io_uring_disabled, facts.seccomp);
        return Row::cannot(name, format!("refused: {cause}"), hint);
    }
    let level = ring.level();
    if level < FeatureLevel::NEEDED {
        let needed = FeatureLevel::NEEDED;
        return Row::cannot(
            name,
            level.to_string(),
            format!("{needed} is needed; the rows below say what is missing"),
        );
    }
    Row::ok(name, level.to_string())
}

fn feature_row(facts: &Facts, ring: &RingSupport, feature: Feature) -> Row {
    let name = feature.name();
    if ring.has(feature) {
        return Row::ok(name, "yes".into());
    }
    let value = match (feature, ring.missing_operations.as_slice()) {
        (Feature::Operations, missing @ [_, ..]) => format!("no {}", missing.join(", ")),
        _ => "no".into(),
    };
    let since = feature.since();
    let remedy = if release(&facts.kernel) >= release(since) {
        format!(
            "Linux has it since {since}: something here refuses it, such as a seccomp filter or \
             a network without loopback"
        )
    } else {
        format!("comes with Linux {since}")
    };
    match feature.needed_for() {
        Some(level) if level <= FeatureLevel::NEEDED => Row::cannot(name, value, remedy),
        _ => Row::note(name, value, remedy + "; does without"),
    }
}

/// The first two numbers of a kernel release; features depend on no others.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn seccomp_row(facts: &Facts) -> Row {
    let value = match facts.seccomp {
        Some(0) => "none",
        Some(1) => "strict",
        Some(2) if facts.ring.as_ref().is_some_and(|ring| ring.refusal.is_none()) => {
            "a filter, which lets io_uring through"
        }
        Some(2) => "a filter",
        _ => "unknown",
    };
    Row::ok("seccomp", value.into())
}

fn sysctl_row(facts: &Facts) -> Row {
    let name = "io_uring_disabled";
    match facts.io_uring_disabled {
        None => Row::ok(name, "not known to this kernel".into()),
        Some(0) => Row::ok(name, "0".into()),
        // If a ring was refused, the row above names the remedy.
        Some(value) => Row::note(
            name,
            value.to_string(),
            "an account without CAP_SYS_ADMIN may be refused: `sysctl kernel.io_uring_disabled=0`",
        ),
    }
}

/// The default number of workers.
fn workers_of(facts: &Facts) -> usize {
    let plan = facts.cpu.as_ref().map(|cpu| topology::plan(cpu, Workers::Auto, &Pin::Auto));
    plan.and_then(|plan| plan.ok()).map_or(1, |plan| plan.workers.len())
}

fn facility_row((facility, error): &(Facility, Option<Error>)) -> Row {
    match error {
        None => Row::ok(facility.name(), "yes".into()),
        Some(error) => {
            let remedy = match error {
                Error::System { source, .. }
                    if matches!(
                        Errno::from(*source),
                        Errno::EPERM | Errno::EACCES | Errno::ENOSYS
                    ) =>
                {
                    "allow it in the seccomp profile or security policy of the container".into()
                }
                error => error.hint(),
            };
            Row::cannot(facility.name(), error.to_string(), remedy)
        }
    }
}

fn proc_row(has_proc: bool) -> Row {
    match has_proc {
        true => Row::ok("/proc", "mounted".into()),
        false => Row::note(
            "/proc",
            "not mounted".into(),
            "quotas and sysctls are not seen, and workers are started by this program's path: \
             `mount -t proc proc /proc`",
        ),
    }
}

fn affinity_row(may_pin: bool) -> Row {
    let remedy = "nothing is pinned; --pin with a list of CPUs does not work";
    match may_pin {
        true => Row::ok("CPU affinity", "can be set".into()),
        false => Row::note("CPU affinity", "sched_setaffinity is refused".into(), remedy),
    }
}

fn locked_memory_row(facts: &Facts, workers: usize) -> Row {
    let name = "locked memory";
    let value = limit_text(facts.locked_memory, " bytes");
    let Some(limit) = facts.locked_memory.filter(|_| facts.counts_locked_memory) else {
        return Row::ok(name, value);
    };
    let (most, least) = needs::locked_bytes(workers, BACKLOG_DEFAULT);
    let value = format!("{value}; the rings of {workers} workers take {most}");
    let remedy = format!("raise `ulimit -l` (LimitMEMLOCK=) to {} KiB", most / 1024);
    match limit.soft {
        soft if soft >= most => Row::ok(name, value),
        soft if soft >= least => Row::note(name, value, remedy + ", or rings are made smaller"),
        // The engine's row explains it.
        _ => Row::note(name, value, remedy + "; no ring fits"),
    }
}

fn open_files_row(limit: Option<Limit>, workers: usize) -> Row {
    let name = "open files";
    let value = limit_text(limit, "");
    match limit {
        None => Row::cannot(name, "cannot be read".into(), "allow prlimit64 in the sandbox"),
        Some(limit) if limit.hard < needs::descriptors(workers) => {
            let remedy = format!(
                "{workers} workers take {} descriptors: raise the hard limit (`ulimit -Hn`, \
                 LimitNOFILE=), to {OPEN_FILES_WANTED} or more",
                needs::descriptors(workers)
            );
            Row::cannot(name, value, remedy)
        }
        Some(limit) if limit.hard < OPEN_FILES_WANTED => {
            let remedy = format!(
                "bounds the connections of each process and those being handed over: raise the \
                 hard limit (`ulimit -Hn`, LimitNOFILE=) to {OPEN_FILES_WANTED} or more"
            );
            Row::note(name, value, remedy)
        }
        _ => Row::ok(name, value),
    }
}

fn backlog_row(backlog_max: Option<u64>) -> Row {
    let name = "somaxconn";
    match backlog_max {
        None => Row::ok(name, "unknown".into()),
        Some(max) if max < BACKLOG_WANTED => Row::note(
            name,
            max.to_string(),
            format!("cuts longer backlogs: `sysctl net.core.somaxconn={BACKLOG_WANTED}`"),
        ),
        Some(max) => Row::ok(name, max.to_string()),
    }
}

fn limit(resource: Resource) -> Option<Limit> {
    let (soft, hard) = getrlimit(resource).ok()?;
    Some(Limit { soft, hard })
}

fn limit_text(limit: Option<Limit>, unit: &str) -> String {
    let text = |value: u64| match value {
        u64::MAX => "unlimited".into(),
        value => format!("{value}{unit}"),
    };
    limit.map_or_else(
        || "unknown".into(),
        |limit| format!("{} (hard {})", text(limit.soft), text(limit.hard)),
    )
}

impl Row {
    fn ok(name: &'static str, value: String) -> Self {
        Self { name, value, verdict: Verdict::Ok, remedy: None }
    }

    fn note(name: &'static str, value: String, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Note, remedy: Some(remedy.into()), ..Self::ok(name, value) }
    }

    fn cannot(name: &'static str, value: String, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Cannot, remedy: Some(remedy.into()), ..Self::ok(name, value) }
    }
}
