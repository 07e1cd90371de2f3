//! Programs that inherit listening sockets, as from systemd, and the environment of workers of any
//! kind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::common::{
    BINARY, Client, Cluster, GET_CLOSE, Launch, eventually, get, has_program, lacking, machine,
};

pub(super) const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/listen_fds.py");
/// Where `scripts/install-python.sh` installs other programs.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin");
/// One socket for all workers, and one for each.
const WAYS: [&str; 2] = ["", "--accept reuseport"];

fn launch(arguments: &str, program: &[&str]) -> Launch {
    let arguments = format!("--dialect listen-fds {arguments}");
    Launch::new(&arguments).listen("127.0.0.1:0").running(program)
}

/// The example, which reports when it serves; `None` if this machine has no Python.
fn example(arguments: &str) -> Option<Launch> {
    let arguments = format!("--ready-after notify {arguments}");
    has_program("python3").then(|| launch(&arguments, &["python3", EXAMPLE]))
}

fn told_pids(cluster: &Cluster) -> BTreeSet<String> {
    cluster.worker_pids().iter().map(u32::to_string).collect()
}

/// Sends requests on new connections before, during and after a reload. None may be refused.
/// Returns how many were accepted and not answered.
fn replace_all_workers(cluster: &Cluster) -> u64 {
    let (answered, cut) = (AtomicU64::new(0), AtomicU64::new(0));
    let refused = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let address = cluster.address();
    let before = cluster.worker_pids();
    let go_on = || {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to be answered", || {
            (answered.load(Ordering::Relaxed) >= before + 30).then_some(())
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let counter = match Client::connect(&address) {
                        Err(_) => &refused,
                        Ok(mut client) => {
                            let sent = client.try_send(GET_CLOSE);
                            let answer = sent.and_then(|()| client.rest()).unwrap_or_default();
                            let good = answer.starts_with(b"HTTP/1.1 200");
                            if good { &answered } else { &cut }
                        }
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        go_on();
        cluster.signal(Signal::SIGHUP);
        cluster.event("reloaded", 0);
        go_on();
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(refused.into_inner(), 0);
    let after = cluster.worker_pids();
    assert_eq!(after.len(), before.len());
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    cut.into_inner()
}

#[test]
fn every_worker_serves_until_all_are_told_to_leave() {
    for way in WAYS {
        let Some(launch) = example(&format!("--workers 2 {way}")) else { return };
        let cluster = launch.start();
        let address = cluster.address();
        eventually("both workers to answer", || {
            let answers: BTreeSet<String> =
                (0..16).map(|_| get(&address).expect("an answer").body).collect();
            (answers == told_pids(&cluster)).then_some(())
        });
        let ended = cluster.stop(Signal::SIGTERM);
        ended.assert_in_order();
        assert!(std::net::TcpListener::bind(&address).is_ok(), "the port is free again");
        let summary = ended.events.last().expect("a summary");
        assert_eq!(summary["uncounted"], true, "{summary}");
    }
}

#[test]
fn several_sockets_are_taken_over_of_any_kind() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket").display().to_string();
    let Some(launch) = example("--workers 2") else { return };
    let cluster = launch.listen(format!("unix:{path}")).servers(2).start();
    for address in cluster.addresses() {
        assert!(told_pids(&cluster).contains(&get(&address).expect("an answer").body));
    }
    cluster.stop(Signal::SIGINT).assert_in_order();
    assert!(!Path::new(&path).exists());
}

#[test]
fn the_convention_is_kept_to_the_letter() {
    let script = "echo pid $LISTEN_PID $$; echo sockets $LISTEN_FDS $LISTEN_FDNAMES
        echo notify ${NOTIFY_SOCKET-none}; cat /proc/$$/fdinfo/4; exec sleep 1000";
    let cluster = launch("--workers 1 --ready-after 0s --fdname web:api", &["sh", "-c", script])
        .listen("127.0.0.1:0")
        .servers(2)
        .variable("NOTIFY_SOCKET", "/run/of/another/program")
        .variable("LISTEN_PID", "1")
        .start();
    let flags = cluster.until("the program to tell what it has", |heard| {
        let flags = heard.output.lines().find_map(|line| line.strip_prefix("flags:"))?;
        i32::from_str_radix(flags.trim(), 8).ok()
    });
    assert_eq!(flags & (nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC), 0, "{flags:o}");
    let ended = cluster.stop(Signal::SIGTERM);
    let pid =
        ended.events.iter().find(|event| event["event"] == "fork").expect("one")["pid"].clone();
    for line in [format!("pid {pid} {pid}"), "sockets 2 web:api".into(), "notify none".into()] {
        assert!(ended.output.lines().any(|one| one == line), "no {line:?}: {ended:?}");
    }
}

#[test]
fn sighup_replaces_all_workers_without_a_failed_request() {
    for way in WAYS {
        let Some(launch) = example(&format!("--workers 2 {way}")) else { return };
        let cluster = launch.start();
        assert_eq!(replace_all_workers(&cluster), 0);
        cluster.stop(Signal::SIGTERM).assert_in_order();
    }
}

#[test]
fn what_waits_for_a_killed_worker_is_served_by_its_successor() {
    for way in WAYS {
        let Some(launch) = example(&format!("--workers 1 {way}")) else { return };
        let cluster = launch.start();
        let address = cluster.address();
        let victim = cluster.worker_pids()[0];
        machine::suspend(victim);
        let mut clients: Vec<Client> = (0..5).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        machine::signal(victim, Signal::SIGKILL);
        for client in &mut clients {
            assert_ne!(client.receive().body, victim.to_string());
        }
        cluster.end();
    }
}

#[test]
fn the_socket_of_a_place_that_stays_empty_is_taken_out_of_service() {
    let arguments = "--workers 3 --accept reuseport --restart never";
    let launches = [example(arguments), Some(Launch::new(&format!("--policy none {arguments}")))];
    for launch in launches.into_iter().flatten() {
        let cluster = launch.start();
        let address = cluster.address();
        let victim = cluster.worker_pids()[0];
        machine::suspend(victim);
        let mut clients: Vec<Client> = (0..60).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        machine::signal(victim, Signal::SIGKILL);
        let answers = clients.iter_mut().map(|client| client.try_receive(true));
        let lost = answers.filter(|answer| answer.is_err()).count();
        if lost > 0 {
            // Otherwise others got the connections in the dead worker's socket.
            let note = cluster.event("note", 0)["text"].to_string();
            assert!(note.contains(&format!("\"{lost} connections were reset")), "{note}");
            lacking("CAP_BPF, with which others are given such connections");
        }
        // Some of this many would be for the dead worker.
        (0..60).for_each(|_| assert_eq!(get(&address).expect("an answer").status, 200));
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.events.iter().filter(|event| event["event"] == "kill").count(), 0);
    }
}

#[test]
fn the_socket_of_a_dead_worker_waits_for_a_successor_that_is_not_ready_yet() {
    let folder = tempfile::tempdir().expect("a folder");
    let gate = folder.path().join("closed");
    // While the file exists, a worker does not get to listen.
    let script = format!("while test -e {}; do sleep 0.02; done; exec \"$@\"", gate.display());
    let arguments = "--policy none --accept reuseport --workers 3 --restart on-failure";
    let worker = [&[BINARY], &*arguments.split(' ').collect::<Vec<_>>()].concat();
    let worker = [&["sh", "-c", &script, "sh"], &*worker, &["--listen", "127.0.0.1:0"]].concat();
    // The dead worker's socket comes after, or before, that of the leaving one.
    for (dies, leaves) in [(1, 0), (0, 1)] {
        let cluster = Launch::new(arguments).running(&worker).start();
        let address = cluster.address();
        let pids = cluster.worker_pids();
        fs::write(&gate, "").expect("the folder is writable");
        machine::suspend(pids[dies]);
        let mut clients: Vec<Client> = (0..60).map(|_| Client::to(&address)).collect();
        clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
        machine::signal(pids[dies], Signal::SIGKILL);
        cluster.event("fork", 3);
        machine::signal(pids[leaves], Signal::SIGTERM);
        let left = cluster.event("exit", 1);
        assert_eq!((&left["pid"], &left["code"]), (&pids[leaves].into(), &0.into()));
        fs::remove_file(&gate).expect("the folder is writable");
        for client in &mut clients {
            assert_eq!(client.receive().status, 200);
        }
        // And every remaining socket has a worker that accepts from it.
        (0..60).for_each(|_| assert_eq!(get(&address).expect("an answer").status, 200));
        assert_eq!(cluster.count("note"), 0);
        cluster.end();
    }
}

#[test]
fn a_failing_successor_does_no_harm() {
    if !has_program("python3") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("server.py");
    fs::copy(EXAMPLE, &path).expect("the folder is writable");
    let program = ["python3", &path.display().to_string()];
    let cluster = launch("--workers 2 --ready-after notify", &program).start();
    let before = cluster.worker_pids();
    fs::write(&path, "this is no Python").expect("the folder is writable");
    cluster.signal(Signal::SIGHUP);
    let note = cluster.event("note", 0);
    assert!(note["text"].as_str().is_some_and(|text| text.contains("replacing stopped")));
    assert_eq!(cluster.worker_pids(), before);
    get(&cluster.address()).expect("an answer");
    cluster.end();
}

#[test]
fn workers_do_not_survive_their_primary() {
    let Some(launch) = example("--workers 2") else { return };
    // Waits until they have noticed.
    assert_eq!(launch.start().stop(Signal::SIGKILL).signal, Some(9));
}

#[test]
fn what_a_worker_has_started_is_killed_with_it() {
    if kernel_before(6, 9) {
        return lacking("Linux 6.9, from which on a group can be found safely");
    }
    // Neither handles the signal that asks it to leave.
    let script = "trap '' TERM; sleep 1000 & echo started $!; wait; wait";
    let arguments = "--workers 2 --ready-after 0s --grace 100ms";
    let cluster = launch(arguments, &["sh", "-c", script]).start();
    cluster.until("both to have started something", |heard| {
        (heard.output.matches("started").count() == 2).then_some(())
    });
    // A process has no environment for a moment while it begins to run its program.
    eventually("two workers with a child each", || (cluster.family().len() == 4).then_some(()));
    // Checks that no process of the run is left.
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.events.iter().filter(|event| event["event"] == "kill").count(), 1);
}

/// What workers that share a listening socket are trusted with: each can end it for all of them.
#[test]
fn a_worker_can_end_the_listening_socket_of_all() {
    let end = "import os, signal, socket\nif os.environ['CLUSTERLB_INSTANCE'] == '1': \
               socket.socket(fileno=3).shutdown(2)\nsignal.pause()";
    if !has_program("python3") {
        return;
    }
    let cluster = launch("--workers 2 --ready-after 0s", &["python3", "-c", end]).start();
    let address = cluster.address();
    eventually("the end of the socket", || Client::connect(&address).is_err().then_some(()));
    assert_eq!(cluster.workers().len(), 2);
    cluster.stop(Signal::SIGTERM);
}

fn kernel_before(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (major, minor)
}

#[test]
fn what_does_not_come_to_serve_is_told_why() {
    let mute = launch("--workers 1 --start-limit 100ms --ready-after notify", &["sleep", "1000"]);
    mute.refused().assert_refusal(1, &["READY=1", "--ready-after notify", "sleep"]);
    let hasty = launch("--workers 1", &["sh", "-c", "echo broken >&2; exit 1"]).refused();
    assert!(hasty.errors.contains("broken"), "{hasty:?}");
    assert!(hasty.errors.contains("exit code 1 before it served anything"), "{hasty:?}");
    let native = Launch::new("--workers 1").running(&["false"]).refused();
    assert!(native.errors.contains("--dialect listen-fds"), "{native:?}");
    let refused = launch("--policy rr", &["sleep", "1000"]).refused();
    refused.assert_refusal(2, &["no policy but none", "leave --policy out"]);
}

/// Waits for connections in one of several ways, but only once a file exists, and in a process of
/// its own.
const HESITANT: &str = r#"
import os, select, signal, socket, sys, time
listener = socket.socket(fileno=3)
child = os.fork()
if child:
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    os.wait()
    sys.exit()
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
def wait():
    if sys.argv[1] == "select":
        select.select([listener], [], [])
    elif sys.argv[1] == "poll":
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.poll()
    elif sys.argv[1] == "epoll":
        epoll = select.epoll()
        epoll.register(listener, select.EPOLLIN)
        epoll.poll()
while True:
    wait()
    client, _ = listener.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello world\n")
    client.close()
"#;

#[test]
fn a_worker_listens_once_it_waits_for_connections() {
    if !has_program("python3") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        for way in ["accept", "select", "poll", "epoll"] {
            let flag = folder.path().join(way);
            scope.spawn(move || {
                let flag = flag.to_str().expect("a plain path");
                let words = ["python3", "-c", HESITANT, way, flag];
                let run = launch("--workers 1", &words).start_unready();
                run.until("the note about what it lacks", |heard| {
                    let mut notes = heard.named("note").filter_map(|note| note["text"].as_str());
                    notes.find(|text| text.contains("does not wait for connections")).map(drop)
                });
                assert_eq!(run.count("listening"), 0, "{way}");
                fs::write(flag, "").expect("the folder is writable");
                run.event("listening", 0);
                get(&run.address()).expect("an answer").assert_hello();
                assert_eq!(run.stop(Signal::SIGTERM).code, Some(0), "{way}");
            });
        }
    });
}

#[test]
fn a_worker_that_does_not_wait_for_connections_is_named() {
    let idle = launch("--workers 1 --start-limit 300ms", &["sleep", "1000"]);
    idle.refused().assert_refusal(1, &["waits for connections", "sleep", "--ready-after 1s"]);
}

/// A program that `scripts/install-python.sh` installs; reports it as missing otherwise.
fn installed(name: &str) -> Option<String> {
    let path: PathBuf = Path::new(PROGRAMS).join(name);
    if !path.is_file() {
        lacking(&format!("{name} (scripts/install-python.sh)"));
        return None;
    }
    Some(path.display().to_string())
}

/// Runs a Python server with an application that answers with its process id.
fn serve_with(program: &str, options: &[&str], application: &str, ready_after: &str) {
    let Some(program) = installed(program) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("app.py"), application).expect("the folder is writable");
    let words = [&[&*program], options, &["app:app"]].concat();
    for way in WAYS {
        let folder = folder.path().display();
        let arguments = format!("--workers 2 --ready-after {ready_after} --chdir {folder} {way}");
        let cluster = launch(&arguments, &words).start();
        // uvicorn closes unread connections when it is asked to leave.
        let cut = replace_all_workers(&cluster);
        assert!(cut == 0 || program.ends_with("uvicorn"), "{cut} requests were not answered");
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.code, Some(0), "{:?}", ended.events);
        for event in &ended.events {
            assert!(event["event"] != "kill", "{:?}", ended.events);
            // Some end by the signal itself, once they have cleaned up.
            let in_order = event["code"] == 0 || event["signal"] == "SIGTERM";
            assert!(event["event"] != "exit" || in_order, "{:?}", ended.events);
        }
    }
}

#[test]
fn gunicorn_is_a_worker() {
    let application = "import os
def app(environ, start_response):
    start_response('200 OK', [('Connection', 'close')])
    return [str(os.getpid()).encode()]";
    serve_with("gunicorn", &["--preload"], application, "notify");
}

#[test]
fn uvicorn_is_a_worker() {
    let application = "import os
async def app(scope, receive, send):
    if scope['type'] == 'http':
        headers = [(b'connection', b'close')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
        await send({'type': 'http.response.body', 'body': str(os.getpid()).encode()})";
    serve_with("uvicorn", &["--fd", "3", "--lifespan", "off"], application, "1s");
}

#[test]
fn workers_run_with_the_given_user_folder_and_environment() {
    let script = "echo $(id -u):$(id -g):$(id -G) in $(pwd) with $COLOUR and $PATH
        exec sleep 1000";
    let (identity, told) = match geteuid().is_root() {
        true => ("--user 65534 --group 65533", "65534:65533:65533".to_owned()),
        false => ("", String::new()),
    };
    if identity.is_empty() {
        lacking("root, who alone can start workers as another user");
    }
    let arguments = format!(
        "--workers 1 --ready-after 0s {identity} --chdir / --env COLOUR=blue \
         --env PATH=/bin:/usr/bin"
    );
    let cluster = launch(&arguments, &["/bin/sh", "-c", script]).start();
    let line = cluster.until("the program to tell what it is", |heard| {
        heard.output.lines().next().map(str::to_owned)
    });
    assert!(line.starts_with(&told), "{line}");
    assert!(line.ends_with(" in / with blue and /bin:/usr/bin"), "{line}");
    cluster.end();
}

#[test]
fn built_in_workers_can_run_as_another_user_too() {
    if !geteuid().is_root() {
        return lacking("root, who alone can start workers as another user");
    }
    let cluster = Launch::new("--workers 1 --user 65534 --group 65533").start();
    get(&cluster.address()).expect("an answer").assert_hello();
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.worker_pids()[0]));
    let status = status.expect("it runs");
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    assert!(status.contains("Gid:\t65533\t65533\t65533\t65533"), "{status}");
    cluster.end().assert_clean(1);
}
