//! Rules on what a part must not know: decisions no machine, all but two files not the async
//! runtime, the load generator no server.

use super::paths::paths;
use super::source::Source;
use super::{Finding, hold, lines_found, rust_sources};

/// Files and folders that hold decisions only: no descriptor, no clock, no input or output.
const PURE: [&str; 18] = [
    "src/id.rs",
    "src/schedule/",
    "src/handler/",
    "src/handoff.rs",
    "src/control/frame.rs",
    "src/settings.rs",
    "src/topology.rs",
    "src/work.rs",
    "src/worker/deadlines.rs",
    "src/dialect/node/codec/",
    "src/dialect/node/session/",
    "src/keeper/restart.rs",
    "src/keeper/summary.rs",
    "src/harness/balance.rs",
    "src/harness/chart",
    "src/harness/interval.rs",
    "src/harness/plan.rs",
    "src/harness/queueing.rs",
];

/// What a decision must not depend on.
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
    "crate::sys::clock",
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
    for root in ["std", "nix", "crate"] {
        for (offset, path) in paths(source, root) {
            let inside = |banned: &str| path == banned || path.starts_with(&format!("{banned}::"));
            if IMPURE_PATHS.iter().any(|banned| inside(banned)) {
                found.push(source.finding(offset, format!("names `{path}`")));
            }
        }
    }
    found
}

/// Who may name the async runtime: the built-in worker on it, its adapter, and the programs that
/// use or show that one.
const ON_THE_RUNTIME: [&str; 5] =
    ["src/runtime.rs", "src/runtime/", "src/adapter/uring.rs", "tests/adapters/", "examples/"];

fn stray_runtime(source: &Source) -> Vec<Finding> {
    if ON_THE_RUNTIME.iter().any(|place| source.path.starts_with(place)) {
        return Vec::new();
    }
    let words = source.words().filter(|(_, word)| *word == "tokio_uring");
    words.map(|(offset, _)| source.finding(offset, "names `tokio_uring`")).collect()
}

fn generator_names_server(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("loadtest/") {
        return Vec::new();
    }
    let words = source.words().filter(|(_, word)| *word == "clusterlb");
    words.map(|(offset, _)| source.finding(offset, "names `clusterlb`")).collect()
}

#[test]
fn decisions_are_pure() {
    let reason = "a decision that takes values and returns values can be tested without a machine";
    hold(&rust_sources(), reason, impure);
    let text = "fn a(b: OwnedFd) {}\nuse std::time::{Duration, Instant};\nuse std::{fmt, fs};\n";
    assert_eq!(lines_found(impure, "src/schedule/x.rs", text), [1, 2, 3]);
    assert_eq!(lines_found(impure, "src/topology/tests.rs", "use std::fs::File;\n"), [1]);
    assert_eq!(lines_found(impure, "src/primary/x.rs", text), []);
}

#[test]
fn two_files_name_the_async_runtime() {
    hold(
        &rust_sources(),
        "the runtime can be replaced as long as nobody but its users knows it",
        stray_runtime,
    );
    let text = "use tokio_uring::net;\n";
    assert_eq!(lines_found(stray_runtime, "src/worker/x.rs", text), [1]);
    assert_eq!(lines_found(stray_runtime, "src/runtime.rs", text), []);
    assert_eq!(lines_found(stray_runtime, "src/adapter/uring.rs", text), []);
    assert_eq!(lines_found(stray_runtime, "src/adapter/tokio.rs", text), [1]);
}

#[test]
fn the_generator_does_not_know_the_server() {
    let reason = "a generator that reaches into the server measures itself";
    hold(&rust_sources(), reason, generator_names_server);
    let text = "//! clusterlb\nlet name = \"clusterlb\";\nuse clusterlb::id;\n";
    assert_eq!(lines_found(generator_names_server, "loadtest/src/x.rs", text), [3]);
}
