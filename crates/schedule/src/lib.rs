//! Who gets the next connection. Pure: no descriptor, no clock, no I/O.
//!
//! A [`Scheduler`] sees a row of [`WorkerLoad`]s, one a slot, and names a slot or nobody. It never
//! sees a socket. The [`Roster`] keeps the row ([`Loads`]) true from what is assigned, delivered,
//! claimed and finished; it is driven by the primary's data path and, with the same code, by the
//! simulation in `tests/simulation.rs`.

#![forbid(unsafe_code)]

mod claim_times;
mod coalescing;
mod config;
mod credits;
mod dispatch;
mod filter;
pub mod id;
mod index_set;
mod intake;
mod loads;
mod pace;
mod picker;
mod policy;
mod roster;
mod scheduler;
mod stall_detector;
mod steering;

pub use claim_times::{CLAIM_BOUNDS_NS, ClaimTimes};
pub use coalescing::Coalescing;
pub use config::SchedulerConfig;
pub use credits::{CREDITS_MAX, CreditRule};
pub use dispatch::{Dispatch, Unsupported};
pub use filter::{Limits, OverloadFactor, Skips};
pub use intake::Intake;
pub use loads::Loads;
pub use picker::Picker;
pub use policy::{AcceptMechanism, Policy, UnknownName};
pub use roster::{Judgement, LISTENERS_MAX, Look, Refusal, Roster, Sample};
pub use scheduler::SchedulerFactory;
pub use stall_detector::{Finding, StallDetector};
pub use steering::{CHANGE_NS, Change, Changes, OwnSocketLoad, Steering, Weight, weigh};

use crate::id::Slot;

/// Whether a worker can take connections at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// The slot is empty, or its worker has died.
    #[default]
    Dead,
    /// It is leaving and must get nothing more.
    Draining,
    /// Its channel has no room; it will say when it has.
    Full,
    /// It takes connections.
    Ready,
}

/// What is known of the worker in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Whether it takes connections.
    pub status: Status,
    /// It has not moved for longer than is normal, or is ejected as an outlier.
    pub hung: bool,
    /// Connections given to it and neither finished nor taken back; of an outlier, also what it
    /// has closed without an answer, for as long as its peers would have served that.
    pub in_flight: u32,
    /// Connections that it may be given before it claims one.
    pub credits: u32,
    /// How far it has come in its slow start, in thousandths; 1000 is all the way.
    pub slow_start_permille: u16,
    /// What a connection usually takes it from claim to finish, in microseconds; 0 if that is not
    /// known or has not been tried for long. Kept under [`Policy::Fastest`] only.
    pub usual_us: u32,
}

impl WorkerLoad {
    /// A worker that takes connections and has this many in flight.
    #[must_use]
    pub fn ready(in_flight: u32) -> Self {
        Self {
            status: Status::Ready,
            hung: false,
            in_flight,
            credits: CREDITS_MAX,
            slow_start_permille: 1000,
            usual_us: 0,
        }
    }

    /// Whether it can take a connection at all: it is ready, has not hung and has a credit left.
    /// Naming one that cannot counts as naming none.
    #[must_use]
    pub fn can_take(&self) -> bool {
        self.status == Status::Ready && !self.hung && self.credits > 0
    }
}

/// What a scheduler may know of a connection: a number that is the same for the same client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client(pub u64);

/// Chooses workers. Bring your own by implementing it and giving a [`SchedulerFactory`] to
/// [`SchedulerConfig::scheduler`]. The thread that accepts asks it for each connection: while it
/// answers, all clients wait.
pub trait Scheduler: Send {
    /// The slot that shall have the next connection, or nobody. The caller then counts the
    /// connection in the row before it asks again.
    ///
    /// Whoever is named and cannot take a connection ([`WorkerLoad::can_take`]) counts as nobody:
    /// the connection waits, and the question comes again when a worker has done something.
    fn pick(&mut self, loads: &Loads, client: Client) -> Option<Slot>;

    /// Whether [`Scheduler::pick`] would name somebody. While it would not, nothing is accepted
    /// and clients wait in the kernel's backlog.
    fn has_room(&self, loads: &Loads) -> bool {
        loads.iter().any(WorkerLoad::can_take)
    }

    /// Whether the client matters; finding it out costs a system call a connection.
    fn wants_client(&self) -> bool {
        false
    }

    /// How often each stage passed over a worker, for the run's summary.
    fn skips(&self) -> Skips {
        Skips::default()
    }
}
