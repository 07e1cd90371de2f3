//! Handles what this machine lacks: a test that needs it reports that it was skipped.
//!
//! Owns the consequence. With `CI` set it is a failure. Otherwise it is printed at once, bypassing
//! the test harness, and written to a file of this run, which the test program
//! `what_was_not_tested` prints after all others.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::parent_id;
use std::path::PathBuf;

/// Reports that this machine lacks what a test needs. In CI this fails the test.
pub(crate) fn lacking(what: &str) {
    assert!(!is_ci(), "CI is set, and this machine lacks what a test needs: {what}");
    // The test harness would capture the output of `eprintln!`.
    let _ = writeln!(std::io::stderr(), "not tested, because this machine lacks it: {what}");
    let file = list().and_then(|path| {
        fs::create_dir_all(path.parent()?).ok()?;
        OpenOptions::new().create(true).append(true).open(path).ok()
    });
    if let Some(mut file) = file {
        // A single write, because other test programs may append to the same file.
        let _ = file.write_all(format!("{what}\n").as_bytes());
    }
}

/// Whether nothing may be skipped: `CI` is set and not negated.
fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(&*value, "" | "0" | "false"))
}

/// The file of this run. Test programs of one `cargo test` have the same parent process.
pub(crate) fn list() -> Option<PathBuf> {
    // Test programs are in target/debug/deps.
    let own = std::env::current_exe().ok()?;
    let target = own.ancestors().nth(3)?;
    Some(target.join("tmp").join(format!("not-tested-{}", parent_id())))
}
