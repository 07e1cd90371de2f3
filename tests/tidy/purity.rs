//! The rule that decisions do not depend on the machine. Which crate may use which is for Cargo to
//! check.

use super::paths::paths;
use super::source::Source;
use super::{Finding, hold, lines_found, rust_sources};

/// Files and folders with decisions only: no descriptor, no clock, no input or output.
const PURE: [&str; 17] = [
    "crates/schedule/src/",
    "crates/protocol/src/handoff_layout.rs",
    "crates/protocol/src/control/frame.rs",
    "crates/harness/src/balance.rs",
    "crates/harness/src/chart",
    "crates/harness/src/interval.rs",
    "crates/harness/src/plan.rs",
    "crates/harness/src/queueing.rs",
    "crates/harness/src/work.rs",
    "src/topology.rs",
    "src/dialect/node/codec/",
    "src/dialect/node/session/",
    "src/command/settings.rs",
    "src/command/handler/",
    "src/command/server/deadlines.rs",
    "src/supervisor/restart.rs",
    "src/command/summary.rs",
];

/// Words that a decision must not use.
const IMPURE_WORDS: [&str; 10] = [
    "OwnedFd",
    "BorrowedFd",
    "RawFd",
    "AsFd",
    "AsRawFd",
    "FromRawFd",
    "IntoRawFd",
    "Instant",
    "SystemTime",
    "monotonic_ns",
];
const IMPURE_PATHS: [&str; 10] = [
    "clusterlb_sys::clock",
    "nix::sys",
    "nix::time",
    "nix::unistd",
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
];

fn impure(source: &Source) -> Vec<Finding> {
    let tests_of =
        |place: &str| source.path.starts_with(&format!("{}/", place.trim_end_matches(".rs")));
    if !PURE.iter().any(|place| source.path.starts_with(place) || tests_of(place)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (offset, word) in source.words() {
        if IMPURE_WORDS.contains(&word) {
            found.push(source.finding(offset, format!("names `{word}`")));
        }
    }
    for root in ["std", "nix", "clusterlb_sys"] {
        for (offset, path) in paths(source, root) {
            let inside = |banned: &str| path == banned || path.starts_with(&format!("{banned}::"));
            if IMPURE_PATHS.iter().any(|banned| inside(banned)) {
                found.push(source.finding(offset, format!("names `{path}`")));
            }
        }
    }
    found
}

#[test]
fn decisions_are_pure() {
    let reason = "a decision that takes values and returns values can be tested without a machine";
    let sources = rust_sources();
    for place in PURE {
        assert!(
            sources.iter().any(|source| source.path.starts_with(place)),
            "no file is at {place}"
        );
    }
    hold(&sources, reason, impure);
    let text = "fn a(b: OwnedFd) {}\nuse std::time::{Duration, Instant};\nuse std::{fmt, fs};\n";
    assert_eq!(lines_found(impure, "crates/schedule/src/x.rs", text), [1, 2, 3]);
    assert_eq!(lines_found(impure, "src/topology/tests.rs", "use std::fs::File;\n"), [1]);
    assert_eq!(lines_found(impure, "src/data_path/x.rs", text), [0_usize; 0]);
}
