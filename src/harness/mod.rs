//! Measuring who takes the load, and saying so honestly.
//!
//! Pure, numbers in, numbers, words or pictures out, every random choice from a seed that is
//! passed in: [`balance`], [`budget`], [`interval`], [`plan`], [`queueing`], [`target`],
//! [`placement`], [`peer`], [`matrix`], [`words`], [`scenario`], [`validity`], [`summary`],
//! [`chart`] and [`report`].
//!
//! Running servers and the load generator, all of them processes of their own: [`attention`],
//! [`child`], [`server`], [`generator`], [`usage`], [`in_flight`], [`surroundings`], [`imbalance`],
//! [`trial`], [`mod@bench`].

pub mod attention;
pub mod balance;
pub mod bench;
pub mod budget;
pub mod chart;
pub mod child;
mod folder;
pub mod generator;
pub mod imbalance;
pub mod in_flight;
pub mod interval;
pub mod matrix;
pub mod peer;
pub mod placement;
pub mod plan;
pub mod queueing;
pub mod report;
pub mod scenario;
pub mod server;
pub mod summary;
pub mod surroundings;
pub mod target;
pub mod trial;
pub mod usage;
pub mod validity;
pub mod words;
