//! The command in unusual environments: it works, or names in one line what is missing.

mod inherited;
mod memory;
mod names;
mod needs;
mod output;
mod signals;

use nix::unistd::geteuid;

use crate::common::{Launch, has_program, lacking};

/// Python, which prepares the environment of a command.
const PYTHON: &str = "python3";

/// A run whose process a Python script prepares.
fn prepared(arguments: &str, script: &str) -> Option<Launch> {
    let body = format!("import os, signal, sys\n{script}\nos.execvp(sys.argv[1], sys.argv[1:])");
    has_program(PYTHON).then(|| Launch::new(arguments).under(&[PYTHON, "-c", &body]))
}

/// Whether the tests run as root; says so if not.
fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        lacking("root, to run something as another user or in namespaces");
    }
    is_root
}

/// A line of `/proc/<pid>/status`.
fn status_of(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim_start_matches(':').trim().to_owned()
}
