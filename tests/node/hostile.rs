//! A hostile worker on Node's channel, beside real Node workers: these serve, an ended one is
//! replaced, and the run ends on request.
//!
//! Where this runs as root, workers run as `nobody`.

use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde_json::json;

use super::script::SERVER;
use crate::common::hostile::{PROMPT, assert_ends, assert_replaced};
use crate::common::{Cluster, Launch, get, has_program};

/// The first worker is the hostile one. Scripts are arguments, because every user would have to be
/// able to read a file. Node runs a script from its command line in a worker only if another
/// argument follows.
const CHOOSE: &str = "if [ \"$NODE_UNIQUE_ID\" = 1 ]; then exec python3 -c \"$0\" \"$2\"; fi; \
                      exec node -e \"$1\" server";
const ATTACK: &str = include_str!("hostile.py");

fn start(how: &str) -> Option<Cluster> {
    if !has_program("node") || !has_program("python3") {
        return None;
    }
    let user = if geteuid().is_root() { "--user nobody" } else { "" };
    let launch = Launch::new(&format!("--workers 3 --grace 2s --dialect node {user}"));
    Some(launch.running(&["sh", "-c", CHOOSE, ATTACK, SERVER, how]).start())
}

/// The Node workers answer.
fn assert_served(cluster: &Cluster) {
    for _ in 0..30 {
        let begun = Instant::now();
        let answer = get(&cluster.address()).expect("an answer");
        answer.body.parse::<u32>().expect("a process id");
        assert!(begun.elapsed() < PROMPT, "{:?} for an answer", begun.elapsed());
    }
}

/// The other workers are unaffected by the first one, which continues.
fn endure(how: &str) {
    let Some(cluster) = start(how) else { return };
    assert_served(&cluster);
    std::thread::sleep(Duration::from_secs(4));
    assert_served(&cluster);
    assert_replaced(&cluster);
    assert_served(&cluster);
    assert_ends(cluster);
}

/// The first worker is killed with a reason, and the others are unaffected.
fn expel(how: &str) {
    let Some(cluster) = start(how) else { return };
    let reason = cluster.until("why the hostile worker is killed", |heard| {
        let kills = heard.named("kill").filter(|event| event["ids"] == json!([1]));
        kills.filter_map(|event| event["reason"].as_str().map(str::to_owned)).next()
    });
    assert!(reason.starts_with("worker 1: "), "{reason}");
    assert_served(&cluster);
    let others: Vec<u64> = cluster.workers().iter().map(|worker| worker.id).collect();
    assert!(others.contains(&2) && others.contains(&3), "{others:?}");
    assert_ends(cluster);
}

#[test]
fn garbage_ends_its_sender() {
    ["garbage", "deep", "long", "odd"].iter().for_each(|how| expel(how));
}

#[test]
fn descriptors_that_no_message_names_end_their_sender() {
    expel("bare");
}

#[test]
fn handles_of_every_kind_reach_no_other_worker() {
    endure("strangers");
}

#[test]
fn floods_of_messages_slow_down_their_sender_alone() {
    ["messages", "words", "acks"].iter().for_each(|how| endure(how));
}

#[test]
fn requests_for_addresses_slow_down_their_sender_alone() {
    ["queries", "names", "ports"].iter().for_each(|how| endure(how));
}

#[test]
fn one_that_does_nothing_any_more_does_not_matter() {
    ["closed", "stop", "spin", "nack"].iter().for_each(|how| endure(how));
}
