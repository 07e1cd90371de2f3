//! A slot's CPU: its workers have it through reloads, crashes, other numbers of workers, and times
//! in which the slot is given up.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::Steered;
use crate::common::{Launch, eventually, lacking, machine};

/// The CPUs that a process may use, as the kernel shows them.
fn cpus_of(pid: Option<u64>) -> Vec<u64> {
    let pid = pid.map_or(0, |pid| i32::try_from(pid).expect("a process id"));
    let Ok(set) = sched_getaffinity(Pid::from_raw(pid)) else { return Vec::new() };
    (0..)
        .zip(0..CpuSet::count())
        .filter(|(_, at)| set.is_set(*at).unwrap_or(false))
        .map(|(cpu, _)| cpu)
        .collect()
}

/// Waits until this many workers serve, and returns their process ids by slot. Each has the CPU of
/// its slot.
fn settled(run: &Steered, count: usize, pinned: &[u64], when: &str) -> Vec<u64> {
    let workers = eventually(when, || {
        let answer = run.json("/workers");
        let workers = answer["workers"].as_array().expect("a list").clone();
        let serve = workers.iter().all(|one| one["state"] == "serving");
        (serve && workers.len() == count).then_some(workers)
    });
    let number = |one: &Value, key: &str| one[key].as_u64();
    let mut pids = vec![0; count];
    for one in &workers {
        let slot = usize::try_from(number(one, "slot").expect("a slot")).expect("few");
        let cpu = pinned[slot % pinned.len()];
        assert_eq!(number(one, "cpu"), Some(cpu), "{when}: {workers:?}");
        assert_eq!(cpus_of(number(one, "pid")), [cpu], "{when}: {workers:?}");
        pids[slot] = number(one, "pid").expect("a process");
    }
    pids
}

#[test]
fn a_slot_keeps_its_cpu_whatever_happens_to_its_workers() {
    let [first, second, ..] = cpus_of(None)[..] else {
        return lacking("a second CPU, for workers with different ones");
    };
    // The second one first: a worker on the lowest CPU proves nothing.
    let pinned = [second, first];
    let run = Steered::start(&format!("--workers 2 --pin {second},{first} --settle 1ms"));
    settled(&run, 2, &pinned, "the start");
    for round in 1..=20 {
        assert_eq!(run.post("/reload").status, 200);
        settled(&run, 2, &pinned, &format!("reload {round}"));
    }
    for count in [4, 1, 3, 2] {
        assert_eq!(run.post(&format!("/scale?workers={count}")).status, 200);
        settled(&run, count, &pinned, &format!("{count} workers"));
    }
    // Crashes, one after the other, until the slot is given up.
    let mut crashes = 0;
    let victim_of = |run: &Steered| {
        let answer = run.json("/workers");
        let workers = answer["workers"].as_array().expect("a list");
        workers.iter().find(|one| one["slot"] == 1).map(|one| one["pid"].as_u64().expect("a pid"))
    };
    eventually("the slot to be given up", || {
        if let Some(victim) = victim_of(&run) {
            // Its own choice of a CPU is made before it serves.
            eventually("it to be pinned", || (cpus_of(Some(victim)) == [first]).then_some(()));
            machine::signal(u32::try_from(victim).expect("a process id"), Signal::SIGKILL);
            eventually("its end", || (victim_of(&run) != Some(victim)).then_some(()));
            crashes += 1;
        }
        (run.cluster.count("give-up") == 1).then_some(())
    });
    assert!(crashes > 2, "{crashes}");
    assert_eq!(cpus_of(Some(settled(&run, 1, &pinned, "one is left")[0])), [second]);
    assert_eq!(run.post("/reload").status, 200);
    settled(&run, 2, &pinned, "the slot is filled again");
    assert_eq!(run.cluster.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn a_list_that_pins_no_worker_is_told() {
    let cpu = cpus_of(None)[0];
    let words = format!("--workers 1 --pin {cpu} --ready-after 0s --dialect listen-fds");
    let launch = Launch::new(&words).in_words().listen("127.0.0.1:0");
    let cluster = launch.running(&["sleep", "1000"]).start();
    cluster
        .until("the note", |heard| heard.errors.contains("places only the primary").then_some(()));
    assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
}
