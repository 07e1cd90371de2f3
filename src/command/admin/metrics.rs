//! `/metrics`: the numbers of a run.
//!
//! Owns names, labels and help texts; `docs/OPERATIONS.md` has the same table. Labels are slots and
//! listeners, which outlive processes.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use clusterlb::{
    CLAIM_BOUNDS_NS, ClusterCounts, ListenerCounts, ListenerId, ListenerSnapshot, Snapshot,
    SupervisorStage, WorkerId, WorkerState,
};

use super::Run;
use super::exposition::{Exposition, Format, Kind, Value};
use super::ledger::SlotRecord;
use super::observed;
use crate::command::usage::{Usage, usage_of};
use clusterlb_schedule::Changes;

/// CPU time by slot that never falls: the last reading of an ended worker stays in it.
#[derive(Debug, Default)]
pub(super) struct CpuTimes {
    ended: BTreeMap<u16, f64>,
    living: BTreeMap<WorkerId, (u16, f64)>,
}

impl CpuTimes {
    /// Adds the readings of living workers and returns the sums by slot.
    fn observe(&mut self, now: BTreeMap<WorkerId, (u16, f64)>) -> BTreeMap<u16, f64> {
        for (worker, (slot, seconds)) in std::mem::replace(&mut self.living, now) {
            if !self.living.contains_key(&worker) {
                *self.ended.entry(slot).or_default() += seconds;
            }
        }
        let mut slots = self.ended.clone();
        for (slot, seconds) in self.living.values() {
            *slots.entry(*slot).or_default() += seconds;
        }
        slots
    }
}

/// All metrics, as a scraper reads them.
pub(super) fn render(run: &Run, listeners: &[ListenerSnapshot], format: Format) -> String {
    let mut text = Exposition::new(format);
    // Taken before the ledger is read, as `Ledger::by_slot` requires.
    let snapshot = run.handle.snapshot();
    run_families(&mut text, run, &snapshot);
    connection_families(&mut text, &observed::counts(&run.cluster));
    let ledger = run.ledger();
    let slots = ledger.by_slot(&snapshot.workers);
    let slots: Vec<Labelled> =
        slots.into_iter().map(|(slot, record)| (slot.to_string(), record)).collect();
    let reloads = [("complete", ledger.reloads_complete), ("stopped", ledger.reloads_stopped)];
    text.family("clusterlb_reloads", Kind::Counter, "Replacements of workers, by outcome.");
    reloads
        .iter()
        .for_each(|(outcome, count)| text.sample(&[("outcome", outcome)], (*count).into()));
    let help = "Slots that were given up after too many short lives.";
    text.single("clusterlb_slots_given_up", Kind::Counter, help, ledger.given_up.into());
    drop(ledger);
    slot_families(&mut text, &slots);
    time_families(&mut text, &slots);
    restarts(&mut text, &slots);
    process_families(&mut text, run, &snapshot);
    listener_families(&mut text, listeners, &run.cluster.listener_counts());
    text.finish()
}

fn run_families(text: &mut Exposition, run: &Run, snapshot: &Snapshot) {
    text.family("clusterlb_build", Kind::Info, "Version, engine and policy of the run.");
    let policy = run.cluster.scheduling_policy().to_string();
    let level = run.engine.level.map_or_else(|| "none".into(), |level| level.to_string());
    text.sample(
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            ("engine", run.engine.kind.name()),
            ("feature_level", &level),
            ("policy", &policy),
        ],
        1.into(),
    );
    let started = run.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "When the run began, in seconds since 1970.";
    text.single("clusterlb_start_time_seconds", Kind::Gauge, help, started.into());
    let ready = observed::readiness(snapshot).is_ok();
    text.single(
        "clusterlb_ready",
        Kind::Gauge,
        "1 if new connections are served, as /readyz says.",
        ready.into(),
    );
    let draining = matches!(snapshot.stage, SupervisorStage::Draining | SupervisorStage::Killing);
    text.single("clusterlb_draining", Kind::Gauge, "1 while the run ends.", draining.into());
    let help = "1 while workers are replaced one after the other.";
    text.single("clusterlb_reloading", Kind::Gauge, help, snapshot.reloading.into());
    let slots = snapshot.slots.len() as u64;
    text.single("clusterlb_slots", Kind::Gauge, "Workers wanted.", slots.into());
    text.family("clusterlb_workers", Kind::Gauge, "Workers, by state.");
    for state in
        [WorkerState::Starting, WorkerState::Serving, WorkerState::Hung, WorkerState::Leaving]
    {
        let count = snapshot.workers.iter().filter(|one| one.state == state).count() as u64;
        text.sample(&[("state", observed::state_in_words(state))], count.into());
    }
}

fn connection_families(text: &mut Exposition, counts: &ClusterCounts) {
    let counters = [
        ("clusterlb_connections_accepted", counts.accepted, "Connections accepted."),
        (
            "clusterlb_connections_stolen",
            counts.stolen,
            "Connections taken out of a worker's own socket that it did not empty in time.",
        ),
        (
            "clusterlb_connections_redispatched",
            counts.redispatched,
            "Connections taken back from a worker and given to another.",
        ),
        (
            "clusterlb_connections_taken_back",
            counts.taken_back,
            "Connections taken back early, because another worker was idle.",
        ),
        (
            "clusterlb_connections_dropped",
            counts.dropped,
            "Connections closed because no worker could take them before the end.",
        ),
        (
            "clusterlb_handoffs_refused",
            counts.refused,
            "Handoffs that a worker's full or closed channel refused.",
        ),
        (
            "clusterlb_handoffs_coalesced",
            counts.coalesced,
            "Waits that let several connections share a handoff.",
        ),
        (
            "clusterlb_accept_pauses",
            counts.pauses,
            "Times that accepting stopped because no worker had room.",
        ),
        (
            "clusterlb_fallbacks",
            counts.skips.fallbacks,
            "Choices of the least loaded worker because all were above the average.",
        ),
        (
            "clusterlb_completion_overflows",
            counts.overflows,
            "Overflows of the data path's completion queue.",
        ),
    ];
    for (name, count, help) in counters {
        text.single(name, Kind::Counter, help, count.into());
    }
    let help = "How long accepting was stopped because no worker had room.";
    text.single("clusterlb_accept_paused_seconds", Kind::Counter, help, seconds(counts.paused_ns));
    let help = "Accepted connections that wait in the primary for a worker with room.";
    text.single("clusterlb_connections_waiting", Kind::Gauge, help, counts.waiting.into());
    let help = "Changes of the kernel's choice among the workers' own sockets.";
    text.family("clusterlb_steering_changes", Kind::Counter, help);
    let Changes { workers, stalls, loads } = counts.steered;
    for (reason, count) in [("workers", workers), ("stalls", stalls), ("loads", loads)] {
        text.sample(&[("reason", reason)], count.into());
    }
    text.family("clusterlb_skips", Kind::Counter, "Times that a worker was skipped, by reason.");
    for (stage, count) in observed::skips_by_stage(&counts.skips) {
        text.sample(&[("stage", stage)], count.into());
    }
}

fn seconds(ns: u64) -> Value {
    Duration::from_nanos(ns).as_secs_f64().into()
}

/// A slot's label, and its sums.
type Labelled = (String, SlotRecord);

/// A count of a slot.
type Field = fn(&SlotRecord) -> u64;

/// Counts by slot, over all its workers.
const BY_SLOT: [(&str, Kind, Field, &str); 12] = [
    (
        "clusterlb_worker_connections_assigned",
        Kind::Counter,
        |slot| slot.counts.assigned,
        "Connections given to the slot's workers, or accepted by them.",
    ),
    (
        "clusterlb_worker_connections_own",
        Kind::Counter,
        |slot| slot.counts.own,
        "Connections that the slot's workers accepted themselves.",
    ),
    (
        "clusterlb_worker_connections_claimed",
        Kind::Counter,
        |slot| slot.counts.claimed,
        "Connections that the workers received.",
    ),
    (
        "clusterlb_worker_connections_finished",
        Kind::Counter,
        |slot| slot.counts.finished,
        "Connections that are done.",
    ),
    (
        "clusterlb_worker_connections_returned",
        Kind::Counter,
        |slot| slot.counts.returned,
        "Connections taken back, or sent back, before the workers received them.",
    ),
    (
        "clusterlb_worker_connections_aborted",
        Kind::Counter,
        |slot| slot.counts.aborted,
        "Connections that were open when their worker ended.",
    ),
    (
        "clusterlb_worker_requests",
        Kind::Counter,
        |slot| slot.counts.requests,
        "Requests answered, by workers that count them.",
    ),
    (
        "clusterlb_worker_headers_refused",
        Kind::Counter,
        |slot| slot.counts.headers_refused,
        "Connections closed because they did not begin with a PROXY protocol header.",
    ),
    (
        "clusterlb_worker_hangs",
        Kind::Counter,
        |slot| slot.hangs,
        "Times that a worker left connections unclaimed for too long.",
    ),
    (
        "clusterlb_worker_outliers",
        Kind::Counter,
        |slot| slot.outliers,
        "Times that a worker was found to close connections without an answer.",
    ),
    (
        "clusterlb_worker_connections_in_flight",
        Kind::Gauge,
        |slot| slot.counts.in_flight(),
        "Connections given and not done.",
    ),
    (
        "clusterlb_worker_connections_unclaimed",
        Kind::Gauge,
        |slot| slot.unclaimed,
        "Connections given and not received.",
    ),
];

fn slot_families(text: &mut Exposition, slots: &[Labelled]) {
    for (name, kind, field, help) in BY_SLOT {
        text.family(name, kind, help);
        for (slot, record) in slots {
            text.sample(&[("slot", slot)], field(record).into());
        }
    }
    text.family("clusterlb_worker_exits", Kind::Counter, "Workers that ended, by reason.");
    for (slot, SlotRecord { exits, .. }) in slots {
        for (reason, count) in
            [("success", exits.success), ("failure", exits.failure), ("signal", exits.signal)]
        {
            text.sample(&[("slot", slot), ("reason", reason)], count.into());
        }
    }
}

fn restarts(text: &mut Exposition, slots: &[Labelled]) {
    let help = "Workers that were started in the slot after the first one.";
    text.family("clusterlb_worker_restarts", Kind::Counter, help);
    for (slot, record) in slots {
        text.sample(&[("slot", slot)], record.restarts.into());
    }
}

fn process_families(text: &mut Exposition, run: &Run, snapshot: &Snapshot) {
    let used = snapshot.workers.iter().filter_map(|one| {
        let usage = usage_of(one.pid)?;
        Some((one.id, (one.slot, usage)))
    });
    let used: BTreeMap<WorkerId, (u16, Usage)> = used.collect();
    let seconds = used.iter().map(|(id, (slot, usage))| (*id, (*slot, usage.cpu_seconds)));
    let seconds = run.cpu_times().observe(seconds.collect());
    text.family("clusterlb_worker_cpu_seconds", Kind::Counter, "CPU time that workers have used.");
    for (slot, seconds) in seconds {
        text.sample(&[("slot", &slot.to_string())], seconds.into());
    }
    let mut resident: BTreeMap<u16, u64> = BTreeMap::new();
    for (slot, usage) in used.values() {
        *resident.entry(*slot).or_default() += usage.resident_bytes;
    }
    text.family("clusterlb_worker_resident_bytes", Kind::Gauge, "Resident memory of the workers.");
    for (slot, bytes) in resident {
        text.sample(&[("slot", &slot.to_string())], bytes.into());
    }
    let Some(own) = usage_of(std::process::id()) else { return };
    let help = "CPU time that the primary has used.";
    text.single("clusterlb_primary_cpu_seconds", Kind::Counter, help, own.cpu_seconds.into());
    let help = "Resident memory of the primary.";
    text.single("clusterlb_primary_resident_bytes", Kind::Gauge, help, own.resident_bytes.into());
}

/// Durations by slot: handoff to claim, and event-loop delay of Node workers.
fn time_families(text: &mut Exposition, slots: &[Labelled]) {
    let help = "Time from the handoff of a connection to its claim, as the primary sees it.";
    text.family("clusterlb_worker_claim_seconds", Kind::Histogram, help);
    let bounds =
        CLAIM_BOUNDS_NS.map(|bound_ns| Duration::from_nanos(bound_ns).as_secs_f64().to_string());
    for (slot, SlotRecord { counts, .. }) in slots {
        let times = &counts.claim_times;
        let mut sum = 0;
        for (bound, count) in bounds.iter().zip(&times.counts) {
            sum += count;
            text.part("_bucket", &[("slot", slot), ("le", bound)], sum.into());
        }
        text.part("_bucket", &[("slot", slot), ("le", "+Inf")], times.count().into());
        text.part("_sum", &[("slot", slot)], seconds(times.sum_ns));
        text.part("_count", &[("slot", slot)], times.count().into());
    }
    let help = "How late the event loops of Node workers ran their timers, at each sample.";
    text.family("clusterlb_worker_loop_delay_seconds", Kind::Summary, help);
    for (slot, SlotRecord { counts, .. }) in slots {
        text.part("_sum", &[("slot", slot)], seconds(counts.late_ns));
        text.part("_count", &[("slot", slot)], counts.beats.into());
    }
}

/// A count of a listener.
type ListenerField = fn(&ListenerCounts) -> u64;

/// Counts by listener.
const BY_LISTENER: [(&str, ListenerField, &str); 8] = [
    (
        "clusterlb_listener_connections_accepted",
        |counts| counts.accepted,
        "Connections accepted from the listener.",
    ),
    (
        "clusterlb_listener_connections_assigned",
        |counts| counts.assigned,
        "Connections given to workers, or accepted by them; one that came back can be given again.",
    ),
    (
        "clusterlb_listener_connections_finished",
        |counts| counts.finished,
        "Connections that are done, by workers that count them by listener.",
    ),
    (
        "clusterlb_listener_connections_aborted",
        |counts| counts.aborted,
        "Connections that were open when their worker ended.",
    ),
    (
        "clusterlb_listener_handoffs_refused",
        |counts| counts.refused,
        "Handoffs that a worker's full or closed channel refused.",
    ),
    (
        "clusterlb_listener_connections_redispatched",
        |counts| counts.redispatched,
        "Connections taken back from a worker and given to another.",
    ),
    (
        "clusterlb_listener_connections_taken_back",
        |counts| counts.taken_back,
        "Connections taken back early, because another worker was idle.",
    ),
    (
        "clusterlb_listener_connections_dropped",
        |counts| counts.dropped,
        "Connections closed because no worker could take them.",
    ),
];

fn listener_families(
    text: &mut Exposition,
    listeners: &[ListenerSnapshot],
    counts: &BTreeMap<ListenerId, ListenerCounts>,
) {
    let labelled = |text: &mut Exposition, one: &ListenerSnapshot, value: Value| {
        text.sample(&[("listener", &one.id.get().to_string()), ("address", &one.address)], value);
    };
    for (name, field, help) in BY_LISTENER {
        text.family(name, Kind::Counter, help);
        for one in listeners {
            if let Some(counts) = counts.get(&one.id) {
                labelled(text, one, field(counts).into());
            }
        }
    }
    let help = "Connections that wait in the kernel to be accepted (TCP).";
    text.family("clusterlb_listener_backlog", Kind::Gauge, help);
    for one in listeners {
        if let Some(waiting) = one.waiting {
            labelled(text, one, u64::from(waiting).into());
        }
    }
    let help = "Connections that may wait in the kernel, as far as net.core.somaxconn allows.";
    text.family("clusterlb_listener_backlog_limit", Kind::Gauge, help);
    for one in listeners {
        labelled(text, one, u64::from(one.backlog_max).into());
    }
    let help = "Connections that found the backlog full, since the listener was opened.";
    text.family("clusterlb_listener_backlog_overflows", Kind::Counter, help);
    for one in listeners {
        if let Some(overflows) = one.overflows {
            labelled(text, one, overflows.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_a_slot_never_falls() {
        let mut times = CpuTimes::default();
        let at = |entries: &[(u32, u16, f64)]| {
            entries.iter().map(|(id, slot, used)| (WorkerId::new(*id), (*slot, *used))).collect()
        };
        assert_eq!(times.observe(at(&[(1, 0, 2.0), (2, 1, 1.0)]))[&0], 2.0);
        // The successor starts while it runs, and continues after it ends.
        assert_eq!(times.observe(at(&[(1, 0, 3.0), (3, 0, 0.5), (2, 1, 1.0)]))[&0], 3.5);
        let slots = times.observe(at(&[(3, 0, 0.75)]));
        assert_eq!((slots[&0], slots[&1]), (3.75, 1.0));
    }
}
