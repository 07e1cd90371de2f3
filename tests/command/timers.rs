//! `--dispatch kernel` where the kernel has no timers for programs, as before Linux 5.15: the
//! primary looks at the queues, and says so.

use std::process::Command;

use nix::libc;
use nix::sys::signal::Signal;

use super::dispatch::{launch, stop_a_worker_of};
use crate::common::seccomp::Filter;
use crate::common::{BINARY, Launch, lacking};

/// Without the types of its parts (`BPF_BTF_LOAD`) no program can have a timer.
const WITHOUT_TIMERS: Filter = Filter::Unknown(libc::SYS_bpf, 18);
/// How it is told.
const TOLD: &str = "exact (the kernel picks by the counters of workers, but cannot watch their \
                    queues: Invalid argument; the primary checks them every 5 ms while connections \
                    arrive)";

/// Under the filter, where the kernel may pick exactly at all.
fn without_timers(launch: Launch) -> Option<Launch> {
    let check = Command::new(BINARY).arg("check").output().expect("it starts");
    if !String::from_utf8_lossy(&check.stdout).contains("and watches the queues") {
        lacking("CAP_BPF and timers for programs of the kernel");
        return None;
    }
    WITHOUT_TIMERS.before(launch)
}

#[test]
fn a_kernel_without_timers_picks_exactly_and_the_primary_looks_at_the_queues() {
    let Some(launch) = without_timers(launch("--workers 4 --hang-after 100ms")) else { return };
    let cluster = launch.start();
    assert_eq!(cluster.event("listening", 0)["dispatch_form"], "exact");
    stop_a_worker_of(cluster);
}

#[test]
fn the_first_lines_and_check_tell_that_the_kernel_has_no_timers() {
    let Some(launch) = without_timers(launch("--workers 2").in_words()) else { return };
    let cluster = launch.start_unready();
    cluster.until("the form", |heard| heard.errors.contains(TOLD).then_some(()));
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let words = WITHOUT_TIMERS.command();
    let check = Command::new(&words[0]).args(&words[1..]).args([BINARY, "check"]).output();
    let check = check.expect("python3 starts");
    assert!(String::from_utf8_lossy(&check.stdout).contains(TOLD), "{check:?}");
}
