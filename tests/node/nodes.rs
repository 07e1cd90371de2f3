//! The installed Nodes, and tests that run with each of them.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::common::lacking;

/// Nodes that a test runs with at once: most of what it does is waiting.
const AT_ONCE: usize = 3;

/// A Node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) program: PathBuf,
    /// As it reports it: `v20.1.2`.
    pub(crate) version: String,
}

fn ask(program: &Path) -> Option<Node> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    version.starts_with('v').then(|| Node { program: program.to_owned(), version })
}

/// The Node on the path and those that `scripts/install-nodes.sh` has installed.
pub(crate) fn nodes() -> Vec<Node> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let folders = fs::read_dir(target).into_iter().flatten().flatten();
    let mut programs: Vec<PathBuf> = folders
        .filter(|folder| folder.file_name().to_string_lossy().starts_with("node-"))
        .map(|folder| folder.path().join("node_modules/node/bin/node"))
        .collect();
    programs.sort();
    programs.insert(0, PathBuf::from("node"));
    let mut found: Vec<Node> = programs.iter().filter_map(|program| ask(program)).collect();
    found.dedup_by(|one, other| one.version == other.version);
    if found.is_empty() {
        lacking("node");
    }
    let versions: Vec<&str> = found.iter().map(|node| &*node.version).collect();
    println!("run with Node {}", versions.join(", "));
    found
}

/// Runs a test with each Node, and names the ones that failed.
pub(crate) fn with_each(test: impl Fn(&Node) + Sync) {
    let nodes = nodes();
    let (queue, failed) = (Mutex::new(nodes.iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("not held in a panic").next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(nodes.len()) {
            scope.spawn(|| {
                while let Some(node) = next() {
                    if catch_unwind(AssertUnwindSafe(|| test(node))).is_err() {
                        failed.lock().expect("not held in a panic").push(&*node.version);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("not held in a panic");
    assert!(failed.is_empty(), "failed with Node {}; why is said above", failed.join(", "));
}
