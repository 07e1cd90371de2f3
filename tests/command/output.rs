//! The output of workers, with the worker's number in front of each line, and the command's output
//! while its reader is slow.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::common::{BINARY, Launch, PATIENCE, eventually, machine};

/// A worker without connections that runs a shell script.
fn launch(arguments: &str, script: &str) -> Launch {
    let arguments = format!("--dialect listen-fds --prefix {arguments}");
    Launch::new(&arguments).listen("127.0.0.1:0").running(&["/bin/sh", "-c", script])
}

#[test]
fn every_line_names_its_worker_and_no_two_are_mixed() {
    // In pieces, so that lines are incomplete when others print.
    let script = "for i in 1 2 3 4 5 6 7 8 9; do printf 'a%s' $i; printf 'b\\n'; done
        printf last; echo wrong >&2; exec sleep 1000";
    let cluster = launch("--workers 3 --ready-after 0s", script).start();
    cluster.until("every worker's error", |heard| {
        (heard.errors.lines().filter(|line| line.ends_with("| wrong")).count() == 3).then_some(())
    });
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for worker in 1..=3 {
        let mark = format!("worker {worker} | ");
        let own: Vec<&str> =
            ended.output.lines().filter_map(|line| line.strip_prefix(&*mark)).collect();
        let mut expected: Vec<String> = (1..=9).map(|number| format!("a{number}b")).collect();
        // Text without a line end is printed when the worker ends.
        expected.push("last".into());
        assert_eq!(own, expected);
        assert_eq!(ended.errors.matches(&format!("{mark}wrong\n")).count(), 1);
    }
    assert_eq!(ended.output.lines().count(), 30, "{ended:?}");
}

#[test]
fn last_words_of_a_killed_worker_are_told() {
    let script = "echo first; echo why >&2; printf 'and then'; kill -9 $$";
    let ended = launch("--workers 1 --ready-after 60s", script).refused();
    for line in ["worker 1 | first\n", "worker 1 | and then\n"] {
        assert!(ended.output.contains(line), "{ended:?}");
    }
    assert!(ended.errors.contains("worker 1 | why\n"), "{ended:?}");
}

#[test]
fn an_unread_flood_costs_no_memory_and_blocks_nothing() {
    let mut child = Command::new(BINARY)
        .args(["--json", "--prefix", "--dialect", "listen-fds", "--ready-after", "0s"])
        .args(["--workers", "1", "--listen", "127.0.0.1:0", "--grace", "60s", "--", "yes"])
        .args([&"flood ".repeat(1000)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let children = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id()));
        let all: String = tasks
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
            .collect();
        all.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()
    };
    // The guard process is a child, too, and a worker is one before it runs its program.
    let worker = || {
        let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        children().into_iter().find(|pid| name(*pid) == "yes\n")
    };
    let first = eventually("a worker to run", worker);
    // The worker waits for the printer, which waits for this test.
    eventually("the worker to wait", || {
        let before = machine::cpu_time_ms(first);
        std::thread::yield_now();
        let waits = std::fs::read_to_string(format!("/proc/{first}/wchan")).unwrap_or_default();
        (waits.contains("pipe") && machine::cpu_time_ms(first) == before).then_some(())
    });
    let resident_kib = machine::resident_kib(child.id());
    assert!(resident_kib < 128 * 1024, "{resident_kib} KiB");
    // The supervisor is not blocked: it replaces the ended worker.
    machine::signal(first, Signal::SIGKILL);
    eventually("the successor to run", || worker().filter(|pid| *pid != first));
    machine::signal(child.id(), Signal::SIGTERM);
    let begun = Instant::now();
    eventually("everybody to have gone", || children().is_empty().then_some(()));
    // Once the pipe is read, everything ends.
    let mut output = child.stdout.take().expect("it is a pipe");
    let mut text = Vec::new();
    output.read_to_end(&mut text).expect("it can be read");
    assert!(child.wait().expect("it is our child").success());
    assert!(begun.elapsed() < PATIENCE);
    let text = String::from_utf8_lossy(&text);
    assert!(text.lines().filter(|line| line.starts_with("worker ")).count() > 2, "{text:.1000}");
}
