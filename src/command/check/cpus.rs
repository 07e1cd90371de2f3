//! The rows about CPUs: which are allowed, the quota, and how many workers `auto` would be.

use clusterlb::topology::{self, CpuPlan, Pin, Workers};
use clusterlb_sys::cpu::{CpuFacts, format_cpu_list};

use super::Row;

pub(super) fn rows(facts: &CpuFacts) -> Vec<Row> {
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
        [] => "off: each CPU is a separate core".into(),
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
        // The reason explains why nothing is pinned.
        None => plan.reason.clone(),
    };
    Row::ok("workers auto", value)
}
