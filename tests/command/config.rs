//! Options from a file and from the environment: precedence, refusals, and changes by a reload.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;

use crate::common::{BINARY, Cluster, Launch, eventually, get, machine};

/// A folder with a file of options.
struct Config {
    folder: tempfile::TempDir,
}

impl Config {
    fn new(text: &str) -> Self {
        let config = Self { folder: tempfile::tempdir().expect("a folder") };
        config.write(text);
        config
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("clusterlb.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).expect("the folder is writable");
    }
}

fn clusterlb(words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(words).envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().expect("the command starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn launch(config: &Config, arguments: &str) -> Launch {
    Launch::new(arguments).option("--config", config.path().to_str().expect("a plain path"))
}

/// A variable of a process, as it was at its start.
fn variable(pid: u32, name: &str) -> Option<String> {
    let all = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let all = String::from_utf8_lossy(&all).into_owned();
    let prefix = format!("{name}=");
    all.split('\0').find_map(|one| one.strip_prefix(&prefix).map(str::to_owned))
}

#[test]
fn a_mistyped_option_gets_the_nearest_one_with_a_variable_set_too() {
    for (words, tip) in [
        (&["--polcy", "rr"][..], "--policy"),
        (&["run", "--wrokers", "3"], "--workers"),
        (&["--policy", "lest"], "least"),
    ] {
        let [plain, with] = [&[][..], &[("CLUSTERLB_GRACE", "2s")]].map(|variables| {
            let output = clusterlb(words, variables);
            assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
            errors(&output)
        });
        assert!(plain.contains("tip: ") && plain.contains(tip), "{words:?}: {plain}");
        assert_eq!(plain, with, "{words:?}");
    }
    // What is wrong with the variable is still called by its name.
    let output = clusterlb(&["--workers", "1"], &[("CLUSTERLB_POLICY", "lest")]);
    assert!(errors(&output).contains("CLUSTERLB_POLICY"), "{output:?}");
}

#[test]
fn a_broken_file_names_the_line_the_key_and_the_nearest_known_one() {
    for (text, words) in [
        ("workers = 2\nmax_inflight = 3\n", &["line 2", "`max_inflight`", "`max-inflight`"][..]),
        ("# \n\nworkers = \"many\"\n", &["line 3", "workers", "many", "auto"]),
        ("policy = \"fair\"\n", &["line 1", "policy", "fair", "rr, least"]),
        ("json = \"yes\"\n", &["line 1", "json", "true or false"]),
        ("workers = [1, 2]\n", &["line 1", "workers", "list"]),
        ("grace = 1979-05-27\n", &["line 1", "grace", "date"]),
        ("[workers]\na = 1\n", &["line 1", "workers", "table"]),
        ("listen = [\n", &["line", "array"]),
        ("workers = 1\nworkers = 2\n", &["line 2", "`workers`", "duplicate key"]),
        ("workers = 1\nadmin = 127.0.0.1:9100\n", &["line 2", "`admin`", "\"text\""]),
        ("program = true\n", &["line 1", "program", "words"]),
        ("config = \"other\"\n", &["line 1", "`config`"]),
        ("dialect = \"node\"\n", &["PROGRAM"]),
        ("\nlisten = \"127.0.0.1\"\n", &["line 2", "no port", "listen = [\"ADDRESS\""]),
        ("admin = \"127.0.0.1\"\n", &["line 1", "admin = \"ADDRESS\""]),
        (
            "policy = \"none\"\nmax-inflight = 3\n",
            &["line 2: `max-inflight`", "with `policy` none", "leave `max-inflight` out"],
        ),
        ("json = true\nquiet = true\n", &["`json`", "`quiet`"]),
        ("listen = [\"127.0.0.1:9\", \"127.0.0.1:9\"]\n", &["line 1: `listen` 127.0.0.1:9"]),
    ] {
        let config = Config::new(text);
        let path = config.path();
        let path = path.to_str().expect("a plain path");
        for command in [&["--config", path][..], &["check", "--config", path]] {
            let output = clusterlb(command, &[]);
            assert_eq!(output.status.code(), Some(2), "{text}: {output:?}");
            let told = errors(&output);
            assert!(words.iter().all(|word| told.contains(word)), "{text}: {told}");
            let rest = told.replace("clusterlb --help", "");
            assert!(!rest.contains("--"), "in the words of the command line: {told}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let config = Config::new("workers = 1\n");
    let folder = config.folder.path().to_str().expect("a plain path");
    for (path, word) in [("/nowhere/at/all", "No such file"), (folder, "not a file")] {
        let output = clusterlb(&["--config", path], &[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(errors(&output).contains(word), "{output:?}");
    }
    fs::write(config.path(), b"workers = \"\xff\"").expect("the folder is writable");
    let path = config.path();
    let output = clusterlb(&["--config", path.to_str().expect("a plain path")], &[]);
    assert!(errors(&output).contains("UTF-8"), "{output:?}");
}

#[test]
fn variables_that_mean_nothing_are_named() {
    for (name, value, word) in [
        ("CLUSTERLB_WORKERS", "many", "auto"),
        ("CLUSTERLB_JSON", "maybe", "true or false"),
        ("CLUSTERLB_LISTEN", "127.0.0.1:1 nowhere", "HOST:PORT"),
        ("CLUSTERLB_CONFIG", "/nowhere/at/all", "No such file"),
    ] {
        let output = clusterlb(&[], &[(name, value)]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let told = errors(&output);
        assert!(told.contains(word) && (told.contains(name) || name.contains("CONFIG")), "{told}");
    }
}

#[test]
fn the_command_line_counts_before_the_environment_and_that_before_the_file() {
    let config =
        Config::new("workers = 4\npolicy = \"least\"\ngrace = \"7s\"\n[env]\nA = \"b c\"\n");
    let cluster = launch(&config, "--policy sticky")
        .variable("CLUSTERLB_WORKERS", "2")
        .variable("CLUSTERLB_POLICY", "rr")
        .listen("127.0.0.1:0")
        .start();
    let workers = cluster.workers();
    assert_eq!(workers.len(), 2);
    assert_eq!(variable(workers[0].pid, "A").as_deref(), Some("b c"));
    get(&cluster.address()).expect("an answer").assert_hello();
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.events[0]["policy"], "sticky");
    // A list of processes must not show the workers' variables.
    let config = Config::new("");
    launch(&config, "--workers 1").listen("127.0.0.1:0").start().stop(Signal::SIGTERM);
}

#[test]
fn an_upper_layer_rules_out_what_contradicts_it_below() {
    let config = Config::new("serve = \"echo\"\nquiet = true\nlisten = [\"127.0.0.1:0\"]\n");
    let cluster = launch(&config, "--workers 1 --dialect listen-fds --ready-after 0s")
        .running(&["/bin/sh", "-c", "exec sleep 1000"])
        .start();
    assert_eq!(cluster.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn a_program_can_be_named_in_the_file() {
    let config = Config::new(
        "workers = 1\ndialect = \"listen-fds\"\nready-after = \"0s\"\nlisten = [\"127.0.0.1:0\"]\n\
         program = [\"/bin/sh\", \"-c\", \"exec sleep 1000\"]\n",
    );
    // Which is for the built-in worker, in a pass of all tests with that filter.
    let launch = launch(&config, "").variable("CLUSTERLB_SECCOMP", "false");
    let cluster = launch.with_defaults().start();
    let path = format!("/proc/{}/cmdline", cluster.workers()[0].pid);
    // It is empty for a moment, while the shell becomes the program.
    eventually("the program of the file to run", || {
        let line = fs::read(&path).expect("it lives");
        String::from_utf8_lossy(&line).contains("1000").then_some(())
    });
    cluster.stop(Signal::SIGTERM);
}

fn reload(cluster: &Cluster) {
    machine::signal(cluster.pid(), Signal::SIGHUP);
}

#[test]
fn a_reload_changes_what_can_change_and_names_what_cannot() {
    let config = Config::new("workers = 3\nbacklog = 100\n[env]\nA = \"old\"\n");
    let cluster = launch(&config, "").listen("127.0.0.1:0").start();
    config.write("workers = 2\nbacklog = 200\nmax-inflight = 50\n[env]\nA = \"new\"\n");
    reload(&cluster);
    cluster.event("reloaded", 0);
    let new = eventually("two workers with the new variable", || {
        let workers = cluster.workers();
        let new: Vec<u32> = workers
            .iter()
            .map(|worker| worker.pid)
            .filter(|pid| variable(*pid, "A").as_deref() == Some("new"))
            .collect();
        (new.len() == 2).then_some(new)
    });
    assert_eq!(new.len(), 2);
    get(&cluster.address()).expect("an answer").assert_hello();
    let ended = cluster.stop(Signal::SIGTERM);
    let notes: Vec<&str> = ended.events.iter().filter_map(|event| event["text"].as_str()).collect();
    let has =
        |words: &[&str]| notes.iter().any(|note| words.iter().all(|word| note.contains(word)));
    assert!(has(&["changed", "env", "max-inflight", "workers"]), "{notes:?}");
    assert!(has(&["not before the next start", "backlog"]), "{notes:?}");
    assert!(ended.events.iter().any(|event| event["event"] == "scaled"), "{ended:?}");
    let rules = ended.events.iter().find(|event| event["event"] == "rescheduled");
    assert_eq!(rules.expect("other rules")["max_inflight"], 50);
}

#[test]
fn reloading_a_broken_file_changes_nothing() {
    let config = Config::new("workers = 2\n");
    let cluster = launch(&config, "").listen("127.0.0.1:0").start();
    let pids = || cluster.workers().iter().map(|one| one.pid).collect::<Vec<_>>();
    let before = pids();
    config.write("workers = 1\nwrokers = 2\n");
    reload(&cluster);
    let is_told = |words: &'static [&'static str]| {
        cluster.until("a note", |heard| {
            let notes = heard.events.iter().filter_map(|event| event["text"].as_str());
            let mut notes = notes.filter(|note| words.iter().all(|word| note.contains(word)));
            notes.next().map(str::to_owned)
        });
    };
    is_told(&["line 2", "`wrokers`", "`workers`"]);
    fs::remove_file(config.path()).expect("it is ours");
    reload(&cluster);
    is_told(&["No such file"]);
    assert_eq!(before, pids());
    cluster.stop(Signal::SIGTERM);
}

#[test]
fn the_example_in_the_package_is_right() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = top.join("packaging/clusterlb.toml");
    let output = clusterlb(&["check", "--config", path.to_str().expect("a plain path")], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("right"), "{output:?}");
    let json = clusterlb(&["check", "--json", "--config", path.to_str().expect("plain")], &[]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON object");
    assert!(report["config"].is_string(), "{report}");
}
