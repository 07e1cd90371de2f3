//! Messages between the control plane and the data path. They are rare, and concern a single
//! connection only when a worker sends it back.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use crate::sys::waker::Waker;

use super::{ClusterCounts, LiveCounts, NewLink};
use crate::error::{Error, Result};
use crate::id::{ListenerId, Slot};
use crate::protocol::handoff_layout::Record;
use crate::protocol::scoreboard::Counters;
use crate::schedule::{Policy, SchedulerConfig};
use crate::sys::listener::Listener;

/// Returned sockets, with their records.
pub type Returned = Vec<(OwnedFd, Record)>;

/// A command of the control plane.
#[derive(Debug)]
pub enum Command {
    /// A listener was opened. At most 64 at a time.
    AddListener {
        /// Its number, unique in this run.
        id: ListenerId,
        /// Its socket.
        listener: Arc<Listener>,
    },
    /// A worker's own socket of a listener was opened: one of several that share an address. While
    /// it has no owner, the primary accepts from it.
    AddSocket {
        /// The number of the listener, the same for all its sockets.
        id: ListenerId,
        /// Its index among them.
        number: u16,
        /// The socket.
        socket: Arc<Listener>,
    },
    /// These workers now accept from such a socket. Connections that they leave in it for too long
    /// go to others.
    SetOwners {
        /// The listener.
        listener: ListenerId,
        /// The index of the socket.
        number: u16,
        /// The workers.
        owners: Vec<Slot>,
    },
    /// No process has such a socket any more, or one has it again. As long as none has it, the
    /// kernel gives what waits there to others, where it may.
    Desert {
        /// The listener.
        listener: ListenerId,
        /// The index of the socket.
        number: u16,
        /// Whether no process has it.
        is_deserted: bool,
    },
    /// Accept from another socket for a listener, and close the previous one like a removed one.
    ReplaceListener {
        /// Its number.
        id: ListenerId,
        /// The new socket.
        listener: Arc<Listener>,
    },
    /// Close a listener: accept its backlog, hand everything over, then report. Connections that no
    /// worker serves any more are dropped.
    RemoveListener {
        /// The listener.
        listener: ListenerId,
    },
    /// A worker was added in this slot.
    Attach {
        /// The slot.
        slot: Slot,
        /// Its channel and page.
        link: NewLink,
    },
    /// The worker now serves this listener.
    Join {
        /// The worker.
        slot: Slot,
        /// The listener.
        listener: ListenerId,
    },
    /// The worker no longer serves this listener. Answered when everything in flight to it is in
    /// its channel.
    Leave {
        /// The worker.
        slot: Slot,
        /// The listener.
        listener: ListenerId,
    },
    /// Sockets that the worker, or the bridge for it, received and did not claim: give them to
    /// others.
    Return {
        /// The worker.
        slot: Slot,
        /// The sockets, oldest first, as they were handed over.
        sockets: Returned,
        /// The worker refuses connections and gets none for this long, in nanoseconds; 0 if it may
        /// have others at once.
        backoff_ns: u64,
    },
    /// Accept.
    Open,
    /// The worker gets no more connections and sees the end of its inbox.
    Retire {
        /// The worker.
        slot: Slot,
    },
    /// The worker's process has ended: give its unclaimed connections to others.
    Reap {
        /// The worker.
        slot: Slot,
    },
    /// Change the scheduling rules.
    Reschedule {
        /// The policy; not [`Policy::None`].
        policy: Policy,
        /// The rules.
        scheduling: Box<SchedulerConfig>,
    },
    /// Answer, to show that the loop runs.
    Ping {
        /// Receives the answer.
        answer: SyncSender<Result<()>>,
    },
    /// Drop what could not be handed over and end.
    End,
}

/// A report of the data path to the control plane.
#[derive(Debug)]
pub enum DataPathReport {
    /// The last counters of a reaped worker.
    Reaped {
        /// The worker.
        slot: Slot,
        /// Its counters, after everything unclaimed was taken back.
        counters: Counters,
        /// Connections that it was given and that did not come back, by listener.
        given: Vec<(ListenerId, u64)>,
    },
    /// A worker left connections unclaimed for too long; they went to others, and it gets none
    /// until it answers a probe.
    Hung {
        /// The worker.
        slot: Slot,
        /// Connections taken back from it.
        taken_back: u32,
    },
    /// A hung worker has answered.
    Recovered {
        /// The worker.
        slot: Slot,
    },
    /// A worker closes connections without an answer, which attracts load. Each of them now counts
    /// as load for a while.
    Outlier {
        /// The worker.
        slot: Slot,
        /// The length of its ejection, if outliers are ejected.
        ejected_ns: Option<u64>,
    },
    /// An outlier answers again, or takes as long as the others.
    OutlierEnded {
        /// The worker.
        slot: Slot,
    },
    /// The kernel spreads a listener's connections over its sockets by hash, because its choice
    /// cannot be changed.
    Unsteered {
        /// The cause.
        error: Error,
    },
    /// A listener is closed, and everything accepted from it has been handed over.
    ListenerRemoved {
        /// The listener.
        listener: ListenerId,
    },
    /// No more connections of this listener will arrive in the worker's channel.
    Left {
        /// The worker.
        slot: Slot,
        /// The listener.
        listener: ListenerId,
    },
    /// The data path has ended.
    Ended(ClusterCounts),
}

/// The channels between the control plane and the data path.
#[derive(Debug)]
pub struct Endpoints {
    /// Commands to the data path; wake it after sending.
    pub commands: Receiver<Command>,
    /// Reports to the control plane.
    pub reports: Sender<DataPathReport>,
    /// Woken by the control plane and the bridge after a command, and by the bridge on behalf of
    /// its workers when they were asked to. Other workers have one each.
    pub waker: Arc<Waker>,
    /// Woken by the data path after a report.
    pub report_waker: Arc<Waker>,
    /// Where the data path publishes its counts.
    pub live_counts: Arc<LiveCounts>,
}
