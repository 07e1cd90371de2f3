//! The fixture of the cluster tests: a cluster, its puppets, and timeouts.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clusterlb::Signal;
use clusterlb::{
    Cluster, ClusterSettings, Event, Events, ForkOptions, ListenOptions, ListeningAddress, Message,
    OverloadFactor, Policy, WorkerHandle,
};
use nix::errno::Errno;

use crate::puppet::{Facts, Order, Reply, Service};
pub(crate) use crate::wait::{PATIENCE, eventually};

/// Makes this program a primary without tests; the value says what it does.
const ROLE: &str = "CLUSTERLB_TEST_PRIMARY";

/// A cluster under test. Dropping it ends all processes.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    events: Events,
    heard: Vec<Event>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut ClusterSettings)) -> Self {
        let cluster = Cluster::primary().expect("a primary");
        cluster
            .setup_primary(|settings| {
                settings.args.clear();
                // Otherwise a busy machine makes the scheduler skip workers, and no order is
                // certain.
                settings.scheduling.hang_after_ns = None;
                settings.scheduling.limits.overload_factor = OverloadFactor::Off;
                change(settings);
            })
            .expect("valid settings");
        let events = cluster.events().expect("descriptors");
        Self { cluster, events, heard: Vec::new() }
    }

    /// Starts a puppet and waits until it runs.
    pub(crate) fn puppet(&mut self) -> WorkerHandle {
        self.puppet_with(ForkOptions::default())
    }

    pub(crate) fn puppet_with(&mut self, options: ForkOptions) -> WorkerHandle {
        let worker = self.cluster.fork_with(options).expect("a worker");
        self.online(&worker);
        worker
    }

    pub(crate) fn online(&mut self, worker: &WorkerHandle) {
        self.until("a worker to be online", |event| match event {
            Event::Online { worker: one } => (one == worker).then_some(()),
            _ => None,
        });
    }

    /// The first event for which `look` returns something, among those not taken by an earlier
    /// call.
    pub(crate) fn until<T>(&mut self, what: &str, mut look: impl FnMut(&Event) -> Option<T>) -> T {
        for place in 0..self.heard.len() {
            if let Some(found) = look(&self.heard[place]) {
                self.heard.remove(place);
                return found;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(event) = self.events.recv_timeout(left) else {
                panic!("in vain: waited for {what}; heard {:#?}", self.heard);
            };
            match look(&event) {
                Some(found) => return found,
                None => self.heard.push(event),
            }
        }
    }

    /// The same among the events that have already arrived.
    pub(crate) fn already<T>(&mut self, mut look: impl FnMut(&Event) -> Option<T>) -> Option<T> {
        while let Ok(event) = self.events.try_recv() {
            self.heard.push(event);
        }
        let place = self.heard.iter().position(|event| look(event).is_some())?;
        look(&self.heard.remove(place))
    }

    /// Whether such an event has arrived and not been taken.
    pub(crate) fn has_heard(&mut self, look: impl Fn(&Event) -> bool) -> bool {
        while let Ok(event) = self.events.try_recv() {
            self.heard.push(event);
        }
        self.heard.iter().any(look)
    }

    /// The next message of a worker.
    pub(crate) fn message(&mut self, worker: &WorkerHandle) -> Message {
        self.until(&format!("a message of {worker:?}"), |event| match event {
            Event::Message { worker: one, message } if one == worker => Some(message.clone()),
            _ => None,
        })
    }

    /// The next reply of a puppet.
    pub(crate) fn reply(&mut self, worker: &WorkerHandle) -> Reply {
        self.message(worker).parse().expect("puppets send replies")
    }

    /// Sends an order and waits for the reply.
    pub(crate) fn ask(&mut self, worker: &WorkerHandle, order: &Order) -> Reply {
        worker.send(order).expect("the puppet reads");
        self.reply(worker)
    }

    pub(crate) fn facts(&mut self, worker: &WorkerHandle) -> Facts {
        match self.ask(worker, &Order::Tell) {
            Reply::Facts(facts) => facts,
            other => panic!("{other:?}"),
        }
    }

    /// Makes a puppet serve an address; returns the bound address, or the error.
    pub(crate) fn try_listen(
        &mut self,
        worker: &WorkerHandle,
        address: &str,
        options: ListenOptions,
        service: Service,
    ) -> Result<String, (i32, String)> {
        let order = Order::Listen { address: address.to_owned(), options, service };
        match self.ask(worker, &order) {
            Reply::Serving { address } => Ok(address),
            Reply::Refused { errno, text } => Err((errno, text)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn listen(&mut self, worker: &WorkerHandle, address: &str) -> String {
        self.serve(worker, address, Service::Greet)
    }

    pub(crate) fn serve(
        &mut self,
        worker: &WorkerHandle,
        address: &str,
        service: Service,
    ) -> String {
        let bound = self.try_listen(worker, address, ListenOptions::default(), service);
        let bound = bound.expect("the address is free");
        self.listening(worker);
        bound
    }

    /// Starts `count` puppets that share an address.
    pub(crate) fn shared(&mut self, count: usize) -> (Vec<WorkerHandle>, String) {
        let workers: Vec<WorkerHandle> = (0..count).map(|_| self.puppet()).collect();
        let mut address = String::new();
        for worker in &workers {
            address = self.listen(worker, "127.0.0.1:0");
        }
        (workers, address)
    }

    /// Makes a puppet close its listener at an address.
    pub(crate) fn close(&mut self, worker: &WorkerHandle, address: &str) {
        assert_eq!(self.ask(worker, &Order::Close { address: address.into() }), Reply::Done);
    }

    /// The event of a worker that serves.
    pub(crate) fn listening(&mut self, worker: &WorkerHandle) -> ListeningAddress {
        self.until("a worker to serve", |event| match event {
            Event::Listening { worker: one, address } if one == worker => Some(address.clone()),
            _ => None,
        })
    }

    pub(crate) fn disconnected(&mut self, worker: &WorkerHandle) {
        self.until("a worker to disconnect", |event| match event {
            Event::Disconnect { worker: one } => (one == worker).then_some(()),
            _ => None,
        });
    }

    /// How a worker ended: its code or signal, and its connections.
    pub(crate) fn exit(
        &mut self,
        worker: &WorkerHandle,
    ) -> (clusterlb::Ending, clusterlb::WorkerCounts) {
        self.until(&format!("{worker:?} to exit"), |event| match event {
            Event::Exit { worker: one, ending, counts } => {
                (one == worker).then_some((*ending, *counts))
            }
            _ => None,
        })
    }

    /// Ends a cluster with a worker that does not leave on request.
    pub(crate) fn end_by_force(self) {
        drop(self.cluster);
    }

    /// Ends in order, and fails if anything is left.
    pub(crate) fn end(self) {
        let completion = self.cluster.disconnect();
        assert!(
            completion.wait_timeout(PATIENCE),
            "workers are left: {:?}",
            self.cluster.workers()
        );
        assert!(self.cluster.workers().is_empty());
    }
}

/// What a connection receives until it is closed.
pub(crate) fn ask(address: &str) -> io::Result<String> {
    let mut text = String::new();
    match address.strip_prefix("unix:") {
        Some(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_to_string(&mut text)?;
        }
        None => {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_to_string(&mut text)?;
        }
    }
    Ok(text)
}

/// The number of the worker that greets a new connection.
pub(crate) fn greeter(address: &str) -> u32 {
    let text = ask(address).expect("a server listens");
    number_in(&text)
}

pub(crate) fn number_in(greeting: &str) -> u32 {
    let number = greeting.strip_prefix("worker ").and_then(|rest| rest.trim_end().parse().ok());
    number.unwrap_or_else(|| panic!("not a greeting: {greeting:?}"))
}

/// A connection that a puppet keeps open, and the puppet's number.
pub(crate) fn kept(address: &str) -> (TcpStream, u32) {
    let mut stream = TcpStream::connect(address).expect("a server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with('\n') {
        stream.read_exact(&mut byte).expect("a greeting");
        text.push(char::from(byte[0]));
    }
    (stream, number_in(&text))
}

/// Whether no socket listens at a TCP address.
fn is_refused(address: &str) -> bool {
    let refused = io::ErrorKind::ConnectionRefused;
    TcpStream::connect(address).is_err_and(|error| error.kind() == refused)
}

/// What a receive with a time limit returns. The kernel never restarts one that was interrupted
/// (signal(7)), and the standard library leaves it to the caller.
pub(crate) fn uninterrupted<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Waits until an address is free. A worker that another test is just starting has a copy of every
/// descriptor until its exec.
pub(crate) fn until_free(address: &str) {
    eventually("the address to be free", || std::net::TcpListener::bind(address).ok());
}

/// Waits until no socket listens at an address.
pub(crate) fn until_refused(address: &str) {
    eventually("connections to be refused", || is_refused(address).then_some(()));
}

/// The message of intended panics.
pub(crate) const ON_PURPOSE: &str = "on purpose";

/// Suppresses the output of intended panics, in all threads.
pub(crate) fn hide_panics_on_purpose() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Matches the message only, not the location.
        if !panic.to_string().contains(ON_PURPOSE) {
            usual(panic);
        }
    }));
}

/// Runs this program as a primary without tests.
pub(crate) fn another_primary(role: &str, program: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.env(ROLE, role);
    command
}

/// The main function of such a primary: it reports its policy, or serves until it is killed.
pub(crate) fn separate_primary() -> Option<ExitCode> {
    let role = std::env::var(ROLE).ok()?;
    match role.as_str() {
        "policy" => match Cluster::primary() {
            Ok(cluster) => println!("{:?}", cluster.scheduling_policy()),
            Err(error) => println!("{error}"),
        },
        "lost" => {
            let mut stage = Stage::new();
            let worker = stage.puppet();
            let address = stage.serve(&worker, "127.0.0.1:0", Service::Keep);
            let other = stage.puppet();
            let outlived = std::env::args().nth(1).expect("where to tell it");
            stage.ask(&other, &Order::Outlive { address: outlived });
            println!("{} {} {address}", worker.pid(), other.pid());
            // Runs until the test kills it.
            std::thread::park();
        }
        "unprivileged" => {
            for policy in [Policy::Rr, Policy::None] {
                let mut stage = Stage::with(|settings| settings.policy = policy);
                let worker = stage.puppet();
                let low = "127.0.0.1:1";
                let told = stage.try_listen(&worker, low, Default::default(), Service::Greet);
                println!("{policy:?}: {:?}", told.expect_err("it is privileged"));
                let change = |settings: &mut ClusterSettings| settings.uid = Some(0);
                stage.cluster.setup_primary(change).expect("it can be asked for");
                println!("{policy:?}: {}", stage.cluster.fork().expect_err("it is forbidden"));
            }
        }
        "deep" => {
            let mut stage = Stage::new();
            let worker = stage.puppet();
            let bound = stage.listen(&worker, "unix:socket");
            let elsewhere = std::env::args_os().nth(1).expect("another folder").into();
            let change = |settings: &mut ClusterSettings| settings.cwd = Some(elsewhere);
            stage.cluster.setup_primary(change).expect("valid settings");
            let other = stage.puppet();
            let told = stage.try_listen(&other, "unix:socket", Default::default(), Service::Greet);
            let errno = Errno::from_raw(told.expect_err("it is too long").0);
            println!("{bound}, and elsewhere {errno:?}");
            // Runs until the test closes its input.
            let _ = io::stdin().read_line(&mut String::new());
            stage.end();
        }
        _ => panic!("no such role: {role}"),
    }
    Some(ExitCode::SUCCESS)
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("process ids are small"));
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::from(signal));
}

/// Whether a process runs and is not merely waiting to be reaped.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    })
}
