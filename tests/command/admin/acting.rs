//! Control of a run from outside.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Steered, ask, assert_done, assert_refused, text};
use crate::common::{BINARY, Client, Ended, Launch, PATIENCE, eventually, get};

#[test]
fn workers_are_drained_killed_and_replaced_one_by_one() {
    let run = Steered::start("--workers 2");
    assert_eq!(run.post("/workers/1/replace").status, 200);
    assert_eq!(run.post("/workers/2/drain").status, 200);
    assert_eq!(run.post("/workers/3/kill").status, 200);
    eventually("two workers to serve", || (run.states() == ["serving", "serving"]).then_some(()));
    let workers = run.json("/workers");
    let ids: Vec<u64> = workers["workers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["id"].as_u64())
        .collect();
    assert!(ids.iter().all(|id| *id > 3), "{workers}");
    for path in ["/workers/1/kill", "/workers/99/replace", "/workers/zero/drain"] {
        assert_refused(&run.post(path), 404, &["no worker", "GET /workers"]);
    }
    let ended = run.cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn commands_act_on_one_worker_and_on_the_rules() {
    let run = Steered::start("--workers 2");
    assert_eq!(assert_done(&run.command("worker replace 1")), "worker 1 is replaced\n");
    assert_eq!(assert_done(&run.command("worker drain 2")), "worker 2 has left\n");
    assert_eq!(assert_done(&run.command("worker kill 3")), "worker 3 has ended\n");
    let changed = assert_done(&run.command("policy policy=least coalesce=50\u{b5}s"));
    assert!(changed.contains("policy least"), "{changed}");
    let rules = assert_done(&run.command("policy"));
    for line in ["policy=least", "coalesce=50us", "max-inflight=off", "hang-after=off"] {
        assert!(rules.lines().any(|one| one == line), "{line}: {rules}");
    }
    for (words, code, answer) in [
        ("worker kill 1", 1, "no worker 1"),
        ("worker kill one", 2, "invalid value"),
        ("worker stop 4", 2, "replace, drain, kill"),
        ("policy least", 2, "names no value"),
        ("policy backlog=3", 2, "backlog cannot change"),
        ("policy coalesce=1&policy=rr", 2, "coalesce=1&policy=rr"),
    ] {
        let output = run.command(words);
        let (found, said) = (output.status.code(), text(&output));
        assert!(found == Some(code) && said.contains(answer), "{words}: {found:?} {said}");
    }
    assert!(assert_done(&run.command("policy")).contains("policy=least\n"));
    // The run's own grace period is longer than a test may take.
    let mut held = Client::held(&run.cluster.address());
    held.send(b"GET / HTTP/1.1\r\n");
    assert!(assert_done(&run.command("drain --grace 10ms")).contains("drains"));
    let ended = run.cluster.wait();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn the_number_of_workers_changes_by_number_and_by_step() {
    let run = Steered::start("--workers 2");
    assert_eq!(assert_done(&run.command("scale 3")), "3 workers\n");
    assert_eq!(assert_done(&run.command("scale +1")), "4 workers\n");
    assert_eq!(assert_done(&run.command("scale -3")), "1 workers\n");
    assert_eq!(run.states().len(), 1);
    for wrong in ["0", "100000", "-1", "+1024"] {
        let refused = run.post(&format!("/scale?workers={wrong}"));
        assert_refused(&refused, 422, &["from 1 to 1024"]);
        let output = run.command(&format!("scale {wrong}"));
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains("from 1 to 1024"), "{}", text(&output));
    }
    assert_refused(&run.post("/scale"), 422, &["number of workers"]);
    run.cluster.end();
}

#[test]
fn steps_at_the_same_time_are_all_taken() {
    let run = Steered::start("--workers 1");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let response = run.post("/scale?workers=%2B1&wait=0");
                assert_eq!(response.status, 202, "{response:?}");
            });
        }
    });
    eventually("four workers", || (run.states() == ["serving"; 4]).then_some(()));
    // Of two that contradict each other the last one wins, and the other is answered, too.
    std::thread::scope(|scope| {
        let both = [2, 3].map(|count| {
            let path = format!("/scale?workers={count}");
            let run = &run;
            scope.spawn(move || run.post(&path))
        });
        for response in both.map(|one| one.join().expect("it does not panic")) {
            assert!(matches!(response.status, 200 | 409), "{response:?}");
        }
    });
    eventually("two or three workers", || matches!(run.states().len(), 2 | 3).then_some(()));
    run.cluster.end();
}

#[test]
fn a_reload_that_fails_says_why_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let flag = folder.path().join("broken");
    let script = format!("test -e {} && exit 7; exec sleep 1000", flag.display());
    // Long enough for a shell to start and end on a busy machine.
    let launch = Launch::new("--dialect listen-fds --workers 1 --ready-after 2s")
        .listen("127.0.0.1:0")
        .running(&["/bin/sh", "-c", &script]);
    let run = Steered::launch(launch);
    let before = run.cluster.worker_pids();
    std::fs::write(&flag, "").expect("it can be written");
    let output = run.command("reload");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("replacing stopped"), "{}", text(&output));
    assert_refused(&run.post("/reload"), 409, &["replacing stopped"]);
    eventually("the successors to have ended", || {
        (run.cluster.worker_pids() == before).then_some(())
    });
    eventually("both to be counted", || {
        (run.metric("clusterlb_reloads_total{outcome=\"stopped\"}") == 2.0).then_some(())
    });
    let ended = run.cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn events_are_followed_to_the_last_line() {
    let run = Steered::start("--workers 1");
    let mut follower = Command::new(BINARY)
        .args(["events", "--admin", &run.admin])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut output = follower.stdout.take().expect("it is a pipe");
    // It follows once it has received the first one.
    let mut heard = [0; 1];
    let done = Arc::new(AtomicBool::new(false));
    let (is_done, admin) = (Arc::clone(&done), run.admin.clone());
    let prompter = std::thread::spawn(move || {
        while !is_done.load(Ordering::Relaxed) {
            ask(&admin, "POST", "/scale?workers=2&wait=0", "");
            ask(&admin, "POST", "/scale?workers=1&wait=0", "");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    output.read_exact(&mut heard).expect("an event");
    done.store(true, Ordering::Relaxed);
    prompter.join().expect("it does not panic");
    let ended = run.cluster.stop(Signal::SIGTERM);
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("text");
    assert!(follower.wait().expect("it is our child").success());
    let lines: Vec<Value> = std::iter::once(String::from_utf8_lossy(&heard).into_owned() + &rest)
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| serde_json::from_str(&line).expect("every line is an event"))
        .collect();
    assert_eq!(lines.last(), ended.events.last(), "the summary is followed, too");
    let told = &ended.events[ended.events.len() - lines.len()..];
    assert_eq!(lines, told, "they are what --json prints");
}

#[test]
fn a_run_drains_when_it_is_told_to() {
    let run = Steered::start("--workers 2");
    assert!(assert_done(&run.command("drain")).contains("drains"));
    let ended: Ended = run.cluster.wait();
    ended.assert_in_order();
}

#[test]
fn under_load_looking_scaling_and_replacing_lose_nothing() {
    let run = Steered::start("--workers 2 --settle 100ms");
    let address = run.cluster.address();
    let stop = AtomicBool::new(false);
    let deadline = Instant::now() + PATIENCE;
    let (asked, scraped) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0_u64;
                    while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                        get(&address).expect("an answer").assert_hello();
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        let scraper = scope.spawn(|| {
            let mut scraped = 0_u64;
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                assert_eq!(run.get("/metrics").status, 200);
                assert_eq!(run.get("/readyz").status, 200);
                scraped += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            scraped
        });
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for workers in [8, 3, 1, 4] {
                assert_eq!(run.post(&format!("/scale?workers={workers}")).status, 200);
            }
            for policy in ["least", "sticky", "rr"] {
                assert_eq!(run.post(&format!("/policy?policy={policy}")).status, 200);
            }
            assert_eq!(run.post("/reload").status, 200);
            assert_eq!(run.states().len(), 4);
        }));
        stop.store(true, Ordering::Relaxed);
        let asked: u64 = clients.into_iter().map(|one| one.join().expect("no request fails")).sum();
        let scraped = scraper.join().expect("no scrape fails");
        acted.expect("every action succeeds");
        (asked, scraped)
    });
    assert!(asked > 0 && scraped > 0);
    let summary = run.cluster.end();
    assert_eq!((summary.accepted, summary.dropped, summary.aborted), (asked, 0, 0));
}

#[test]
fn a_worker_that_has_served_enough_is_replaced_once() {
    let begun = Instant::now();
    let run = Steered::start("--workers 2 --max-requests 20");
    let address = run.cluster.address();
    for _ in 0..60 {
        get(&address).expect("an answer").assert_hello();
    }
    for number in 0..2 {
        let event = run.cluster.event("recycle", number);
        assert!(event["reason"].as_str().is_some_and(|why| why.contains("served")), "{event}");
        run.cluster.event("exit", number);
    }
    for _ in 0..60 {
        get(&address).expect("an answer").assert_hello();
    }
    let summary = run.cluster.end();
    assert_eq!((summary.accepted, summary.dropped, summary.aborted), (120, 0, 0));
    // Their successors also reach the limit at once, and have to serve for a minimum time first.
    assert!(
        summary.workers.len() == 4 || begun.elapsed() > Duration::from_secs(10),
        "{summary:#?}"
    );
}
