//! The present view of a run: the supervisor's state, the counters, and the system's data about the
//! processes.
//!
//! Reads memory and `/proc`; never asks a thread that serves connections.

use std::time::{Duration, SystemTime};

use clusterlb::{
    Cluster, ClusterCounts, SlotState, Snapshot, SupervisorStage, WorkerSnapshot, WorkerState,
};
use clusterlb_schedule::Skips;

use super::Run;
use super::views::{CountsView, SlotView, TotalsView, WorkerView, WorkersView};
use crate::command::usage::usage_of;

/// Whether new connections are served: accepting, not draining, and a worker is ready.
pub(super) fn readiness(snapshot: &Snapshot) -> Result<(), String> {
    match snapshot.stage {
        SupervisorStage::Serving => {}
        stage => return Err(stage_in_words(stage).to_owned()),
    }
    match snapshot.workers.iter().any(|one| one.state == WorkerState::Serving) {
        true => Ok(()),
        false => Err("no worker serves".into()),
    }
}

pub(super) fn stage_in_words(stage: SupervisorStage) -> &'static str {
    match stage {
        SupervisorStage::Starting => "starting",
        SupervisorStage::Serving => "serving",
        SupervisorStage::Stopping => "stopping",
        SupervisorStage::Draining => "draining",
        SupervisorStage::Killing => "killing",
        _ => "ended",
    }
}

pub(super) fn state_in_words(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Starting => "starting",
        WorkerState::Serving => "serving",
        WorkerState::Hung => "hung",
        _ => "leaving",
    }
}

/// The stages at which workers are skipped, by their public names.
pub(super) fn skips_by_stage(skips: &Skips) -> [(&'static str, u64); 7] {
    let Skips { dead, hung, draining, full, at_limit, out_of_credits, above_average, .. } = *skips;
    [
        ("dead", dead),
        ("hung", hung),
        ("draining", draining),
        ("full", full),
        ("at_limit", at_limit),
        ("out_of_credits", out_of_credits),
        ("above_average", above_average),
    ]
}

/// `/workers`.
pub(super) fn workers(run: &Run) -> WorkersView {
    let snapshot = run.handle.snapshot();
    let slots = snapshot.slots.iter().map(|slot| SlotView {
        slot: slot.number,
        state: slot_in_words(slot.state).to_owned(),
        worker: match slot.state {
            SlotState::Filled(worker) => Some(worker.get()),
            _ => None,
        },
        restarts: slot.restarts,
    });
    let now = SystemTime::now();
    WorkersView {
        stage: stage_in_words(snapshot.stage).to_owned(),
        ready: readiness(&snapshot).is_ok(),
        reloading: snapshot.reloading,
        pid: std::process::id(),
        uptime_ms: in_ms(run.began.elapsed()),
        policy: run.cluster.scheduling_policy().to_string(),
        totals: totals(&run.cluster),
        slots: slots.collect(),
        workers: snapshot.workers.iter().map(|one| worker(one, now)).collect(),
    }
}

fn slot_in_words(state: SlotState) -> &'static str {
    match state {
        SlotState::Filled(_) => "filled",
        SlotState::Waiting(_) => "waiting",
        SlotState::GivenUp => "given-up",
        _ => "empty",
    }
}

fn worker(one: &WorkerSnapshot, now: SystemTime) -> WorkerView {
    let usage = usage_of(one.pid);
    WorkerView {
        id: one.id.get(),
        slot: one.slot,
        pid: one.pid,
        cpu: one.cpu,
        state: state_in_words(one.state).to_owned(),
        uptime_ms: milliseconds(one.started, now),
        state_ms: milliseconds(one.since, now),
        addresses: one.addresses.clone(),
        counts: CountsView::from(&one.counts),
        cpu_seconds: usage.map(|usage| usage.cpu_seconds),
        resident_bytes: usage.map(|usage| usage.resident_bytes),
    }
}

fn totals(cluster: &Cluster) -> TotalsView {
    let counts = counts(cluster);
    TotalsView {
        accepted: counts.accepted,
        stolen: counts.stolen,
        refused: counts.refused,
        redispatched: counts.redispatched,
        taken_back: counts.taken_back,
        dropped: counts.dropped,
        waiting: counts.waiting,
        pauses: counts.pauses,
        paused_ms: counts.paused_ns / 1_000_000,
        coalesced: counts.coalesced,
        skips: skips_by_stage(&counts.skips)
            .map(|(stage, count)| (stage.to_owned(), count))
            .to_vec(),
    }
}

/// The counts of the run, including connections that workers accepted.
pub(super) fn counts(cluster: &Cluster) -> ClusterCounts {
    let mut counts = cluster.counts();
    counts.accepted += cluster.worker_counts().own;
    counts
}

fn milliseconds(since: SystemTime, now: SystemTime) -> u64 {
    in_ms(now.duration_since(since).unwrap_or_default())
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
