//! Errors and warnings of the measuring commands before minutes are spent on an invalid
//! measurement.

use std::process::{Command, Output, Stdio};

use crate::common::BINARY;
use crate::common::cluster::ENGINE_VARIABLE;
use crate::common::seccomp::Filter;

fn without_rings(words: &str) -> Option<Output> {
    let before = Filter::Refuse(1).command();
    let mut command = Command::new(&before[0]);
    command.args(&before[1..]).arg(BINARY).args(words.split_whitespace());
    command.env_remove(ENGINE_VARIABLE).stdin(Stdio::null());
    let output = command.output().ok()?;
    Some(output)
}

#[test]
fn what_needs_io_uring_is_refused_before_anything_is_measured() {
    if !crate::common::has_program("python3") {
        return;
    }
    for words in [
        "imbalance --quick --target none:uring --target none:uring-multishot",
        "imbalance --quick --target rr --target none:uring",
        "bench --scenario short --target none:uring",
    ] {
        let output = without_rings(words).expect("python3 starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{words}: {told}");
        assert!(told.contains("needs io_uring") && told.contains("clusterlb check"), "{told}");
        assert_eq!(told.lines().count(), 1, "something was measured: {told}");
    }
}

#[test]
fn what_is_left_out_is_told_before_the_rest_is_measured() {
    if !crate::common::has_program("python3") {
        return;
    }
    let words = "bench --scenario short --target none:uring --target rr --duration 150ms \
                 --warmup 0s --repeats 6 --workers 2 --rate 100";
    let output = without_rings(words).expect("python3 starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let place = |text: &str| told.find(text).unwrap_or_else(|| panic!("no {text} in {told}"));
    assert!(place("none:uring is left out") < place("1/6"), "{told}");
}

#[test]
fn tables_fit_beside_a_terminal_s_other_half() {
    let words = "imbalance --quick --workers 2 --connections 20 --peer none --quiet";
    let output = Command::new(BINARY).args(words.split_whitespace()).output();
    let output = output.expect("the command starts");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 100).collect();
    let has_machine = |line: &&&str| line.starts_with("clusterlb ");
    assert!(wide.iter().all(|line| has_machine(&line)), "{wide:#?}");
}
