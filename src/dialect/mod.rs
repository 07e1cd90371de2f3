//! Protocols of workers that are not written with this library, one folder per dialect.
//!
//! Owns the translation between a foreign worker's channel and the data path. Processes and
//! listeners belong to the control plane.

pub mod node;
