//! The control channel between a primary and one worker: framed messages over a stream socket, with
//! descriptors attached. It is not used between accept and handoff.

mod channel;
mod frame;
mod incoming;
mod message;
mod outgoing;
mod serialization;

pub use channel::{Channel, halves};
pub use frame::{CONTROL_BYTES_MAX, FRAME_DESCRIPTORS_MAX, MESSAGE_BYTES_MAX};
pub use incoming::{Body, Incoming, Received};
pub use message::{LatencySummary, ListenOptions, ToPrimary, ToWorker, Transport};
pub use outgoing::{
    Flushed, Outgoing, WAITING_BYTES_MAX, WAITING_DESCRIPTORS_MAX, WAITING_FRAMES_MAX,
};
pub use serialization::Serialization;
