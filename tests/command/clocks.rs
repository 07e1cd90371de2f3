//! Clocks that differ from the machine's: in a time namespace, as in containers that were migrated,
//! deadlines hold on either engine.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{Client, Launch, get, has_program, lacking, machine};

/// Seconds that the clocks of the namespace are ahead.
const AHEAD: &str = "100000000";
/// Far more than any step here takes, and far less than the clocks differ.
const SOON: Duration = Duration::from_secs(30);

const UNSHARE: [&str; 6] = ["unshare", "--time", "--monotonic", AHEAD, "--boottime", AHEAD];

/// Whether a program started this way is in the namespace itself, and not only its children.
fn can_shift() -> bool {
    if !has_program("unshare") {
        return false;
    }
    let [program, options @ ..] = UNSHARE;
    let output = Command::new(program).args(options).args(["cat", "/proc/uptime"]).output();
    let uptime = output.ok().and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        text.split('.').next()?.parse::<u64>().ok()
    });
    let is_ahead = uptime.is_some_and(|uptime| uptime > AHEAD.parse().expect("a number"));
    if !is_ahead {
        lacking("time namespaces (root, Linux 6.1)");
    }
    is_ahead
}

/// A clock that is ahead must end nothing at once, and one read from outside must not delay it for
/// years.
fn deadlines_hold(arguments: &str) {
    let launch = Launch::new(&format!("--workers 2 --header-timeout 1s {arguments}"));
    let cluster = launch.with_defaults().under(&UNSHARE).start();
    let address = cluster.address();
    for _ in 0..10 {
        get(&address).expect("an answer").assert_hello();
    }
    let begun = Instant::now();
    let mut slow = Client::to(&address);
    slow.send(b"GET / HTTP/1.1\r\n");
    assert_eq!(slow.receive().status, 408, "{arguments}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(900) && waited < SOON, "{arguments}: {waited:?}");
    // The hang limit and the restart are deadlines of the primary's threads.
    let stopped = cluster.worker_pids()[0];
    machine::suspend(stopped);
    for _ in 0..10 {
        get(&address).expect("the other one answers").assert_hello();
    }
    assert!(begun.elapsed() < 2 * SOON, "{arguments}: {:?}", begun.elapsed());
    machine::signal(stopped, Signal::SIGKILL);
    cluster.event("online", 2);
    cluster.end();
}

#[test]
fn deadlines_hold_in_a_time_namespace_on_either_engine() {
    if !can_shift() {
        return;
    }
    for engine in ["--engine io_uring", "--engine epoll"] {
        deadlines_hold(engine);
        deadlines_hold(&format!("{engine} --policy none"));
    }
}

#[test]
fn deadlines_hold_in_a_time_namespace_for_tokio() {
    if can_shift() {
        deadlines_hold("--engine io_uring --runtime tokio-uring");
    }
}
