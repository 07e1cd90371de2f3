//! The end of a run: a list of what was not tested because this machine lacks something.
//!
//! Cargo runs the test programs of a package in the order of their names, and this is the last one.
//! `.ci/run` reports what later crates miss. Owns the files of other runs, too, and deletes them.

#[expect(dead_code, reason = "this program lacks nothing: it tells what others lacked")]
#[path = "common/missing.rs"]
mod missing;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;

#[test]
fn what_was_not_tested_is_told() {
    let path = missing::list().expect("this program is in a target folder");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    text.lines().for_each(|what| *times.entry(what).or_default() += 1);
    let mut told = String::new();
    if !times.is_empty() {
        told += "\nnot tested, because this machine lacks:\n";
    }
    for (what, times) in times {
        told += &format!("  {times} × {what}\n");
    }
    // Bypasses the test harness, which would capture it.
    let _ = std::io::stderr().write_all(told.as_bytes());
    let folder = path.parent().expect("it is in a folder");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_list = entry.file_name().to_string_lossy().starts_with("not-tested-");
        if is_list && entry.path() != path {
            let _ = fs::remove_file(entry.path());
        }
    }
}
