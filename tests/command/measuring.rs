//! Errors and warnings of the measuring commands before minutes are spent on an invalid
//! measurement.

use std::process::{Child, Command, Output, Stdio};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::common::cluster::ENGINE_VARIABLE;
use crate::common::seccomp::Filter;
use crate::common::{BINARY, eventually, has_program, machine};

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
    if !has_program("python3") {
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
    if !has_program("python3") {
        return;
    }
    let words = "bench --scenario short --target none:uring --target rr --duration 150ms \
                 --warmup 0s --repeats 6 --workers 2 --rate 100 --anyway";
    let output = without_rings(words).expect("python3 starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let place = |text: &str| told.find(text).unwrap_or_else(|| panic!("no {text} in {told}"));
    assert!(place("none:uring is left out") < place("1/6"), "{told}");
}

#[test]
fn tables_fit_beside_a_terminal_s_other_half() {
    let words = "imbalance --quick --workers 2 --connections 20 --peer none --quiet \
                 --anyway";
    let output = Command::new(BINARY).args(words.split_whitespace()).output();
    let output = output.expect("the command starts");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 100).collect();
    let has_machine = |line: &&&str| line.starts_with("clusterlb ");
    assert!(wide.iter().all(|line| has_machine(&line)), "{wide:#?}");
}

/// Processes that take all of a CPU.
struct Loops(Vec<Child>);

impl Loops {
    fn on(cpu: usize) -> Self {
        let start = |_| {
            let mut command = Command::new("taskset");
            command.args(["-c", &cpu.to_string(), "sh", "-c", "while :; do :; done"]);
            command.stdin(Stdio::null()).spawn().expect("taskset starts")
        };
        let loops = Self((0..4).map(start).collect());
        for child in &loops.0 {
            let is_busy = || machine::cpu_time_ms(child.id()) >= 20;
            eventually("a loop to run", || is_busy().then_some(()));
        }
        loops
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_machine_that_is_too_busy_is_refused_before_anything_is_measured() {
    if !has_program("taskset") {
        return;
    }
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("a mask");
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let cpu = cpu.expect("there is one");
    let _loops = Loops::on(cpu);
    for words in ["imbalance --quick --target rr", "bench --scenario short --repeats 6"] {
        let words = format!("{words} --server-cpus {cpu} --load-cpus {cpu}");
        let output = Command::new(BINARY).args(words.split_whitespace()).output();
        let output = output.expect("the command starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{words}: {told}");
        assert!(told.contains("worthless") && told.contains("--anyway"), "{told}");
        assert_eq!(told.lines().count(), 1, "something was measured: {told}");
    }
}
