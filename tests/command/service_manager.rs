//! Service managers: the messages they get, the sockets they pass, and those they store.

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use clusterlb_sys::fdpass;
use nix::sys::signal::Signal;

use super::listen_fds::EXAMPLE;
use crate::common::{Client, GET_CLOSE, Launch, eventually, free_ports, get, has_program};

/// A service manager's end.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a free path");
        Self { socket, folder }
    }

    fn watch(&self, launch: Launch) -> Launch {
        let path = self.folder.path().join("notify");
        launch.variable("NOTIFY_SOCKET", path.to_str().expect("a path"))
    }

    /// The next message, and the descriptor that comes with it.
    fn next(&self) -> (String, Option<OwnedFd>) {
        let mut text = [0; 4096];
        let mut passed = Vec::new();
        let bytes = eventually("a word", || {
            let received = fdpass::receive(self.socket.as_fd(), &mut text, &mut passed);
            received.ok().map(|arrival| arrival.bytes)
        });
        (String::from_utf8_lossy(&text[..bytes]).into_owned(), passed.pop())
    }

    /// The next message that begins like this.
    fn next_with(&self, beginning: &str) -> (String, Option<OwnedFd>) {
        loop {
            let (text, socket) = self.next();
            if text.starts_with(beginning) {
                return (text, socket);
            }
        }
    }
}

/// Starts the command with a socket as descriptor 3, as a service manager does.
fn with_socket(launch: Launch, socket: &OwnedFd, name: &str) -> Launch {
    let script = format!(
        "exec 3<&0 </dev/null
        export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name}; exec \"$@\""
    );
    launch.input(socket).under(&["bash", "-c", &script, "bash"])
}

#[test]
fn a_manager_hears_of_life_figures_and_every_stage() {
    let manager = Manager::new();
    let launch = Launch::new("--workers 2").variable("WATCHDOG_USEC", "400000");
    let run = manager.watch(launch).start();
    assert!(manager.next_with("READY=1").0.contains(&run.address()));
    manager.next_with("WATCHDOG=1");
    let figures = manager.next_with("STATUS=2 of 2 workers serve").0;
    assert!(figures.contains("0 dropped"), "{figures}");
    run.signal(Signal::SIGHUP);
    manager.next_with("RELOADING=1\nMONOTONIC_USEC=");
    manager.next_with("READY=1");
    manager.next_with("WATCHDOG=1");
    run.end();
    manager.next_with("STOPPING=1");
}

#[test]
fn a_reload_that_stops_is_over_for_the_manager_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let flag = folder.path().join("broken");
    let script = format!("test -e {} && exit 7; exec sleep 1000", flag.display());
    // Long enough for a shell to start and end on a busy machine.
    let launch = Launch::new("--dialect listen-fds --workers 1 --ready-after 2s")
        .listen("127.0.0.1:0")
        .running(&["/bin/sh", "-c", &script]);
    let manager = Manager::new();
    let run = manager.watch(launch).start();
    manager.next_with("READY=1");
    std::fs::write(&flag, "").expect("it can be written");
    run.signal(Signal::SIGHUP);
    manager.next_with("RELOADING=1");
    let over = manager.next_with("READY=1").0;
    assert!(over.contains("replacing stopped"), "{over}");
    assert_eq!(run.stop(Signal::SIGTERM).code, Some(0));
}

#[test]
fn sockets_that_the_manager_keeps_let_no_client_be_refused_between_two_runs() {
    let manager = Manager::new();
    let run = manager.watch(Launch::new("--workers 1")).start();
    let address = run.address();
    let first = manager.next().0;
    assert!(first.starts_with("READY=1"), "some managers read only one message: {first}");
    let (text, socket) = manager.next_with("FDSTORE=1\nFDNAME=clusterlb-127-0-0-1-");
    let socket = socket.expect("it comes with the word");
    assert!(!text.lines().any(|line| line.trim_start_matches("FDNAME=").contains(':')), "{text}");
    get(&address).expect("an answer").assert_hello();
    run.end().assert_clean(1);
    // Nothing accepts now, yet no client is refused.
    let mut waiting = Client::to(&address);
    waiting.send(GET_CLOSE);
    let again = with_socket(Launch::new("--workers 1").listen(&*address), &socket, "stored");
    let again = again.start();
    drop(socket);
    assert_eq!(again.address(), address);
    waiting.receive().assert_hello();
    get(&address).expect("an answer").assert_hello();
    again.end().assert_clean(2);
    assert!(Client::connect(&address).is_err(), "nothing keeps it open any more");
}

#[test]
fn no_queued_connection_is_reset_by_restarts_with_another_number_of_workers() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it has one").to_string();
    let socket = OwnedFd::from(listener);
    let inheriting = "--dispatch kernel --dialect listen-fds --ready-after notify";
    let python = has_program("python3").then_some((inheriting, &["python3", EXAMPLE][..]));
    let kinds = [("--dispatch primary", &[][..]), ("--dispatch kernel", &[])];
    let (answered, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let is_over = AtomicBool::new(false);
    let go_on = || {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to be answered", || {
            (answered.load(Ordering::Relaxed) >= before + 30).then_some(())
        });
    };
    let last = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let is_good = get(&address).is_ok_and(|response| response.status == 200);
                    let counter = if is_good { &answered } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for (arguments, program) in kinds.into_iter().chain(python) {
            for workers in [3, 1, 4] {
                let launch = Launch::new(&format!("--workers {workers} {arguments}"));
                let launch = launch.listen(&*address).running(program);
                let run = with_socket(launch, &socket, "kept").start();
                // An inherited socket is only one.
                let told = run.event("listening", 0);
                assert_ne!(told["dispatch"], "kernel", "{told}");
                go_on();
                assert_eq!(run.stop(Signal::SIGTERM).code, Some(0), "{arguments}");
            }
        }
        // Those that wait now are answered by the last one.
        let last = with_socket(Launch::new("--workers 2").listen(&*address), &socket, "kept");
        let last = last.start();
        go_on();
        is_over.store(true, Ordering::Relaxed);
        last
    });
    assert_eq!(failed.into_inner(), 0);
    last.end();
}

#[test]
fn a_socket_is_taken_by_its_name_and_a_wrong_name_lists_the_right_ones() {
    let socket: OwnedFd = TcpListener::bind("127.0.0.1:0").expect("a free port").into();
    let run = with_socket(Launch::new("--workers 1").listen("fd:web"), &socket, "web").start();
    get(&run.address()).expect("an answer").assert_hello();
    run.end().assert_clean(1);
    let wrong = with_socket(Launch::new("--workers 1").listen("fd:mail"), &socket, "web");
    wrong.refused().assert_refusal(2, &["fd:mail", "LISTEN_FDNAMES has web"]);
    Launch::new("--workers 1").listen("fd:web").refused().assert_refusal(2, &["has none"]);
}

#[test]
fn systemd_socket_activate_starts_it_for_the_first_client() {
    if !has_program("systemd-socket-activate") {
        return;
    }
    let address = format!("127.0.0.1:{}", free_ports(&["127.0.0.1"], 1)[0]);
    let listen = format!("--listen={address}");
    let words = ["systemd-socket-activate", &listen, "--fdname=web", "--setenv=CLUSTERLB_TEST_RUN"];
    let client = thread::spawn({
        let address = address.clone();
        move || {
            let mut client = eventually("a listener", || Client::connect(&address).ok());
            client.ask(GET_CLOSE).assert_hello();
        }
    });
    let run = Launch::new("--workers 1").listen("fd:web").under(&words).start();
    client.join().expect("it was served");
    assert_eq!(run.address(), address);
    run.end().assert_clean(1);
}
