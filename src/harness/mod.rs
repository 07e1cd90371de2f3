//! Measuring who takes the load, and saying so honestly.
//!
//! [`balance`], [`interval`], [`plan`], [`queueing`] and [`chart`] are pure: numbers in, numbers,
//! words or pictures out, every random choice from a seed that is passed in. Nothing in them runs
//! a server or reads a clock.

pub mod balance;
pub mod chart;
pub mod interval;
pub mod plan;
pub mod queueing;
