//! Which worker gets the next connection. Pure: no descriptor, no clock, no I/O.
//!
//! A [`Scheduler`] sees a row of [`WorkerLoad`]s, one per slot, and names a slot or none. It never
//! sees a socket. The [`Roster`] keeps the row ([`Loads`]) up to date from assignments, deliveries,
//! claims and finished connections. The primary's data path drives it and, with the same code, the
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
pub use picker::{Picker, compared_times};
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
    /// It is leaving and must get no more connections.
    Draining,
    /// Its channel has no room; it reports when it has.
    Full,
    /// It takes connections.
    Ready,
}

/// The state of the worker in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Whether it takes connections.
    pub status: Status,
    /// It has made no progress for too long, or is ejected as an outlier.
    pub hung: bool,
    /// Connections given to it and neither finished nor taken back; of an outlier, also those it
    /// closed without an answer, for as long as its peers would have served them.
    pub in_flight: u32,
    /// Connections that it may be given before it claims one.
    pub credits: u32,
    /// Progress of its slow start, in thousandths; 1000 is complete.
    pub slow_start_permille: u16,
    /// Its usual time from claim to finish, in microseconds; 0 if unknown or outdated. Kept under
    /// [`Policy::Fastest`] only.
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

    /// Whether it can take a connection at all: it is ready, not hung, and has a credit left.
    /// Naming one that cannot counts as naming none.
    #[must_use]
    pub fn can_take(&self) -> bool {
        self.status == Status::Ready && !self.hung && self.credits > 0
    }
}

/// The identity of a client for the scheduler: the same number for the same client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client(pub u64);

/// Chooses workers. Implement it for a custom policy and pass a [`SchedulerFactory`] in
/// [`SchedulerConfig::scheduler`]. The accepting thread calls it for each connection: all clients
/// wait for its answer.
pub trait Scheduler: Send {
    /// The slot that gets the next connection, or none. The caller counts the connection in the row
    /// before it asks again.
    ///
    /// A named worker that cannot take a connection ([`WorkerLoad::can_take`]) counts as none: the
    /// connection waits until a worker has changed, then the scheduler is asked again.
    fn pick(&mut self, loads: &Loads, client: Client) -> Option<Slot>;

    /// Whether [`Scheduler::pick`] would name a worker. While it would not, no connection is
    /// accepted and clients wait in the kernel's backlog.
    fn has_room(&self, loads: &Loads) -> bool {
        loads.iter().any(WorkerLoad::can_take)
    }

    /// Whether the client matters; finding it out costs a system call per connection.
    fn wants_client(&self) -> bool {
        false
    }

    /// How often each stage skipped a worker, for the run's summary.
    fn skips(&self) -> Skips {
        Skips::default()
    }
}

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
