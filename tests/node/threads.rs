//! Threads and child processes of workers, and of a companion, while the script that these have
//! loaded is gone. With every installed Node.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::nodes::with_each;
use super::script::Script;
use crate::common::{Client, GET, eventually, machine};

/// Starts threads and child processes in every way that passes options or variables on, and reports
/// what became of each. The companion does so once a file tells it to.
const STARTER: &str = r#"
    const { Worker, SHARE_ENV } = require('worker_threads');
    const { execFile, fork, spawn } = require('child_process');
    const cluster = require('cluster');
    const fs = require('fs');
    const path = (name) => `${__dirname}/${name}`;
    const report = `require('worker_threads').parentPort.postMessage('fine')`;
    const nested = `const { Worker, parentPort } = require('worker_threads');
        new Worker("${report.replaceAll("'", "\\'")}", { eval: true })
            .on('message', (text) => parentPort.postMessage(text))
            .on('error', (error) => parentPort.postMessage(error.message));`;
    const outcome = (begin) => new Promise((resolve) => begin(resolve));
    const thread = (text, options) => outcome((done) =>
        new Worker(text, options).on('message', done).on('error', ({ message }) => done(message)));
    const child = (begin) => outcome((done) =>
        begin().on('exit', (code) => done(code === 0 ? 'fine' : `exit ${code}`)));
    const all = () => Promise.all([
        thread(report, { eval: true }),
        thread(nested, { eval: true }),
        thread(nested, { eval: true, env: SHARE_ENV }),
        thread(nested, { eval: true, env: { ...process.env } }),
        thread(nested, { eval: true, env: {} }),
        thread(nested, { eval: true, execArgv: [] }),
        thread(nested, { eval: true, execArgv: ['--no-warnings'] }),
        thread(path('thread.mjs')),
        child(() => fork(path('child.js'))),
        child(() => fork(path('child.js'), { execArgv: ['--no-warnings'], env: {} })),
        child(() => spawn(process.execPath, [path('child.js')])),
        child(() => execFile(process.execPath, [path('child.js')], { env: process.env })),
    ]);
    if (cluster.isPrimary) {
        const look = setInterval(() => {
            if (!fs.existsSync(path('go'))) return;
            clearInterval(look);
            all().then((told) => fs.writeFileSync(path('told.part'), JSON.stringify(told)))
                .then(() => fs.renameSync(path('told.part'), path('told')));
        }, 5);
        fs.writeFileSync(path('ready'), '');
    } else {
        require('http').createServer((request, response) => {
            if (request.url === '/') return response.end();
            all().then((told) => response.end(JSON.stringify(told)));
        }).listen(0, '127.0.0.1');
    }"#;

const THREAD: &str = "
    import { parentPort } from 'worker_threads';
    parentPort.postMessage('fine');";

/// As many outcomes as there are ways.
fn assert_fine(told: &str) {
    let told: Value = told.parse().unwrap_or_else(|_| panic!("{told}"));
    assert_eq!(told, json!(vec!["fine"; 12]));
}

#[test]
fn what_workers_start_does_not_depend_on_a_file() {
    with_each(|node| {
        let script = Script::named("server.js", STARTER);
        fs::write(script.path("thread.mjs"), THREAD).expect("the folder is writable");
        fs::write(script.path("child.js"), "").expect("the folder is writable");
        let folder = script.path("runtime");
        fs::create_dir(&folder).expect("the folder is writable");
        for options in ["", "--policy none", "--companion self"] {
            let launch = script.launch_with(&node.program, &format!("--workers 1 {options}"));
            let cluster = launch.variable("RUNTIME_DIRECTORY", &folder).start();
            let mut kept = Client::to(&cluster.address());
            kept.ask(GET);
            if options.starts_with("--companion") {
                let ready = script.path("ready");
                eventually("a companion", || Path::new(&ready).exists().then_some(()));
            }
            // The primary would write it again.
            machine::suspend(cluster.pid());
            fs::remove_dir_all(format!("{folder}/clusterlb")).expect("the script is in it");
            assert_fine(&kept.ask(b"GET /all HTTP/1.1\r\nHost: test\r\n\r\n").body);
            if options.starts_with("--companion") {
                fs::write(script.path("go"), "").expect("the folder is writable");
                let told = script.path("told");
                eventually("the companion", || Path::new(&told).exists().then_some(()));
                assert_fine(&fs::read_to_string(&told).expect("it is there"));
            }
            machine::signal(cluster.pid(), Signal::SIGCONT);
            drop(kept);
            cluster.end();
        }
    });
}

#[test]
fn a_program_that_does_without_real_paths_loads_the_script() {
    let text = "
        const { Worker } = require('worker_threads');
        require('http').createServer((request, response) => {
            new Worker('require(\"worker_threads\").parentPort.postMessage(\"fine\")',
                { eval: true })
                .on('message', (text) => response.end(`${text} ${process.env.NODE_OPTIONS}`));
        }).listen(0, '127.0.0.1');";
    with_each(|node| {
        let script = Script::named("server.js", text);
        let launch = script.launch_with(&node.program, "--workers 1");
        let cluster = launch.variable("NODE_OPTIONS", "--preserve-symlinks").start();
        let mut client = Client::to(&cluster.address());
        // Only the script removes its own option.
        assert_eq!(client.ask(GET).body, "fine --preserve-symlinks");
        drop(client);
        cluster.end();
    });
}
