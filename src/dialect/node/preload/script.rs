//! The text that Node workers load, put together from its parts.
//!
//! Owns their order. Where the words of the page and of the inbox lie is written from what
//! `scoreboard` and `handoff` say, so that there is one place that knows.

use std::fmt::Write as _;

use crate::protocol::handoff::EVEN_LAYOUT;
use crate::protocol::scoreboard::PROGRAM_LAYOUT;

const PARTS: &str = concat!(
    include_str!("page.cjs"),
    include_str!("servers.cjs"),
    include_str!("inbox.cjs"),
    include_str!("kept.cjs"),
    include_str!("handlers.cjs"),
    include_str!("signals.cjs"),
    include_str!("leaving.cjs"),
    // Before the variable is deleted that says where this runs.
    include_str!("log4js.cjs"),
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
