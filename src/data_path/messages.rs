//! What the control plane and the data path tell each other. Rare, and about one connection only
//! when a worker sends it back.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use crate::sys::waker::Waker;

use super::{ClusterCounts, LiveCounts, NewLink};
use crate::error::{Error, Result};
use crate::id::{ListenerId, Slot};
use crate::protocol::handoff::Record;
use crate::protocol::scoreboard::Counters;
use crate::schedule::{Policy, SchedulerConfig};
use crate::sys::listener::Listener;

/// Sockets that come back, with what was known of each.
pub type Returned = Vec<(OwnedFd, Record)>;

/// What the control plane asks for.
#[derive(Debug)]
pub enum Command {
    /// A listener has been opened. At most 64 at a time.
    AddListener {
        /// Its number, which no other listener of this run has.
        id: ListenerId,
        /// Its socket.
        listener: Arc<Listener>,
    },
    /// A socket of a listener has been opened that a worker shall accept from by itself: one of
    /// several that share an address. Until somebody does, and whenever nobody does, the primary
    /// accepts from it.
    AddSocket {
        /// The number of the listener, the same for all its sockets.
        id: ListenerId,
        /// Which of them it is.
        number: u16,
        /// The socket.
        socket: Arc<Listener>,
    },
    /// These workers accept from such a socket by themselves from now on. What they leave in it
    /// for too long is given to others.
    SetOwners {
        /// Which listener.
        listener: ListenerId,
        /// Which of its sockets.
        number: u16,
        /// Who.
        owners: Vec<Slot>,
    },
    /// Accept from another socket for a listener, and close the one of before as if it was removed.
    ReplaceListener {
        /// Its number.
        id: ListenerId,
        /// Where to accept from now on.
        listener: Arc<Listener>,
    },
    /// Close a listener: take what waits in its backlog, hand that over, say when done. What
    /// nobody serves any more is dropped.
    RemoveListener {
        /// Which one.
        listener: ListenerId,
    },
    /// A worker has come to this slot.
    Attach {
        /// Where.
        slot: Slot,
        /// With what.
        link: NewLink,
    },
    /// The worker serves this listener from now on.
    Join {
        /// Which worker.
        slot: Slot,
        /// Which listener.
        listener: ListenerId,
    },
    /// The worker does not serve this listener any more. Answered when everything that was under
    /// way to it is in its channel.
    Leave {
        /// Which worker.
        slot: Slot,
        /// Which listener.
        listener: ListenerId,
    },
    /// Sockets that the worker, or who speaks for it, had taken and not claimed: give them to
    /// others.
    Return {
        /// Whose they were.
        slot: Slot,
        /// The sockets, oldest first, as they were handed over.
        sockets: Returned,
        /// The worker refuses connections and gets none for so long, in nanoseconds; 0 if it may
        /// have others at once.
        backoff_ns: u64,
    },
    /// Accept.
    Open,
    /// The worker gets nothing more and sees the end of its inbox.
    Retire {
        /// Which worker.
        slot: Slot,
    },
    /// The worker's process has ended: give what it had not claimed to others.
    Reap {
        /// Which worker.
        slot: Slot,
    },
    /// Share connections out by other rules from now on.
    Reschedule {
        /// Who chooses; not [`Policy::None`].
        policy: Policy,
        /// The rules.
        scheduling: Box<SchedulerConfig>,
    },
    /// Answer, to show that the loop turns.
    Ping {
        /// Where the answer goes.
        answer: SyncSender<Result<()>>,
    },
    /// Drop what could not be handed over and end.
    End,
}

/// What the data path tells the control plane.
#[derive(Debug)]
pub enum Report {
    /// A buried worker's last numbers.
    Reaped {
        /// Which worker.
        slot: Slot,
        /// Its counters, with everything unclaimed taken back.
        counters: Counters,
    },
    /// A worker has left connections unclaimed for too long; they went to others, and it gets
    /// nothing until it answers a probe.
    Hung {
        /// Which worker.
        slot: Slot,
        /// Connections taken back from it.
        taken_back: u32,
    },
    /// A hung worker has answered.
    Recovered {
        /// Which worker.
        slot: Slot,
    },
    /// A worker closes connections without an answer and attracts load by that. Each counts as load
    /// for a while.
    Outlier {
        /// Which worker.
        slot: Slot,
        /// It gets no connections for this long, if outliers are ejected.
        ejected_ns: Option<u64>,
    },
    /// An outlier answers, or takes as long as the others, again.
    OutlierEnded {
        /// Which worker.
        slot: Slot,
    },
    /// Among the sockets of a listener the kernel chooses by its hash, because it cannot be told
    /// otherwise.
    Unsteered {
        /// Why.
        error: Error,
    },
    /// A listener is closed, and everything accepted from it has been handed over.
    ListenerRemoved {
        /// Which one.
        listener: ListenerId,
    },
    /// Nothing more of this listener will come into the worker's channel.
    Left {
        /// Which worker.
        slot: Slot,
        /// Which listener.
        listener: ListenerId,
    },
    /// The data path has ended.
    Ended(ClusterCounts),
}

/// How the control plane and the data path reach each other.
#[derive(Debug)]
pub struct Endpoints {
    /// Commands to the data path; wake it after sending.
    pub commands: Receiver<Command>,
    /// Reports to the control plane.
    pub reports: Sender<Report>,
    /// Woken by the control plane and the bridge after a command, and by the bridge in the name of
    /// workers that were asked to. Workers have one each.
    pub waker: Arc<Waker>,
    /// Woken by the data path after a report.
    pub report_waker: Arc<Waker>,
    /// Where the data path shows its counts.
    pub live_counts: Arc<LiveCounts>,
}
