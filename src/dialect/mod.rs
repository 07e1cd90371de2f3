//! Languages that workers speak when they are not this program: one folder a dialect.
//!
//! Owns the translation between a foreign worker's channel and the data path. Refuses to start or
//! end processes, and to open listeners: the control plane does both.

pub mod node;
