//! Clients that hang, send invalid requests, or have no rights: each gets a clear answer, and
//! delays no other.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;

use super::{Steered, ask, assert_done, assert_refused, command, text};
use crate::common::{BINARY, Client, Launch, eventually, get_from, has_program, lacking, machine};
use crate::room::Room;

#[test]
fn unknown_paths_and_wrong_methods_name_the_right_ones() {
    let run = Steered::start("--workers 1");
    assert_refused(&run.get("/nowhere"), 404, &["GET /metrics", "POST /reload"]);
    let wrong = run.get("/reload");
    assert_refused(&wrong, 405, &["/reload"]);
    assert!(wrong.head.to_lowercase().contains("\r\nallow: post\r\n"), "{}", wrong.head);
    let wrong = run.post("/workers");
    assert!(wrong.head.to_lowercase().contains("\r\nallow: get,head\r\n"), "{}", wrong.head);
    assert_eq!(run.post("/reload?wait=0").status, 202);
    run.cluster.event("reloaded", 0);
    run.cluster.end();
}

#[test]
fn half_a_request_and_then_silence_is_answered_and_delays_no_one() {
    let run = Steered::start("--workers 1");
    let mut silent = Client::to(&run.admin);
    silent.send(b"GET /livez HTTP/1.1\r\nHost:");
    assert_eq!(run.get("/livez").status, 200);
    let late = silent.receive();
    assert_refused(&late, 408, &["in time"]);
    silent.assert_closed();
    let mut garbage = Client::to(&run.admin);
    assert_eq!(garbage.ask(b"\x16\x03\x01 nonsense\r\n\r\n").status, 400);
    run.cluster.end();
}

#[test]
fn probes_do_not_wait_for_hundreds_of_clients_that_hang() {
    let Some(_room) = Room::for_clients(300) else { return };
    if getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(_, hard)| hard < 8192) {
        return lacking("8192 descriptors for the primary (ulimit -Hn)");
    }
    let run = Steered::start("--workers 1");
    let path = run.folder.path().join("admin.sock");
    let begin = || {
        let mut client = UnixStream::connect(&path).expect("room in the backlog");
        client.write_all(b"GET /livez HT").expect("room");
        client
    };
    let hanging: Vec<UnixStream> = (0..300).map(|_| begin()).collect();
    assert_eq!(run.get("/livez").status, 200);
    // Those in front are neither complete nor late yet.
    let mut one = &hanging[200];
    one.set_nonblocking(true).expect("a socket");
    let early = one.read(&mut [0]).expect_err("no answer yet");
    assert_eq!(early.kind(), ErrorKind::WouldBlock);
    run.cluster.end();
}

#[test]
fn tcp_is_for_looking_unless_actions_are_allowed() {
    let run = Launch::new("--workers 1 --admin 127.0.0.1:0").start();
    let admin = run.event("admin", 0)["address"].as_str().expect("an address").to_owned();
    assert_eq!(ask(&admin, "GET", "/readyz", "").status, 200);
    let refused = ask(&admin, "POST", "/reload", "");
    assert_refused(&refused, 403, &["--admin-allow-actions"]);
    assert_done(&command("status", &admin));
    assert_eq!(command("drain", &admin).status.code(), Some(1));
    run.end();
    let run = Launch::new("--workers 1 --admin 127.0.0.1:0 --admin-allow-actions").start();
    let admin = run.event("admin", 0)["address"].as_str().expect("an address").to_owned();
    assert_eq!(ask(&admin, "POST", "/reload", "").status, 200);
    let page = ask(&admin, "POST", "/reload", "Origin: http://example.org\r\n");
    assert_refused(&page, 403, &["web page"]);
    run.end();
}

#[test]
fn no_web_page_looks_at_a_run_by_a_name_that_its_owner_points_here() {
    let run = Launch::new("--workers 1 --admin 127.0.0.1:0 --admin-allow-actions").start();
    let admin = run.event("admin", 0)["address"].as_str().expect("an address").to_owned();
    let ask_for = |host: &str, method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        Client::to(&admin).ask(request.as_bytes())
    };
    for (method, path) in [("GET", "/config"), ("GET", "/events"), ("POST", "/reload")] {
        assert_refused(&ask_for("page.example", method, path), 403, &["localhost"]);
    }
    // A balancer may probe by any name.
    assert_eq!(ask_for("page.example", "GET", "/readyz").status, 200);
    for host in [&admin, "localhost:9100", "balancer"] {
        assert_eq!(ask_for(host, "GET", "/config").status, 200, "{host}");
    }
    run.end();
}

#[test]
fn what_an_action_does_not_know_is_refused_and_nothing_happens() {
    let run = Steered::start("--workers 2");
    for (path, words) in [
        ("/drain?grase=1h", ["grase", "grace and wait"]),
        ("/reload?workers=1", ["workers", "it takes wait"]),
        ("/workers/1/kill?force=1", ["force", "it takes wait"]),
        ("/scale?workers=1&workers=3", ["workers", "once"]),
        ("/scale?workers=1&wait=yes", ["wait=yes", "wait=0"]),
        ("/policy?policy=least&policy=sticky", ["policy", "once"]),
    ] {
        assert_refused(&run.post(path), 422, &words);
    }
    assert_eq!(run.states(), ["serving"; 2]);
    assert_eq!(run.json("/policy")["policy"], "rr");
    let summary = run.cluster.end();
    assert_eq!(summary.workers.len(), 2, "{summary:?}");
}

#[test]
fn an_address_is_not_for_clients_and_operators_both() {
    for (listen, admin) in [
        ("127.0.0.1:9100", "--admin 9100"),
        ("0.0.0.0:9100", "--agent-check 127.0.0.1:9100"),
        ("unix:/run/one.sock", "--admin unix:/run/one.sock"),
    ] {
        let refused = Launch::new(&format!("--workers 1 {admin}")).listen(listen).refused();
        refused.assert_refusal(2, &["--listen", "a separate address"]);
    }
}

#[test]
fn answers_that_cannot_be_printed_are_failures() {
    let run = Steered::start("--workers 1");
    for words in ["status", "status --json", "scale 1", "top -n 1"] {
        let mut command = Command::new(BINARY);
        command.args(words.split_whitespace()).args(["--admin", &run.admin]);
        let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
        let output = command.stdout(full).output().expect("the command starts");
        assert_eq!(output.status.code(), Some(1), "{words}: {}", text(&output));
        assert!(text(&output).contains("standard output"), "{}", text(&output));
    }
    run.cluster.end();
}

#[test]
fn a_thousand_scrapers_at_once_are_all_answered() {
    let Some(_room) = Room::for_clients(1000) else { return };
    let run = Launch::new("--workers 1 --admin 127.0.0.1:0").start();
    let admin = run.event("admin", 0)["address"].as_str().expect("an address").to_owned();
    // All of them are there, with their requests, when the first one is accepted.
    machine::suspend(run.pid());
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::to(&admin)).collect();
    for client in &mut clients {
        client.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    machine::signal(run.pid(), Signal::SIGCONT);
    for client in &mut clients {
        assert_eq!(client.receive().status, 200);
    }
    assert_eq!(ask(&admin, "GET", "/livez", "").status, 200);
    get_from(&run.address(), 1, 1);
    run.end();
}

#[test]
fn a_path_in_use_is_refused_and_a_stale_one_is_taken() {
    let run = Steered::start("--workers 1");
    let mode = std::fs::metadata(run.folder.path().join("admin.sock")).expect("it is there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let second = Launch::new(&format!("--workers 1 --admin {}", run.admin));
    second.listen("127.0.0.1:0").refused().assert_refusal(1, &[&run.admin, "another run"]);
    assert_eq!(run.get("/livez").status, 200, "the first one still has it");
    let path = run.folder.path().join("stale.sock");
    drop(UnixListener::bind(&path).expect("a free path"));
    let stale = Launch::new(&format!("--workers 1 --admin unix:{}", path.display())).start();
    assert_eq!(ask(&format!("unix:{}", path.display()), "GET", "/livez", "").status, 200);
    stale.end();
    assert!(!path.exists(), "it is removed at the end");
    let file = run.folder.path().join("file");
    std::fs::write(&file, "precious").expect("it can be written");
    let third = Launch::new(&format!("--workers 1 --admin unix:{}", file.display()));
    third.listen("127.0.0.1:0").refused().assert_refusal(1, &["file"]);
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "precious");
    run.cluster.end();
}

#[test]
fn another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return lacking("root, to become another user");
    }
    if !has_program("setpriv") || !has_program("curl") {
        return;
    }
    let name = format!("clusterlb-test-admin-{}", std::process::id());
    let run = Launch::new(&format!("--workers 1 --admin unix:@{name}")).start();
    let curl = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(words).args(["curl", "-s", "-w", "%{http_code}", "--abstract-unix-socket"]);
        command.args([&name, "http://admin/workers"]).output().expect("it starts")
    };
    let stranger = curl(&["--reuid", "65534", "--clear-groups"]);
    let said = text(&stranger);
    assert!(said.ends_with("403") && said.contains("another user"), "{said}");
    assert!(text(&curl(&[])).ends_with("200"));
    run.end();
}

#[test]
fn a_client_that_does_not_read_holds_nothing_up() {
    let run = Steered::start("--workers 1");
    let mut deaf: Vec<Client> = (0..8).map(|_| Client::to(&run.admin)).collect();
    for client in &mut deaf {
        client.send(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    for _ in 0..5 {
        assert_done(&run.command("reload"));
    }
    assert_eq!(run.get("/readyz").status, 200);
    run.cluster.end();
}

#[test]
fn followers_are_bounded() {
    let run = Steered::start("--workers 1");
    let mut followers: Vec<Client> = (0..17).map(|_| Client::to(&run.admin)).collect();
    let statuses = followers.iter_mut().map(|client| {
        client.send(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n");
        client.receive_head().status
    });
    let statuses: Vec<u16> = statuses.collect();
    assert_eq!(statuses[..16], [200; 16]);
    assert_eq!(statuses[16], 503);
    run.cluster.end();
}

#[test]
fn commands_without_a_run_name_what_they_tried() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("admin.sock");
    let admin = format!("unix:{}", path.display());
    for words in ["status", "reload", "scale 2", "drain", "events", "top"] {
        let output = command(words, &admin);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{words}: {said}");
        assert!(said.contains(&admin) && said.contains("--admin"), "{words}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // No server answers there, or another one does.
    let listener = UnixListener::bind(&path).expect("a free path");
    let other = std::thread::spawn(move || {
        let (mut stream, _): (UnixStream, _) = listener.accept().expect("a client");
        let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n");
    });
    let output = command("status", &admin);
    assert!(text(&output).contains(&admin), "{}", text(&output));
    assert_eq!(output.status.code(), Some(1));
    other.join().expect("it does not panic");
    let stale = command("status", &admin);
    assert!(text(&stale).contains("any more"), "{}", text(&stale));
}

#[test]
fn there_is_a_default_address_for_each_user() {
    if !nix::unistd::geteuid().is_root() || !has_program("setpriv") {
        return lacking("root, to become another user");
    }
    let run = |folder: Option<&str>| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", BINARY, "status"]);
        command.env_remove("XDG_RUNTIME_DIR");
        command.envs(folder.map(|folder| ("XDG_RUNTIME_DIR", folder)));
        command.output()
    };
    let without = run(None).expect("setpriv is there");
    if text(&without).contains("ermission denied") {
        return lacking("a folder of programs that every user can read");
    }
    assert!(text(&without).contains("XDG_RUNTIME_DIR"), "{}", text(&without));
    assert_eq!(without.status.code(), Some(2));
}

#[test]
fn what_is_refused_and_what_comes_at_once_does_not_affect_traffic() {
    let run = Steered::start("--workers 2");
    let served = run.under_traffic(|| {
        let mut silent = Client::to(&run.admin);
        silent.send(b"POST /reload HTT");
        for (path, status) in [
            ("/nowhere", 404),
            ("/workers/99/kill", 404),
            ("/workers", 405),
            ("/scale?workers=0", 422),
            ("/scale?workers=100000", 422),
            ("/policy?workers=3", 422),
        ] {
            assert_refused(&run.post(path), status, &[]);
        }
        std::thread::scope(|scope| {
            let run = &run;
            let at_once = ["/reload", "/reload", "/scale?workers=3"];
            for response in at_once.map(|path| scope.spawn(move || run.post(path))) {
                let response = response.join().expect("it does not panic");
                assert!(matches!(response.status, 200 | 409), "{response:?}");
            }
        });
    });
    assert!(served > 0);
    eventually("three workers", || (run.states() == ["serving"; 3]).then_some(()));
    assert_eq!(run.cluster.stop(Signal::SIGTERM).code, Some(0));
}
