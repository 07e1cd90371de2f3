//! The command with external programs as workers: unmodified Node servers, and programs that speak
//! the native protocol.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use nix::sys::signal::Signal;

use super::load;
use super::script::{SERVER, Script};
use crate::common::{
    BINARY, Client, Cluster, GET, GET_CLOSE, Launch, PATIENCE, eventually, get, has_program,
    machine,
};

fn ask(address: &str) -> String {
    get(address).expect("an answer").body
}

#[test]
fn scripts_of_either_kind_get_their_requests_in_turns() {
    let with_primary = format!(
        "const cluster = require('cluster');
        if (cluster.isPrimary) {{ cluster.fork(); cluster.fork(); }} else {{ {SERVER} }}"
    );
    for text in [SERVER, &with_primary] {
        let Some(script) = Script::new(text) else { return };
        let cluster = script.launch("--workers 2 --credits 64").start();
        let address = cluster.address();
        let pids: Vec<String> = (0..20).map(|_| ask(&address)).collect();
        let told: BTreeSet<String> = cluster.worker_pids().iter().map(u32::to_string).collect();
        assert_eq!(pids.iter().cloned().collect::<BTreeSet<_>>(), told);
        assert_eq!(cluster.family().len(), 2, "only the workers were started");
        let ended = cluster.stop(Signal::SIGTERM);
        ended.assert_in_order();
        ended.summary().assert_clean(20);
        ended.summary().assert_even();
    }
}

#[test]
fn sigterm_lets_open_requests_be_answered() {
    for policy in ["--policy rr", "--policy none"] {
        let Some(script) = Script::new(SERVER) else { return };
        let cluster = script.launch(&format!("--workers 2 {policy}")).start();
        let address = cluster.address();
        let head = b"POST / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
                     Expect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        let mut open: Vec<Client> = (0..4).map(|_| Client::to(&address)).collect();
        for client in &mut open {
            client.send(head);
            // A worker has it by now.
            assert_eq!(client.receive_head().status, 100);
        }
        cluster.signal(Signal::SIGTERM);
        cluster.event("draining", 0);
        for client in &mut open {
            assert_eq!(client.ask(b"12345").status, 200);
        }
        drop(open);
        cluster.wait().assert_in_order();
        assert!(TcpListener::bind(&address).is_ok(), "the port is free again");
    }
}

#[test]
fn what_a_killed_worker_had_not_taken_is_served_by_others() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 2 --hang-after 100ms").start();
    let address = cluster.address();
    let [victim, survivor] = cluster.worker_pids()[..] else { panic!("two workers") };
    machine::suspend(victim);
    let mut clients: Vec<Client> = (0..30).map(|_| Client::to(&address)).collect();
    clients.iter_mut().for_each(|client| client.send(GET_CLOSE));
    cluster.event("hung", 0);
    machine::signal(victim, Signal::SIGKILL);
    let answers: Vec<String> = clients.iter_mut().map(|client| client.receive().body).collect();
    assert!(answers.contains(&survivor.to_string()));
    assert!(!answers.contains(&victim.to_string()), "{answers:?}");
    cluster.event("online", 2);
    eventually("the successor to serve", || {
        let answer = ask(&address);
        (answer != survivor.to_string()).then_some(())
    });
    let summary = cluster.end();
    assert_eq!((summary.dropped, summary.aborted), (0, 0));
    assert!(summary.redispatched > 0);
}

#[test]
fn a_worker_that_leaves_and_does_not_end_is_replaced_after_the_grace_period() {
    let text = SERVER.replace(
        "request.resume()",
        "if (request.url === '/leave') {
            require('cluster').worker.disconnect();
            setInterval(() => {}, 1000);
        }
        request.resume()",
    );
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 1 --grace 1s").start();
    let address = cluster.address();
    let leave = b"GET /leave HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let before = Client::to(&address).ask(leave).body;
    // No other worker serves, so this request waits for the successor.
    assert_ne!(ask(&address), before);
    assert_eq!(cluster.event("exit", 0)["signal"], "SIGKILL");
    let summary = cluster.end();
    // The second may have been on its way to the first worker when that left.
    assert_eq!((summary.accepted, summary.dropped, summary.aborted), (2, 0, 0));
}

#[test]
fn connections_wait_while_the_only_worker_is_replaced() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 1").start();
    let address = cluster.address();
    machine::signal(cluster.worker_pids()[0], Signal::SIGKILL);
    cluster.event("exit", 0);
    assert_eq!(get(&address).expect("the next worker answers").status, 200);
    cluster.end().assert_clean(1);
}

#[test]
fn sighup_replaces_all_workers_without_a_failed_request() {
    for policy in ["--policy rr", "--policy none"] {
        let Some(script) = Script::new(SERVER) else { return };
        let cluster = script.launch(&format!("--workers 2 {policy}")).start();
        let before = cluster.worker_pids();
        let load = load::during(&cluster.address(), |go_on| {
            go_on(50);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", 0);
            go_on(50);
        });
        assert_eq!(load.failed, [0_u16; 0]);
        let after = cluster.worker_pids();
        assert_eq!(after.len(), 2);
        assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
        cluster.stop(Signal::SIGTERM).assert_in_order();
    }
}

#[test]
fn built_in_workers_are_replaced_in_the_same_way() {
    let cluster = Launch::new("--workers 3").start();
    let load = load::during(&cluster.address(), |go_on| {
        for round in 0..2 {
            go_on(50);
            cluster.signal(Signal::SIGHUP);
            cluster.event("reloaded", round);
        }
        go_on(50);
    });
    assert_eq!(load.failed, [0_u16; 0]);
    assert_eq!(cluster.worker_pids().len(), 3);
    assert_eq!(cluster.count("fork"), 9);
    let ended = cluster.stop(Signal::SIGTERM);
    ended.assert_in_order();
    let summary = ended.summary();
    assert_eq!((summary.dropped, summary.aborted), (0, 0));
}

#[test]
fn a_failing_successor_ends_the_reload_without_harm() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 2").start();
    let before = cluster.worker_pids();
    fs::write(script.path("server.js"), "this is no JavaScript").expect("a file");
    let load = load::during(&cluster.address(), |go_on| {
        cluster.signal(Signal::SIGHUP);
        let note = cluster.event("note", 0);
        assert!(note["text"].as_str().is_some_and(|text| text.contains("replacing stopped")));
        go_on(20);
    });
    assert_eq!(load.failed, [0_u16; 0]);
    assert_eq!(cluster.worker_pids(), before);
    // After a repair it works.
    fs::write(script.path("server.js"), SERVER).expect("a file");
    cluster.signal(Signal::SIGHUP);
    cluster.event("reloaded", 0);
    assert_eq!(cluster.worker_pids().len(), 2);
    cluster.end();
}

#[test]
fn several_servers_and_unix_sockets_are_served_by_all() {
    let text = format!("{SERVER} {}", SERVER.replace("0, '127.0.0.1'", "process.env.TEST_SOCKET"));
    for policy in ["--policy rr", "--policy none"] {
        let Some(script) = Script::new(&text) else { return };
        let cluster = script.launch(&format!("--workers 2 {policy}")).servers(2).start();
        let addresses = cluster.addresses();
        assert!(addresses.contains(&format!("unix:{}", script.path("socket"))), "{addresses:?}");
        for address in &addresses {
            let answers: BTreeSet<String> = (0..10).map(|_| ask(address)).collect();
            let told: BTreeSet<String> = cluster.worker_pids().iter().map(u32::to_string).collect();
            assert!(answers.is_subset(&told), "{answers:?} {told:?}");
            assert!(policy.ends_with("none") || answers == told, "{answers:?} {told:?}");
        }
        cluster.stop(Signal::SIGINT).assert_in_order();
    }
}

#[test]
fn every_worker_can_have_its_own_socket() {
    let Some(script) = Script::new(SERVER) else { return };
    let cluster = script.launch("--workers 2 --policy none --accept reuseport").start();
    let address = cluster.address();
    let both = eventually("both workers to answer", || {
        let answers: BTreeSet<String> = (0..32).map(|_| ask(&address)).collect();
        (answers.len() == 2).then_some(answers)
    });
    let told: BTreeSet<String> = cluster.worker_pids().iter().map(u32::to_string).collect();
    assert_eq!(both, told);
    cluster.stop(Signal::SIGTERM).assert_in_order();
}

#[test]
fn datagrams_are_received_by_the_workers() {
    let text = "
        const socket = require('dgram').createSocket('udp4');
        socket.on('message', (message, from) => socket.send('pong', from.port, from.address));
        socket.bind(0, '127.0.0.1');";
    let Some(script) = Script::new(text) else { return };
    let cluster = script.launch("--workers 2").start();
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    client.set_read_timeout(Some(PATIENCE)).expect("a wait can be bounded");
    client.send_to(b"ping", cluster.address()).expect("the loopback takes it");
    let mut answer = [0; 16];
    let count = client.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..count], b"pong");
    cluster.stop(Signal::SIGTERM).assert_in_order();
}

#[test]
fn encrypted_connections_are_handed_over_like_others() {
    let text = SERVER.replace(
        "require('http').createServer(",
        "
        const read = (name) => require('fs').readFileSync(process.env[name]);
        require('https').createServer(
            { key: read('TEST_KEY'), cert: read('TEST_CERTIFICATE') }, ",
    );
    let Some(script) = Script::new(&text) else { return };
    if !script.certify() {
        return;
    }
    let cluster = script.launch("--workers 2 --credits 64").start();
    let client = "
        const [host, port] = process.argv[1].split(':');
        const ask = (left) => left && require('https').get(
            { host, port, rejectUnauthorized: false, agent: false },
            (response) => response.on('data', (data) => console.log(String(data)))
                .on('end', () => ask(left - 1)));
        ask(4);";
    let output = Command::new("node").args(["-e", client, &cluster.address()]).output();
    let output = output.expect("Node starts");
    let answers = String::from_utf8_lossy(&output.stdout);
    let answers: BTreeSet<&str> = answers.lines().collect();
    let told: Vec<String> = cluster.worker_pids().iter().map(u32::to_string).collect();
    assert_eq!(answers, told.iter().map(String::as_str).collect(), "{output:?}");
    cluster.end().assert_clean(4);
}

#[test]
fn a_worker_at_its_limit_is_passed_over() {
    let text = SERVER.replace("require('http')", "const server = require('http')")
        + "server.maxConnections = 1; server.keepAliveTimeout = 0;";
    let text = text.replace(".listen(0, '127.0.0.1');", "; server.listen(0, '127.0.0.1');");
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 2").start();
    let address = cluster.address();
    let (mut first, mut second) = (Client::to(&address), Client::to(&address));
    let answers = [first.ask(GET).body, second.ask(GET).body];
    assert_ne!(answers[0], answers[1]);
    let mut third = Client::to(&address);
    third.send(GET);
    // No worker has room until this client closes.
    drop(first);
    assert_eq!(third.receive().body, answers[0]);
    drop((second, third));
    let summary = cluster.end();
    assert_eq!((summary.accepted, summary.dropped, summary.aborted), (3, 0, 0));
}

#[test]
fn messages_and_output_of_the_workers_are_passed_on() {
    let text = format!("{SERVER} process.send({{ hello: [1, 'ö'] }}); console.log('printed');");
    let Some(script) = Script::new(&text) else { return };
    let cluster = script.launch("--workers 1").start();
    let event = cluster.event("message", 0);
    assert_eq!(event["message"], serde_json::json!({ "hello": [1, "ö"] }));
    let ended = cluster.stop(Signal::SIGTERM);
    ended.assert_in_order();
    assert_eq!(ended.output, "printed\n");
}

#[test]
fn a_busy_port_is_told_by_name() {
    let busy = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = busy.local_addr().expect("it is bound").port();
    let text = SERVER.replace("listen(0", &format!("listen({port}"));
    let Some(script) = Script::new(&text) else { return };
    let ended = script.launch("--workers 1").refused();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let last = ended.errors.lines().last().expect("a reason");
    let reason = format!("cannot bind 127.0.0.1:{port}: Address already in use");
    assert!(last.contains(&reason), "{last}");
}

#[test]
fn waiting_for_a_busy_port_delays_no_other_request() {
    let busy = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = busy.local_addr().expect("it is bound").port();
    let text = format!(
        "
        const net = require('net');
        const ask = (port) => net.createServer()
            .on('error', (error) => process.send(error.code))
            .listen(port, '127.0.0.1', () => process.send('listens'));
        ask({port});
        ask(0);"
    );
    for policy in ["--policy rr", "--policy none", "--policy none --accept reuseport"] {
        let Some(script) = Script::new(&text) else { return };
        // The busy port may become free, so its error comes last, unless the machine was too busy
        // to answer anything until then.
        let has_come_last = || {
            let cluster = script.launch(&format!("--workers 2 {policy}")).start();
            cluster.event("message", 3);
            let all = cluster.worker_pids().into_iter().map(|pid| {
                let heard = cluster.heard();
                let of_it = heard.named("message").filter(|event| event["pid"] == pid);
                of_it.map(|event| event["message"].to_string()).collect::<Vec<_>>()
            });
            let all: Vec<_> = all.collect();
            cluster.stop(Signal::SIGTERM).assert_in_order();
            let sorted = |mut told: Vec<String>| {
                told.sort();
                told
            };
            let both = ["\"EADDRINUSE\"", "\"listens\""];
            assert!(all.iter().all(|told| sorted(told.clone()) == both), "{policy}: {all:?}");
            all.iter().all(|told| told[1] == both[0])
        };
        assert!((0..10).any(|_| has_come_last()), "{policy}");
    }
}

#[test]
fn a_script_that_cannot_run_is_given_up() {
    let Some(script) = Script::new("this is no JavaScript") else { return };
    let ended = script.launch("--workers 2").refused();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains("SyntaxError"), "{ended:?}");
    let last = ended.errors.lines().last().expect("a reason");
    assert!(last.contains("exit code 1 before it served anything"), "{last}");
}

#[test]
fn a_program_that_is_no_worker_is_told_apart() {
    let sleeper = Launch::new("--workers 1 --start-limit 100ms").running(&["sleep", "1000"]);
    sleeper.refused().assert_refusal(1, &["connected to the primary", "--dialect node"]);
    let Some(script) = Script::new("setInterval(() => {}, 1000)") else { return };
    // Long enough for Node to start on a busy machine; otherwise the error is a different one.
    let idle = script.launch("--workers 1 --start-limit 10s").refused();
    idle.assert_refusal(1, &["listens", "--start-limit"]);
}

#[test]
fn programs_built_for_it_are_workers_too() {
    let program = [BINARY, "--listen", "127.0.0.1:0"];
    let cluster = Launch::new("--workers 2 --credits 64").running(&program).start();
    let address = cluster.address();
    (0..10).for_each(|_| get(&address).expect("an answer").assert_hello());
    let summary = cluster.end();
    summary.assert_clean(10);
    summary.assert_even();
}

const PYTHON_WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python_worker.py");

#[test]
fn a_worker_in_another_language_needs_no_library() {
    if !has_program("python3") {
        return;
    }
    let program = ["python3", PYTHON_WORKER, "127.0.0.1:0"];
    let launch = Launch::new("--workers 2 --credits 64 --hang-after 100ms").running(&program);
    let cluster = launch.start();
    let address = cluster.address();
    // Its answer ends with the connection.
    let ask = || {
        let mut client = Client::to(&address);
        client.send(GET_CLOSE);
        let answer = String::from_utf8(client.rest().expect("an answer")).expect("text");
        answer.strip_prefix("HTTP/1.0 200 OK\r\n\r\n").expect("a head").to_owned()
    };
    let told: BTreeSet<String> = cluster.worker_pids().iter().map(u32::to_string).collect();
    assert_eq!((0..20).map(|_| ask()).collect::<BTreeSet<_>>(), told);
    // A worker that hangs is skipped, answers its probe, and gets connections again.
    let [first, second] = cluster.worker_pids()[..] else { panic!("two workers") };
    machine::suspend(first);
    let hung = |cluster: &Cluster| cluster.count("hung") > 0;
    while !hung(&cluster) {
        assert_eq!(ask(), second.to_string());
    }
    machine::signal(first, Signal::SIGCONT);
    cluster.event("recovered", 0);
    eventually("the first to serve again", || (ask() == first.to_string()).then_some(()));
    let ended = cluster.stop(Signal::SIGTERM);
    ended.assert_in_order();
    let summary = ended.summary();
    assert_eq!((summary.dropped, summary.aborted), (0, 0));
    assert!(summary.redispatched > 0);
}

#[test]
fn thirty_lines_are_enough_for_it() {
    let text = fs::read_to_string(PYTHON_WORKER).expect("the example is there");
    assert!(text.lines().all(|line| line.len() <= 100), "no line is long");
    let [_, head, body] = text.splitn(3, "\"\"\"").collect::<Vec<_>>()[..] else {
        panic!("it says what it is")
    };
    assert!(head.contains("PROTOCOL.md"), "{head}");
    let is_code = |line: &&str| !line.is_empty() && !line.starts_with("import ");
    assert_eq!(body.lines().filter(is_code).count(), 30);
}

#[test]
fn it_says_what_it_is_not_made_for() {
    if !has_program("python3") {
        return;
    }
    let program = ["python3", PYTHON_WORKER, "127.0.0.1:0"];
    let ended = Launch::new("--workers 1 --policy none").running(&program).refused();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told = ended.errors.lines().filter(|line| line.contains("without --policy none"));
    assert_eq!(told.count(), 3, "each of its tries says so: {ended:?}");
    assert!(!ended.errors.contains("Traceback"), "{ended:?}");
    let busy = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let busy = busy.local_addr().expect("it is bound").to_string();
    let program = ["python3", PYTHON_WORKER, &busy];
    let ended = Launch::new("--workers 1").running(&program).refused();
    assert!(ended.errors.contains(&format!("not serving {busy}: ")), "{ended:?}");
    assert!(!ended.errors.contains("Traceback"), "{ended:?}");
}
