//! Node programs as workers: what they get, what they send, and how they end, with every installed
//! Node.

mod applications;
mod bounds;
mod bridge;
mod command;
#[expect(dead_code, unused_imports, reason = "the tests of the command use all of it")]
#[path = "../common/mod.rs"]
mod common;
mod companion;
mod defects;
mod edges;
mod front;
mod habits;
mod handles;
mod hostile;
mod inbox;
mod inspect;
mod kept;
mod kernel;
mod leaving;
mod listeners;
mod load;
mod loop_delay;
mod matrix;
mod nodes;
mod preload;
mod proxied;
mod reload;
mod script;
mod soak;
mod storm;
mod theirs;
mod threads;
