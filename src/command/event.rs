//! What happens in a run, as it is told to the outside. Plain data; one JSON object a line.

use serde::Serialize;

use super::summary::Summary;
use clusterlb::{AcceptMechanism, Dispatch, Policy};
use clusterlb::{Ending, Signal};
use clusterlb::{ListenerId, WorkerId};
use clusterlb_sys::probe::FeatureLevel;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub(crate) enum Event {
    /// A listener is served by every worker (Node's `listening`, once for the whole cluster).
    Listening {
        /// The bound address, with the port that was chosen.
        address: String,
        /// Its number in this run.
        listener: ListenerId,
        /// Who chooses the worker.
        policy: Policy,
        /// Who takes connections of this listener to workers; not with the policy `none`.
        #[serde(skip_serializing_if = "Option::is_none")]
        dispatch: Option<Dispatch>,
        /// How the kernel chooses, where it does: `unprivileged` or `plain`.
        #[serde(skip_serializing_if = "Option::is_none")]
        dispatch_form: Option<&'static str>,
        /// How workers accept; only with the policy `none`.
        #[serde(skip_serializing_if = "Option::is_none")]
        accept: Option<AcceptMechanism>,
        /// What moves the bytes.
        engine: &'static str,
        /// Why it is this one.
        engine_reason: String,
        /// How much of io_uring there is here, if it was tried.
        feature_level: Option<FeatureLevel>,
        /// Workers that serve it.
        workers: usize,
        /// The primary's process id.
        pid: u32,
        /// The CPU of the primary's data path, if it is pinned.
        cpu: Option<usize>,
    },
    /// The run can be looked at and steered here.
    Admin {
        /// The bound address, with the port that was chosen.
        address: String,
    },
    /// HAProxy's agent-check is answered here.
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
    /// A worker's program has sent a message (Node's `message`).
    Message {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// What it says; null, if JSON cannot say it.
        message: serde_json::Value,
    },
    /// Workers are being replaced, one after the other, without a request being lost.
    Reloading {
        /// Who is going to be replaced.
        ids: Vec<WorkerId>,
    },
    /// All of them have been replaced.
    Reloaded,
    /// The number of slots changes.
    Scaled {
        /// What it was.
        from: u16,
        /// What it is.
        to: u16,
    },
    /// Connections are shared out by other rules from now on.
    Rescheduled {
        /// Who chooses the worker.
        policy: Policy,
        /// Most connections in flight at one worker.
        max_inflight: Option<u32>,
        /// How far above the average a worker may be.
        overload_factor: Option<f32>,
    },
    /// A worker's process has ended (Node's `exit`).
    Exit {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// Its exit code, unless a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<String>,
        /// Connections that it had claimed and that ended with it.
        aborted: u64,
    },
    /// A worker left connections unclaimed for too long: they went to others, and it gets nothing
    /// until it answers.
    Hung {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// Connections taken back from it.
        taken_back: u32,
    },
    /// A hung worker has answered and gets connections again.
    Recovered {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A worker closes connections without an answer and attracts load by that: each counts as
    /// load for a while.
    Outlier {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
        /// It gets no connections for this long, if outliers are ejected.
        ejected_ms: Option<u64>,
    },
    /// An outlier answers, or takes as long as the others, again.
    OutlierEnded {
        /// The worker.
        id: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A worker is replaced because it has served enough.
    Recycle {
        /// Which one.
        id: WorkerId,
        /// What it has reached.
        reason: String,
    },
    /// An ended worker will be replaced.
    Respawn {
        /// Who ended.
        id: WorkerId,
        /// How long that waits.
        delay_ms: u64,
    },
    /// A slot stays empty until the workers are replaced (SIGHUP).
    GiveUp {
        /// Its number.
        slot: u16,
        /// Who ended last, if one could be started.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<WorkerId>,
        /// Why.
        reason: String,
    },
    /// The run is about to end: serving goes on for a while.
    Stopping {
        /// Why.
        reason: String,
        /// For how long.
        delay_ms: u64,
    },
    /// The run is ending: nothing new is accepted.
    Draining {
        /// Why.
        reason: String,
        /// How long open connections may take.
        grace_ms: u64,
    },
    /// Workers were ended by force.
    Kill {
        /// Who.
        ids: Vec<WorkerId>,
        /// Why.
        reason: String,
    },
    /// Something worth knowing that changes nothing.
    Note {
        /// What.
        text: String,
    },
    /// The run has ended.
    Summary(Summary),
}

/// The two ways to end, apart.
#[must_use]
pub(super) fn code_and_signal(ending: Ending) -> (Option<i32>, Option<String>) {
    match ending {
        Ending::Code(code) => (Some(code), None),
        Ending::Signal(number) => {
            let name = Signal::from_raw(number)
                .map_or_else(|| format!("SIG{number}"), |signal| signal.to_string());
            (None, Some(name))
        }
    }
}
