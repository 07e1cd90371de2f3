//! Who gets the next connection. Pure: no descriptor, no clock, no I/O.
//!
//! A scheduler sees a row of [`WorkerLoad`]s, one a slot, and names a slot or nobody. It never
//! sees a socket, and it is told of its own choices by the caller, who counts them in the row.

mod round_robin;

pub use round_robin::RoundRobin;

use crate::id::Slot;

/// Whether a worker can take connections at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nobody is there, or it has died.
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
    pub standing: Standing,
    /// Connections given to it and neither finished nor taken back.
    pub in_flight: u32,
}

/// How often a worker was passed over, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skips {
    /// It was dead.
    pub dead: u64,
    /// It was draining.
    pub draining: u64,
    /// Its channel was full.
    pub full: u64,
    /// It had as many connections in flight as it may.
    pub overloaded: u64,
}

/// Chooses workers.
pub trait Scheduler: Send {
    /// The slot that shall have the next connection, or nobody.
    fn pick(&mut self, loads: &[WorkerLoad]) -> Option<Slot>;

    /// Whether [`Scheduler::pick`] would name somebody.
    fn has_room(&self, loads: &[WorkerLoad]) -> bool;
}
