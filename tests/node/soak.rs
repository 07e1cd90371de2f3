//! The long run of `scripts/soak-node.py`, short.

use std::path::Path;
use std::process::Command;

use crate::common::{BINARY, has_program};
use crate::nodes::nodes;

#[test]
fn a_server_that_is_disturbed_all_the_time_fails_no_request() {
    let Some(node) = nodes().into_iter().next().filter(|_| has_program("python3")) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/soak-node.py");
    let output = Command::new("python3")
        .arg(script)
        .args(["--minutes", "0.3", "--every", "3", "--binary", BINARY, "--node"])
        .arg(&node.program)
        .output()
        .expect("Python starts");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(" requests answered"), "{output:?}");
}
