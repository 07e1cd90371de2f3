//! The data path alone, on each engine, with a real listener and with inboxes that this test reads
//! itself, so that it controls the time of each claim. Also tests schedulers supplied by a user of
//! the library.

#[path = "common/wait.rs"]
mod wait;

use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use clusterlb::internals::data_path::{
    ClusterCounts, Command, DataPath, DataPathReport, Endpoints, NewLink,
};
use clusterlb_protocol::scoreboard::{PrimaryPage, WorkerPage};
use clusterlb_schedule::id::{ListenerId, Slot};
use clusterlb_schedule::{
    Client, CreditRule, Loads, Policy, Scheduler, SchedulerConfig, SchedulerFactory, WorkerLoad,
};
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::engine::EngineKind;
use clusterlb_sys::fdpass;
use clusterlb_sys::listener::{Listener, OpenOptions, open_shared};
use clusterlb_sys::waker::Waker;
use nix::errno::Errno;

use wait::{PATIENCE, eventually};

const BACKLOG: u32 = 64;
const OPTIONS: OpenOptions = OpenOptions {
    backlog: BACKLOG,
    share_port: false,
    ipv6_only: false,
    mode: None,
    blocking: false,
    defer_accept: false,
};
const FIRST: ListenerId = ListenerId::new(0);
/// Unclaimed connections allowed per worker.
const CREDITS: usize = 3;

/// A scheduler that prefers the first worker.
#[derive(Debug)]
struct FirstOfAll;

impl Scheduler for FirstOfAll {
    fn pick(&mut self, loads: &Loads, _: Client) -> Option<Slot> {
        let place = loads.iter().position(WorkerLoad::can_take)?;
        u16::try_from(place).ok().map(Slot::new)
    }
}

/// The parts of a worker that the primary sees.
#[derive(Debug)]
struct Inbox {
    receiver: OwnedFd,
    page: WorkerPage,
    waker: Waker,
    sockets: Vec<OwnedFd>,
}

impl Inbox {
    /// Reads the messages in the channel. The primary learns of it only by `claim`.
    fn look(&mut self) -> usize {
        let mut payload = [0; 4096];
        loop {
            let taken = fdpass::receive(self.receiver.as_fd(), &mut payload, &mut self.sockets);
            match taken {
                Ok(arrival) => assert!(arrival.bytes > 0 && !arrival.truncated, "{arrival:?}"),
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    return self.sockets.len();
                }
            }
        }
    }

    /// Claims what has been read, and wakes the primary if it asked for it.
    fn claim(&mut self) {
        let count = self.sockets.drain(..).count() as u64;
        self.page.add_claimed(count, monotonic_ns());
        self.page.add_finished(None, count, monotonic_ns());
        if self.page.publish() {
            self.waker.wake();
        }
    }
}

/// The running data path with its inboxes.
#[derive(Debug)]
struct Bench {
    address: String,
    inboxes: Vec<Inbox>,
    commands: Sender<Command>,
    reports: Receiver<DataPathReport>,
    waker: Arc<Waker>,
    thread: JoinHandle<()>,
}

fn waker() -> Arc<Waker> {
    Arc::new(Waker::new().expect("a descriptor to spare"))
}

impl Bench {
    fn start(engine: EngineKind, scheduling: SchedulerConfig, workers: u16) -> Self {
        let address = "127.0.0.1:0".parse().expect("an address");
        let listener = Arc::new(Listener::open(&address, OPTIONS).expect("a free port"));
        let address = listener.address().to_owned();
        let first = vec![Command::AddListener { id: FIRST, listener }];
        Self::open(engine, scheduling, workers, address, first)
    }

    fn open(
        engine: EngineKind,
        scheduling: SchedulerConfig,
        workers: u16,
        address: String,
        first: Vec<Command>,
    ) -> Self {
        let (commands, commands_out) = channel();
        let (reports_in, reports) = channel();
        let (waker, report_waker) = (waker(), waker());
        let endpoints = Endpoints {
            commands: commands_out,
            reports: reports_in,
            waker: Arc::clone(&waker),
            report_waker,
            live_counts: Arc::default(),
        };
        // An engine belongs to the thread that created it.
        let thread = std::thread::spawn(move || {
            let workers = usize::from(workers);
            let primary =
                DataPath::new(engine, Policy::Rr, scheduling, workers, BACKLOG, endpoints);
            primary.and_then(DataPath::run).expect("a data path that works");
        });
        let mut bench = Self { address, inboxes: vec![], commands, reports, waker, thread };
        first.into_iter().for_each(|command| bench.command(command));
        for slot in (0..workers).map(Slot::new) {
            bench.attach(slot);
        }
        bench.command(Command::Open);
        bench
    }

    fn command(&self, command: Command) {
        self.commands.send(command).expect("the data path runs");
        self.waker.wake();
    }

    fn attach(&mut self, slot: Slot) {
        self.attach_to(slot, &[FIRST]);
    }

    fn attach_to(&mut self, slot: Slot, listeners: &[ListenerId]) {
        let page = PrimaryPage::create().expect("a page");
        let memory = page.as_fd().try_clone_to_owned().expect("a descriptor to spare");
        let waker = Waker::new().expect("a descriptor to spare");
        let bell = waker.as_fd().try_clone_to_owned().expect("a descriptor to spare");
        let (sender, receiver) = fdpass::packet_pair().expect("descriptors to spare");
        self.inboxes.push(Inbox {
            receiver: receiver.try_clone().expect("a descriptor to spare"),
            page: WorkerPage::open(memory).expect("our own page"),
            waker: Waker::inherited(bell),
            sockets: Vec::new(),
        });
        let (is_native, pid) = (true, std::process::id());
        let link = NewLink { sender, receiver, page, waker, is_native, pid };
        self.command(Command::Attach { slot, link });
        for listener in listeners.iter().copied() {
            self.command(Command::Join { slot, listener });
        }
    }

    fn connect(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| TcpStream::connect(&self.address).expect("a backlog")).collect()
    }

    /// Waits until each inbox holds this many unclaimed connections.
    fn expect(&mut self, counts: &[usize]) {
        let mut seen = Vec::new();
        eventually("the connections to arrive", || {
            seen = self.inboxes.iter_mut().map(Inbox::look).collect();
            (seen.iter().sum::<usize>() >= counts.iter().sum()).then_some(())
        });
        assert_eq!(seen, counts);
    }

    /// Claims what one inbox has received.
    fn claim(&mut self, slot: usize) {
        self.inboxes[slot].claim();
    }

    /// The next report that does not concern a worker.
    fn report(&self) -> DataPathReport {
        loop {
            match self.reports.recv_timeout(PATIENCE).expect("a report") {
                DataPathReport::Hung { .. }
                | DataPathReport::Recovered { .. }
                | DataPathReport::Outlier { .. }
                | DataPathReport::OutlierEnded { .. } => {}
                report => return report,
            }
        }
    }

    /// Stops accepting, waits until everything is handed over, and ends.
    fn end(self) -> ClusterCounts {
        self.command(Command::RemoveListener { listener: FIRST });
        assert!(matches!(self.report(), DataPathReport::ListenerRemoved { .. }));
        self.command(Command::End);
        let DataPathReport::Ended(totals) = self.report() else {
            panic!("nothing else was to come")
        };
        self.thread.join().expect("the data path has not panicked");
        totals
    }
}

/// A configuration with this scheduler in which nothing depends on time.
fn scheduling<S: Scheduler + 'static>(
    make: impl Fn() -> S + Send + Sync + 'static,
) -> SchedulerConfig {
    SchedulerConfig {
        scheduler: Some(SchedulerFactory::new(move |_| Box::new(make()))),
        credits: CreditRule::Fixed(u32::try_from(CREDITS).expect("a few")),
        hang_after_ns: None,
        ..SchedulerConfig::default()
    }
}

fn a_custom_scheduler_decides_which_worker_gets_a_connection(engine: EngineKind) {
    let mut bench = Bench::start(engine, scheduling(|| FirstOfAll), 3);
    let mut clients = bench.connect(2 * CREDITS + 1);
    bench.expect(&[CREDITS, CREDITS, 1]);
    // Both a rotation and the least load would select the third worker.
    bench.claim(0);
    clients.extend(bench.connect(1));
    bench.expect(&[1, CREDITS, 1]);
    (0..3).for_each(|slot| bench.claim(slot));
    let totals = bench.end();
    assert_eq!((totals.accepted, totals.refused, totals.dropped), (clients.len() as u64, 0, 0));
}

fn connections_wait_until_a_worker_can_take_them(engine: EngineKind) {
    let mut bench = Bench::start(engine, scheduling(|| FirstOfAll), 2);
    let clients = bench.connect(3 * CREDITS);
    bench.expect(&[CREDITS, CREDITS]);
    bench.claim(1);
    bench.expect(&[CREDITS, CREDITS]);
    (0..2).for_each(|slot| bench.claim(slot));
    let totals = bench.end();
    assert_eq!((totals.accepted, totals.dropped), (clients.len() as u64, 0));
    assert!(totals.pauses > 0, "{totals:?}");
}

/// A scheduler that names slots in sequence, whether or not they are eligible or exist.
#[derive(Debug)]
struct Careless {
    asked: Sender<Slot>,
    next: u16,
}

impl Scheduler for Careless {
    fn pick(&mut self, _: &Loads, _: Client) -> Option<Slot> {
        let slot = Slot::new(self.next);
        self.next = (self.next + 1) % 5;
        self.asked.send(slot).expect("the test listens");
        Some(slot)
    }
}

fn a_careless_scheduler_cannot_harm_the_data_path(engine: EngineKind) {
    let (asked, answers) = channel();
    let asked = Mutex::new(asked);
    let make = move || Careless { asked: asked.lock().expect("no panic").clone(), next: 3 };
    let mut bench = Bench::start(engine, scheduling(make), 2);
    // Slots 3 and 4 do not exist: the connection waits until the scheduler is asked again, which
    // happens at once for the second question, and then when a worker has done something.
    let client = bench.connect(1);
    let mut named = Vec::new();
    eventually("the scheduler to name an existing slot", || {
        bench.claim(1);
        named.extend(answers.try_iter());
        named.contains(&Slot::new(0)).then_some(())
    });
    bench.expect(&[1, 0]);
    assert_eq!(named[..3], [Slot::new(3), Slot::new(4), Slot::new(0)]);
    bench.claim(0);
    let totals = bench.end();
    assert_eq!((totals.accepted, totals.dropped), (client.len() as u64, 0));
}

fn a_worker_that_answers_its_probe_is_trusted_again_without_a_new_connection(engine: EngineKind) {
    let hang_after = Duration::from_millis(20);
    let scheduling =
        SchedulerConfig { hang_after_ns: Some(20_000_000), ..scheduling(|| FirstOfAll) };
    let mut bench = Bench::start(engine, scheduling, 2);
    // The second worker claims its future connections too, so that it is not late on a busy
    // machine.
    bench.inboxes[1].page.add_claimed(1, monotonic_ns());
    let _ = bench.inboxes[1].page.publish();
    let client = bench.connect(1);
    let report = bench.reports.recv_timeout(PATIENCE).expect("a report");
    assert!(matches!(report, DataPathReport::Hung { slot, .. } if slot.get() == 0), "{report:?}");
    bench.expect(&[0, 1]);
    // The second worker's claim is read when it could be late. After that only a wake-up makes the
    // primary read it again.
    std::thread::sleep(3 * hang_after);
    bench.inboxes[0].page.answer_probe();
    bench.claim(0);
    let report = bench.reports.recv_timeout(PATIENCE).expect("a report");
    assert!(matches!(report, DataPathReport::Recovered { slot } if slot.get() == 0), "{report:?}");
    assert_eq!(bench.end().redispatched, client.len() as u64);
}

fn many_arrivals_are_coalesced_and_none_is_lost(engine: EngineKind) {
    // With this, three connections in two milliseconds count as many, which a busy machine achieves
    // too.
    const WAIT_NS: u64 = 1_000_000;
    for _ in 0..20 {
        let coalesce_ns = Some(WAIT_NS);
        let credits = CreditRule::Fixed(64);
        let scheduling = SchedulerConfig {
            coalesce_ns,
            credits,
            hang_after_ns: None,
            ..SchedulerConfig::default()
        };
        let mut bench = Bench::start(engine, scheduling, 2);
        let mut connected = 0;
        // The rate is measured over two hundred such intervals.
        let begin_ns = monotonic_ns();
        while monotonic_ns() < begin_ns + 500 * WAIT_NS {
            let clients = bench.connect(32);
            bench.expect(&[16, 16]);
            (0..2).for_each(|slot| bench.claim(slot));
            connected += clients.len() as u64;
        }
        let totals = bench.end();
        assert_eq!((totals.accepted, totals.dropped), (connected, 0));
        if totals.coalesced > 0 {
            return;
        }
    }
    panic!("it has never waited");
}

/// Two workers with a socket each; this test accepts on their behalf.
struct Sharers {
    bench: Bench,
    sockets: [Arc<Listener>; 2],
    /// Connections accepted from the sockets.
    own: Vec<OwnedFd>,
}

impl Sharers {
    fn start(engine: EngineKind, hang_after_ns: u64) -> Self {
        let options = OpenOptions { share_port: true, ..OPTIONS };
        let address = "127.0.0.1:0".parse().expect("an address");
        let first = Listener::open(&address, options).expect("a free port");
        let address = first.address().to_owned();
        let second = open_shared(&address, options).expect("the same port");
        let sockets = [first, second].map(Arc::new);
        let scheduling = SchedulerConfig {
            credits: CreditRule::Fixed(256),
            hang_after_ns: Some(hang_after_ns),
            ..scheduling(|| FirstOfAll)
        };
        let added = (0..).zip(&sockets).map(|(number, socket)| Command::AddSocket {
            id: FIRST,
            number,
            socket: Arc::clone(socket),
        });
        let bench = Bench::open(engine, scheduling, 2, address, added.collect());
        let sharers = Self { bench, sockets, own: Vec::new() };
        (0..2).for_each(|number| sharers.set_owners(number, vec![Slot::new(number)]));
        sharers
    }

    fn set_owners(&self, number: u16, owners: Vec<Slot>) {
        self.bench.command(Command::SetOwners { listener: FIRST, number, owners });
    }

    /// Accepts a worker's queued connections.
    fn accept(&mut self, worker: usize) -> usize {
        let before = self.own.len();
        while let Ok(Some(socket)) = self.sockets[worker].accept_now() {
            self.own.push(socket);
        }
        self.own.len() - before
    }

    /// Number of connections assigned to each worker.
    fn given(&mut self) -> [usize; 2] {
        let looks: Vec<usize> = self.bench.inboxes.iter_mut().map(Inbox::look).collect();
        [looks[0], looks[1]]
    }

    /// Waits for the report that a worker is stalled, or has recovered, while the other one works.
    fn told(&mut self, hangs: bool) {
        eventually("a report of the first worker", || {
            self.accept(1);
            let mut reports = self.bench.reports.try_iter();
            reports.find(|report| match report {
                DataPathReport::Hung { slot, .. } => hangs && *slot == Slot::new(0),
                DataPathReport::Recovered { slot } => !hangs && *slot == Slot::new(0),
                _ => false,
            })
        });
    }
}

fn what_waits_in_the_socket_of_a_worker_that_does_not_accept_is_given_to_others(
    engine: EngineKind,
) {
    // Long enough for this test, which works for the second one, to run.
    let mut sharers = Sharers::start(engine, 1_000_000_000);
    let clients = sharers.bench.connect(40);
    sharers.told(true);
    eventually("all of them to be somewhere", || {
        sharers.accept(1);
        (sharers.given()[1] + sharers.own.len() == clients.len()).then_some(())
    });
    assert_eq!(sharers.given()[0], 0, "it does not accept, so it gets nothing of others either");
    assert_eq!(sharers.accept(0), 0, "nothing is there twice");
    // It recovers and gets the connections of its socket again.
    let mut later = Vec::new();
    eventually("a connection for the first", || {
        later.extend(sharers.bench.connect(1));
        (sharers.accept(0) > 0).then_some(())
    });
    sharers.told(false);
    let given = sharers.given();
    let totals = sharers.bench.end();
    assert_eq!(totals.accepted, totals.stolen);
    assert!(totals.accepted >= (given[0] + given[1]) as u64);
    assert_eq!(totals.dropped, 0);
}

fn the_primary_accepts_from_a_socket_while_its_worker_does_not(engine: EngineKind) {
    let mut sharers = Sharers::start(engine, 10_000_000_000);
    sharers.set_owners(0, vec![]);
    let clients = sharers.bench.connect(40);
    eventually("all of them to be somewhere", || {
        sharers.accept(1);
        (sharers.given().iter().sum::<usize>() + sharers.own.len() == clients.len()).then_some(())
    });
    assert!(!sharers.own.is_empty() && sharers.own.len() < clients.len());
    // A successor takes over the socket.
    sharers.set_owners(0, vec![Slot::new(0), Slot::new(1)]);
    let mut later = 0;
    eventually("a connection to be left to the successor", || {
        later += sharers.bench.connect(1).len();
        (sharers.accept(0) > 0).then_some(())
    });
    let totals = sharers.bench.end();
    assert_eq!((totals.accepted, totals.dropped), (totals.stolen, 0));
    assert!(totals.accepted < (clients.len() + later) as u64);
}

/// Tests that must pass on either engine.
macro_rules! on_each_engine {
    ($($name:ident)*) => {
        mod io_uring {
            $(#[test]
            fn $name() {
                super::$name(super::EngineKind::IoUring);
            })*
        }

        mod epoll {
            $(#[test]
            fn $name() {
                super::$name(super::EngineKind::Epoll);
            })*
        }
    };
}

#[path = "data_path/unequal.rs"]
mod unequal;

on_each_engine! {
    a_custom_scheduler_decides_which_worker_gets_a_connection
    connections_wait_until_a_worker_can_take_them
    a_careless_scheduler_cannot_harm_the_data_path
    a_worker_that_answers_its_probe_is_trusted_again_without_a_new_connection
    many_arrivals_are_coalesced_and_none_is_lost
    what_waits_in_the_socket_of_a_worker_that_does_not_accept_is_given_to_others
    the_primary_accepts_from_a_socket_while_its_worker_does_not
}
