//! The script for Node workers, assembled from its parts.
//!
//! Owns their order. Offsets in the page and the inbox messages, and bounds, are generated from the
//! definitions in `scoreboard`, `handoff` and `proxy_protocol`, so that they exist once.

use std::fmt::Write as _;

use crate::protocol::handoff_layout::EVEN_LAYOUT;
use crate::protocol::proxy_protocol::{HEADER_BYTES_MAX, HEADER_LIMIT};
use crate::protocol::scoreboard::PROGRAM_LAYOUT;

const PARTS: &str = concat!(
    include_str!("page.cjs"),
    include_str!("servers.cjs"),
    include_str!("inbox.cjs"),
    include_str!("pace.cjs"),
    include_str!("proxied.cjs"),
    include_str!("kept.cjs"),
    include_str!("handlers.cjs"),
    include_str!("signals.cjs"),
    include_str!("leaving.cjs"),
    // Before the variable that shows where this runs is deleted.
    include_str!("log4js.cjs"),
    include_str!("companion.cjs"),
    include_str!("start.cjs"),
);

/// The whole script.
pub(super) fn text() -> String {
    let mut text = String::from("'use strict';\n\nconst LAYOUT = {\n");
    let header = [
        ("HEADER_BYTES_MAX", HEADER_BYTES_MAX as u64),
        ("HEADER_LIMIT_MS", HEADER_LIMIT.as_secs() * 1000),
    ];
    for (name, value) in PROGRAM_LAYOUT.iter().chain(&EVEN_LAYOUT).chain(&header) {
        writeln!(text, "  {name}: {value},").expect("a string takes everything");
    }
    text + "};\n\n" + PARTS
}
