//! Node servers behind a balancer that sends the PROXY protocol: they see its clients, without a
//! change in the program. With every installed Node.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use clusterlb::protocol::proxy_protocol::{Header, Malformed, parse};
use fastrand::Rng;
use nix::sys::signal::Signal;

use super::nodes::{Node, with_each};
use super::script::Script;
use crate::common::{
    Client, Cluster, GET, GET_CLOSE, Haproxy, Launch, has_program, headers, without_header,
};

/// One server of each kind. They answer with the addresses of the connection.
const SERVERS: &str = "
    const read = (name) => require('fs').readFileSync(process.env[name]);
    const identity = { key: read('TEST_KEY'), cert: read('TEST_CERTIFICATE') };
    const http2 = require('http2');
    const ends = (socket) => [socket.remoteAddress, socket.remotePort, socket.localAddress,
        socket.localPort].join(' ');
    const answer = (request, response) => response.end(ends(request.socket));
    require('http').createServer(answer).listen(0, '127.0.0.1');
    require('https').createServer(identity, answer).listen(0, '127.0.0.2');
    http2.createServer(answer).listen(0, '127.0.0.3');
    require('net').createServer({ allowHalfOpen: true }, (socket) => {
        socket.on('error', () => {}).write(ends(socket) + ' ');
        socket.pipe(socket);
    }).listen(0, '127.0.0.4');";

/// Sends a header and then speaks TLS and HTTP/2.
const CLIENT: &str = "
    const [header, https, h2c] = process.argv.slice(1);
    const open = (address, then) => {
        const [host, port] = address.split(':');
        const socket = require('net').connect(port, host);
        socket.write(Buffer.from(header, 'hex'), () => then(socket));
    };
    open(https, (socket) => {
        const secure = require('tls').connect({ socket, rejectUnauthorized: false });
        let text = '';
        secure.on('data', (data) => { text += data; });
        secure.on('end', () => console.log('https', text.split('\\r\\n\\r\\n')[1]));
        secure.write('GET / HTTP/1.0\\r\\n\\r\\n');
    });
    open(h2c, (socket) => {
        const options = { createConnection: () => socket };
        const session = require('http2').connect('http://' + h2c, options);
        let text = '';
        const request = session.request();
        request.on('data', (data) => { text += data; });
        request.on('end', () => { console.log('h2c', text); session.close(); });
    });";

fn address(cluster: &Cluster, host: &str) -> String {
    let addresses = cluster.addresses();
    addresses.into_iter().find(|one| one.starts_with(host)).expect("it is served")
}

/// The ends as Node names them.
fn spaced(ends: [&str; 2]) -> String {
    let parts = ends.map(|end| {
        let (host, port) = end.rsplit_once(':').expect("an address with a port");
        format!("{} {port}", host.trim_matches(['[', ']']))
    });
    parts.join(" ")
}

/// Plain connections, however the header is split.
fn speak_plainly(cluster: &Cluster) {
    let (http, net) = (address(cluster, "127.0.0.1:"), address(cluster, "127.0.0.4:"));
    for (header, named) in headers() {
        for piece_bytes in [header.len() + GET.len(), header.len(), 1] {
            let bytes = [&header, GET].concat();
            for at in [&http, &net] {
                let mut client = Client::to(at);
                let own = format!("127.0.0.1:{}", client.port());
                let expected = spaced(named.unwrap_or([&own, at]));
                bytes.chunks(piece_bytes).for_each(|piece| client.send(piece));
                if at == &http {
                    assert_eq!(client.receive().body, expected);
                    assert_eq!(client.ask(GET).body, expected, "one header a connection");
                    continue;
                }
                client.half_close();
                let heard = client.rest().expect("an orderly end");
                let echo = String::from_utf8_lossy(GET);
                assert_eq!(String::from_utf8_lossy(&heard), format!("{expected} {echo}"));
            }
        }
    }
}

fn speak_otherwise(node: &Node, cluster: &Cluster) {
    // One of each version.
    for place in [0, 4] {
        let (header, named) = headers().swap_remove(place);
        let named = named.expect("it names a client");
        let header: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
        let hosts = ["127.0.0.2:", "127.0.0.3:"];
        let output = Command::new(&node.program)
            .args(["-e", CLIENT, &header])
            .args(hosts.map(|host| address(cluster, host)))
            .output()
            .expect("Node starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let expected = ["h2c", "https"].map(|kind| format!("{kind} {}", spaced(named)));
        assert_eq!(lines, expected, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn servers_of_every_kind_see_the_client_that_a_balancer_names() {
    let script = Script::named("server.js", SERVERS);
    if !script.certify() {
        return;
    }
    with_each(|node| {
        for policy in ["rr", "none"] {
            let arguments = format!("--workers 1 --proxy-protocol all --policy {policy}");
            let cluster = script.launch_with(&node.program, &arguments).servers(4).start();
            speak_plainly(&cluster);
            if policy == "rr" {
                speak_otherwise(node, &cluster);
            }
            let all = without_header();
            for bytes in &all {
                let mut client = Client::to(&address(&cluster, "127.0.0.1:"));
                client.send(bytes);
                client.try_half_close();
                // Unread bytes reset the connection.
                assert!(client.rest().unwrap_or_default().is_empty(), "{bytes:?}");
            }
            let summary = cluster.end();
            let refused: u64 = summary.workers.iter().map(|one| one.headers_refused).sum();
            assert_eq!((refused, summary.aborted), (all.len() as u64, 0), "{policy}");
        }
    });
}

const WHO: &str = "
    require('http').createServer((request, response) => response.end(
        request.socket.remoteAddress + ':' + request.socket.remotePort
    )).listen(0, '127.0.0.1');";

#[test]
fn late_headers_hold_nothing_up_and_have_a_limit() {
    let Some(script) = Script::new(WHO) else { return };
    let cluster = script.launch("--workers 1 --proxy-protocol all").start();
    let (header, _) = headers().swap_remove(0);
    let (early, late) = header.split_at(9);
    let begin = || {
        let mut client = Client::to(&cluster.address());
        client.send(early);
        client
    };
    let (mut silent, mut slow, mut prompt) = (begin(), begin(), begin());
    prompt.send(late);
    assert_eq!(prompt.ask(GET_CLOSE).body, "192.0.2.1:4711");
    cluster.signal(Signal::SIGTERM);
    cluster.event("draining", 0);
    slow.send(late);
    assert_eq!(slow.ask(GET_CLOSE).body, "192.0.2.1:4711");
    silent.assert_closed();
    let ended = cluster.wait();
    ended.assert_in_order();
    let summary = ended.summary();
    summary.assert_clean(3);
    assert_eq!(summary.workers[0].headers_refused, 1);
}

#[test]
fn haproxy_s_client_is_the_server_s() {
    let Some(script) = Script::new(WHO).filter(|_| has_program("haproxy")) else { return };
    let cluster = script.launch("--workers 2 --proxy-protocol all").start();
    let (haproxy, ports) = Haproxy::with_headers(&cluster.address(), "");
    for port in ports {
        let mut client = Client::to(&format!("127.0.0.1:{port}"));
        let own = format!("127.0.0.1:{}", client.port());
        assert_eq!(client.ask(GET_CLOSE).body, own);
    }
    drop(haproxy);
    cluster.end();
}

#[test]
fn without_the_preload_nothing_is_served() {
    let Some(script) = Script::new(WHO) else { return };
    let path = script.path("server.js");
    // Node then refuses to load the preload.
    let node = ["node", "--experimental-permission", "--allow-fs-read=*", "--allow-worker", &path];
    let arguments = "--dialect node --workers 1 --proxy-protocol all --restart never";
    let ended = Launch::new(arguments).running(&node).refused();
    assert_ne!(ended.code, Some(0), "{ended:?}");
}

/// Reads headers in hexadecimal, a line each, and prints what is in them.
const READ_LINES: &str = "
    const lines = require('fs').readFileSync(0, 'latin1').split('\\n').slice(0, -1);
    for (const line of lines) {
        const found = parseHeader(Buffer.from(line, 'hex'));
        if (found === undefined) console.log('more');
        else if (found === null) console.log('malformed');
        else if (found.ends === undefined) console.log(found.length, 'local');
        else {
            const ends = found.ends.map(({ address, port }) => `${address} ${port}`);
            console.log(found.length, ends.join(' '));
        }
    }";

/// What Node says, with addresses as numbers, because there are several ways to write them.
fn numbered(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.to_bits().to_string(),
        Ok(IpAddr::V6(ip)) => ip.to_bits().to_string(),
        Err(_) => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn expected(bytes: &[u8]) -> String {
    match parse(bytes) {
        Ok(None) => "more".into(),
        Err(Malformed) => "malformed".into(),
        Ok(Some((Header::Local, length))) => format!("{length} local"),
        Ok(Some((Header::Proxied { peer, local }, length))) => {
            let ends = [peer, local].map(|end| match end.inet() {
                Some(end) => format!("{} {}", end.ip(), end.port()),
                None => "undefined undefined".to_owned(),
            });
            numbered(&format!("{length} {}", ends.join(" ")))
        }
    }
}

/// Headers of the corpus of the fuzz target, cut and changed.
fn inputs() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/proxy_protocol");
    let files = fs::read_dir(corpus).expect("it is a part of the project").flatten();
    let mut all: Vec<Vec<u8>> =
        files.map(|file| fs::read(file.path()).expect("it is readable")).collect();
    all.extend(headers().into_iter().map(|(header, _)| header));
    all.extend(without_header());
    let mut rng = Rng::with_seed(7);
    for header in all.clone() {
        for _ in 0..60 {
            let mut changed = header.clone();
            let place = rng.usize(0..changed.len());
            match rng.u8(0..5) {
                0 => changed.truncate(place),
                1 => changed[place] = rng.u8(..),
                2 => changed[place] ^= 1 << rng.u8(0..8),
                3 => drop(changed.remove(place)),
                _ => changed.insert(place, b" 0:.\r\n"[rng.usize(0..6)]),
            }
            all.push(changed);
        }
    }
    all
}

#[test]
fn the_preload_reads_headers_as_the_library_does() {
    const PARSER: &str = include_str!("../../src/dialect/node/preload/proxied.cjs");
    with_each(|node| {
        let layout = "const LAYOUT = { HEADER_BYTES_MAX: 4096, HEADER_LIMIT_MS: 1 };";
        let script = Script::named("read.js", &format!("{layout}\n{PARSER}\n{READ_LINES}"));
        let inputs = inputs();
        let mut child = Command::new(&node.program)
            .arg(script.path("read.js"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node starts");
        let mut input = child.stdin.take().expect("it is a pipe");
        for bytes in &inputs {
            let line: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(input, "{line}").expect("it reads");
        }
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.lines().count(), inputs.len());
        for (bytes, line) in inputs.iter().zip(text.lines()) {
            assert_eq!(numbered(line), expected(bytes), "{:?}", String::from_utf8_lossy(bytes));
        }
    });
}
