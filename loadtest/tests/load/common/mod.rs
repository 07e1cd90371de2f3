//! Small servers to be loaded, and the command to load them with.
//!
//! Servers run on threads of the test, listen on port 0 and end with it. The test says what they
//! do to a connection; what they have seen is counted here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use loadtest::Report;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};

/// What a server has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    /// Connections that ended with a reset.
    pub(crate) resets: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) most_open: AtomicU64,
    pub(crate) peers: Mutex<BTreeSet<IpAddr>>,
    /// The heads of the requests, as they came, and their bodies.
    pub(crate) received: Mutex<Vec<(String, Vec<u8>)>>,
}

impl Seen {
    /// The request lines, with how often each came.
    pub(crate) fn request_lines(&self) -> BTreeMap<String, usize> {
        let mut lines = BTreeMap::new();
        for (head, _) in self.received.lock().expect("no panic holds it").iter() {
            let line = head.lines().next().unwrap_or_default().to_owned();
            *lines.entry(line).or_default() += 1;
        }
        lines
    }

    /// The last request's head and body.
    pub(crate) fn last(&self) -> (String, Vec<u8>) {
        self.received.lock().expect("no panic holds it").last().cloned().expect("a request")
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Connections that the client has closed, so that it has counted what it received.
    pub(crate) fn ended(&self) -> u64 {
        self.connections().saturating_sub(self.open.load(Ordering::SeqCst))
    }
}

/// A connection of either family.
pub(crate) trait Stream: Read + Write + Send {
    /// Another handle of the same connection.
    fn twin(&self) -> Box<dyn Stream>;
}

impl Stream for TcpStream {
    fn twin(&self) -> Box<dyn Stream> {
        Box::new(self.try_clone().expect("a second handle"))
    }
}

impl Stream for UnixStream {
    fn twin(&self) -> Box<dyn Stream> {
        Box::new(self.try_clone().expect("a second handle"))
    }
}

/// What is done to each connection.
type Handler = dyn Fn(Box<dyn Stream>, &Seen) + Send + Sync;

/// A port of this test alone, reserved as long as it lives: connects to it are refused, and no
/// other test's server can be given it.
pub(crate) struct Port {
    pub(crate) address: SocketAddrV4,
    _reserved: OwnedFd,
}

impl Port {
    pub(crate) fn new() -> Self {
        let (reserved, address) = bound(0);
        Self { address, _reserved: reserved }
    }

    /// Listens on it.
    pub(crate) fn listen(&self, queue: i32) -> TcpListener {
        let (socket, _) = bound(self.address.port());
        listen(&socket, Backlog::new(queue).expect("a length")).expect("it listens");
        TcpListener::from(socket)
    }
}

/// A socket bound to a port of 127.0.0.1, which it may share with others of the same test.
fn bound(port: u16) -> (OwnedFd, SocketAddrV4) {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .expect("a socket");
    setsockopt(&socket, sockopt::ReusePort, &true).expect("an option every TCP socket has");
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).expect("a free port");
    let address: SockaddrIn = getsockname(socket.as_raw_fd()).expect("its address");
    (socket, SocketAddrV4::new(address.ip(), address.port()))
}

/// A TCP server with a thread for each connection. Dropping it stops it.
pub(crate) struct Server {
    pub(crate) address: SocketAddrV4,
    pub(crate) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    acceptor: Option<thread::JoinHandle<()>>,
    _port: Port,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(Box<dyn Stream>, &Seen) + Send + Sync + 'static) -> Self {
        let port = Port::new();
        let (listener, address) = (port.listen(1024), port.address);
        let seen = Arc::new(Seen::default());
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (seen_there, stop_there) = (Arc::clone(&seen), Arc::clone(&stop));
        let acceptor = thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                if stop_there.load(Ordering::SeqCst) {
                    break;
                }
                seen_there.peers.lock().expect("no panic holds it").insert(peer.ip());
                stream.set_nodelay(true).expect("an option every TCP socket has");
                serve(Box::new(stream), &handler, &seen_there);
            }
        });
        Self { address, seen, stop, acceptor: Some(acceptor), _port: port }
    }

    /// Stops listening: from now on connects are refused.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The acceptor looks at the flag at the next connection.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The same behind a unix socket, in a directory that is removed with it.
pub(crate) struct UnixServer {
    pub(crate) path: PathBuf,
    pub(crate) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    acceptor: Option<thread::JoinHandle<()>>,
    _directory: Directory,
}

impl UnixServer {
    pub(crate) fn start(handler: impl Fn(Box<dyn Stream>, &Seen) + Send + Sync + 'static) -> Self {
        let directory = Directory::new();
        let path = directory.path.join("s");
        let listener = UnixListener::bind(&path).expect("a path in an empty directory");
        let seen = Arc::new(Seen::default());
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (seen_there, stop_there) = (Arc::clone(&seen), Arc::clone(&stop));
        let acceptor = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stop_there.load(Ordering::SeqCst) {
                    break;
                }
                serve(Box::new(stream), &handler, &seen_there);
            }
        });
        Self { path, seen, stop, acceptor: Some(acceptor), _directory: directory }
    }
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

fn serve(stream: Box<dyn Stream>, handler: &Arc<Handler>, seen: &Arc<Seen>) {
    seen.connections.fetch_add(1, Ordering::SeqCst);
    let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most_open.fetch_max(open, Ordering::SeqCst);
    let (handler, seen) = (Arc::clone(handler), Arc::clone(seen));
    thread::spawn(move || {
        handler(stream, &seen);
        seen.open.fetch_sub(1, Ordering::SeqCst);
    });
}

/// A directory that is removed with what is in it.
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
}

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("clusterlb-load-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a new directory");
        Self { path }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Reads one request and returns its body. `None` at the connection's end.
pub(crate) fn read_request(reader: &mut impl BufRead, seen: &Seen) -> Option<Vec<u8>> {
    read_whole_request(reader, seen).map(|(_, body)| body)
}

/// Reads one request and returns its head and its body. `None` at the connection's end.
pub(crate) fn read_whole_request(
    reader: &mut impl BufRead,
    seen: &Seen,
) -> Option<(String, Vec<u8>)> {
    let mut length = 0;
    let mut first = true;
    let mut head = String::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => {
                let reset = u64::from(error.kind() == ErrorKind::ConnectionReset);
                seen.resets.fetch_add(reset, Ordering::SeqCst);
                return None;
            }
        }
        head.push_str(&line);
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" && !first {
            break;
        }
        first = false;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let kept = body[..body.len().min(1000)].to_vec();
    seen.received.lock().expect("no panic holds it").push((head.clone(), kept));
    Some((head, body))
}

/// Answers every request with what `answer` writes.
pub(crate) fn http(
    answer: impl Fn(&mut dyn Stream, u64) + Send + Sync + 'static,
) -> impl Fn(Box<dyn Stream>, &Seen) + Send + Sync + 'static {
    move |mut stream, seen| {
        let mut reader = BufReader::new(stream.twin());
        let mut number = 0;
        while read_request(&mut reader, seen).is_some() {
            answer(&mut *stream, number);
            number += 1;
        }
    }
}

/// Writes; a client that has gone away is no failure of the server.
pub(crate) fn write(stream: &mut dyn Stream, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

/// An ordinary answer.
pub(crate) fn hello(stream: &mut dyn Stream) {
    write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
}

/// An answer with this status and no body.
pub(crate) fn status(stream: &mut dyn Stream, status: u16) {
    write(stream, &format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
}

/// Sends everything back.
pub(crate) fn echo(mut stream: Box<dyn Stream>, _: &Seen) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
}

/// The command with these words, not pinned: many of them may run at the same time. A word in
/// single quotes may hold spaces.
pub(crate) fn command(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clusterlb-load"));
    for (place, part) in words.split('\'').enumerate() {
        match place % 2 {
            0 => command.args(part.split_whitespace()),
            _ => command.arg(part),
        };
    }
    if !words.contains("--pin") {
        command.args(["--pin", "none"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command to its end.
pub(crate) fn run(words: &str) -> Output {
    command(words).output().expect("the command starts")
}

/// Runs it with `--json` and reads what it printed, whatever the exit code.
pub(crate) fn report(words: &str) -> (Report, Output) {
    let output = run(&format!("{words} --json"));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error} in {text:?}, stderr {errors:?}"));
    (report, output)
}

/// Runs it and expects it to succeed.
pub(crate) fn good(words: &str) -> Report {
    let (report, output) = report(words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(report.failure, None);
    report
}

/// The lines of stderr that are not notes.
pub(crate) fn complaints(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().filter(|line| !line.starts_with("note:")).map(str::to_owned).collect()
}

/// Waits until `condition` holds: a server sees how a connection ends after the client has ended.
pub(crate) fn await_that(condition: impl Fn() -> bool) {
    for _ in 0..24_000 {
        if condition() {
            return;
        }
        sleep_ms(5);
    }
    panic!("it has not happened in two minutes");
}

/// A pause.
pub(crate) fn sleep_ms(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

/// Says that a test needs what this machine lacks, past the test harness. In CI that fails it.
pub(crate) fn lacking(what: &str) {
    let ci = std::env::var("CI").is_ok_and(|value| !matches!(&*value, "" | "0" | "false"));
    assert!(!ci, "CI is set, and this machine lacks what a test needs: {what}");
    let _ = writeln!(std::io::stderr(), "not tested, because this machine lacks it: {what}");
}
