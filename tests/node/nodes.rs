//! Which Nodes there are on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::lacking;

/// A Node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) program: PathBuf,
    /// As it tells it: `v20.1.2`.
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
