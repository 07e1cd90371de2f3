//! A primary for Node workers made of the data path and the bridge, with the minimum of a control
//! plane: it starts workers, answers their requests to listen with listeners that are open already,
//! and reaps them.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clusterlb::internals::data_path::{
    self, ClusterCounts, Command, DataPath, DataPathReport, NewLink,
};
use clusterlb::internals::dialect::node::bridge::{
    Bridge, BridgeRequest, Endpoints, NewNodeWorker, Notice, Notices, SendQuota,
};
use clusterlb::internals::dialect::node::codec::{
    ListenTarget, Listening, Query, SocketKind, SocketName, ToWorker,
};
use clusterlb::internals::dialect::node::session::{Answer, WindowRule};
use clusterlb::internals::dialect::node::{Serialization, environment};
use clusterlb::{DescriptorLimit, EngineChoice, EngineKind, Result};
use clusterlb_protocol::scoreboard::{PageView, PrimaryPage};
use clusterlb_schedule::id::{ListenerId, Slot, WorkerId};
use clusterlb_schedule::{Policy, SchedulerConfig};
use clusterlb_sys::fdpass;
use clusterlb_sys::listener::{Listener, OpenOptions};
use clusterlb_sys::process::{self, Ending, Launch, WorkerProcess};
use clusterlb_sys::waker::Waker;
use nix::errno::Errno;
use serde_json::Value;
use tempfile::TempDir;

use super::nodes::Node;
use crate::common::PATIENCE;

/// TCP listeners that answer requests for ports, in order.
const TCP_LISTENERS: usize = 4;

/// How workers are started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) node: Node,
    pub(crate) script: String,
    pub(crate) serialization: Serialization,
    pub(crate) window: WindowRule,
    /// A worker's limit of descriptors.
    pub(crate) descriptors: Option<u32>,
}

impl Setup {
    pub(crate) fn new(node: &Node, script: &str) -> Self {
        Self {
            node: node.clone(),
            script: script.to_owned(),
            serialization: Serialization::Json,
            window: WindowRule::default(),
            descriptors: None,
        }
    }
}

/// A worker, as the notices report it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) slot: Slot,
    process: WorkerProcess,
    counts: PageView,
    serialization: Serialization,
    pub(crate) postage: SendQuota,
    pub(crate) online: bool,
    pub(crate) listening: Vec<Listening>,
    pub(crate) left: Vec<ListenerId>,
    pub(crate) leaving: bool,
    pub(crate) messages: Vec<Value>,
    pub(crate) descriptors: usize,
    /// Its channel is closed; the reason if we closed it.
    pub(crate) gone: Option<Option<String>>,
    pub(crate) ending: Option<Ending>,
    buried: bool,
}

impl Worker {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether its process has ended.
    pub(crate) fn try_ended(&mut self) -> bool {
        if self.ending.is_none() {
            self.ending = self.process.try_wait().expect("only this test waits for it");
        }
        self.ending.is_some()
    }
}

/// Two threads and their messages.
pub(crate) struct Front {
    threads: Vec<JoinHandle<Result<()>>>,
    commands: Sender<Command>,
    command_waker: Arc<Waker>,
    requests: Sender<BridgeRequest>,
    request_waker: Arc<Waker>,
    notices: Arc<Notices>,
    /// Leaves the bridge's messages unread.
    pub(crate) deaf: bool,
    reports: Receiver<DataPathReport>,
    addresses: Vec<String>,
    /// Duplicates of the listeners, for workers that accept.
    sockets: Vec<OwnedFd>,
    /// Workers accept.
    pub(crate) shares: bool,
    /// The socket for datagram requests.
    pub(crate) udp: UdpSocket,
    /// The requests, in the order of the listeners that answered them.
    asked: Vec<String>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) totals: ClusterCounts,
    pub(crate) hangs: usize,
    folder: TempDir,
}

fn waker() -> Arc<Waker> {
    Arc::new(Waker::new().expect("an eventfd"))
}

fn listener(address: &str) -> Arc<Listener> {
    let options = OpenOptions {
        backlog: 511,
        share_port: false,
        ipv6_only: false,
        mode: None,
        blocking: false,
        defer_accept: false,
    };
    let address = address.parse().expect("an address");
    Arc::new(Listener::open(&address, options).expect("a free address"))
}

fn engine() -> EngineKind {
    let decided = EngineChoice::from_environment().and_then(EngineChoice::decide);
    decided.expect("an engine").kind
}

fn copies_of(listeners: &[Arc<Listener>]) -> Vec<OwnedFd> {
    let copy = |one: &Arc<Listener>| one.as_fd().try_clone_to_owned().expect("a duplicate");
    listeners.iter().map(copy).collect()
}

fn nonblocking_udp() -> UdpSocket {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    udp.set_nonblocking(true).expect("sockets can be non-blocking");
    udp
}

impl Front {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = format!("unix:{}", folder.path().join("socket").display());
        let mut addresses = vec!["127.0.0.1:0".to_owned(); TCP_LISTENERS];
        addresses.push(socket);
        let listeners: Vec<Arc<Listener>> =
            addresses.iter().map(|address| listener(address)).collect();
        let addresses = listeners.iter().map(|one| one.address().to_owned()).collect();
        let sockets = copies_of(&listeners);
        let udp = nonblocking_udp();
        let (commands, commands_out) = channel();
        let (reports_in, reports) = channel();
        let (requests, orders_out) = channel();
        let (command_waker, request_waker) = (waker(), waker());
        let notices = Arc::new(Notices::new(waker(), Arc::clone(&request_waker)));
        let to_data = data_path::Endpoints {
            commands: commands_out,
            reports: reports_in,
            waker: Arc::clone(&command_waker),
            report_waker: waker(),
            live_counts: Arc::default(),
        };
        let to_bridge = Endpoints {
            requests: orders_out,
            request_waker: Arc::clone(&request_waker),
            notices: Arc::clone(&notices),
            commands: commands.clone(),
            command_waker: Arc::clone(&command_waker),
        };
        let scheduling = SchedulerConfig { slow_start_ns: 0, ..SchedulerConfig::default() };
        let engine = engine();
        let data = move || DataPath::new(engine, Policy::Rr, scheduling, 4, 511, to_data)?.run();
        let bridge = move || Bridge::new(to_bridge)?.run();
        let threads = vec![std::thread::spawn(data), std::thread::spawn(bridge)];
        let front = Self {
            threads,
            commands,
            command_waker,
            requests,
            request_waker,
            notices,
            deaf: false,
            reports,
            addresses,
            sockets,
            shares: false,
            udp,
            asked: Vec::new(),
            workers: Vec::new(),
            totals: ClusterCounts::default(),
            hangs: 0,
            folder,
        };
        for (id, listener) in (0..).map(ListenerId::new).zip(listeners) {
            front.command(Command::AddListener { id, listener });
        }
        front.command(Command::Open);
        front
    }

    pub(crate) fn command(&self, command: Command) {
        self.commands.send(command).expect("the data path runs");
        self.command_waker.wake();
    }

    pub(crate) fn order(&self, order: BridgeRequest) {
        self.requests.send(order).expect("the bridge runs");
        self.request_waker.wake();
    }

    /// Sends a message to a worker's program. Returns whether there was room.
    pub(crate) fn send(&self, place: usize, message: &Value) -> bool {
        self.post(place, ToWorker::User(message), None)
    }

    /// Sends a message with a socket.
    pub(crate) fn send_socket(
        &self,
        place: usize,
        message: &Value,
        kind: SocketKind,
        socket: impl Into<OwnedFd>,
    ) -> bool {
        let socket = socket.into();
        fdpass::set_nonblocking(socket.as_fd()).expect("sockets can be non-blocking");
        self.post(place, ToWorker::UserSocket { kind, message }, Some(socket))
    }

    fn post(&self, place: usize, message: ToWorker<'_>, socket: Option<OwnedFd>) -> bool {
        let Worker { id, serialization, postage, .. } = &self.workers[place];
        let Some(message_out) = postage.message_out(message.frame(*serialization), socket) else {
            return false;
        };
        self.order(BridgeRequest::Send { worker: *id, message_out });
        true
    }

    /// The address of the listener that answered a request, after as many for other addresses.
    pub(crate) fn address(&self, listener: usize) -> &str {
        &self.addresses[listener]
    }

    pub(crate) fn unix_address(&self) -> &str {
        &self.addresses[TCP_LISTENERS]
    }

    /// Starts a worker, and waits until it listens on as many servers as its program opens.
    pub(crate) fn fork(&mut self, setup: &Setup, servers: usize) -> usize {
        let place = self.workers.len();
        let id = WorkerId::new(u32::try_from(place).expect("few workers") + 1);
        let slot = Slot::new(u16::try_from(place).expect("few workers"));
        let (channel, theirs) = fdpass::stream_pair().expect("a pair");
        let (sender, receiver) = fdpass::packet_pair().expect("a pair");
        fdpass::bound_send_buffer(sender.as_fd(), data_path::CHANNEL_BYTES).expect("a bound");
        let inbox = receiver.try_clone().expect("a duplicate");
        let primary_page = PrimaryPage::create().expect("a page");
        let counts = primary_page.view().expect("a page");
        let waker = Waker::new().expect("a descriptor");
        let page = primary_page.as_fd().try_clone_to_owned().expect("a duplicate");
        let process = self.launch(setup, id, &theirs);
        drop(theirs);
        let (is_native, pid) = (false, std::process::id());
        let link = NewLink { sender, receiver, page: primary_page, waker, is_native, pid };
        self.command(Command::Attach { slot, link });
        let new_worker = Box::new(NewNodeWorker {
            channel,
            serialization: setup.serialization,
            window: setup.window,
            inbox,
            page,
        });
        self.order(BridgeRequest::Admit { worker: id, slot, new_worker });
        self.workers.push(Worker {
            id,
            slot,
            process,
            counts,
            serialization: setup.serialization,
            postage: SendQuota::default(),
            online: false,
            listening: Vec::new(),
            left: Vec::new(),
            leaving: false,
            messages: Vec::new(),
            descriptors: 0,
            gone: None,
            ending: None,
            buried: false,
        });
        self.until("a worker to listen", |front| front.workers[place].listening.len() >= servers);
        place
    }

    fn launch(&self, setup: &Setup, id: WorkerId, channel: &OwnedFd) -> WorkerProcess {
        let script = self.folder.path().join(format!("worker-{id}.js"));
        fs::write(&script, &setup.script).expect("the folder is writable");
        let mut variables = environment(id, channel.as_raw_fd(), setup.serialization).to_vec();
        variables.push(("TEST_CHANNEL".into(), channel.as_raw_fd().to_string()));
        let socket = self.unix_address().trim_start_matches("unix:");
        variables.push(("TEST_SOCKET".into(), socket.into()));
        let (program, arguments) = match setup.descriptors {
            None => (setup.node.program.clone(), vec![script.into()]),
            Some(most) => {
                let limited = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
                let program = setup.node.program.clone().into();
                ("/bin/sh".into(), vec!["-c".into(), limited.into(), program, script.into()])
            }
        };
        let launch = Launch {
            name: program.clone().into(),
            program,
            arguments,
            environment: variables
                .into_iter()
                .map(|(name, value)| (name.to_owned().into(), value.into()))
                .collect(),
            removed: vec![],
            confined: false,
            id_variable: None,
            directory: None,
            user: None,
            group: None,
            streams: [process::Stream::Inherit, process::Stream::Inherit, process::Stream::Inherit],
            own_group: false,
            descriptor_limit: DescriptorLimit::default(),
            blocked_signals: None,
            ends_with_parent: false,
            inherited: vec![channel.as_fd()],
            placed: vec![],
        };
        launch.start().expect("Node starts").process
    }

    /// Processes notices until the condition holds.
    pub(crate) fn until(&mut self, what: &str, come: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(notice) = (!self.deaf).then(|| self.notices.take_of(|_| true)).flatten()
            {
                self.on_notice(notice);
            }
            self.reap();
            self.hear_reports();
            if come(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            assert!(Instant::now() < deadline, "in vain: waited for {what}: {:?}", self.workers);
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Online { worker } => self.worker(worker).online = true,
            Notice::Query { worker, query, request } => {
                let (answer, socket) = self.find(&request);
                self.order(BridgeRequest::Answer { worker, query, answer, socket });
            }
            Notice::Listening { worker, listening } => {
                self.worker(worker).listening.push(listening);
            }
            Notice::Left { worker, listener } => self.worker(worker).left.push(listener),
            Notice::Leaving { worker } => self.worker(worker).leaving = true,
            Notice::Stopped { .. } => {}
            Notice::Message { worker, message, descriptor } => {
                let worker = self.worker(worker);
                worker.messages.push(message.value().unwrap_or_default());
                worker.descriptors += usize::from(descriptor.is_some());
            }
            Notice::SocketLost { worker } => panic!("worker {worker} lost a socket"),
            Notice::Gone { worker, failure } => self.worker(worker).gone = Some(failure),
        }
    }

    fn worker(&mut self, id: WorkerId) -> &mut Worker {
        self.workers.iter_mut().find(|worker| worker.id == id).expect("a worker of this run")
    }

    fn find(&mut self, request: &Query) -> (Answer, Option<OwnedFd>) {
        let place = match &request.place {
            ListenTarget::Tcp { host, port } => {
                let asked = format!("{host:?} {port} {}", request.index);
                let known = self.asked.iter().position(|other| *other == asked);
                known.unwrap_or_else(|| {
                    self.asked.push(asked);
                    self.asked.len() - 1
                })
            }
            ListenTarget::Unix(path) if self.unix_address() == format!("unix:{path}") => {
                TCP_LISTENERS
            }
            ListenTarget::Inherited(number) => usize::try_from(*number).expect("not negative"),
            ListenTarget::Udp { .. } => {
                let listener = ListenerId::new(u16::MAX);
                let socket = self.udp.try_clone().expect("a duplicate");
                return (share(listener, true), Some(socket.into()));
            }
            _ => return (Answer::Fail(Errno::EADDRNOTAVAIL), None),
        };
        let name = self.addresses[place].parse::<SocketAddr>().ok();
        let listener = ListenerId::new(u16::try_from(place).expect("few listeners"));
        if self.shares {
            let socket = self.sockets[place].try_clone().expect("a duplicate");
            return (share(listener, false), Some(socket));
        }
        (
            Answer::HandOver { listener, name: name.map(SocketName::from), proxy_protocol: false },
            None,
        )
    }

    /// Reaps workers whose processes have ended and whose channels are closed.
    fn reap(&mut self) {
        for place in 0..self.workers.len() {
            let worker = &mut self.workers[place];
            if worker.try_ended() && worker.gone.is_some() && !worker.buried {
                worker.buried = true;
                let slot = worker.slot;
                self.command(Command::Reap { slot });
            }
        }
    }

    fn hear_reports(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            match report {
                DataPathReport::Reaped { slot, counters, .. } => {
                    assert_eq!((counters.unclaimed(), counters.in_flight()), (0, 0), "{slot:?}");
                }
                DataPathReport::Hung { .. } => self.hangs += 1,
                DataPathReport::Ended(totals) => self.totals = totals,
                _ => {}
            }
        }
    }

    /// Lets a worker take what is on its way, and then leave.
    pub(crate) fn disconnect(&mut self, place: usize) {
        let (worker, slot) = (self.workers[place].id, self.workers[place].slot);
        self.command(Command::Retire { slot });
        self.order(BridgeRequest::Disconnect { worker });
    }

    /// Waits until a worker has exited with this code.
    pub(crate) fn ended(&mut self, place: usize, code: i32) {
        self.until("a worker to leave", |front| {
            front.workers[place].ending.is_some() && front.workers[place].gone.is_some()
        });
        assert_eq!(self.workers[place].ending, Some(Ending::Code(code)));
    }

    /// Ends everything; no connection may have been dropped.
    pub(crate) fn finish(mut self) -> ClusterCounts {
        // A client may have its answer before the worker's acknowledgement has been read.
        self.until("every connection to be acknowledged", |front| {
            let mut workers = front.workers.iter().filter(|worker| worker.gone.is_none());
            workers.all(|worker| worker.counts.counters().unclaimed() == 0)
        });
        self.order(BridgeRequest::End);
        let bridge = self.threads.pop().expect("two threads were started");
        bridge.join().expect("no panic").expect("the bridge ends in order");
        // Workers without a channel leave; those that cannot are killed on drop.
        self.command(Command::End);
        let data = self.threads.pop().expect("two threads were started");
        data.join().expect("no panic").expect("the data path ends in order");
        self.hear_reports();
        assert_eq!(self.totals.dropped, 0);
        self.totals
    }
}

fn share(listener: ListenerId, datagram: bool) -> Answer {
    Answer::Share { listener, datagram, counted: false, proxy_protocol: false }
}
