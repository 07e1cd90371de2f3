//! Habits of Node programs: launchers, env files, packages that rely on a primary, and that no
//! sweeper of temporary folders removes clusterlb's script.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::nodes::with_each;
use super::script::{SERVER, Script};
use crate::common::{Cluster, Launch, eventually, get, has_program, machine};

fn ask(address: &str) -> String {
    get(address).expect("an answer").body
}

/// Writes a file, creating its folders.
fn write(path: &str, text: &str) {
    let path = Path::new(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is writable");
    fs::write(path, text).expect("the folder is writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// Prints the messages of a thread.
const THREADS: &str = "
    const { Worker } = require('worker_threads');
    require('http').createServer((request, response) => {
        new Worker('require(\"worker_threads\").parentPort.postMessage(\"fine\")', { eval: true })
            .on('message', (text) => response.end(text))
            .on('error', (error) => response.end(error.message));
    }).listen(0, '127.0.0.1');";

#[test]
fn threads_and_successors_find_the_script_after_a_sweep() {
    with_each(|node| {
        let script = Script::named("server.js", THREADS);
        let folder = script.path("runtime");
        fs::create_dir(&folder).expect("the folder is writable");
        let launch = script.launch_with(&node.program, "--workers 2 --settle 0s");
        let cluster = launch.variable("RUNTIME_DIRECTORY", &folder).start();
        let address = cluster.address();
        let own = format!("{folder}/clusterlb");
        assert_eq!(ask(&address), "fine");
        for sweep in [fs::remove_dir_all::<&str>, |path| {
            fs::read_dir(path)?.try_for_each(|file| fs::remove_file(file?.path()))
        }] {
            // The primary may be faster, and rewrite it during the sweep.
            let _ = sweep(&own);
            eventually("the script to be there again", || fs::read_dir(&own).ok()?.next())
                .expect("a folder that can be read");
            assert_eq!(ask(&address), "fine");
        }
        cluster.signal(Signal::SIGHUP);
        cluster.event("reloaded", 0);
        let _ = fs::remove_dir_all(&own);
        let pid = cluster.worker_pids()[0];
        machine::signal(pid, Signal::SIGKILL);
        eventually("a new worker", || {
            let pids = cluster.worker_pids();
            (pids.len() == 2 && !pids.contains(&pid)).then_some(())
        });
        assert_eq!(ask(&address), "fine");
        let ended = cluster.stop(Signal::SIGTERM);
        let failed = |event: &&Value| event["event"] == "exit" && event["code"] == 1;
        assert_eq!(ended.events.iter().filter(failed).count(), 0);
        assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 0, "left behind");
    });
}

#[test]
fn the_script_does_not_lie_where_another_user_could_replace_it() {
    let Some(script) = Script::new(SERVER) else { return };
    let folder = script.path("open");
    fs::create_dir(&folder).expect("the folder is writable");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("it is ours");
    let launch = script.launch("--workers 1").variable("RUNTIME_DIRECTORY", &folder);
    let cluster = launch.variable("TMPDIR", &folder).start();
    assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 0);
    let pid = cluster.worker_pids()[0];
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("it is ours");
    assert!(String::from_utf8_lossy(&environment).contains("NODE_OPTIONS=--require"));
    cluster.end();
}

/// Whether this Node supports env files.
fn has_env_file(version: &str) -> bool {
    !version.starts_with("v18.")
}

#[test]
fn options_in_a_file_of_variables_count_as_they_do_without_workers() {
    let text = "
        require('http').createServer((request, response) => {
            const { NODE_OPTIONS, GREETING } = process.env;
            const { heap_size_limit: bytes } = require('v8').getHeapStatistics();
            response.end(JSON.stringify([NODE_OPTIONS, GREETING, bytes < 2 ** 29]));
        }).listen(0, '127.0.0.1');";
    with_each(|node| {
        if !has_env_file(&node.version) {
            return;
        }
        let script = Script::named("server.js", text);
        write(&script.path("a.env"), "GREETING='hello'\nNODE_OPTIONS=--max-old-space-size=300\n");
        let program = node.program.display().to_string();
        let file = format!("--env-file={}", script.path("a.env"));
        let launch = Launch::new("--dialect node --workers 1");
        let cluster = launch.running(&[&program, &file, &script.path("server.js")]).start();
        let told = ask(&cluster.address());
        assert_eq!(told, r#"["--max-old-space-size=300","hello",true]"#);
        cluster.end();
    });
}

/// A package that stands in for tsx: its loader leaves a mark, and its command would start a
/// process.
fn tsx(script: &Script) -> String {
    let package = script.path("node_modules/tsx/dist");
    write(&format!("{package}/loader.mjs"), "globalThis.loaded = 'by the loader';");
    write(&format!("{package}/cli.mjs"), "#!/usr/bin/env node\nprocess.exit(9);");
    format!("{package}/cli.mjs")
}

#[test]
fn tsx_becomes_node_with_its_loader() {
    if !has_program("node") {
        return;
    }
    let text = "
        require('http').createServer((request, response) => {
            response.end(`${globalThis.loaded} ${process.argv.slice(2)}`);
        }).listen(0, '127.0.0.1');";
    let script = Script::named("server.js", text);
    let (command, server) = (tsx(&script), script.path("server.js"));
    for words in [
        vec![&*command, &*server, "word"],
        vec!["env", "A=b", &*command, &*server, "word"],
        vec!["node", "--no-warnings", &*command, &*server, "word"],
    ] {
        let cluster = Launch::new("--workers 2").running(&words).start();
        assert_eq!(ask(&cluster.address()), "by the loader word", "{words:?}");
        assert_eq!(cluster.family().len(), 2, "nothing but the workers was started");
        cluster.end();
    }
}

#[test]
fn commands_that_become_node_are_workers_like_node() {
    let Some(script) = Script::new(SERVER) else { return };
    let (server, start) = (script.path("server.js"), script.path("start.sh"));
    write(&start, &format!("#!/bin/sh\nset -e\nexec node {server}\n"));
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).expect("it is ours");
    for words in [&["nice", "node", &server][..], &[&start]] {
        let cluster = Launch::new("--workers 2").running(words).start();
        let served = ask(&cluster.address());
        assert!(cluster.worker_pids().iter().any(|pid| pid.to_string() == served), "{words:?}");
        assert_eq!(cluster.family().len(), 2, "nothing but the workers was started");
        cluster.end();
    }
}

#[test]
fn launchers_are_refused_with_the_line_that_works() {
    if !has_program("node") {
        return;
    }
    let script = Script::named("server.js", SERVER);
    let command = |name: &str| {
        write(&script.path(name), "#!/usr/bin/env node\nprocess.exit(9);");
        script.path(name)
    };
    let refused = |words: &[&str], line: &str| {
        Launch::new("").running(words).refused().assert_refusal(2, &[line]);
    };
    refused(&[&command("nodemon"), "server.js"], "clusterlb -- node server.js");
    refused(&[&command("cross-env"), "A=b", "node", "x.js"], "clusterlb -- env A=b node x.js");
    refused(&["node", "--watch", "x.js"], "clusterlb -- node x.js");
    refused(&["node", &command("env-cmd"), "node", "x.js"], "node --env-file=.env x.js");
}

#[test]
fn log4js_writes_in_each_worker_unless_it_is_told_otherwise() {
    // The part of log4js that decides which process writes.
    let configuration = "
        const listeners = [];
        exports.addPreProcessingListener = (listener) => listeners.push(listener);
        exports.configure = (given) => {
            listeners.forEach((listener) => listener(given));
            return given;
        };";
    let text = "
        const { configure } = require('log4js/lib/configuration');
        const told = [{}, { disableClustering: false }].map(configure);
        require('http').createServer((request, response) => {
            response.end(JSON.stringify(told.map((one) => one.disableClustering ?? null)));
        }).listen(0, '127.0.0.1');";
    with_each(|node| {
        let script = Script::named("server.js", text);
        write(&script.path("node_modules/log4js/lib/configuration.js"), configuration);
        for (preload, told) in [("auto", "[true,false]"), ("off", "[null,false]")] {
            let arguments = format!("--workers 1 --preload {preload}");
            let cluster = script.launch_with(&node.program, &arguments).start();
            assert_eq!(ask(&cluster.address()), told);
            cluster.end();
        }
    });
}

#[test]
fn messages_that_no_process_reads_are_told_once_for_each_kind() {
    let text = "
        for (const topic of ['log4js:message', 'log4js:message', 'other']) process.send({ topic });
        require('http').createServer((request, response) => response.end())
            .listen(0, '127.0.0.1');";
    let Some(script) = Script::new(text) else { return };
    let cluster: Cluster = script.launch("--workers 2").start();
    cluster.event("message", 5);
    let ended = cluster.stop(Signal::SIGTERM);
    let notes = ended.events.iter().filter(|event| event["event"] == "note");
    let notes = notes.filter_map(|note| note["text"].as_str());
    let notes: Vec<&str> = notes.filter(|text| text.contains("no process reads")).collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes.iter().any(|text| text.contains("disableClustering")), "{notes:?}");
}

#[test]
fn a_program_that_bypasses_the_primary_is_told_so() {
    let text = "
        require('net').createServer().listen({ port: 0, host: '127.0.0.1', exclusive: true });";
    let Some(script) = Script::new(text) else { return };
    let ended = script.launch("--workers 1 --start-limit 6s").start_unready().wait();
    ended.assert_refusal(1, &["listens on 127.0.0.1:", "exclusive: true"]);
}

#[test]
fn a_sticky_package_that_waits_for_a_primary_is_named() {
    let text = "
        require('@socket.io/sticky');
        setInterval(() => {}, 1000);";
    let Some(script) = Script::new(text) else { return };
    write(&script.path("node_modules/@socket.io/sticky/index.js"), "");
    let ended = script.launch("--workers 1 --start-limit 6s").start_unready().wait();
    ended.assert_refusal(1, &["@socket.io/sticky", "--policy sticky"]);
}
