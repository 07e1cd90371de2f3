//! What this machine lacks: a test that needs it says so and tests nothing.
//!
//! Owns the decision what a missing thing means. With `CI` set it is a failure. Otherwise it is
//! printed at once, past the test harness, and written to a file of this run, which the test
//! program `what_was_not_tested` prints after all others.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::parent_id;
use std::path::PathBuf;

/// Says that a test needs what this machine lacks. In CI that fails the test.
pub(crate) fn lacking(what: &str) {
    assert!(!is_ci(), "CI is set, and this machine lacks what a test needs: {what}");
    // The test harness would keep what `eprintln!` prints to itself.
    let _ = writeln!(std::io::stderr(), "not tested, because this machine lacks it: {what}");
    let file = list().and_then(|path| {
        fs::create_dir_all(path.parent()?).ok()?;
        OpenOptions::new().create(true).append(true).open(path).ok()
    });
    if let Some(mut file) = file {
        // One write, since other test programs may append to the same file.
        let _ = file.write_all(format!("{what}\n").as_bytes());
    }
}

/// Whether everything must be tested: `CI` is set, and does not say no.
fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(&*value, "" | "0" | "false"))
}

/// The list of this run. Test programs of one `cargo test` have the same parent.
pub(crate) fn list() -> Option<PathBuf> {
    // A test program is in target/debug/deps.
    let own = std::env::current_exe().ok()?;
    let target = own.ancestors().nth(3)?;
    Some(target.join("tmp").join(format!("not-tested-{}", parent_id())))
}
