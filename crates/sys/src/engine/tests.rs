//! The contract, on each engine.
