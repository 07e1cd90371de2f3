//! Measures how servers spread load over their workers, and reports the result with its limits.
//!
//! Pure modules (numbers in; numbers, text or charts out; all randomness from a seed argument):
//! [`balance`], [`budget`], [`interval`], [`plan`], [`queueing`], [`target`], [`placement`],
//! [`peer`], [`matrix`], [`explain`], [`scenario`], [`validity`], [`steps`], [`summary`], [`work`],
//! [`chart`] and [`report`].
//!
//! Modules that run servers and the load generator, each as a separate process: [`interrupt`],
//! [`child`], [`server`], [`generator`], [`duty_cycle`], [`usage`], [`other_load`], [`in_flight`],
//! [`environment`], [`imbalance`], [`trial`], [`mod@bench`].

#![forbid(unsafe_code)]

pub mod aspect;
pub mod balance;
pub mod bench;
pub mod budget;
pub mod chart;
pub mod child;
pub mod duty_cycle;
pub mod environment;
pub mod explain;
pub mod generator;
pub mod imbalance;
pub mod in_flight;
pub mod interrupt;
pub mod interval;
pub mod matrix;
pub mod other_load;
pub mod peer;
pub mod placement;
pub mod plan;
pub mod queueing;
pub mod report;
pub mod scenario;
pub mod server;
pub mod steps;
pub mod summary;
pub mod target;
mod temp_dir;
pub mod trial;
pub mod usage;
pub mod validity;
pub mod work;

use clusterlb_schedule as schedule;
use clusterlb_sys::{self as sys, error};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
