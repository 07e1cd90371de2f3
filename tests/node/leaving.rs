//! How workers leave: the handlers of their programs run, open requests are finished, and idle
//! connections delay nothing. The grace period is ten minutes where no worker may wait for it.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::Signal;

use crate::common::{Client, Cluster, GET, Launch, eventually, get, machine};
use crate::nodes::{self, Node};
use crate::script::Script;

/// A server with an idle connection to a database and a timer, as most have. It answers `/slow`
/// when there is a file `answer`, `/file` with much, and anything else at once. `note` logs to a
/// file; `TEST_PROGRAM` adds further code.
const SERVER: &str = "
    const fs = require('fs');
    const note = (word) => fs.appendFileSync(`${__dirname}/notes`, `${word}\\n`);
    const database = require('net').connect(process.env.TEST_DATABASE, '127.0.0.1');
    setInterval(() => {}, 1000);
    const file = Buffer.alloc(64 << 20, 'x');
    const answer = (response) => {
        if (fs.existsSync(`${__dirname}/answer`)) response.end('done');
        else setTimeout(answer, 10, response);
    };
    const server = require('http').createServer((request, response) => {
        if (request.url === '/slow') {
            note('asked');
            answer(response);
        } else response.end(request.url === '/file' ? file : String(process.pid));
    }).listen(0, '127.0.0.1');
    process.on('exit', (code) => note(`exit ${code}`));
    eval(process.env.TEST_PROGRAM);";

const GET_SLOW: &[u8] = b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n";
const GET_FILE: &[u8] = b"GET /file HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

/// A Node, the server, and its database.
struct Stand {
    node: Node,
    script: Script,
    database: TcpListener,
}

impl Stand {
    fn new(node: &Node) -> Self {
        let database = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self { node: node.clone(), script: Script::named("server.js", SERVER), database }
    }

    fn launch(&self, arguments: &str, program: &str) -> Launch {
        let port = self.database.local_addr().expect("it is bound").port().to_string();
        let arguments = format!("--settle 0s {arguments}");
        let launch = self.script.launch_with(&self.node.program, &arguments);
        launch.variable("TEST_DATABASE", &port).variable("TEST_PROGRAM", program)
    }

    fn start(&self, arguments: &str, program: &str) -> Cluster {
        self.launch(arguments, program).start()
    }

    fn notes(&self) -> Vec<String> {
        let notes = fs::read_to_string(self.script.path("notes")).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }

    fn count(&self, note: &str) -> usize {
        self.notes().iter().filter(|one| *one == note).count()
    }

    fn forget(&self) {
        for name in ["notes", "answer"] {
            let _ = fs::remove_file(self.script.path(name));
        }
    }

    /// Sends a request with a delayed answer, and waits until the server has it.
    fn ask_slowly(&self, cluster: &Cluster) -> Client {
        let before = self.count("asked");
        let mut client = Client::to(&cluster.address());
        client.send(GET_SLOW);
        eventually("the request to arrive", || (self.count("asked") > before).then_some(()));
        client
    }

    fn answer(&self) {
        fs::write(self.script.path("answer"), "").expect("the folder is writable");
    }
}

fn with_each_node(test: impl Fn(&Stand) + Sync) {
    nodes::with_each(|node| test(&Stand::new(node)));
}

/// Code that programs run at their end, and a worker's log of it.
const PROGRAMS: [(&str, &[&str]); 11] = [
    ("", &["exit 0"]),
    ("process.on('SIGTERM', () => note('tidy'));", &["tidy", "exit 0"]),
    ("process.once('SIGTERM', () => note('tidy'));", &["tidy", "exit 0"]),
    (
        "process.on('SIGTERM', () => { note('tidy'); server.close(() => process.exit(0)); });",
        &["tidy", "exit 0"],
    ),
    ("process.on('SIGINT', () => { note('tidy'); process.exit(); });", &["tidy", "exit 0"]),
    ("process.on('disconnect', () => note('tidy'));", &["tidy", "exit 0"]),
    ("process.on('beforeExit', () => note('tidy'));", &["tidy", "exit 0"]),
    ("process.once('beforeExit', () => setTimeout(note, 200, 'tidy'));", &["tidy", "exit 0"]),
    (
        "process.on('SIGTERM', async () => {
            setTimeout(() => process.exit(1), 500000);
            await new Promise((resolve) => setTimeout(resolve, 100));
            await new Promise((resolve) =>
                server.close((error) => resolve(note(error ?? 'closed'))));
            note('tidy');
        });",
        &["closed", "tidy", "exit 0"],
    ),
    (
        "process.on('SIGTERM', () => {
            note('tidy');
            require('cluster').worker.disconnect();
        });",
        &["tidy", "exit 0"],
    ),
    // As frameworks end: by the signal itself, once no handler is left.
    (
        "process.on('SIGTERM', function end(signal) {
            note('tidy');
            process.off('SIGTERM', end);
            process.kill(process.pid, signal);
        });",
        &["tidy"],
    ),
];

#[test]
fn what_a_program_has_registered_for_its_end_runs_and_idle_connections_do_not_hold_it() {
    with_each_node(|stand| {
        for (program, expected) in PROGRAMS {
            stand.forget();
            let cluster = stand.start("--workers 1 --grace 10m", program);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", 0);
            assert_eq!(stand.notes(), expected, "when it is replaced: {program}");
            stand.forget();
            let ended = cluster.stop(Signal::SIGTERM);
            assert_eq!(ended.code, Some(0), "{program}: {ended:?}");
            assert_eq!(stand.notes(), expected, "when all ends: {program}");
        }
    });
}

#[test]
fn without_the_preload_an_idle_worker_gets_sigterm_once_its_channel_has_ended() {
    let tidy = "process.on('SIGTERM', () => { note('tidy'); process.exit(0); });";
    with_each_node(|stand| {
        for (program, expected) in [("", &[][..]), (tidy, &["tidy", "exit 0"][..])] {
            stand.forget();
            let cluster = stand.start("--workers 1 --grace 10m --preload off", program);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", 0);
            assert_eq!(stand.notes(), expected, "{program}");
            let ended = cluster.stop(Signal::SIGTERM);
            assert_eq!((ended.code, ended.summary().aborted), (Some(0), 0), "{program}");
            assert_eq!(stand.notes(), [expected, expected].concat(), "{program}");
        }
    });
}

#[test]
fn open_requests_are_finished_whatever_the_program_does_at_its_end() {
    let programs = [
        "",
        "process.on('SIGTERM', () => process.exit(0));",
        "process.on('SIGTERM', () => server.close(() => process.exit(0)));",
    ];
    with_each_node(|stand| {
        for program in programs {
            for way in ["reload", "signal to everyone", "signal to one"] {
                stand.forget();
                let cluster = stand.start("--workers 1 --grace 10m", program);
                let worker = cluster.worker_pids()[0];
                let mut client = stand.ask_slowly(&cluster);
                match way {
                    "reload" => cluster.signal(Signal::SIGHUP),
                    "signal to one" => machine::signal(worker, Signal::SIGTERM),
                    _ => {
                        machine::signal(worker, Signal::SIGTERM);
                        cluster.signal(Signal::SIGTERM);
                    }
                }
                // It has noticed when it serves no new request, or has closed.
                eventually("the worker to leave", || {
                    let answer = get(&cluster.address());
                    answer.map_or(true, |answer| answer.body != worker.to_string()).then_some(())
                });
                stand.answer();
                assert_eq!(client.receive().body, "done", "{way}: {program}");
                // A second signal would cut everything.
                let ended = match way {
                    "signal to everyone" => cluster.wait(),
                    _ => cluster.stop(Signal::SIGTERM),
                };
                assert_eq!((ended.code, ended.summary().aborted), (Some(0), 0), "{way}: {program}");
            }
        }
    });
}

#[test]
fn workers_of_a_killed_primary_finish_what_is_open_and_end() {
    with_each_node(|stand| {
        let cluster = stand.start("--workers 2", "process.on('SIGTERM', () => note('tidy'));");
        let mut client = stand.ask_slowly(&cluster);
        cluster.signal(Signal::SIGKILL);
        // The idle one has ended, and the other one has closed its server.
        eventually("one to end", || (stand.count("exit 0") == 1).then_some(()));
        stand.answer();
        assert_eq!(client.receive().body, "done");
        drop(client);
        cluster.wait();
        assert_eq!(stand.count("exit 0"), 2);
    });
}

#[test]
fn a_connection_without_a_request_delays_no_worker() {
    with_each_node(|stand| {
        let cluster = stand.start("--workers 1 --grace 10m", "");
        let silent = Client::to(&cluster.address());
        // The only worker takes them in order.
        get(&cluster.address()).expect("an answer");
        cluster.signal(Signal::SIGHUP);
        cluster.event("reloaded", 0);
        drop(silent);
        let mut kept = Client::to(&cluster.address());
        kept.ask(GET);
        let silent = Client::to(&cluster.address());
        get(&cluster.address()).expect("an answer");
        cluster.end();
        drop((kept, silent));
    });
}

#[test]
fn an_answer_that_the_client_has_not_received_yet_is_not_cut() {
    with_each_node(|stand| {
        let cluster = stand.start("--workers 1 --grace 10m", "");
        let mut client = Client::to(&cluster.address());
        client.send(GET_FILE);
        eventually("the answer to begin", || client.has_heard().then_some(()));
        cluster.signal(Signal::SIGHUP);
        // Longer than a silent connection may stay.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let bytes = client.rest().expect("everything").len();
        assert!(bytes > 64 << 20, "{bytes}");
        cluster.event("reloaded", 0);
        assert_eq!(cluster.end().aborted, 0);
    });
}

#[test]
fn an_answer_that_the_client_never_receives_is_cut_and_counted() {
    with_each_node(|stand| {
        let cluster = stand.start("--workers 1 --grace 1s", "");
        let mut client = Client::to(&cluster.address());
        client.send(GET_FILE);
        eventually("the answer to begin", || client.has_heard().then_some(()));
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.summary().aborted, 1);
        drop(client);
    });
}

#[test]
fn accepting_goes_on_as_long_as_programs_let_time_pass() {
    let wait = "
        const wait = () => {
            if (fs.existsSync(`${__dirname}/answer`)) server.close(() => process.exit(0));
            else setTimeout(wait, 20);
        };
        process.on('SIGTERM', () => { note('waits'); wait(); });";
    with_each_node(|stand| {
        let cluster = stand.start("--workers 2 --grace 10m", wait);
        cluster.signal(Signal::SIGTERM);
        eventually("both to hear", || (stand.count("waits") == 2).then_some(()));
        for _ in 0..20 {
            get(&cluster.address()).expect("it still accepts");
        }
        stand.answer();
        let ended = cluster.wait();
        ended.assert_in_order();
        assert_eq!((ended.summary().aborted, ended.summary().dropped), (0, 0));
    });
}

#[test]
fn programs_that_let_time_pass_for_ever_are_waited_for_half_the_grace_period() {
    let wait = "process.on('SIGTERM', () => setTimeout(() => {}, 500000));";
    with_each_node(|stand| {
        let cluster = stand.start("--workers 1 --grace 6s", wait);
        cluster.stop(Signal::SIGTERM).assert_in_order();
    });
}
