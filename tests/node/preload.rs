//! Reports of Node workers from the script that they load, and how they close kept connections.
//! With every installed Node.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::nodes::{Node, with_each};
use crate::common::{Client, Cluster, GET, Launch, Response, eventually, get, machine};

/// It answers with its process id.
const SERVER: &str = "
    require('http').createServer((request, response) => response.end(String(process.pid)))
        .listen(0, '127.0.0.1');";

/// A Node and a script in a temporary folder.
struct Stand {
    node: Node,
    folder: TempDir,
}

impl Stand {
    fn launch(&self, arguments: &str) -> Launch {
        let program = self.node.program.display().to_string();
        Launch::new(&format!("--dialect node {arguments}"))
            .running(&[&program, &self.path("server.js")])
            // The script is written there, so that the test can see its removal.
            .variable("RUNTIME_DIRECTORY", &self.path("runtime"))
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn loaded(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.path("runtime")).expect("it is there");
        folders.flatten().map(|folder| folder.path()).collect()
    }
}

fn with_each_node(script: &str, test: impl Fn(&Stand) + Sync) {
    with_each(|node| {
        let stand = Stand { node: node.clone(), folder: tempfile::tempdir().expect("a folder") };
        fs::write(stand.path("server.js"), script).expect("the folder is writable");
        fs::create_dir(stand.path("runtime")).expect("the folder is writable");
        test(&stand);
        assert_eq!(stand.loaded(), [""; 0].map(PathBuf::from), "left behind");
    });
}

fn ask(address: &str) -> String {
    get(address).expect("an answer").body
}

/// Connections that one worker holds, after all others have closed theirs; and that worker.
fn lopsided(address: &str) -> (String, Vec<Client>) {
    let mut held: BTreeMap<String, Vec<Client>> = BTreeMap::new();
    for _ in 0..20 {
        let mut client = Client::to(address);
        held.entry(client.ask(GET).body).or_default().push(client);
    }
    assert_eq!(held.len(), 2, "both workers serve");
    held.pop_first().expect("two workers")
}

#[test]
fn a_worker_that_holds_many_open_connections_is_passed_over() {
    with_each_node(SERVER, |stand| {
        for policy in ["rr", "least"] {
            let arguments = format!("--workers 2 --slow-start 0s --policy {policy} --credits 64");
            let cluster = stand.launch(&format!("{arguments} --overload-factor 1")).start();
            let address = cluster.address();
            let (busy, held) = lopsided(&address);
            // The ends of the others are reported soon.
            eventually("the busy one to be passed over", || {
                (0..10).all(|_| ask(&address) != busy).then_some(())
            });
            assert!((0..20).all(|_| ask(&address) != busy));
            // It has as many as the others again.
            drop(held);
            eventually("it to serve again", || (ask(&address) == busy).then_some(()));
            let summary = cluster.end();
            assert_eq!((summary.dropped, summary.aborted), (0, 0));
        }
    });
}

#[test]
fn without_a_preload_open_connections_count_for_nothing() {
    with_each_node(SERVER, |stand| {
        let arguments = "--workers 2 --slow-start 0s --credits 64 --overload-factor 1";
        let cluster = stand.launch(&format!("{arguments} --preload off")).start();
        let address = cluster.address();
        let (busy, held) = lopsided(&address);
        let by_busy = (0..20).filter(|_| ask(&address) == busy).count();
        assert!((8..=12).contains(&by_busy), "{by_busy} of 20");
        drop(held);
        cluster.end();
    });
}

#[test]
fn the_limit_on_connections_holds_back_what_waits_and_lets_it_go_on() {
    with_each_node(SERVER, |stand| {
        let cluster = stand.launch("--workers 2 --max-inflight 1").start();
        let address = cluster.address();
        let mut first = Client::to(&address);
        let mut second = Client::to(&address);
        let pids = [first.ask(GET).body, second.ask(GET).body];
        assert_ne!(pids[0], pids[1]);
        let mut third = Client::to(&address);
        third.send(GET);
        // A worker with room reports that unasked.
        drop(second);
        assert_eq!(third.receive().body, pids[1]);
        drop((first, third));
        cluster.end().assert_clean(3);
    });
}

/// Blocks on request until a file exists.
const BLOCKING: &str = "
    const fs = require('fs');
    require('http').createServer((request, response) => {
        if (request.url === '/block') {
            fs.writeFileSync(`${__dirname}/blocked`, '');
            while (!fs.existsSync(`${__dirname}/go on`));
        }
        response.end(String(process.pid));
    }).listen(0, '127.0.0.1');";

#[test]
fn a_worker_whose_loop_stands_still_is_not_given_anything_to_find_out() {
    with_each_node(BLOCKING, |stand| {
        let cluster = stand.launch("--workers 2 --hang-after 500ms").start();
        let address = cluster.address();
        let mut blocked = Client::to(&address);
        let pid = blocked.ask(GET).body;
        // A busy machine may keep the other one from running for this long.
        let hung = || {
            let of_it = |event: &&Value| event["pid"].as_u64() == pid.parse().ok();
            cluster.until("events", |heard| Some(heard.named("hung").filter(of_it).count()))
        };
        let before = hung();
        blocked.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("it to stand still", || fs::exists(stand.path("blocked")).ok()?.then_some(()));
        // Longer than the limit.
        std::thread::sleep(Duration::from_millis(1000));
        assert!((0..20).all(|_| ask(&address) != pid));
        assert_eq!(hung(), before, "nothing had to be taken back from it");
        fs::write(stand.path("go on"), "").expect("the folder is writable");
        assert_eq!(blocked.receive().body, pid);
        eventually("it to serve again", || (ask(&address) == pid).then_some(()));
        drop(blocked);
        cluster.end();
    });
}

/// Sends requests on new and on kept connections during `harm`, and returns how many failed and how
/// many were answered. A kept connection is closed when an answer says so.
pub(crate) fn failures_during(
    cluster: &Cluster,
    path: &str,
    harm: impl FnOnce(&dyn Fn(u64)),
) -> Vec<String> {
    let answered = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    let address = cluster.address();
    let go_on = |count: u64| {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to be answered", || {
            (answered.load(Ordering::Relaxed) >= before + count).then_some(())
        });
    };
    let note = |outcome: Result<(), String>| {
        match outcome {
            Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
            Err(why) => failures.lock().expect("no thread panics").push(why),
        }
        // Without it they would keep a small machine from starting workers.
        std::thread::sleep(Duration::from_millis(2));
    };
    let keep = || {
        let mut kept: Option<Client> = None;
        while !over.load(Ordering::Relaxed) {
            let outcome = ask_on(&mut kept, &address, path);
            note(outcome.map_err(|error| format!("kept: {error:?}")));
        }
    };
    let renew = || {
        while !over.load(Ordering::Relaxed) {
            let outcome = Client::get(&address, path).and_then(served);
            note(outcome.map_err(|error| format!("new: {error:?}")));
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(keep), scope.spawn(keep), scope.spawn(renew), scope.spawn(keep)];
        harm(&go_on);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().expect("no client panics"));
    });
    failures.into_inner().expect("no thread panics")
}

fn served(response: Response) -> std::io::Result<()> {
    let is_served = response.status == 200;
    if is_served { Ok(()) } else { Err(std::io::Error::other(format!("{response:?}"))) }
}

fn ask_on(kept: &mut Option<Client>, address: &str, path: &str) -> std::io::Result<()> {
    let mut client = match kept.take() {
        Some(client) => client,
        None => Client::connect(address)?,
    };
    client.try_send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())?;
    let response = client.try_receive(true)?;
    if !response.closes() {
        *kept = Some(client);
    }
    served(response)
}

#[test]
fn no_request_fails_on_new_or_kept_connections_while_workers_are_replaced() {
    // Except clients that asked for a close: they wait for it.
    let keeping = SERVER.replace(
        "response.end",
        "(request.headers.connection === 'close' ? response
            : response.setHeader('Connection', 'keep-alive')).end",
    );
    for script in [SERVER, &keeping] {
        with_each_node(script, |stand| {
            let policies: &[&str] = if script == SERVER { &["rr", "none"] } else { &["rr"] };
            for policy in policies {
                // The grace period is a minute: no worker waits for it.
                let cluster = stand.launch(&format!("--workers 2 --policy {policy}")).start();
                let failed = failures_during(&cluster, "/", |go_on| {
                    go_on(50);
                    cluster.signal(Signal::SIGHUP);
                    cluster.event("reloaded", 0);
                    go_on(50);
                });
                assert_eq!(failed, [""; 0], "{policy}");
                let ended = cluster.stop(Signal::SIGTERM);
                assert_eq!(ended.code, Some(0), "{ended:?}");
                assert!(ended.events.iter().all(|event| event["event"] != "kill"), "{ended:?}");
            }
        });
    }
}

#[test]
fn no_request_fails_if_the_program_closes_idle_connections_itself() {
    // As hapi, stoppable and http-terminator do.
    let closing = "
        const busy = new Map();
        const server = require('http').createServer((request, response) => {
            busy.set(request.socket, true);
            response.on('finish', () => busy.set(request.socket, false));
            setImmediate(() => response.end(String(process.pid)));
        });
        server.on('connection', (socket) => {
            busy.set(socket, false);
            socket.on('close', () => busy.delete(socket));
        });
        server.listen(0, '127.0.0.1');
        process.on('SIGTERM', () => {
            server.close(() => process.exit());
            for (const [socket, isBusy] of busy) if (!isBusy) socket.CLOSE();
        });";
    for close in ["end", "destroy"] {
        with_each_node(&closing.replace("CLOSE", close), |stand| {
            let cluster = stand.launch("--workers 2").start();
            let failed = failures_during(&cluster, "/", |go_on| {
                for before in 0..2 {
                    go_on(50);
                    cluster.signal(Signal::SIGHUP);
                    cluster.event("reloaded", before);
                }
                go_on(50);
            });
            assert_eq!(failed, [""; 0], "{close}");
            let mut idle = Client::to(&cluster.address());
            idle.ask(GET);
            let ended = cluster.stop(Signal::SIGTERM);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            assert!(ended.events.iter().all(|event| event["event"] != "kill"), "{ended:?}");
        });
    }
}

#[test]
fn a_kept_connection_that_says_nothing_does_not_keep_its_worker() {
    let for_ever = SERVER.replace("createServer(", "createServer({ keepAliveTimeout: 600000 }, ");
    with_each_node(&for_ever, |stand| {
        let cluster = stand.launch("--workers 1 --grace 10m").start();
        let mut silent = Client::to(&cluster.address());
        silent.ask(GET);
        cluster.signal(Signal::SIGTERM);
        silent.assert_closed();
        let ended = cluster.wait();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.summary().aborted, 0);
    });
}

/// A program that checks everything the script might have changed.
const CURIOUS: &str = "
    const { spawnSync } = require('child_process');
    const { Worker } = require('worker_threads');
    const look = `JSON.stringify([process.env.NODE_OPTIONS || null,
        Object.keys(process.env).filter((name) => name.startsWith('CLUSTERLB_P')),
        process.execArgv, process.noDeprecation])`;
    const child = () => JSON.parse(String(
        spawnSync(process.execPath, ['-p', look], { env: process.env }).stdout));
    const thread = (then) => new Worker(
        `require('worker_threads').parentPort.postMessage(${look})`, { eval: true })
        .on('message', (text) => then(JSON.parse(text)));
    thread((inThread) => process.send([JSON.parse(eval(look)), child(), inThread,
        process.listenerCount('exit'), process.listenerCount('message'),
        require.main === module]));
    const net = require('net');
    net.createServer((socket) => {
        const own = Object.keys(socket);
        socket.once('data', () => socket.end(own.includes('close') ? 'changed' : 'as it was'));
    }).listen(0, '127.0.0.1');";

#[test]
fn a_program_finds_everything_as_it_would_be() {
    with_each_node(CURIOUS, |stand| {
        let [with, without] = ["", "--preload off"].map(|option| {
            let launch = stand.launch(&format!("--workers 1 {option}"));
            let cluster = launch.variable("NODE_OPTIONS", "--no-deprecation").start();
            let message = cluster.event("message", 0)["message"].clone();
            let mut client = Client::to(&cluster.address());
            client.send(b"hi");
            assert_eq!(client.rest().expect("an answer"), b"as it was");
            drop(client);
            cluster.end();
            message
        });
        assert_eq!(with, without);
        assert_eq!(with[0], serde_json::json!(["--no-deprecation", [], [], true]));
    });
}

#[test]
fn a_program_that_may_not_read_files_runs_without_it() {
    with_each_node(SERVER, |stand| {
        let major = stand.node.version.trim_start_matches('v').split('.').next();
        let word = match major.and_then(|major| major.parse().ok()) {
            None | Some(0..20) => return,
            Some(20..23) => "--experimental-permission",
            Some(_) => "--permission",
        };
        let allowed = format!("--allow-fs-read={}", stand.path(""));
        let program = stand.node.program.display().to_string();
        let words = [&*program, word, &allowed, &stand.path("server.js")];
        let cluster = Launch::new("--dialect node --workers 1").running(&words).start();
        assert!(!ask(&cluster.address()).is_empty());
        cluster.end();
    });
}

#[test]
fn what_workers_load_is_there_as_long_as_they_are() {
    let starter = "
        const { Worker } = require('worker_threads');
        require('http').createServer((request, response) => {
            new Worker('process.exit(7)', { eval: true })
                .on('exit', (code) => response.end(String(code)));
        }).listen(0, '127.0.0.1');";
    with_each_node(starter, |stand| {
        let cluster = stand.launch("--workers 1").start();
        assert_eq!(ask(&cluster.address()), "7", "threads load it, too");
        machine::signal(cluster.pid(), Signal::SIGKILL);
        assert_eq!(cluster.wait().signal, Some(Signal::SIGKILL as i32));
        // No process was left to remove it; it contains only its own text.
        for folder in stand.loaded() {
            let names = fs::read_dir(&folder).expect("it is ours").flatten();
            let names = names.map(|file| file.file_name().to_string_lossy().into_owned());
            let names: Vec<String> = names.collect();
            assert!(names.len() == 1 && names[0].starts_with("preload-"), "{names:?}");
            fs::remove_dir_all(folder).expect("it is ours");
        }
    });
}
