//! Output of the command: errors for wrong usage and for a machine that lacks something, and the
//! text of a run.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::cluster::ENGINE_VARIABLE;
use crate::common::seccomp::Filter;
use crate::common::{BINARY, Client, Launch, eventually, get, get_from, has_program, machine};

/// As container runtimes do.
const WITHOUT_RINGS: Filter = Filter::Refuse(1);

fn clusterlb(arguments: &[&str]) -> Output {
    let output = Command::new(BINARY).args(arguments).stdin(Stdio::null()).output();
    output.expect("the command starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn contradictions_and_impossible_settings_are_told_in_one_line() {
    for (arguments, words) in [
        ("--pin 0-1023", &["1023", "--pin"][..]),
        ("--workers 2 --pin 1023", &["1023", "--pin"]),
        ("--policy none --max-inflight 3", &["--max-inflight", "--policy rr"]),
        ("--policy none --runtime tokio-uring", &["tokio-uring", "--policy rr"]),
        ("--listen 127.0.0.1:1 --listen 127.0.0.1:1", &["127.0.0.1:1", "twice"]),
        ("--listen unix:/tmp/x --policy none --accept reuseport", &["reuseport", "unix:/tmp/x"]),
        ("--proxy-protocol 81 --listen 127.0.0.1:0", &["--proxy-protocol 81", "no --listen"]),
        ("--dialect listen-fds --proxy-protocol all -- cat", &["--proxy-protocol", "tell the"]),
        ("--dialect listen-fds --dispatch kernel --policy fastest -- cat", &["fastest", "sticky"]),
        ("--dialect listen-fds --policy rr -- cat", &["--dispatch kernel", "accept"]),
        ("--dialect node --preload off --proxy-protocol all -- cat", &["the preload reads"]),
    ] {
        Launch::new(arguments).refused().assert_refusal(2, words);
    }
}

#[test]
fn values_that_mean_nothing_are_named_with_what_would() {
    for (arguments, words) in [
        ("--workers 0", &["--workers", "0", "auto"][..]),
        ("--workers many", &["--workers", "many", "auto"]),
        ("--workers 100000", &["--workers", "100000", "1024"]),
        ("--policy fair", &["--policy", "fair", "rr", "none"]),
        ("--accept select", &["--accept", "select", "epoll"]),
        ("--pin 3-1", &["--pin", "3-1"]),
        ("--pin 9999", &["--pin", "9999"]),
        ("--listen nowhere", &["--listen", "nowhere", "HOST:PORT"]),
        ("--listen 127.0.0.1:70000", &["--listen", "70000", "65535"]),
        ("--listen fd:many", &["--listen", "fd:many"]),
        ("--proxy-protocol every", &["--proxy-protocol", "every", "or all"]),
        ("--backlog 0", &["--backlog", "0", "1..=65535"]),
        ("--max-inflight 0", &["--max-inflight", "0"]),
        ("--grace soon", &["--grace", "soon", "10s"]),
        ("--header-timeout 0s", &["--header-timeout", "0s"]),
        ("--restart sometimes", &["--restart", "sometimes", "on-failure"]),
        ("--serve pie", &["--serve", "pie", "echo"]),
        ("--wrokers 3", &["--wrokers", "--workers"]),
        ("--json --quiet", &["--json", "--quiet"]),
        ("--workers 2 check", &["check", "<COMMAND>"]),
        ("surprise", &["surprise"]),
        ("bnech", &["no program bnech", "clusterlb bench"]),
        ("ndoe server.js", &["no program ndoe", "`node`"]),
        ("Cargo.toml", &["no program Cargo.toml", "./Cargo.toml"]),
        ("./Cargo.toml", &["not executable", "chmod +x"]),
        ("src", &["src", "folder"]),
        ("examples/messages.rs --port 1", &["examples/messages.rs", "not executable"]),
        ("--policy rr --accept reuseport", &["--accept reuseport", "--policy none"]),
        ("--admin node server.js", &["--admin -- node"]),
    ] {
        let words_given: Vec<&str> = arguments.split(' ').collect();
        let output = clusterlb(&words_given);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments}: {output:?}");
        for word in words {
            assert!(text(&output.stderr).contains(word), "no {word:?}: {output:?}");
        }
    }
}

#[test]
fn a_machine_that_refuses_io_uring_is_told_with_the_cause_and_a_remedy() {
    for policy in ["--policy rr", "--policy none", "--policy none --accept uring"] {
        let launch = Launch::new(&format!("--workers 2 --engine io_uring {policy}"));
        let Some(launch) = WITHOUT_RINGS.before(launch) else { return };
        launch.refused().assert_refusal(3, &["io_uring", "seccomp"]);
    }
}

#[test]
fn check_tells_what_this_machine_allows() {
    let table = clusterlb(&["check"]);
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    for row in ["kernel", "io_uring", "seccomp", "open files", "CPUs", "can run here"] {
        assert!(text(&table.stdout).contains(row), "no {row:?}: {}", text(&table.stdout));
    }
    let json = clusterlb(&["check", "--json"]);
    assert_eq!(json.status.code(), Some(0), "{json:?}");
    let report: Value = serde_json::from_slice(&json.stdout).expect("one JSON object");
    assert_eq!(
        (&report["schema"], &report["can_run"]),
        (&"clusterlb-check/1".into(), &true.into())
    );
    for row in report["rows"].as_array().expect("rows") {
        assert!(row["name"].is_string() && row["value"].is_string(), "{row}");
        assert!(["ok", "note"].contains(&row["verdict"].as_str().expect("a verdict")), "{row}");
    }
}

#[test]
fn check_tells_where_io_uring_is_refused() {
    if !has_program("python3") {
        return;
    }
    let check = |arguments: &[&str]| {
        let words = WITHOUT_RINGS.command();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args([BINARY, "check"]).args(arguments);
        command.env(ENGINE_VARIABLE, "io_uring");
        let output = command.output().expect("python3 starts");
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        text(&output.stdout).to_owned()
    };
    let table = check(&[]);
    assert!(table.contains("cannot run here") && table.contains("seccomp"), "{table}");
    let report: Value = serde_json::from_str(&check(&["--json"])).expect("one JSON object");
    assert_eq!(report["can_run"], false);
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = clusterlb(&["--help"]);
    assert_eq!((help.status.code(), text(&help.stderr)), (Some(0), ""));
    for word in [
        "Examples:",
        "Exit codes",
        "--listen",
        "--policy",
        "CLUSTERLB_SCHED_POLICY",
        "--engine",
        "CLUSTERLB_ENGINE",
    ] {
        assert!(text(&help.stdout).contains(word), "no {word:?} in the help");
    }
    assert!(text(&clusterlb(&["-h"]).stdout).len() < help.stdout.len());
    let version = clusterlb(&["--version"]);
    let lines: Vec<&str> = text(&version.stdout).trim().lines().collect();
    assert_eq!(lines[0], concat!("clusterlb ", env!("CARGO_PKG_VERSION")));
    assert!(lines[1].starts_with("commit: ") && lines[2].starts_with("features: "), "{lines:?}");
    let version = clusterlb(&["-V"]);
    assert_eq!(text(&version.stdout).trim(), concat!("clusterlb ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_short_help_fits_one_screen_and_the_long_one_has_every_option_in_a_group() {
    let (short, long) = (clusterlb(&["-h"]), clusterlb(&["--help"]));
    let (short, long) = (text(&short.stdout), text(&long.stdout));
    assert!(short.lines().count() <= 45, "{short}");
    let wide: Vec<&str> = short.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    let examples = short.lines().skip_while(|line| !line.starts_with("Examples"));
    assert_eq!(examples.filter(|line| line.starts_with("  clusterlb ")).count(), 3, "{short}");
    let headings = |help: &str| {
        let is_heading = |line: &&str| line.ends_with(':') && !line.starts_with(' ');
        help.lines().filter(is_heading).map(str::to_owned).collect::<Vec<_>>()
    };
    let groups = headings(short);
    for group in ["Commands:", "Program:", "Workers:", "Listening and balancing:", "Operation:"] {
        assert!(groups.iter().any(|one| one == group), "no {group} in {groups:?}");
    }
    let all = headings(long);
    assert!(groups[..5].iter().all(|group| all.contains(group)), "{groups:?} {all:?}");
    // An option without a group would be under this heading.
    assert!(!all.iter().any(|group| group == "Options:" || group == "Arguments:"), "{all:?}");
    let options = |help: &str| help.lines().filter(|line| line.contains(" --")).count();
    assert!(options(short) < options(long));
}

#[test]
fn a_program_needs_no_dashes_in_front_of_it() {
    let script = "echo \"$0 $*\"; exec sleep 1000";
    for before in [&[][..], &["--"]] {
        let mut arguments =
            vec!["--workers", "1", "--ready-after", "0s", "--dialect", "listen-fds"];
        arguments.extend(["--listen", "127.0.0.1:0", "--prefix", "--grace", "0s"]);
        arguments.extend(before);
        arguments.extend(["sh", "-c", script, "name", "--port", "1", "-w", "--", "--workers"]);
        let mut child = Command::new(BINARY)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        output.read_line(&mut line).expect("the first line");
        assert_eq!(line, "worker 1 | name --port 1 -w -- --workers\n");
        machine::signal(child.id(), Signal::SIGTERM);
        eventually("the run to end", || child.try_wait().expect("our child"));
    }
}

#[test]
fn completions_and_man_pages_have_every_command_and_option() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = clusterlb(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for word in ["imbalance", "max-inflight", "drain-delay"] {
            assert!(text(&output.stdout).contains(word), "no {word} for {shell}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("man1");
    let output = clusterlb(&["man", path.to_str().expect("a plain path")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = std::fs::read_to_string(path.join("clusterlb.1")).expect("the page is there");
    assert!(page.contains("max\\-inflight") && page.contains("Examples"), "{page:.2000}");
    assert!(path.join("clusterlb-bench.1").exists());
    let output = clusterlb(&["man", "/proc/nowhere"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_log_has_a_time_and_a_level_where_that_is_wanted() {
    let launch = || Launch::new("--workers 1").in_words().listen("127.0.0.1:0");
    let ended = launch().option("--log-format", "json").start_unready();
    ended.until("a line", |heard| heard.errors.contains("listening").then_some(()));
    let ended = ended.stop(Signal::SIGTERM);
    for line in ended.errors.lines() {
        let line: Value = serde_json::from_str(line).expect("a JSON object");
        assert!(line["time"].is_string() && line["level"].is_string(), "{line}");
    }
    let run = launch().option("--log-format", "text").start_unready();
    run.until("a line", |heard| heard.errors.contains("listening").then_some(()));
    let ended = run.stop(Signal::SIGTERM);
    let is_timed = |line: &str| line.get(10..11) == Some("T") && line.get(23..25) == Some("Z ");
    assert!(ended.errors.lines().all(is_timed), "{ended:?}");
}

#[test]
fn the_journal_gets_levels() {
    // A file stands for what systemd passes: the variable names it like a socket.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let file = std::fs::File::options().append(true).create(true).open(&path);
    let file = file.expect("the folder is writable");
    let found = file.metadata().expect("it is open");
    let stream = {
        use std::os::linux::fs::MetadataExt as _;
        format!("{}:{}", found.st_dev(), found.st_ino())
    };
    let run = |stream: &str| {
        let mut command = Command::new(BINARY);
        command.args(["--workers", "1", "--listen", "nowhere:1"]).env("JOURNAL_STREAM", stream);
        let errors = file.try_clone().expect("a descriptor");
        let status = command.stdin(Stdio::null()).stderr(errors).status();
        assert!(!status.expect("the command starts").success());
        let text = std::fs::read_to_string(&path).expect("it is there");
        file.set_len(0).expect("it is ours");
        text
    };
    assert!(run("1:1").starts_with("clusterlb: "));
    assert!(run(&stream).starts_with("<3>clusterlb: "));
}

#[test]
fn sigusr1_opens_the_log_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, renamed) = (folder.path().join("log"), folder.path().join("log.1"));
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let address = format!("unix:@clusterlb-test-log-{}", std::process::id());
    let run = Launch::new("--workers 1")
        .option("--log-file", path.to_str().expect("a plain path"))
        .in_words()
        .listen(&address)
        .start_unready();
    eventually("a line in the log", || read(&path).contains("listening").then_some(()));
    std::fs::rename(&path, &renamed).expect("it is ours");
    machine::signal(run.pid(), Signal::SIGUSR1);
    eventually("a new log", || read(&path).contains("opened again").then_some(()));
    let ended = run.stop(Signal::SIGTERM);
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    assert!(read(&path).contains("draining") && !read(&renamed).contains("draining"));
    let refused = clusterlb(&["--log-file", "/nowhere/at/all"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn a_log_that_cannot_be_written_is_reported_once_and_ends_nothing() {
    let address = format!("unix:@clusterlb-test-full-log-{}", std::process::id());
    // Its disk is always full.
    let run = Launch::new("--workers 1")
        .option("--log-file", "/dev/full")
        .in_words()
        .listen(&address)
        .start_unready();
    eventually("it to serve", || get(&address).ok().map(drop));
    let ended = run.stop(Signal::SIGTERM);
    let lost = "note: lines of the log are lost: write /dev/full: No space left on device\n";
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), lost), "{ended:?}");
}

#[test]
fn a_program_that_does_not_come_to_serve_is_named_while_it_is_waited_for() {
    let arguments = "--workers 2 --dialect listen-fds --ready-after notify";
    let run = Launch::new(arguments).listen("127.0.0.1:0").running(&["/bin/sleep", "1000"]);
    let run = run.start_unready();
    run.until("the note", |heard| {
        let mut notes = heard.events.iter().filter_map(|event| event["text"].as_str());
        let words = ["after 5 s workers 1, 2 are not accepting", "/bin/sleep", "READY=1"];
        notes.find(|note| words.iter().all(|word| note.contains(word))).map(drop)
    });
    assert_eq!(run.count("listening"), 0);
    assert_eq!(run.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn a_way_to_accept_means_that_workers_accept() {
    let cluster = Launch::new("--workers 2 --accept reuseport").listen("127.0.0.1:0").start();
    let ended = cluster.stop(Signal::SIGTERM);
    let listening = &ended.events[0];
    assert_eq!((&listening["policy"], &listening["accept"]), (&"none".into(), &"reuseport".into()));
}

#[test]
fn events_are_json_lines_from_listening_to_the_summary() {
    let cluster = Launch::new("--workers 3").listen("127.0.0.1:0").listen("127.0.0.1:0").start();
    let (pid, workers) = (cluster.pid(), cluster.workers());
    cluster.addresses().iter().for_each(|address| get_from(address, 1, 3));
    machine::signal(workers[2].pid, Signal::SIGKILL);
    cluster.event("online", 3);
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!((ended.code, ended.output.as_str(), ended.errors.as_str()), (Some(0), "", ""));
    let names: Vec<&str> =
        ended.events.iter().map(|event| event["event"].as_str().expect("a name")).collect();
    assert_eq!(names[..2], ["listening"; 2]);
    assert_eq!(names.last(), Some(&"summary"));
    let count = |name| names.iter().filter(|one| **one == name).count();
    let counts = ["fork", "online", "exit", "respawn", "draining", "summary"].map(count);
    assert_eq!(counts, [4, 4, 4, 1, 1, 1], "{names:?}");
    assert!(ended.events.iter().all(|event| event["at_ms"].is_u64()), "{ended:?}");
    let is_a_time = |event: &Value| {
        let time = event["time"].as_str().unwrap_or_default();
        time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z')
    };
    assert!(ended.events.iter().all(is_a_time), "{ended:?}");
    for (number, event) in ended.events[..2].iter().enumerate() {
        assert_eq!(event["listener"], number);
        assert_eq!((&event["policy"], &event["workers"]), (&"rr".into(), &3.into()));
        assert_eq!((&event["engine"], &event["pid"]), (&"io_uring".into(), &pid.into()));
        assert!(event["feature_level"].is_string() && event.get("cpu").is_some(), "{event}");
    }
    let summary = ended.summary();
    assert_eq!(summary.accepted, 6);
    let pids: Vec<u32> = summary.workers.iter().map(|one| one.pid).collect();
    assert_eq!(pids[..3], workers.iter().map(|worker| worker.pid).collect::<Vec<_>>());
}

#[test]
fn people_are_told_on_standard_error() {
    let cluster = Launch::new("--workers 2").in_words().start();
    get_from(&cluster.address(), 1, 10);
    let ended = cluster.stop(Signal::SIGINT);
    assert_eq!((ended.code, ended.output.as_str()), (Some(0), ""), "{ended:?}");
    for word in [
        "policy rr",
        "engine io_uring",
        "primary: pid",
        "worker 1: pid",
        "draining (SIGINT)",
        "▇▇▇",
        "50.0 %",
        "accepted 10, refused 0, redispatched 0, dropped 0",
        "top two 100.0 %, max/mean 1.00",
        "answered 10 requests on these connections",
    ] {
        assert!(ended.errors.contains(word), "no {word:?} in\n{}", ended.errors);
    }
}

#[test]
fn the_quiet_say_nothing() {
    // Without output there is no port to read, so the listener has a name.
    let address = format!("unix:@clusterlb-test-quiet-{}", std::process::id());
    let cluster = Launch::new("--workers 2 --quiet").in_words().listen(&address).start_unready();
    eventually("the quiet cluster to serve", || get(&address).ok()).assert_hello();
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!((ended.code, ended.output.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(ended.errors, "");
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_run() {
    let mut child = Command::new(BINARY)
        .args(["--workers", "2", "--json", "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    output.read_line(&mut line).expect("the first line");
    drop(output);
    let listening: Value = serde_json::from_str(&line).expect("a JSON object");
    let address = listening["address"].as_str().expect("an address").to_owned();
    let mut client = Client::held(&address);
    get(&address).expect("an answer").assert_hello();
    machine::signal(child.id(), Signal::SIGTERM);
    client.assert_closed();
    let status = eventually("the primary to end", || child.try_wait().expect("our child"));
    let mut errors = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("text");
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
}
