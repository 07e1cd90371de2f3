//! Finished and aborted connections by listener, whichever way they reach the workers.

use super::Steered;
use crate::common::{Client, Launch, eventually, get_from, has_program};

/// The counts of a listener, as `/listeners` shows them.
fn counts(run: &Steered, address: &str) -> serde_json::Value {
    let listeners = run.json("/listeners");
    let mut all = listeners["listeners"].as_array().expect("a list").iter();
    let one = all.find(|one| one["address"] == *address).expect("it is there");
    one["counts"].clone()
}

fn all_workers(run: &Steered) -> Vec<u64> {
    let workers = run.json("/workers")["workers"].clone();
    workers.as_array().expect("a list").iter().filter_map(|one| one["id"].as_u64()).collect()
}

/// Three connections to the first address are finished, and five to the other one, of which two
/// more are open when both workers are killed.
fn assert_counted(launch: Launch) {
    let run = Steered::launch(launch);
    let addresses = run.cluster.addresses();
    get_from(&addresses[0], 1, 3);
    get_from(&addresses[1], 1, 5);
    let open = [Client::held(&addresses[1]), Client::held(&addresses[1])];
    let is = |address: &str, assigned: u64, finished: u64, aborted: u64| {
        let counts = counts(&run, address);
        ["accepted", "assigned", "finished", "aborted"].map(|what| counts[what].as_u64())
            == [assigned, assigned, finished, aborted].map(Some)
    };
    let is_served = || is(&addresses[0], 3, 3, 0) && is(&addresses[1], 7, 5, 0);
    eventually("counts by listener", || is_served().then_some(()));
    for id in all_workers(&run) {
        assert_eq!(run.post(&format!("/workers/{id}/kill")).status, 200);
    }
    // What its workers had finished outlives them.
    let is_cut = || is(&addresses[0], 3, 3, 0) && is(&addresses[1], 7, 5, 2);
    eventually("aborted connections", || is_cut().then_some(()));
    get_from(&addresses[0], 1, 1);
    eventually("one more", || is(&addresses[0], 4, 4, 0).then_some(()));
    let listener = run.json("/listeners")["listeners"][0].clone();
    let address = listener["address"].as_str().expect("an address");
    let label = format!("{{listener=\"{}\",address=\"{address}\"}}", listener["listener"]);
    for what in ["finished", "aborted"] {
        let sample = format!("clusterlb_listener_connections_{what}_total{label}");
        let expected = listener["counts"][what].as_f64().expect("a number");
        assert_eq!(run.metric(&sample).to_bits(), expected.to_bits());
    }
    drop(open);
    run.cluster.end();
}

fn two_listeners(arguments: &str) -> Launch {
    let launch = Launch::new(&format!("--workers 2 --defer-accept off {arguments}"));
    launch.listen("127.0.0.1:0").listen("127.0.0.1:0")
}

#[test]
fn finished_and_aborted_connections_are_counted_by_listener() {
    assert_counted(two_listeners(""));
}

#[test]
fn so_are_those_that_workers_accept() {
    assert_counted(two_listeners("--policy none"));
}

#[test]
fn so_are_those_that_the_kernel_gives_to_workers() {
    assert_counted(two_listeners("--dispatch kernel --take-back-after off"));
}

#[test]
fn so_are_those_of_programs_on_node() {
    if !has_program("node") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("server.js");
    let text = "const { createServer } = require('http');\n\
         for (let i = 0; i < 2; i += 1) {\n\
           createServer((_, answer) => answer.end('hello world\\n')).listen(0, '127.0.0.1');\n\
         }\n";
    std::fs::write(&script, text).expect("it can be written");
    let launch = Launch::new("--workers 2").servers(2);
    assert_counted(launch.running(&["node", script.to_str().expect("UTF-8")]));
}
