//! The events of a run as plain data; one JSON object a line.

use serde::Serialize;

use super::seccomp;
use super::summary::Summary;
use clusterlb::{AcceptMechanism, Dispatch, Policy};
use clusterlb::{Ending, Signal};
use clusterlb::{ListenerId, WorkerHandle, WorkerId};
use clusterlb_sys::probe::FeatureLevel;

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub(crate) enum ConsoleEvent {
    /// Every worker serves a listener (Node's `listening`, once for the whole cluster).
    Listening {
        /// The bound address, with the port that was chosen.
        address: String,
        /// Its number in this run.
        listener: ListenerId,
        /// The policy.
        policy: Policy,
        /// Who dispatches this listener's connections; not with the policy `none`.
        #[serde(skip_serializing_if = "Option::is_none")]
        dispatch: Option<Dispatch>,
        /// How the kernel chooses, if it does: `unprivileged` or `plain`.
        #[serde(skip_serializing_if = "Option::is_none")]
        dispatch_form: Option<&'static str>,
        /// How workers accept; only with the policy `none`.
        #[serde(skip_serializing_if = "Option::is_none")]
        accept: Option<AcceptMechanism>,
        /// The I/O engine.
        engine: &'static str,
        /// Why this engine was chosen.
        engine_reason: String,
        /// The io_uring features here, if it was probed.
        feature_level: Option<FeatureLevel>,
        /// Workers that serve it.
        workers: usize,
        /// The primary's process id.
        pid: u32,
        /// The CPU of the primary's data path, if it is pinned.
        cpu: Option<usize>,
    },
    /// The admin interface is open.
    Admin {
        /// The bound address, with the port that was chosen.
        address: String,
    },
    /// HAProxy's agent-check is open.
    AgentCheck {
        /// The bound address, with the port that was chosen.
        address: String,
    },
    /// A worker process was started (Node's `fork`).
    Fork {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// Its CPU, if it is pinned.
        cpu: Option<usize>,
    },
    /// A worker runs (Node's `online`).
    Online {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A worker's program sent a message (Node's `message`).
    Message {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// The message; null if JSON cannot express it.
        message: serde_json::Value,
    },
    /// A reload: workers are replaced one after the other, without losing a request.
    Reloading {
        /// The workers to replace.
        ids: Vec<WorkerId>,
    },
    /// The reload is complete.
    Reloaded,
    /// The number of slots changes.
    Scaled {
        /// The old number.
        from: u16,
        /// The new number.
        to: u16,
    },
    /// The scheduling rules changed.
    Rescheduled {
        /// The policy.
        policy: Policy,
        /// The limit of connections in flight per worker.
        max_inflight: Option<u32>,
        /// The factor over the average above which a worker is skipped.
        overload_factor: Option<f32>,
    },
    /// A worker's process ended (Node's `exit`).
    Exit {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// Its exit code, unless a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<String>,
        /// The system call for which `--seccomp` ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        refused_call: Option<String>,
        /// Connections that it had claimed and left open.
        aborted: u64,
    },
    /// A worker left connections unclaimed for too long: they went to others, and it gets no more
    /// until it responds.
    Hung {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// Connections taken back from it.
        taken_back: u32,
    },
    /// A hung worker responds and gets connections again.
    Recovered {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A worker closes connections without an answer, which attracts load: each of them now counts
    /// as load for a while.
    Outlier {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// The length of its ejection, if outliers are ejected.
        ejected_ms: Option<u64>,
    },
    /// An outlier answers again, or takes as long as the others.
    OutlierEnded {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A worker is replaced because it reached a limit.
    Recycle {
        /// The worker.
        id: WorkerId,
        /// The limit.
        reason: String,
    },
    /// An ended worker will be replaced.
    Respawn {
        /// The ended worker.
        id: WorkerId,
        /// The delay.
        delay_ms: u64,
    },
    /// A slot stays empty until a reload (SIGHUP).
    GiveUp {
        /// The slot.
        slot: u16,
        /// The last worker in it, if one could be started.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<WorkerId>,
        /// The reason.
        reason: String,
    },
    /// The run is about to end and serves for a while longer.
    Stopping {
        /// The reason.
        reason: String,
        /// The delay.
        delay_ms: u64,
    },
    /// The run is ending and accepts no more connections.
    Draining {
        /// The reason.
        reason: String,
        /// The grace period of open connections.
        grace_ms: u64,
    },
    /// Workers were killed.
    Kill {
        /// The workers.
        ids: Vec<WorkerId>,
        /// The reason.
        reason: String,
    },
    /// Information without an effect.
    Note {
        /// The text.
        text: String,
    },
    /// The run ended.
    Summary(Summary),
}

impl ConsoleEvent {
    /// A worker's process has ended.
    pub(super) fn exit(worker: &WorkerHandle, ending: Ending, aborted: u64) -> Self {
        let (code, signal) = code_and_signal(ending);
        let refused_call = worker.refused_call().map(seccomp::in_words);
        let (id, pid) = (worker.id(), worker.pid());
        Self::Exit { id, pid, code, signal, refused_call, aborted }
    }
}

/// Splits the two ways to end.
fn code_and_signal(ending: Ending) -> (Option<i32>, Option<String>) {
    match ending {
        Ending::Code(code) => (Some(code), None),
        Ending::Signal(number) => {
            let name = Signal::from_raw(number)
                .map_or_else(|| format!("SIG{number}"), |signal| signal.to_string());
            (None, Some(name))
        }
    }
}
