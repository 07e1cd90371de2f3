//! `clusterlb check`: what this machine allows, as a table, with a remedy where it falls short.
//!
//! Owns the gathering of the facts and the verdicts on them, which are a pure function. Refuses
//! to change anything and to print.

#[cfg(test)]
mod tests;

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;
use serde::Serialize;

use clusterlb::topology::{self, CpuPlan, Pin, Workers};
use clusterlb_sys::cpu::{CpuFacts, format_cpu_list};
use clusterlb_sys::probe::{self, Feature, FeatureLevel, RingSupport, ring_refusal};

/// The name and version of the report's machine-readable form.
pub(super) const SCHEMA: &str = "clusterlb-check/1";

/// Descriptors per process below which a busy front end runs out.
const OPEN_FILES_WANTED: u64 = 16_384;

/// Shorter backlogs drop clients in a burst.
const BACKLOG_WANTED: u64 = 4096;

/// What was found on this machine.
#[derive(Clone, Debug)]
struct Facts {
    kernel: String,
    ring: RingSupport,
    io_uring_disabled: Option<u8>,
    seccomp: Option<u8>,
    open_files: Option<Limit>,
    locked_memory: Option<Limit>,
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
pub(super) struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Whether the front end can run here.
    pub can_run: bool,
    /// How much of io_uring there is.
    pub io_uring: FeatureLevel,
    /// One line each.
    pub rows: Vec<Row>,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub value: String,
    /// What that means.
    pub verdict: Verdict,
    /// What to do about it, where the verdict is not [`Verdict::Ok`].
    pub remedy: Option<String>,
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It runs, but not as well as it could.
    Note,
    /// It cannot run.
    Cannot,
}

/// Looks at this machine. To be called before anything is pinned.
#[must_use]
pub(super) fn run() -> Report {
    judge(&Facts {
        kernel: uname().map_or_else(
            |_| "unknown".into(),
            |names| names.release().to_string_lossy().into_owned(),
        ),
        ring: probe::probe(),
        io_uring_disabled: probe::io_uring_disabled(),
        seccomp: probe::seccomp_mode(),
        open_files: limit(Resource::RLIMIT_NOFILE),
        locked_memory: limit(Resource::RLIMIT_MEMLOCK),
        backlog_max: fs::read_to_string("/proc/sys/net/core/somaxconn")
            .ok()
            .and_then(|text| text.trim().parse().ok()),
        cpu: CpuFacts::gather().ok(),
    })
}

/// The table as text, a line for each row and one for each remedy.
#[must_use]
pub(super) fn render(report: &Report) -> String {
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
    text + &format!("\nclusterlb {outcome} run here (io_uring {})\n", report.io_uring)
}

/// The exit code of the command: 0 if the front end can run here, 3 if not.
#[must_use]
pub(super) fn exit_code(report: &Report) -> u8 {
    if report.can_run { 0 } else { 3 }
}

fn judge(facts: &Facts) -> Report {
    let mut rows = vec![Row::ok("kernel", facts.kernel.clone()), ring_row(facts)];
    if facts.ring.refusal.is_none() {
        rows.extend(Feature::ALL.map(|feature| feature_row(facts, feature)));
    }
    rows.push(seccomp_row(facts));
    rows.push(sysctl_row(facts));
    rows.push(open_files_row(facts.open_files));
    // Rings have not been charged to this limit since Linux 5.12, registered buffers still are.
    rows.push(Row::ok("locked memory", limit_text(facts.locked_memory, " bytes")));
    rows.push(backlog_row(facts.backlog_max));
    match &facts.cpu {
        Some(cpu) => rows.extend(cpu_rows(cpu)),
        None => rows.push(Row::cannot(
            "CPUs",
            "the affinity mask cannot be read".into(),
            "allow sched_getaffinity",
        )),
    }
    Report {
        schema: SCHEMA,
        can_run: rows.iter().all(|row| row.verdict != Verdict::Cannot),
        io_uring: facts.ring.level(),
        rows,
    }
}

fn ring_row(facts: &Facts) -> Row {
    let name = "io_uring";
    if let Some(errno) = facts.ring.refusal {
        let (cause, hint) = ring_refusal(errno, facts.io_uring_disabled, facts.seccomp);
        return Row::cannot(name, format!("refused: {cause}"), hint);
    }
    let level = facts.ring.level();
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

fn feature_row(facts: &Facts, feature: Feature) -> Row {
    let (ring, name) = (&facts.ring, feature.name());
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

/// The first two numbers of a kernel release, which is all that features depend on.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn seccomp_row(facts: &Facts) -> Row {
    let value = match facts.seccomp {
        Some(0) => "none",
        Some(1) => "strict",
        Some(2) if facts.ring.refusal.is_none() => "a filter, which lets io_uring through",
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
        // Where a ring was refused, the row above has said what to do.
        Some(value) => Row::note(
            name,
            value.to_string(),
            "an account without CAP_SYS_ADMIN may be refused: `sysctl kernel.io_uring_disabled=0`",
        ),
    }
}

fn open_files_row(limit: Option<Limit>) -> Row {
    let name = "open files";
    let value = limit_text(limit, "");
    match limit {
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

fn cpu_rows(facts: &CpuFacts) -> Vec<Row> {
    let ids = facts.ids();
    let quota = match facts.quota_milli_cpus {
        None => Row::ok("CPU quota", "none".into()),
        Some(quota) if quota < 1000 * ids.len() as u64 => Row::note(
            "CPU quota",
            topology::cpus_text(quota),
            "fewer CPUs than are allowed: pinned processes are throttled hardest",
        ),
        Some(quota) => Row::ok("CPU quota", topology::cpus_text(quota)),
    };
    let workers = match topology::plan(facts, Workers::Auto, &Pin::Auto) {
        Ok(plan) => workers_row(&plan),
        Err(error) => Row::cannot("workers auto", error.to_string(), error.hint()),
    };
    let allowed = format!("{} ({})", ids.len(), format_cpu_list(&ids));
    vec![Row::ok("CPUs", allowed), threads_row(facts), quota, workers]
}

fn threads_row(facts: &CpuFacts) -> Row {
    let mut cores: Vec<&[usize]> = facts.cpus.iter().map(|cpu| cpu.siblings.as_slice()).collect();
    cores.sort_unstable();
    cores.dedup();
    let shared: Vec<String> = cores
        .iter()
        .filter(|siblings| siblings.len() > 1)
        .map(|siblings| siblings.iter().map(usize::to_string).collect::<Vec<_>>().join("+"))
        .collect();
    let value = match shared.as_slice() {
        [] => "off: each CPU is a core of its own".into(),
        shared => format!("on: {} cores, {}", cores.len(), shared.join(" ")),
    };
    Row::ok("SMT", value)
}

fn workers_row(plan: &CpuPlan) -> Row {
    let mut cpus: Vec<usize> = plan.workers.iter().flatten().copied().collect();
    cpus.sort_unstable();
    let value = match plan.primary {
        Some(primary) => {
            format!("{} (on {}, the primary on {primary})", plan.reason, format_cpu_list(&cpus))
        }
        // The reason says why nothing is pinned.
        None => plan.reason.clone(),
    };
    Row::ok("workers auto", value)
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
