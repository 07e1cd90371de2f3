//! A program's own primary branch beside the workers: what it sees of them, what it can do to them,
//! and that it blocks nothing.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Client, Cluster, Launch, eventually, machine};
use crate::nodes::{Node, with_each};
use crate::script::Script;

/// A program for Node's own primary. Its primary prints events on standard output, and sends every
/// worker message to all workers; they print what they get.
const BROADCAST: &str = "
    const cluster = require('cluster');
    const say = (...words) => process.stdout.write(`${words.join(' ')}\\n`);
    if (cluster.isPrimary) {
        for (let count = 0; count < (process.env.TEST_FORKS ?? 2); count += 1) {
            const worker = cluster.fork();
            worker.on('message', ({ asked }) => asked && say('own message of', worker.process.pid));
        }
        for (const name of ['fork', 'online', 'listening', 'disconnect', 'exit'])
            cluster.on(name, (worker, ...rest) =>
                say(name, worker.process.pid, worker.id, JSON.stringify(rest)));
        cluster.on('exit', () => cluster.fork());
        cluster.on('message', (worker, message) => {
            if (message.asked === '/kill') worker.kill('SIGKILL');
            if (message.asked === '/disconnect') worker.disconnect();
            if (message.asked === '/crash') throw new Error('on purpose');
            if (message.asked === '/sleep') for (;;);
            if (message.last) return say('last of', worker.process.pid);
            for (const other of Object.values(cluster.workers)) other.send({ from: worker.id });
        });
        process.on('SIGTERM', () => say('primary ends', Object.keys(cluster.workers).length));
        say('primary', cluster.isWorker, process.connected, process.env.NODE_OPTIONS,
            process.argv.slice(2));
    } else {
        process.on('message', ({ from }) => say('heard', process.pid, from));
        process.on('SIGTERM', () => process.send({ last: true }));
        require('http').createServer((request, response) => {
            const flood = request.url === '/flood' ? 20000 : 1;
            response.end(String(process.pid), () => {
                for (let count = 0; count < flood; count += 1) process.send({ asked: request.url });
            });
        }).listen(0, '127.0.0.1');
    }";

fn start(node: &Node, text: &str, arguments: &str) -> (Script, Cluster) {
    let script = Script::named("server.js", text);
    let arguments = format!("--companion self {arguments}");
    let cluster = script.launch_with(&node.program, &arguments).start();
    (script, cluster)
}

/// Waits for a line on standard output that begins like this, after `before` others.
fn line(cluster: &Cluster, beginning: &str, before: usize) -> String {
    cluster.until(beginning, |heard| {
        let mut lines = heard.output.lines().filter(|line| line.starts_with(beginning));
        lines.nth(before).map(str::to_owned)
    })
}

/// Waits for a note that contains this.
fn note(cluster: &Cluster, part: &str, before: usize) -> String {
    cluster.until(part, |heard| {
        let texts = heard.named("note").filter_map(|note| note["text"].as_str());
        texts.filter(|text| text.contains(part)).nth(before).map(str::to_owned)
    })
}

fn companion_pid(cluster: &Cluster, before: usize) -> Pid {
    let note = note(cluster, "the companion runs, pid ", before);
    let pid = note.rsplit(' ').next().and_then(|pid| pid.parse().ok());
    Pid::from_raw(pid.unwrap_or_else(|| panic!("{note}")))
}

fn ask(cluster: &Cluster, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    Client::to(&cluster.address()).ask(request.as_bytes()).body
}

#[test]
fn a_primary_branch_hears_of_the_workers_and_speaks_to_them() {
    with_each(|node| {
        let (_script, cluster) = start(node, BROADCAST, "--workers 2");
        assert_eq!(line(&cluster, "primary ", 0), "primary false   ");
        let workers = cluster.workers();
        for worker in &workers {
            let (id, pid) = (worker.id, worker.pid);
            for name in ["fork", "online", "listening"] {
                let told = line(&cluster, &format!("{name} {pid} {id} ["), 0);
                assert_eq!(told.contains("\"addressType\":4"), name == "listening", "{told}");
            }
        }
        let asked = ask(&cluster, "/");
        line(&cluster, &format!("own message of {asked}"), 0);
        for worker in &workers {
            line(&cluster, &format!("heard {}", worker.pid), 0);
        }
        let ended = cluster.stop(Signal::SIGTERM);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        for worker in workers {
            // The last messages of a worker arrive before its end.
            let place =
                |line: String| ended.output.find(&line).unwrap_or_else(|| panic!("{ended:?}"));
            let last = place(format!("last of {}\n", worker.pid));
            assert!(last < place(format!("exit {} {}", worker.pid, worker.id)), "{ended:?}");
        }
        assert!(ended.output.contains("primary ends 0\n"), "{ended:?}");
    });
}

#[test]
fn a_worker_that_ends_is_replaced_once_and_by_the_one_that_fork_returns() {
    let Some(node) = crate::nodes::nodes().into_iter().next() else { return };
    let (_script, cluster) = start(&node, BROADCAST, "--workers 2");
    line(&cluster, "listening", 1);
    for (path, ending) in [("/kill", "[null,\"SIGKILL\"]"), ("/disconnect", "[0,null]")] {
        let before = cluster.workers();
        let pid = ask(&cluster, path);
        let told = line(&cluster, &format!("exit {pid} "), 0);
        assert!(told.ends_with(ending), "{told}");
        let new = cluster.until("another worker", |heard| {
            let mut forks = heard.named("fork").filter_map(|fork| fork["id"].as_u64());
            forks.find(|id| before.iter().all(|worker| worker.id < *id))
        });
        let pid = cluster.until("its process", |heard| {
            let fork = heard.named("fork").find(|fork| fork["id"] == new)?;
            fork["pid"].as_u64()
        });
        line(&cluster, &format!("listening {pid} {new} "), 0);
        ask(&cluster, "/");
        line(&cluster, &format!("heard {pid}"), 0);
    }
    let before = cluster.count("reloaded");
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", before);
    assert_eq!((cluster.worker_pids().len(), cluster.count("scaled")), (2, 0));
    cluster.end();
}

#[test]
fn forks_beyond_the_workers_that_there_are_add_some() {
    let Some(node) = crate::nodes::nodes().into_iter().next() else { return };
    let script = Script::named("server.js", BROADCAST);
    let launch = script.launch_with(&node.program, "--companion self --workers 1");
    let cluster = launch.variable("TEST_FORKS", "3").start();
    line(&cluster, "listening", 2);
    let workers = cluster.workers();
    assert_eq!(workers.len(), 3);
    ask(&cluster, "/");
    for worker in workers {
        line(&cluster, &format!("heard {}", worker.pid), 0);
    }
    cluster.end();
}

#[test]
fn a_companion_that_dies_is_started_again_and_finds_the_workers() {
    let Some(node) = crate::nodes::nodes().into_iter().next() else { return };
    let (_script, cluster) = start(&node, BROADCAST, "--workers 2");
    let first = companion_pid(&cluster, 0);
    line(&cluster, "listening", 1);
    ask(&cluster, "/crash");
    assert!(note(&cluster, "the companion ended", 0).contains("with code 1"));
    let second = companion_pid(&cluster, 1);
    assert_ne!(first, second);
    line(&cluster, "listening", 3);
    kill(second, Signal::SIGKILL).expect("it is alive");
    assert!(note(&cluster, "the companion ended", 1).contains("by SIGKILL"));
    let asked = ask(&cluster, "/");
    line(&cluster, &format!("own message of {asked}"), 0);
    assert_eq!((cluster.count("exit"), cluster.worker_pids().len()), (0, 2));
    cluster.end();
}

#[test]
fn a_companion_that_ends_with_all_others_is_not_started_again() {
    let text = "
        const cluster = require('cluster');
        const fs = require('fs');
        if (cluster.isPrimary) {
            if (process.env.TEST_LISTENS)
                process.on('SIGTERM', () => process.stdout.write('told of the end\\n'));
            cluster.on('online', () => {});
            fs.writeFileSync(`${__dirname}/ready`, '');
        } else {
            require('http').createServer((request, response) => {
                fs.writeFileSync(`${__dirname}/asked`, '');
                const look = setInterval(() => {
                    if (!fs.existsSync(`${__dirname}/go`)) return;
                    clearInterval(look);
                    response.end('finished');
                }, 5);
            }).listen(0, '127.0.0.1');
        }";
    let Some(node) = crate::nodes::nodes().into_iter().next() else { return };
    for listens in ["", "1"] {
        let script = Script::named("server.js", text);
        let launch = script.launch_with(&node.program, "--companion self --workers 1");
        let cluster = launch.variable("TEST_LISTENS", listens).start();
        let companion = companion_pid(&cluster, 0);
        let is_there = |name: &str| {
            let path = script.path(name);
            eventually(name, || fs::exists(&path).is_ok_and(|is_there| is_there).then_some(()));
        };
        is_there("ready");
        let mut client = Client::to(&cluster.address());
        client.send(crate::common::GET_CLOSE);
        is_there("asked");
        for pid in cluster.worker_pids().into_iter().chain([cluster.pid()]) {
            machine::signal(pid, Signal::SIGTERM);
        }
        kill(companion, Signal::SIGTERM).expect("it is alive");
        match listens {
            "" => drop(note(&cluster, "the companion ended by SIGTERM", 0)),
            _ => drop(line(&cluster, "told of the end", 0)),
        }
        // Longer than it would take to start another one.
        std::thread::sleep(std::time::Duration::from_millis(200));
        fs::write(script.path("go"), "").expect("the folder is writable");
        assert_eq!(client.receive().body, "finished");
        let ended = cluster.wait();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let text = format!("{ended:?}");
        assert_eq!(text.matches("the companion runs").count(), 1, "{text}");
        let times = usize::from(!listens.is_empty());
        assert_eq!(ended.output.matches("told of the end").count(), times, "{text}");
    }
}

#[test]
fn a_companion_that_does_not_read_blocks_no_worker() {
    let Some(node) = crate::nodes::nodes().into_iter().next() else { return };
    let (_script, cluster) = start(&node, BROADCAST, "--workers 2");
    line(&cluster, "listening", 1);
    ask(&cluster, "/sleep");
    for _ in 0..2 {
        ask(&cluster, "/flood");
    }
    note(&cluster, "the companion does not read", 0);
    for _ in 0..20 {
        ask(&cluster, "/");
    }
    let ended = cluster.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lost = |event: &serde_json::Value| {
        event["text"].as_str().is_some_and(|text| text.ends_with("not reached the companion"))
    };
    assert!(ended.events.iter().any(lost), "what was dropped is counted: {ended:?}");
}

#[test]
fn a_companion_that_computes_does_not_outlive_a_killed_primary() {
    let Some(node) = crate::nodes::nodes().into_iter().next() else { return };
    let (_script, cluster) = start(&node, BROADCAST, "--workers 1");
    let companion = companion_pid(&cluster, 0);
    line(&cluster, "listening", 0);
    ask(&cluster, "/sleep");
    machine::signal(cluster.pid(), Signal::SIGKILL);
    eventually("the companion to be gone", || kill(companion, None).is_err().then_some(()));
    cluster.wait();
}

#[test]
fn a_separate_primary_file_may_be_a_module() {
    with_each(|node| {
        let script = Script::named(
            "server.js",
            "process.on('message', (message) => process.stdout.write(`${message}\\n`));
             require('http').createServer((request, response) => {
                 process.send(request.url);
                 response.end();
             }).listen(0, '127.0.0.1');",
        );
        let text = "
            import cluster, { fork } from 'node:cluster';
            await new Promise((resolve) => setTimeout(resolve, 50));
            const worker = fork();
            cluster.on('message', (sender, message) =>
                worker.send(`${message} of ${sender.id} ${process.argv.slice(2)}`));";
        let primary = script.path("primary.mjs");
        fs::write(&primary, text).expect("a file");
        let node = node.program.to_str().expect("a path in UTF-8");
        let arguments = format!("--workers 1 --companion {primary}");
        let launch = Launch::new(&arguments).running(&[node, &script.path("server.js"), "--a"]);
        let cluster = launch.start();
        ask(&cluster, "/hello");
        assert_eq!(line(&cluster, "/hello", 0), "/hello of 1 --a");
        cluster.end();
    });
}

#[test]
fn a_companion_that_cannot_start_harms_no_one() {
    let Some(node) = crate::nodes::nodes().into_iter().next() else { return };
    let text = "
        if (require('cluster').isPrimary) throw new Error('no');
        require('http').createServer((_, response) => response.end('served'))
            .listen(0, '127.0.0.1');";
    let (_script, cluster) = start(&node, text, "--workers 1");
    note(&cluster, "the companion ended with code 1; another one is started", 2);
    assert_eq!(ask(&cluster, "/"), "served");
    cluster.end();
}

/// A program whose primary sends each message back. Both sides print what arrives.
const ECHO: &str = "
    const cluster = require('cluster');
    const { inspect } = require('util');
    const { TEST_ADVANCED: advanced } = process.env;
    // As JSON it is longer than what the primary parses.
    const text = 'x'.repeat(advanced ? 3 : 11e5);
    const said = advanced
        ? new Map([[1, { at: new Date(5), big: 7n, bytes: Buffer.from([0, 255]), text }]])
        : { list: [null, 'y'], text };
    const options = { depth: 4, breakLength: Infinity, maxStringLength: 1 };
    const show = (value) => process.stdout.write(`${inspect(value, options)}\n`);
    if (cluster.isPrimary) {
        cluster.on('message', (worker, message) => {
            show(message);
            worker.send(message);
        });
        cluster.setupPrimary({ silent: true });
        cluster.fork().process.stdout.on('data', () => {});
    } else {
        process.on('message', show);
        require('http').createServer().listen(0, '127.0.0.1', () => process.send(said));
    }";

#[test]
fn messages_of_either_serialization_arrive_as_they_were_sent() {
    with_each(|node| {
        for (advanced, serialization, shown) in [
            ("", "json", "{ list: [ null, 'y' ], text: 'x'... 1099999 more characters }"),
            (
                "1",
                "advanced",
                "Map(1) { 1 => { at: 1970-01-01T00:00:00.005Z, big: 7n, bytes: <Buffer 00 ff>, \
                 text: 'x'... 2 more characters } }",
            ),
        ] {
            let script = Script::named("server.js", ECHO);
            let arguments = format!("--companion self --workers 1 --serialization {serialization}");
            let launch = script.launch_with(&node.program, &arguments);
            let cluster = launch.variable("TEST_ADVANCED", advanced).start();
            // In the primary, and back in the worker.
            line(&cluster, shown, 1);
            cluster.end();
        }
    });
}
