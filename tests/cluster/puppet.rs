//! The worker of the tests: it follows the primary's orders and replies with the results.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use clusterlb::{
    Cluster, Connection, Datagrams, Endpoint, Error, Handle, ListenOptions, Listener, Message,
    Tracked, Transport, Worker,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{getegid, geteuid, getgroups};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stage::hide_panics_on_purpose;
use crate::tricks::{Exotic, Last, Trick, perform};

/// Delay in milliseconds before the puppet reads its messages.
pub(crate) const SLEEPY: &str = "CLUSTERLB_TEST_SLEEPY_MS";
/// Exit code with which the puppet exits at once.
pub(crate) const BRIEF: &str = "CLUSTERLB_TEST_BRIEF";
/// Descriptor limit of the puppet.
pub(crate) const DESCRIPTORS: &str = "CLUSTERLB_TEST_DESCRIPTORS";
/// A variable whose value the puppet reports.
pub(crate) const COLOUR: &str = "CLUSTERLB_TEST_COLOUR";

/// An order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Serve an address.
    Listen { address: String, options: ListenOptions, service: Service },
    /// Serve an address exclusively.
    ListenAlone { address: String },
    /// Receive datagrams and answer them.
    Udp { address: String, options: ListenOptions },
    /// Close the listener at this address.
    Close { address: String },
    /// Finish the connections that are kept open.
    Release,
    /// Leave.
    Disconnect,
    /// Leave and exit at once.
    Kill,
    /// Exit without a message.
    Exit { code: u8 },
    /// Report your identity.
    Tell,
    /// Send this back, with the attached socket.
    Echo(Value),
    /// Connect to an address and send the socket.
    Connect { address: String },
    /// Serve the attached connection.
    Serve,
    /// Accept from the attached listening socket.
    Accept,
    /// Send the numbers from 0 up to this.
    Count { to: u64 },
    /// Use up all descriptors.
    Exhaust,
    /// Free these descriptors.
    Relent,
    /// Stop reading messages for ever.
    Deafen,
    /// Keep running when the primary is lost, and then write to this socket.
    Outlive { address: String },
    /// Write to standard output and error, and to stream 4 if there is one.
    Print { stream: bool },
    /// An order that few tests need.
    Trick(Trick),
}

/// How connections are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Service {
    /// Send the worker's number and close.
    Greet,
    /// Send the worker's number and keep the connection open until `Release`.
    Keep,
    /// As `Keep`, in a thread that waits on an edge-triggered epoll set, as async runtimes do.
    KeepByEdges,
    /// As `Greet`, in three threads that block in `accept`.
    GreetByThree,
    /// Send the worker's number and wait for the client's end, in a thread that blocks in `accept`.
    Work,
    /// The same in a thread that accepts all there is before it works.
    WorkInTurns,
    /// Close without sending anything.
    Drop,
    /// Do not accept.
    Ignore,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Serving { address: String },
    Refused { errno: i32, text: String },
    Facts(Facts),
    Echo(Value),
    Connected,
    Number(u64),
    Exotic(Exotic),
    Lost,
    Done,
}

impl Reply {
    pub(crate) fn refused(error: &Error) -> Self {
        let errno = match error {
            Error::Listen { source, .. } | Error::System { source, .. } => source.as_raw(),
            _ => 0,
        };
        Self::Refused { errno, text: error.to_string() }
    }
}

/// The identity of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) id: u32,
    pub(crate) pid: u32,
    pub(crate) arguments: Vec<String>,
    pub(crate) folder: String,
    pub(crate) colour: Option<String>,
    /// The number of its slot, from its environment.
    pub(crate) instance: Option<String>,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) inspect_port: Option<u16>,
    pub(crate) is_worker: bool,
    pub(crate) cannot_be_primary: bool,
}

struct Puppet {
    worker: Worker,
    listeners: HashMap<String, Arc<Mutex<Option<Listener>>>>,
    /// With the requested addresses.
    datagrams: Vec<(String, Arc<Datagrams>)>,
    kept: Arc<Mutex<Vec<Tracked<TcpStream>>>>,
    wasted: Vec<std::fs::File>,
    last: Vec<Last>,
}

pub(crate) fn main() -> ExitCode {
    let brief: Option<u8> = std::env::var(BRIEF).ok().and_then(|code| code.parse().ok());
    if let Some(code) = brief {
        return ExitCode::from(code);
    }
    if let Ok(limit) = std::env::var(DESCRIPTORS) {
        let limit = limit.parse().expect("a number");
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit).expect("lowering is always allowed");
    }
    hide_panics_on_purpose();
    let worker = Worker::current().expect("it was started by a primary");
    if let Ok(sleep_ms) = std::env::var(SLEEPY) {
        std::thread::sleep(Duration::from_millis(sleep_ms.parse().expect("a number")));
    }
    let mut puppet = Puppet {
        worker: worker.clone(),
        listeners: HashMap::new(),
        datagrams: Vec::new(),
        kept: Arc::default(),
        wasted: Vec::new(),
        last: Vec::new(),
    };
    for message in worker.messages() {
        let order: Order = message.parse().expect("tests send orders");
        if let Some(code) = puppet.obey(order, &message) {
            return ExitCode::from(code);
        }
    }
    // A puppet that serves something runs until that is done.
    worker.disconnected().wait();
    puppet.last.into_iter().for_each(|last| last());
    ExitCode::SUCCESS
}

impl Puppet {
    fn reply(&self, reply: &Reply) {
        let sent = self.worker.send(reply);
        assert!(sent.is_ok() || self.worker.is_leaving(), "the primary reads: {sent:?}");
    }

    /// Retries until the queue has room.
    fn insist(&self, reply: &Reply) {
        while let Err(error) = self.worker.send(reply) {
            assert!(
                matches!(error, Error::System { source, .. } if source == Errno::EAGAIN),
                "{error}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn refuse(&self, error: &Error) {
        self.reply(&Reply::refused(error));
    }

    fn obey(&mut self, order: Order, message: &Message) -> Option<u8> {
        match order {
            Order::Listen { address, options, service } => {
                match self.worker.bind_with(&address, options) {
                    Ok(listener) => self.serve(address, listener, service),
                    Err(error) => self.refuse(&error),
                }
            }
            Order::ListenAlone { address } => match self.worker.bind_exclusive(&address) {
                Ok(listener) => self.serve(address, listener, Service::Greet),
                Err(error) => self.refuse(&error),
            },
            Order::Udp { address, options } => self.bind_udp(&address, options),
            Order::Close { address } => {
                if let Some(listener) = self.listeners.remove(&address) {
                    drop(listener.lock().expect("no thread panics").take());
                }
                self.datagrams.retain(|(asked, _)| *asked != address);
                self.reply(&Reply::Done);
            }
            Order::Release => self.kept.lock().expect("no thread panics").clear(),
            Order::Disconnect => drop(self.worker.disconnect()),
            Order::Kill => self.worker.kill(),
            Order::Exit { code } => return Some(code),
            Order::Tell => self.reply(&Reply::Facts(self.facts())),
            Order::Echo(value) => match message.take_handle() {
                Some(handle) => {
                    let sent = self.worker.send_handle(&Reply::Echo(value), handle);
                    sent.expect("the primary reads");
                }
                None if message.has_lost_handle() => self.reply(&Reply::Lost),
                None => self.reply(&Reply::Echo(value)),
            },
            Order::Connect { address } => {
                let socket = TcpStream::connect(address).expect("a server listens");
                let sent = self.worker.send_handle(&Reply::Connected, socket);
                sent.expect("the primary reads");
            }
            Order::Serve => self.serve_handle(message.take_handle().expect("a connection")),
            Order::Accept => accept_from(message.take_handle().expect("a listening socket")),
            Order::Count { to } => (0..to).for_each(|number| self.insist(&Reply::Number(number))),
            Order::Exhaust => {
                let null = || std::fs::File::open("/dev/null");
                self.wasted.extend(std::iter::repeat_with(null).map_while(Result::ok));
                self.reply(&Reply::Done);
            }
            Order::Relent => {
                self.wasted.clear();
                self.reply(&Reply::Done);
            }
            Order::Deafen => loop {
                std::thread::park();
            },
            Order::Outlive { address } => {
                let mut stream = TcpStream::connect(address).expect("a server listens");
                self.worker.on_disconnect(move || {
                    stream.write_all(b"alone").expect("the peer reads");
                });
                self.reply(&Reply::Done);
            }
            Order::Print { stream } => print(stream),
            Order::Trick(trick) => {
                if let Some(reply) = perform(&self.worker, trick, &mut self.last) {
                    self.reply(&reply);
                }
            }
        }
        None
    }

    fn facts(&self) -> Facts {
        let groups = getgroups().expect("every process has some");
        Facts {
            id: self.worker.id().get(),
            pid: std::process::id(),
            arguments: std::env::args().skip(1).collect(),
            folder: std::env::current_dir().expect("it is there").display().to_string(),
            colour: std::env::var(COLOUR).ok(),
            instance: std::env::var("CLUSTERLB_INSTANCE").ok(),
            user: geteuid().as_raw(),
            group: getegid().as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
            inspect_port: self.worker.inspect_port(),
            is_worker: clusterlb::is_worker() && !clusterlb::is_primary(),
            cannot_be_primary: Cluster::primary().is_err(),
        }
    }

    fn serve(&mut self, asked: String, listener: Listener, service: Service) {
        let address = listener.local_addr().to_string();
        let shared = Arc::new(Mutex::new(Some(listener)));
        // A second listener at the same address has another port.
        let name = match self.listeners.contains_key(&asked) {
            true => address.clone(),
            false => asked,
        };
        self.listeners.insert(name, Arc::clone(&shared));
        self.reply(&Reply::Serving { address });
        if service == Service::Ignore {
            return;
        }
        let (id, kept) = (self.worker.id().get(), Arc::clone(&self.kept));
        if service == Service::GreetByThree {
            let listener = shared.lock().expect("no thread panics").take().expect("it is open");
            let listener = Arc::new(listener);
            for _ in 0..3 {
                let (listener, kept) = (Arc::clone(&listener), Arc::clone(&kept));
                std::thread::spawn(move || {
                    for connection in listener.incoming() {
                        greet(connection.expect("it is open"), id, service, &kept);
                    }
                });
            }
            return;
        }
        if matches!(service, Service::Work | Service::WorkInTurns) {
            let listener = shared.lock().expect("no thread panics").take().expect("it is open");
            std::thread::spawn(move || work_on_all(&listener, id, service));
            return;
        }
        std::thread::spawn(move || attend(&shared, id, service, &kept));
    }

    fn serve_handle(&self, handle: Handle) {
        let greeting = format!("worker {}\n", self.worker.id().get());
        let served = match handle {
            Handle::Tcp(mut stream) => stream.write_all(greeting.as_bytes()),
            Handle::Unix(mut stream) => stream.write_all(greeting.as_bytes()),
            Handle::Udp(socket) => {
                let mut datagram = [0; 64];
                socket.set_nonblocking(false).expect("it is a socket");
                let (length, sender) = socket.recv_from(&mut datagram).expect("a datagram");
                socket.send_to(&datagram[..length], sender).map(drop)
            }
            other => panic!("not to be served: {other:?}"),
        };
        served.expect("the peer reads");
        self.reply(&Reply::Done);
    }

    fn bind_udp(&mut self, address: &str, options: ListenOptions) {
        assert_ne!(options.transport, Transport::Stream);
        match self.worker.bind_udp_with(address, options) {
            Ok(datagrams) => {
                let datagrams = Arc::new(datagrams);
                let bound = datagrams.local_addr().expect("it is bound").to_string();
                self.datagrams.push((address.to_owned(), Arc::clone(&datagrams)));
                self.reply(&Reply::Serving { address: bound });
                let id = self.worker.id().get();
                let datagrams = Arc::downgrade(&datagrams);
                std::thread::spawn(move || {
                    let mut buffer = [0; 2048];
                    // The thread ends with the process, or when the socket is closed.
                    while let Some(socket) = datagrams.upgrade() {
                        let received = UdpSocket::recv_from(&socket, &mut buffer);
                        let Ok((length, sender)) = received else {
                            // No datagram, or another worker was faster.
                            drop(socket);
                            std::thread::sleep(Duration::from_millis(1));
                            continue;
                        };
                        let text = String::from_utf8_lossy(&buffer[..length]);
                        let answer = format!("{id} {text}");
                        socket.send_to(answer.as_bytes(), sender).expect("a loopback has room");
                    }
                });
            }
            Err(error) => self.refuse(&error),
        }
    }
}

/// Serves connections until the listener is closed or the worker leaves.
fn attend(
    shared: &Mutex<Option<Listener>>,
    id: u32,
    service: Service,
    kept: &Mutex<Vec<Tracked<TcpStream>>>,
) {
    let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("descriptors");
    if let (Service::KeepByEdges, Some(listener)) =
        (service, &*shared.lock().expect("no thread panics"))
    {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        edges.add(listener, EpollEvent::new(flags, 0)).expect("it can be waited at");
    }
    loop {
        // Does not block while it holds the lock, so that another thread can close the listener.
        let found = match &*shared.lock().expect("no thread panics") {
            Some(listener) => listener.try_accept().expect("the listener is open"),
            None => return,
        };
        match found {
            Poll::Ready(Some(connection)) => greet(connection, id, service, kept),
            Poll::Ready(None) => return,
            Poll::Pending if service == Service::KeepByEdges => {
                let mut ready = [EpollEvent::empty()];
                while edges.wait(&mut ready, EpollTimeout::NONE).is_err() {}
            }
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Works on connections until the worker leaves.
fn work_on_all(listener: &Listener, id: u32, service: Service) {
    if service == Service::Work {
        listener.incoming().for_each(|connection| work(connection.expect("it is open"), id));
        return;
    }
    let mut is_open = true;
    while is_open {
        let mut claimed = Vec::new();
        while let Poll::Ready(found) = listener.try_accept().expect("it is open") {
            match found {
                Some(connection) => claimed.push(connection),
                None => {
                    is_open = false;
                    break;
                }
            }
        }
        let has_worked = !claimed.is_empty();
        claimed.into_iter().for_each(|connection| work(connection, id));
        if is_open && !has_worked {
            let mut one = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            while poll(&mut one, PollTimeout::NONE).is_err() {}
        }
    }
}

fn work(connection: Connection, id: u32) {
    let mut stream = connection.into_tcp().expect("a TCP socket");
    // Fails if the test's client has disconnected.
    let _ = stream.write_all(format!("worker {id}\n").as_bytes());
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

fn greet(connection: Connection, id: u32, service: Service, kept: &Mutex<Vec<Tracked<TcpStream>>>) {
    if service == Service::Drop {
        return;
    }
    let local = connection.local_addr().expect("it has an own end");
    let greeting = format!("worker {id}\n");
    if local.inet().is_none() {
        let peer = connection.peer_addr().expect("the client is connected");
        assert_eq!(peer, Endpoint::Unix(None), "clients of unix sockets have no address");
        let mut stream: Tracked<UnixStream> = connection.into_unix().expect("a unix socket");
        stream.write_all(greeting.as_bytes()).expect("the peer reads");
        return;
    }
    assert!(connection.peer_addr().is_ok() && connection.accepted_ns() > 0);
    let mut stream = connection.into_tcp().expect("a TCP socket");
    // A greeted connection is already among the kept ones.
    let mut kept = kept.lock().expect("no thread panics");
    // Fails if the test's client has disconnected.
    let _ = stream.write_all(greeting.as_bytes());
    if matches!(service, Service::Keep | Service::KeepByEdges) {
        kept.push(stream);
    }
}

fn accept_from(handle: Handle) {
    let mut stream: Box<dyn Write> = match handle {
        Handle::TcpListener(listener) => {
            listener.set_nonblocking(false).expect("it is a socket");
            Box::new(listener.accept().expect("a client connects").0)
        }
        Handle::UnixListener(listener) => {
            listener.set_nonblocking(false).expect("it is a socket");
            Box::new(listener.accept().expect("a client connects").0)
        }
        other => panic!("not a listening socket: {other:?}"),
    };
    stream.write_all(b"accepted\n").expect("the peer reads");
}

fn print(has_stream: bool) {
    println!("to standard output");
    eprintln!("to standard error");
    if has_stream {
        let stream = clusterlb_sys::process::copy_of(4).expect("the primary has placed it");
        let mut stream = UnixStream::from(stream);
        stream.write_all(b"to stream 4").expect("the peer reads");
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).expect("it goes both ways");
        assert_eq!(&answer, b"ok");
    }
    std::io::stdout().flush().expect("the peer reads");
}
