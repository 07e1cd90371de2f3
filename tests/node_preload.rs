//! What Node workers report by the script that they load, and how they let clients of kept
//! connections go. With every Node that there is.

mod common;
#[path = "node/nodes.rs"]
mod nodes;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Client, Cluster, GET, Launch, eventually, get, machine};
use nix::sys::signal::Signal;
use nodes::nodes;
use tempfile::TempDir;

/// It tells its process id.
const SERVER: &str = "
    require('http').createServer((request, response) => response.end(String(process.pid)))
        .listen(0, '127.0.0.1');";

/// Runs a test with each Node, and with a folder that has the script in it.
fn with_each_node(script: &str, test: impl Fn(&dyn Fn(&str) -> Launch)) {
    for node in nodes() {
        let folder: TempDir = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server.js");
        fs::write(&path, script).expect("the folder is writable");
        let (program, path) = (node.program.display().to_string(), path.display().to_string());
        // What is loaded lies there, so that it can be seen to be gone.
        let temporary = folder.path().join("temporary files");
        fs::create_dir(&temporary).expect("the folder is writable");
        let launch = |arguments: &str| {
            let launch = Launch::new(&format!("--dialect node {arguments}"));
            launch.running(&[&program, &path]).variable("TMPDIR", &temporary.display().to_string())
        };
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&launch)));
        if let Err(panic) = ran {
            eprintln!("failed with Node {}", node.version);
            std::panic::resume_unwind(panic);
        }
        let left = fs::read_dir(&temporary).expect("it is there").count();
        assert_eq!(left, 0, "what was loaded is left behind");
    }
}

fn ask(address: &str) -> String {
    get(address).expect("an answer").body
}

/// Connections that one worker holds, all others having closed theirs; and that worker.
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
    with_each_node(SERVER, |launch| {
        for policy in ["rr", "least"] {
            let arguments = format!("--workers 2 --slow-start 0s --policy {policy} --credits 64");
            let cluster = launch(&format!("{arguments} --overload-factor 1")).start();
            let address = cluster.address();
            let (busy, held) = lopsided(&address);
            // The others' ends are reported before long.
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
    with_each_node(SERVER, |launch| {
        let arguments = "--workers 2 --slow-start 0s --credits 64 --overload-factor 1";
        let cluster = launch(&format!("{arguments} --preload off")).start();
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
    with_each_node(SERVER, |launch| {
        let cluster = launch("--workers 2 --max-inflight 1").start();
        let address = cluster.address();
        let mut first = Client::to(&address);
        let mut second = Client::to(&address);
        let pids = [first.ask(GET).body, second.ask(GET).body];
        assert_ne!(pids[0], pids[1]);
        let mut third = Client::to(&address);
        third.send(GET);
        // Whoever has room says so without being asked.
        drop(second);
        assert_eq!(third.receive().body, pids[1]);
        drop((first, third));
        cluster.end().assert_clean(3);
    });
}

#[test]
fn a_worker_whose_loop_stands_still_gets_nothing_meanwhile() {
    let script = SERVER.replace(
        "response.end",
        "{ while (request.url === '/block'
            && !require('fs').existsSync(`${__dirname}/go on`)); response.end",
    ) + "";
    let script = script.replace("String(process.pid)))", "String(process.pid)); })");
    for node in nodes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server.js");
        fs::write(&path, &script).expect("the folder is writable");
        let words = [&*node.program.display().to_string(), &path.display().to_string()];
        let arguments = "--dialect node --workers 2 --hang-after 100ms";
        let cluster = Launch::new(arguments).running(&words).start();
        let address = cluster.address();
        let mut blocked = Client::to(&address);
        let pid = blocked.ask(GET).body;
        blocked.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n");
        // Nobody has to be given to it to find out.
        eventually("it to be passed over", || {
            (0..10).all(|_| ask(&address) != pid).then_some(())
        });
        fs::write(folder.path().join("go on"), "").expect("the folder is writable");
        assert_eq!(blocked.receive().body, pid);
        eventually("it to serve again", || (ask(&address) == pid).then_some(()));
        drop(blocked);
        cluster.end();
    }
}

/// Asks on new and on kept connections while something is done, and tells how many requests failed
/// and how many were answered. A kept connection is given up when an answer says so.
fn failures_during(cluster: &Cluster, harm: impl FnOnce(&dyn Fn(u64))) -> Vec<String> {
    let answered = AtomicU64::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    let address = cluster.address();
    let go_on = |count: u64| {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to be answered", || {
            (answered.load(Ordering::Relaxed) >= before + count).then_some(())
        });
    };
    let note = |outcome: Result<(), String>| match outcome {
        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
        Err(why) => failures.lock().expect("nobody panics").push(why),
    };
    let keep = || {
        let mut kept: Option<Client> = None;
        while !over.load(Ordering::Relaxed) {
            let outcome = ask_on(&mut kept, &address).map_err(|error| format!("kept: {error:?}"));
            note(outcome);
        }
    };
    let renew = || {
        while !over.load(Ordering::Relaxed) {
            note(get(&address).map(drop).map_err(|error| format!("new: {error:?}")));
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(keep), scope.spawn(keep), scope.spawn(renew), scope.spawn(keep)];
        harm(&go_on);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().expect("no client panics"));
    });
    failures.into_inner().expect("nobody panics")
}

fn ask_on(kept: &mut Option<Client>, address: &str) -> std::io::Result<()> {
    let mut client = match kept.take() {
        Some(client) => client,
        None => Client::connect(address)?,
    };
    client.try_send(GET)?;
    let response = client.try_receive(true)?;
    if !response.closes() {
        *kept = Some(client);
    }
    Ok(())
}

#[test]
fn no_request_fails_on_new_or_kept_connections_while_workers_are_replaced() {
    let keeping = SERVER.replace(
        "response.end",
        "response.setHeader('Connection', 'keep-alive').end",
    );
    for script in [SERVER, &keeping] {
        with_each_node(script, |launch| {
            let policies: &[&str] = if script == SERVER { &["rr", "none"] } else { &["rr"] };
            for policy in policies {
                // The grace period is a minute: nobody waits for it.
                let cluster = launch(&format!("--workers 2 --policy {policy}")).start();
                let failed = failures_during(&cluster, |go_on| {
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
fn a_kept_connection_that_says_nothing_is_closed_and_nobody_waits_for_the_grace_period() {
    let script = SERVER.replace(".listen", ".on('connection', () => {}).listen");
    let script = format!("require('http').Server.prototype.keepAliveTimeout = 0;{script}")
        .replace("process.pid)))", "process.pid))).setTimeout(0)");
    with_each_node(&script, |launch| {
        let cluster = launch("--workers 1 --grace 10m").start();
        let mut silent = Client::to(&cluster.address());
        silent.ask(GET);
        let mut asking = Client::to(&cluster.address());
        asking.ask(GET);
        cluster.signal(Signal::SIGTERM);
        cluster.event("draining", 0);
        silent.assert_closed();
        let ended = cluster.wait();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.summary().aborted, 0);
        drop(asking);
    });
}

/// A program that looks at everything that might have been changed around it.
const CURIOUS: &str = "
    const { spawnSync } = require('child_process');
    const { Worker } = require('worker_threads');
    const look = `JSON.stringify([process.env.NODE_OPTIONS || null,
        Object.keys(process.env).filter((name) => name.startsWith('CLUSTERLB_P')),
        process.execArgv, typeof gc])`;
    const child = () => JSON.parse(String(
        spawnSync(process.execPath, ['-p', look], { env: process.env }).stdout));
    const thread = (then) => new Worker(
        `require('worker_threads').parentPort.postMessage(${look})`, { eval: true })
        .on('message', (text) => then(JSON.parse(text)));
    thread((inThread) => process.send([eval(look), child(), inThread,
        process.listenerCount('exit'), process.listenerCount('message'),
        require.main === module]));
    const net = require('net');
    net.createServer((socket) => {
        const own = Object.keys(socket);
        socket.once('data', () => socket.end(own.includes('close') ? 'changed' : 'as it was'));
    }).listen(0, '127.0.0.1');";

#[test]
fn a_program_finds_its_environment_as_it_would_be() {
    let plain = |launch: &dyn Fn(&str) -> Launch, arguments: &str| {
        let cluster = launch(arguments).variable("NODE_OPTIONS", "--expose-gc").start_told();
        let message = cluster.event("message", 0)["message"].clone();
        let mut client = Client::to(&cluster.address());
        client.send(b"hi");
        assert_eq!(client.rest().expect("an answer"), b"as it was");
        cluster.end();
        message
    };
    with_each_node(CURIOUS, |launch| {
        let with = plain(launch, "--workers 1");
        let without = plain(launch, "--workers 1 --preload off");
        assert_eq!(with, without);
        assert_eq!(with[1], serde_json::json!(["--expose-gc", [], [], "function"]));
    });
}

#[test]
fn a_program_that_may_not_read_files_runs_without_it() {
    for node in nodes() {
        let major = node.version.trim_start_matches('v').split('.').next().and_then(|n| n.parse().ok());
        let word = match major.unwrap_or(0) {
            0..20 => continue,
            20..23 => "--experimental-permission",
            _ => "--permission",
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server.js");
        fs::write(&path, SERVER).expect("the folder is writable");
        let allowed = format!("--allow-fs-read={}", folder.path().display());
        let words = [&*node.program.display().to_string(), word, &allowed, &path.display().to_string()];
        let launch = Launch::new("--dialect node --workers 1").running(&words);
        let cluster = launch.start();
        assert!(!ask(&cluster.address()).is_empty());
        cluster.end();
    }
}

#[test]
fn what_workers_load_stays_as_long_as_they_do_and_no_longer() {
    let starts = "
        const { Worker } = require('worker_threads');
        require('http').createServer((request, response) => {
            new Worker('process.exit(0)', { eval: true })
                .on('exit', (code) => response.end(String(code)));
        }).listen(0, '127.0.0.1');";
    with_each_node(starts, |launch| {
        let cluster = launch("--workers 1").start();
        assert_eq!(ask(&cluster.address()), "0", "threads load it, too");
        let pid = cluster.pid();
        machine::signal(pid, Signal::SIGKILL);
        let ended = cluster.wait();
        assert_eq!(ended.signal, Some(Signal::SIGKILL as i32));
        // Nobody was there to remove it; nothing but its own text is left.
        let left = Path::new(&launch("").value("TMPDIR")).to_owned();
        for folder in fs::read_dir(&left).expect("it is there").flatten() {
            let files: Vec<_> = fs::read_dir(folder.path()).expect("readable").flatten().collect();
            assert_eq!(files.len(), 1);
            fs::remove_dir_all(folder.path()).expect("it is ours");
        }
    });
}
