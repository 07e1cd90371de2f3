//! The control plane between a primary and one worker: framed messages over a stream socket,
//! with descriptors beside them. Nothing of it runs between accept and handoff.

mod channel;
mod message;

pub use channel::{Channel, FRAME_BYTES_MAX, Received};
pub use message::{LatencySummary, ToPrimary, ToWorker};
