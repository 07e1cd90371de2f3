//! The script for Node workers, assembled from its parts.
//!
//! Owns their order. Offsets in the page and the inbox messages are generated from the definitions
//! in `scoreboard` and `handoff`, so that they exist once.

use std::fmt::Write as _;

use crate::protocol::handoff_layout::EVEN_LAYOUT;
use crate::protocol::scoreboard::PROGRAM_LAYOUT;

const PARTS: &str = concat!(
    include_str!("page.cjs"),
    include_str!("servers.cjs"),
    include_str!("inbox.cjs"),
    include_str!("pace.cjs"),
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
    for (name, value) in PROGRAM_LAYOUT.iter().chain(&EVEN_LAYOUT) {
        writeln!(text, "  {name}: {value},").expect("a string takes everything");
    }
    text + "};\n\n" + PARTS
}
