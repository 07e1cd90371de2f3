//! Runs every example as its header says, talks to it, and ends it.
//!
//! An example's workers write to the same pipe as their primary: the pipe ends with the last
//! process.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::PATIENCE;

/// Time limit of an answer to a datagram before it is sent again.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(2);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// A running example.
struct Example {
    child: Child,
    lines: Receiver<String>,
}

impl Example {
    /// Starts an example, with arguments.
    fn start(name: &str, arguments: &[&str]) -> Self {
        let own = std::env::current_exe().expect("this program has a file");
        let folder = own.parent().and_then(|deps| deps.parent()).expect("it is in target/*/deps");
        let file = folder.join("examples").join(name);
        assert!(file.exists(), "{} is not built: run `cargo build --examples`", file.display());
        let mut child = Command::new(file)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example can be executed");
        let output = child.stdout.take().expect("it is a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // A failed test reads no more.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Waits for a line in which `look` finds something.
    fn until<T>(&self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => match look(&line) {
                    Some(found) => return found,
                    None => seen.push(line),
                },
                Err(error) => panic!("waited for {what} ({error}) and saw {seen:#?}"),
            }
        }
    }

    /// Waits for a line that contains this text.
    fn says(&self, text: &str) {
        self.until(text, |line| line.contains(text).then_some(()));
    }

    /// Waits for a line with each of these, in any order: a busy machine can take so long to end a
    /// process that the next line comes first.
    fn says_each(&self, texts: &[&str]) {
        let left = RefCell::new(texts.to_vec());
        self.until(&texts.join(", "), |line| {
            left.borrow_mut().retain(|text| !line.contains(text));
            left.borrow().is_empty().then_some(())
        });
    }

    /// Waits until `count` workers have printed their address in a line with this word.
    fn addresses(&self, word: &str, count: usize) -> String {
        let told = |line: &str| line.split_once(word).map(|(_, address)| address.trim().to_owned());
        let addresses: BTreeSet<_> = (0..count).map(|_| self.until(word, told)).collect();
        assert_eq!(addresses.len(), 1, "workers share an address: {addresses:?}");
        addresses.into_iter().next().expect("one")
    }

    /// Waits for the end of all processes, and returns the unread lines.
    fn rest(&self) -> Vec<String> {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("a silent process is left"),
            }
        }
    }

    /// Kills the primary, and waits until its workers have ended.
    fn kill(mut self) {
        self.child.kill().expect("it is this test's own");
        self.rest();
    }

    /// Waits until it has ended, and returns its output.
    fn end(mut self) -> Vec<String> {
        let rest = self.rest();
        assert!(self.child.wait().expect("it has ended").success(), "{rest:#?}");
        rest
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Both are harmless for a process that has ended, as after every successful test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a worker listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    stream
}

/// Sends these bytes, and returns what arrives until the connection ends.
fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(bytes).expect("the connection is open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, or none");
    answer
}

fn get_hello(address: &str) {
    let answer = exchange(address, REQUEST);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    assert!(answer.ends_with("\r\n\r\nhello world\n"), "{answer:?}");
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn hello_is_said_on_every_core() {
    let example = Example::start("hello", &["127.0.0.1:0"]);
    example.says("is running");
    let address = example.addresses(" serves ", cores());
    for _ in 0..2 * cores() {
        get_hello(&address);
    }
    example.kill();
}

#[test]
fn messages_count_requests() {
    let example = Example::start("messages", &["127.0.0.1:0"]);
    let address = example.addresses(" serves ", cores());
    for _ in 0..5 {
        get_hello(&address);
    }
    example.says("requests: 5");
    example.kill();
}

#[test]
fn graceful_lets_connections_say_goodbye() {
    let mut example = Example::start("graceful", &["127.0.0.1:0", "3600"]);
    let address = example.addresses(" serves ", 2);
    let mut client = connect(&address);
    let mut lines = BufReader::new(client.try_clone().expect("a descriptor")).lines();
    let mut echo = || {
        writeln!(client, "hello").expect("the connection is open");
        lines.next().expect("an echo").expect("a line")
    };
    assert_eq!(echo(), "hello");
    // The end of the input counts as Enter.
    drop(example.child.stdin.take());
    while echo() != "hello, and goodbye" {}
    let said = example.end();
    assert!(said.iter().any(|line| line == "all workers have gone"), "{said:#?}");
    assert!(!said.iter().any(|line| line.contains("too long")), "{said:#?}");
}

#[test]
fn graceful_cuts_slow_connections() {
    let mut example = Example::start("graceful", &["127.0.0.1:0", "0"]);
    let address = example.addresses(" serves ", 2);
    let mut client = connect(&address);
    writeln!(client, "hello").expect("the connection is open");
    let mut echo = [0; 6];
    client.read_exact(&mut echo).expect("an echo");
    let mut input = example.child.stdin.take().expect("it is a pipe");
    input.write_all(b"\n").expect("it reads");
    let said = example.end();
    assert!(said.iter().any(|line| line.contains("takes too long")), "{said:#?}");
    assert!(said.iter().any(|line| line == "all workers have gone"), "{said:#?}");
    // Cut, by a reset or an end.
    assert!(matches!(client.read(&mut echo), Ok(0) | Err(_)));
}

#[test]
fn respawn_replaces_workers_that_die_but_not_those_that_leave() {
    let example = Example::start("respawn", &["127.0.0.1:0"]);
    let address = example.addresses(" serves ", 2);
    assert_eq!(exchange(&address, b"crash\n"), "");
    example.says_each(&["died: Code(3)", "gets another worker in 0ns"]);
    assert_eq!(example.addresses("worker 3 serves ", 1), address);
    let mut heard = BTreeSet::new();
    for _ in 0..2 {
        heard.insert(exchange(&address, b"leave\n"));
        example.says("left, as it was asked to");
    }
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard.contains("worker 3 has heard you\n"), "{heard:?}");
    example.end();
}

#[test]
fn send_socket_routes_by_content() {
    let example = Example::start("send_socket", &["127.0.0.1:0"]);
    let address = example.addresses(" serves ", 1);
    let worker_of = |name: &str| {
        let answer = exchange(&address, format!("{name}\n").as_bytes());
        let rest =
            answer.strip_prefix(&format!("hello {name}, this is worker ")).map(str::to_owned);
        rest.unwrap_or_else(|| panic!("not a greeting: {answer:?}"))
    };
    assert_eq!(worker_of("anna"), worker_of("amos"));
    assert_ne!(worker_of("anna"), worker_of("bert"));
    example.kill();
}

/// Sends until there is an answer: a datagram may be lost.
fn datagram(address: &str) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE)).expect("it is a socket");
    let mut buffer = [0; 64];
    for _ in 0..PATIENCE.as_secs() / DATAGRAM_PATIENCE.as_secs() {
        socket.send_to(b"hello", address).expect("a loopback has room");
        if let Ok(length) = socket.recv(&mut buffer) {
            return String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
    }
    panic!("no answer from {address}");
}

#[test]
fn udp_is_answered_by_workers() {
    for mode in ["shared", "each"] {
        let example = Example::start("udp", &["127.0.0.1:0", mode]);
        let address = example.addresses(" answers at ", cores());
        let answer = datagram(&address);
        assert!(answer.starts_with("worker ") && answer.ends_with(" has got hello"), "{answer:?}");
        example.kill();
    }
}

#[test]
fn axum_greets_clients_on_every_core() {
    let example = Example::start("axum", &["127.0.0.1:0"]);
    let address = example.addresses(" serves ", cores());
    let answer = exchange(&address, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    assert!(answer.contains("hello 127.0.0.1:") && answer.contains("from worker "), "{answer:?}");
    example.kill();
}

#[test]
fn echo_echoes_on_every_core() {
    let example = Example::start("echo", &["127.0.0.1:0"]);
    let address = example.addresses(" serves ", cores());
    let mut stream = connect(&address);
    let (sent, mut received) = (b"there and back", [0; 14]);
    stream.write_all(sent).expect("the connection is open");
    stream.read_exact(&mut received).expect("all of it");
    assert_eq!(&received, sent);
    drop(stream);
    example.kill();
}
