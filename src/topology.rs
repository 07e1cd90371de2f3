//! Number of workers, and the CPU of each process.
//!
//! Owns this decision: a pure function of the facts and the two settings. Reads no files and pins
//! no threads.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use nix::errno::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::sys::cpu::{Cpu, CpuFacts, format_cpu_list, parse_cpu_list};

/// A larger number of workers is treated as a mistake.
pub const WORKER_COUNT_MAX: u16 = 1024;

/// The requested number of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// As many as the allowed CPUs and the CPU quota can keep busy.
    #[default]
    Auto,
    /// This number.
    Exactly(NonZeroU16),
}

/// The requested pinning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// One CPU per process, physical cores first, if there are at least three CPUs, enough for the
    /// primary and every worker, and no quota below their number. Otherwise as [`Pin::None`]: the
    /// kernel places processes that share CPUs better, and pinned processes of several containers
    /// would all use the lowest CPUs.
    #[default]
    Auto,
    /// No pinning. The number of workers is the same, with one CPU's time left for the primary,
    /// which needs it wherever it runs.
    None,
    /// Pinning to these CPUs: workers in this order, repeatedly; the primary on the last one that
    /// no worker uses, if there is one. The number of `auto` workers is derived from the list.
    List(Vec<usize>),
}

/// The assignment of CPUs, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CpuPlan {
    /// CPU of the primary; `None` if it is not pinned.
    pub primary: Option<usize>,
    /// CPU of each worker, in the order of slots.
    pub workers: Vec<Option<usize>>,
    /// Number of CPUs in the affinity mask.
    pub allowed: usize,
    /// CPU quota of the cgroup in thousandths of a CPU; `None` without a quota.
    pub quota_milli_cpus: Option<u64>,
    /// Whether there are more workers than CPUs for them.
    pub oversubscribed: bool,
    /// One line on how the number of workers was determined.
    pub reason: String,
    /// Other notes for the user, one line each.
    pub notes: Vec<String>,
}

/// Decides the number of workers and their CPUs.
///
/// # Errors
/// [`Error::Usage`]: the list names a CPU that this process may not use. [`Error::System`]: there
/// is no CPU.
pub fn plan(facts: &CpuFacts, workers: Workers, pin: &Pin) -> Result<CpuPlan> {
    let order = match pin {
        Pin::Auto | Pin::None => in_order(&facts.cpus),
        Pin::List(list) => listed(&facts.cpus, list)?,
    };
    if order.is_empty() {
        return Err(Error::system("find a CPU to run on", Errno::ENODEV));
    }
    let usable = capacity(order.len(), facts.quota_milli_cpus);
    let (count, reserved) = match workers {
        // With one or two CPUs, a separate core for the primary would cost too much.
        Workers::Auto if usable < 3 => (usable, false),
        Workers::Auto => (usable - 1, true),
        Workers::Exactly(count) => {
            let count = usize::from(count.get());
            (count, count < order.len())
        }
    };
    let sharing = sharing(order.len(), count, facts.quota_milli_cpus);
    let is_pinned = match pin {
        Pin::Auto => sharing.is_none(),
        Pin::None => false,
        Pin::List(_) => true,
    };
    let (primary, places) = if is_pinned {
        let spare = order.get(count..).filter(|_| reserved).unwrap_or(&[]);
        let places = order.iter().cycle().take(count).map(|cpu| Some(cpu.id)).collect();
        (primary_of(&order, spare, pin), places)
    } else {
        (None, vec![None; count])
    };
    let mut plan = CpuPlan {
        primary,
        workers: places,
        allowed: facts.cpus.len(),
        quota_milli_cpus: facts.quota_milli_cpus,
        oversubscribed: count > order.len(),
        reason: String::new(),
        notes: Vec::new(),
    };
    plan.reason = reason(&plan, workers, pin, reserved);
    if let (Pin::Auto, Some(sharing)) = (pin, sharing) {
        plan.reason += &format!(", not pinned: {sharing}");
    }
    plan.notes = notes(&plan, facts, order.len());
    Ok(plan)
}

/// Why processes have to share CPUs, if they do.
fn sharing(cpu_count: usize, worker_count: usize, quota: Option<u64>) -> Option<&'static str> {
    if quota.is_some_and(|quota| quota < 1000 * cpu_count as u64) {
        return Some("a quota shares these CPUs with others");
    }
    (cpu_count < 3 || worker_count >= cpu_count).then_some("fewer CPUs than processes")
}

/// Number of CPUs that can be kept busy: the quota rounded down, but at least one.
fn capacity(cpu_count: usize, quota_milli_cpus: Option<u64>) -> usize {
    quota_milli_cpus.map_or(cpu_count, |quota| {
        let whole = usize::try_from(quota / 1000).unwrap_or(usize::MAX);
        cpu_count.min(whole.max(1))
    })
}

/// The CPUs in order of preference: one per physical core before any second thread, with neighbours
/// in node, package and cache next to each other.
fn in_order(cpus: &[Cpu]) -> Vec<&Cpu> {
    let mut threads_of_core = BTreeMap::<usize, usize>::new();
    let mut ranked: Vec<_> = cpus
        .iter()
        .map(|cpu| {
            let threads = threads_of_core.entry(cpu.core()).or_default();
            *threads += 1;
            (*threads, cpu.node, cpu.package, cpu.cache, cpu.id, cpu)
        })
        .collect();
    ranked.sort_by_key(|(thread, node, package, cache, id, _)| {
        (*thread, *node, *package, *cache, *id)
    });
    ranked.into_iter().map(|ranked| ranked.5).collect()
}

fn listed<'a>(cpus: &'a [Cpu], list: &[usize]) -> Result<Vec<&'a Cpu>> {
    let find = |id: &usize| cpus.iter().find(|cpu| cpu.id == *id);
    let mut unknown: Vec<usize> = list.iter().filter(|id| find(id).is_none()).copied().collect();
    if unknown.is_empty() {
        return Ok(list.iter().filter_map(find).collect());
    }
    unknown.sort_unstable();
    let allowed: Vec<usize> = cpus.iter().map(|cpu| cpu.id).collect();
    let plural = if unknown.len() == 1 { "" } else { "s" };
    Err(Error::usage(
        format!(
            "the list names CPU{plural} {}, which this process may not use",
            format_cpu_list(&unknown)
        ),
        format!("the CPUs it may use are {}", format_cpu_list(&allowed)),
    ))
}

/// The primary's CPU among those that no worker uses: one whose core no worker uses either, because
/// two threads of a core slow each other down.
fn primary_of(order: &[&Cpu], spare: &[&Cpu], pin: &Pin) -> Option<usize> {
    let workers = &order[..order.len() - spare.len()];
    let undisturbed = |cpu: &&&Cpu| !workers.iter().any(|worker| worker.core() == cpu.core());
    let chosen = match pin {
        Pin::List(_) => spare.last(),
        Pin::Auto | Pin::None => spare.iter().find(undisturbed).or_else(|| spare.first()),
    };
    chosen.map(|cpu| cpu.id)
}

fn reason(plan: &CpuPlan, workers: Workers, pin: &Pin, reserved: bool) -> String {
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let mut text = format!("{} allowed CPU{}", plan.allowed, plural(plan.allowed));
    if let Pin::List(list) = pin {
        text += &format!(", {} of them listed", list.len());
    }
    if let Some(quota) = plan.quota_milli_cpus {
        text += &format!(", quota {}", cpus_text(quota));
    }
    match workers {
        Workers::Auto if reserved => text += ", one kept for the primary",
        Workers::Auto => {}
        Workers::Exactly(_) => text += ", number given",
    }
    let count = plan.workers.len();
    text + &format!(" → {count} worker{}", plural(count))
}

fn notes(plan: &CpuPlan, facts: &CpuFacts, cpu_count: usize) -> Vec<String> {
    let mut notes = Vec::new();
    let count = plan.workers.len();
    if plan.oversubscribed {
        notes.push(format!("{count} workers share {cpu_count} CPUs: they take turns"));
    }
    // A quota stops every thread of the cgroup at once, which pinned threads cannot avoid.
    if let Some(quota) = plan.quota_milli_cpus
        && quota < 1000 * count as u64
    {
        notes.push(format!(
            "the cgroup grants {} CPUs, fewer than the workers can use: expect throttling",
            cpus_text(quota)
        ));
    }
    let core_of = |id: usize| facts.cpus.iter().find(|cpu| cpu.id == id).map(Cpu::core);
    let mut used = plan.workers.iter().flatten();
    if let Some(primary) = plan.primary
        && let Some(worker) = used.find(|worker| core_of(**worker) == core_of(primary))
    {
        notes.push(format!(
            "the primary on CPU {primary} shares a physical core with the worker on CPU {worker}"
        ));
    }
    notes
}

/// Formats thousandths of a CPU: `2`, `2.5`, `0.125`.
#[must_use]
pub fn cpus_text(milli_cpus: u64) -> String {
    let text = format!("{}.{:03}", milli_cpus / 1000, milli_cpus % 1000);
    text.trim_end_matches('0').trim_end_matches('.').into()
}

impl FromStr for Workers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hint = format!("give `auto` or a number from 1 to {WORKER_COUNT_MAX}");
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !plain {
            let what = format!("`{text}` is neither `auto` nor a number of workers");
            return Err(Error::usage(what, hint));
        }
        let count = text.parse().ok().filter(|count| *count <= WORKER_COUNT_MAX);
        let Some(count) = count else {
            let what = format!("{text} workers are more than {WORKER_COUNT_MAX}");
            return Err(Error::usage(what, hint));
        };
        let count = NonZeroU16::new(count);
        let none = || Error::usage("0 workers would leave every client waiting", hint);
        count.map(Self::Exactly).ok_or_else(none)
    }
}

impl FromStr for Pin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            list => parse_cpu_list(list).map(Self::List).map_err(|what| {
                Error::usage(what, "give `auto`, `none` or CPU numbers like 0-3,6,8-11")
            }),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Exactly(count) => write!(f, "{count}"),
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::None => write!(f, "none"),
            Self::List(list) => write!(f, "{}", format_cpu_list(list)),
        }
    }
}
