//! How Node workers leave, with every Node that there is.

mod common;
#[path = "node/leaving.rs"]
mod leaving;
#[path = "node/nodes.rs"]
mod nodes;
#[path = "node/script.rs"]
mod script;
