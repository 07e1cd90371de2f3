//! A hostile worker: whatever it does, the others serve, an ended one is replaced, and the run ends
//! on request. `docs/SECURITY.md` lists what a worker is not trusted with, each line with a test
//! from this file.
//!
//! Where this runs as root, workers run as `nobody`.

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::common::hostile::{PROMPT, assert_ends, assert_replaced};
use crate::common::{Cluster, Launch, eventually, get, has_program, lacking, machine};

/// The hostile worker. An argument, because every user would have to be able to read a file.
const SCRIPT: &str = include_str!("hostile/worker.py");

pub(crate) fn launch(arguments: &str, how: &str) -> Option<Launch> {
    launch_at(arguments, how, &["127.0.0.1:0"])
}

/// The same with these addresses.
pub(crate) fn launch_at(arguments: &str, how: &str, addresses: &[&str]) -> Option<Launch> {
    let user = if geteuid().is_root() { "--user nobody" } else { "" };
    let mut words = vec!["python3", "-c", SCRIPT];
    words.extend(addresses);
    has_program("python3").then(|| {
        Launch::new(&format!("--workers 3 --grace 2s {user} {arguments}"))
            .variable("HOSTILE", how)
            .running(&words)
    })
}

/// The workers that are not hostile answer.
fn assert_served(cluster: &Cluster) {
    for _ in 0..40 {
        let begun = Instant::now();
        get(&cluster.address()).expect("an answer").assert_hello();
        assert!(begun.elapsed() < PROMPT, "{:?} for an answer", begun.elapsed());
    }
}

/// The other workers are unaffected by the first one, which continues.
fn endure(how: &str) {
    let Some(launch) = launch("", how) else { return };
    let cluster = launch.start();
    assert_served(&cluster);
    assert_replaced(&cluster);
    assert_served(&cluster);
    assert_ends(cluster);
}

/// The first worker is killed with a reason, and the others are unaffected.
fn expel(how: &str, word: &str) {
    let Some(launch) = launch("", how) else { return };
    let cluster = launch.start();
    cluster.until("the end of the hostile worker", |heard| {
        heard.named("exit").any(|event| event["id"] == 1).then_some(())
    });
    let reason = cluster.until("why", |heard| {
        let kills = heard.named("kill").filter(|event| event["ids"] == json!([1]));
        kills.filter_map(|event| event["reason"].as_str().map(str::to_owned)).next()
    });
    assert!(reason.starts_with("worker 1: ") && reason.contains(word), "{reason}");
    assert_served(&cluster);
    let others: Vec<u64> = cluster.workers().iter().map(|worker| worker.id).collect();
    assert!(others.contains(&2) && others.contains(&3), "{others:?}");
    assert_ends(cluster);
}

#[test]
fn descriptors_without_frames_end_their_sender() {
    expel("bare", "descriptors came without a frame");
    expel("excess", "a different number of descriptors");
}

#[test]
fn what_is_no_connection_does_not_come_back_to_others() {
    for which in ["listener", "epoll", "null", "file"] {
        expel(&format!("return:{which}"), "not one of its connections");
    }
    expel("stranger", "not one of its connections");
}

#[test]
fn garbage_ends_its_sender() {
    expel("garbage", "");
}

#[test]
fn floods_of_messages_slow_down_their_sender_alone() {
    endure("large");
    endure("small");
}

#[test]
fn floods_of_words_slow_down_their_sender_alone() {
    endure("words");
    endure("deaf");
}

#[test]
fn requests_for_addresses_and_names_slow_down_their_sender_alone() {
    endure("listens");
    endure("names");
}

/// Whatever the primary may open: without a bound the ports would take every descriptor.
#[test]
fn ports_without_end_leave_the_others_their_descriptors() {
    let Some(launch) = launch("", "ports") else { return };
    let cluster = launch.under(&["sh", "-c", "ulimit -n 256; exec \"$0\" \"$@\""]).start();
    cluster.until("a refusal", |heard| {
        let mut texts = heard.named("note").filter_map(|event| event["text"].as_str());
        texts.any(|text| text.contains("of the 256 descriptors")).then_some(())
    });
    assert_served(&cluster);
    assert_replaced(&cluster);
    assert_served(&cluster);
    assert_ends(cluster);
}

#[test]
fn the_eventfd_and_the_page_of_a_worker_are_its_own() {
    endure("bell");
    endure("scribble");
}

#[test]
fn notes_about_a_worker_are_summed_up() {
    let Some(launch) = launch("", "listens") else { return };
    let cluster = launch.start();
    let is_sum =
        |event: &Value| event["text"].as_str().is_some_and(|text| text.contains("left out"));
    cluster.until("a sum of notes", |heard| heard.named("note").any(is_sum).then_some(()));
    let told = cluster.count("note");
    assert!(told < 200, "{told} notes");
    assert_ends(cluster);
}

#[test]
fn text_of_a_worker_cannot_write_lines_or_move_cursors() {
    let Some(launch) = launch("", "escapes") else { return };
    let cluster = launch.in_words().start();
    let line = cluster.until("the note", |heard| {
        heard.errors.lines().find(|line| line.contains("/nowhere/")).map(str::to_owned)
    });
    assert!(line.contains("\\x1b[2J\\nworker 9: fine\\x7f\\x9b1m"), "{line:?}");
    machine::signal(cluster.pid(), Signal::SIGTERM);
    let ended = cluster.wait();
    assert!(!ended.errors.lines().any(|line| line.starts_with("worker 9")), "{}", ended.errors);
}

/// What the first worker reports about itself.
fn told(launch: Launch, what: &str) -> Value {
    let cluster = launch.start();
    let message = cluster.until("what the worker tells", |heard| {
        let mut messages = heard.named("message").map(|event| &event["message"]);
        messages.find(|message| !message[what].is_null()).cloned()
    });
    let message = if what == "places" { message[what].clone() } else { message };
    assert_ends(cluster);
    message
}

/// Needs root, so that there are rights that workers lack.
fn as_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        lacking("the rights of root");
    }
    is_root
}

#[test]
fn a_worker_of_another_user_gets_no_place_that_is_not_named() {
    if !as_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    let allowed = folder.path().join("allowed");
    std::fs::create_dir(&allowed).expect("a folder");
    let places = json!([
        ["127.0.0.1:81", {}],
        ["127.0.0.1:82", {}],
        ["127.0.0.1:67", {"transport": "datagram"}],
        ["127.0.0.1:0", {"transport": "datagram"}],
        [format!("unix:{path}/a"), {"mode": 0o777}],
        [format!("unix:{path}/allowed/a"), {"mode": 0o4777}],
        [format!("unix:{path}/allowed/../b"), {}],
        ["unix:@clusterlb-hostile", {}],
        ["fd:0", {}],
        ["fd:5", {}],
    ]);
    let rules =
        format!("--allow-listen 0 --allow-listen 127.0.0.1:82 --allow-listen unix:{path}/allowed/");
    let Some(launch) = launch(&rules, "places") else { return };
    let found = told(launch.variable("PLACES", &places.to_string()), "places");
    let refused = json!(nix::libc::EACCES);
    for place in places.as_array().expect("a list") {
        let place = place[0].as_str().expect("a place");
        let is_named =
            place == "127.0.0.1:82" || place == "127.0.0.1:0" || place.ends_with("allowed/a");
        let wanted = if is_named { json!("listening") } else { refused.clone() };
        assert_eq!(found[place], wanted, "{place}: {found:#}");
    }
}

#[test]
fn programs_of_another_user_may_have_unprivileged_ports_by_default() {
    if !as_root() {
        return;
    }
    let places = json!([["127.0.0.1:81", {}], ["unix:/tmp/clusterlb-hostile", {}], ["fd:0", {}]]);
    let Some(launch) = launch("", "places") else { return };
    let found = told(launch.variable("PLACES", &places.to_string()), "places");
    for place in places.as_array().expect("a list") {
        assert_eq!(
            found[place[0].as_str().expect("a place")],
            json!(nix::libc::EACCES),
            "{found:#}"
        );
    }
}

#[test]
fn a_worker_of_another_user_has_nothing_of_the_primarys() {
    if !as_root() {
        return;
    }
    let Some(launch) = launch("--env KEPT=1", "surroundings") else { return };
    let launch = launch
        .variable("SSH_AUTH_SOCK", "/tmp/agent")
        .variable("NOTIFY_SOCKET", "/tmp/notify")
        .variable("LISTEN_FDS", "1");
    // As from a shell that leaves descriptors open for its children.
    let launch =
        launch.under(&["bash", "-c", "exec 9</etc/passwd 33</etc/group; exec \"$0\" \"$@\""]);
    let found = told(launch, "environment");
    let nobody = nix::unistd::User::from_name("nobody").expect("there are users");
    let nobody = nobody.expect("there is nobody");
    let home = nobody.dir.display().to_string();
    let wanted = json!({ "HOME": home, "USER": "nobody", "LOGNAME": "nobody", "KEPT": "1" });
    assert_eq!(found["environment"], wanted, "{found:#}");
    assert_eq!(found["ids"], json!([nobody.uid.as_raw(), nobody.gid.as_raw()]));
    assert_eq!((&found["groups"], &found["capabilities"]), (&json!([]), &json!([0, 0, 0])));
    assert_eq!((&found["no_new_privs"], &found["unknown"]), (&json!(1), &json!([])), "{found:#}");
}

#[test]
fn the_environment_is_kept_if_that_is_wanted() {
    if !as_root() {
        return;
    }
    let Some(launch) = launch("--keep-env", "surroundings") else { return };
    let launch = launch.variable("SSH_AUTH_SOCK", "/tmp/agent").variable("NOTIFY_SOCKET", "/tmp/n");
    let found = told(launch, "environment");
    assert_eq!(found["environment"]["SSH_AUTH_SOCK"], "/tmp/agent", "{found:#}");
    assert!(found["environment"]["NOTIFY_SOCKET"].is_null(), "{found:#}");
}

#[test]
fn attempts_of_every_kind_change_nothing_for_the_others() {
    endure("mixture");
}

#[test]
fn words_that_mean_nothing_end_their_sender() {
    for how in ["nested", "farewell"] {
        expel(how, "");
    }
}

/// What it is trusted with: flags are common to all who hold a connection.
#[test]
fn connections_that_come_back_with_other_flags_are_served() {
    let Some(launch) = launch("", "returns") else { return };
    let cluster = launch.start();
    eventually("connections that came back", || {
        get(&cluster.address()).expect("an answer").assert_hello();
        let heard = cluster.heard();
        let mut messages = heard.named("message").map(|event| &event["message"]);
        messages.any(|message| message["returned"] == 3).then_some(())
    });
    assert!(cluster.end().redispatched >= 3);
}

/// What it is trusted with: processes of one user can end each other.
#[test]
fn workers_of_one_user_that_end_each_other_are_replaced() {
    let Some(launch) = launch("", "peers") else { return };
    let cluster = launch.start();
    cluster.until("the ends of the others", |heard| {
        let killed = |id: u64| heard.named("exit").any(|event| event["id"] == id);
        (killed(2) && killed(3)).then_some(())
    });
    eventually("others", || (cluster.workers().len() == 3).then_some(()));
    assert_served(&cluster);
    assert_ends(cluster);
}

/// What it is trusted with, where nothing says otherwise.
#[test]
fn without_another_user_workers_get_the_places_that_they_name() {
    if !has_program("python3") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = format!("unix:{}/a", folder.path().display());
    let places = json!([[path, {"mode": 0o777}], ["127.0.0.1:0", {}]]);
    let launch = Launch::new("--workers 1").variable("HOSTILE", "places");
    let launch = launch.variable("PLACES", &places.to_string());
    let found = told(launch.running(&["python3", "-c", SCRIPT, "127.0.0.1:0"]), "places");
    assert_eq!(found[&path], json!("listening"), "{found:#}");
}

#[test]
fn no_worker_outlives_a_killed_primary() {
    for how in ["", "small"] {
        let Some(launch) = launch("", how) else { return };
        let cluster = launch.start();
        let address = cluster.address();
        let workers = cluster.worker_pids();
        machine::suspend(workers[1]);
        machine::signal(cluster.pid(), Signal::SIGKILL);
        let begun = Instant::now();
        eventually("the workers to be gone", || cluster.family().is_empty().then_some(()));
        assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
        eventually("the port to be free", || std::net::TcpListener::bind(&address).ok());
        cluster.wait();
    }
}
