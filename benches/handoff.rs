//! Cost of handing a socket over, for sender and receiver, by sockets per message and engine.
//!
//! Both ends run in one thread with an engine each, take turns, and are timed separately in CPU
//! time of the thread, which on a shared machine is steadier than wall-clock time. One iteration is
//! one socket. The sender fills messages, sends them and closes its copies, as the primary does.
//! The receiver stands in for a worker: it opens messages and closes their sockets.
//!
//! The sockets are duplicates of one TCP connection on loopback, so real descriptors are sent and
//! closed. The connection itself stays open, since its end is not part of a handoff.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use clusterlb_protocol::handoff_layout::{self, Record};
use clusterlb_schedule::id::ListenerId;
use clusterlb_sys::engine::{Engine, EngineEvent, EngineKind, Key, OutgoingMessage, RingShape};
use clusterlb_sys::fdpass;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};

/// Messages in the channel at a time: below the eighty that its buffer holds, and few enough that
/// their sockets fit the usual descriptor limit.
const MESSAGES_PER_ROUND: usize = 16;

const SHAPE: RingShape = RingShape { submissions: 1024, completions: 4096 };
const KEY: Key = Key { index: 0, generation: 0 };

/// CPU time of this thread, including system calls.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock");
    Duration::from(time)
}

/// A connected TCP socket and its peer.
fn connection() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("a bound listener has one"));
    let (accepted, _) = listener.accept().expect("the client is waiting");
    (accepted.into(), client.expect("the listener has room"))
}

/// Both ends of a channel and their buffers.
struct Bench {
    sending: Engine,
    receiving: Engine,
    sender: OwnedFd,
    receiver: OwnedFd,
    socket: OwnedFd,
    /// Keeps the connection open.
    _client: TcpStream,
    #[expect(clippy::vec_box, reason = "the engine lends and returns messages in their boxes")]
    spare: Vec<Box<OutgoingMessage>>,
    events: Vec<EngineEvent>,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    armed: bool,
}

impl Bench {
    fn new(kind: EngineKind) -> Self {
        let (sender, receiver) = fdpass::packet_pair().expect("two descriptors");
        let (socket, client) = connection();
        let engine = || Engine::new(kind, SHAPE).expect("this benchmark needs io_uring, too");
        Self {
            sending: engine(),
            receiving: engine().with_message_buffers().expect("some memory"),
            sender,
            receiver,
            socket,
            _client: client,
            spare: Vec::new(),
            events: Vec::new(),
            payload: Vec::new(),
            descriptors: Vec::new(),
            armed: false,
        }
    }

    fn duplicates(&self, count: usize) -> Vec<OwnedFd> {
        let one = || self.socket.try_clone().expect("descriptors are left");
        (0..count).map(|_| one()).collect()
    }

    /// Hands all sockets over, `batch` per message, and closes the copies.
    fn send(&mut self, sockets: Vec<OwnedFd>, batch: usize) {
        let mut messages = 0;
        let mut sockets = sockets.into_iter().peekable();
        while sockets.peek().is_some() {
            let mut message = self.spare.pop().unwrap_or_default();
            for socket in sockets.by_ref().take(batch) {
                let record = Record { listener: ListenerId::new(0), accepted_ns: 1 };
                handoff_layout::append(message.payload_mut(), record);
                message.push(socket).expect("a batch fits into a message");
            }
            self.sending.send_message(KEY, self.sender.as_fd(), message);
            messages += 1;
        }
        while messages > 0 {
            // Completed sends do not end a wait; the turn ends when all have completed and the
            // copies are closed.
            self.sending.turn(&mut self.events).expect("an engine");
            for event in self.events.drain(..) {
                if let EngineEvent::MessageSent { mut message, outcome, .. } = event {
                    outcome.expect("the channel has room for a round");
                    message.drain();
                    self.spare.push(message);
                    messages -= 1;
                }
            }
        }
        self.sending.submit();
    }

    /// Receives this many sockets and closes them.
    fn receive(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            self.receiving.offer_messages(32);
            if !self.armed {
                self.receiving.receive_messages(KEY, self.receiver.as_fd());
                self.armed = true;
            }
            wait(&mut self.receiving, &mut self.events);
            for event in self.events.drain(..) {
                let EngineEvent::MessageReceived { outcome, armed, .. } = event else {
                    continue;
                };
                self.armed = armed;
                let sealed = outcome.expect("nothing fails").expect("the sender lives");
                self.payload.clear();
                let opened =
                    self.receiving.open_message(sealed, &mut self.payload, &mut self.descriptors);
                assert!(!opened.truncated, "descriptors are left");
                let records = handoff_layout::records(&self.payload).expect("a message of ours");
                assert_eq!(records.len(), self.descriptors.len());
                left -= self.descriptors.len();
                for socket in self.descriptors.drain(..) {
                    self.receiving.close(socket);
                }
            }
        }
        self.receiving.submit();
    }
}

fn wait(engine: &mut Engine, events: &mut Vec<EngineEvent>) {
    engine.wait(events, None).expect("the engine is usable");
    assert!(!events.is_empty(), "something was under way");
}

/// Passes about `sockets` sockets through, and scales the time of each side to exactly that number.
fn pass(bench: &mut Bench, sockets: u64, batch: usize) -> (Duration, Duration) {
    let (mut sent_in, mut received_in) = (Duration::ZERO, Duration::ZERO);
    let round = MESSAGES_PER_ROUND * batch;
    let rounds = usize::try_from(sockets).unwrap_or(usize::MAX).div_ceil(round);
    for _ in 0..rounds {
        let duplicates = bench.duplicates(round);
        let start = thread_cpu_time();
        bench.send(duplicates, batch);
        let between = thread_cpu_time();
        bench.receive(round);
        received_in += thread_cpu_time() - between;
        sent_in += between - start;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of sockets are far below 2^53")]
    let scale = sockets as f64 / (rounds * round) as f64;
    (sent_in.mul_f64(scale), received_in.mul_f64(scale))
}

fn handoff(criterion: &mut Criterion) {
    for kind in [EngineKind::IoUring, EngineKind::Epoll] {
        let mut bench = Bench::new(kind);
        for side in ["send", "receive"] {
            let mut group = criterion.benchmark_group(format!("handoff/{kind}/{side}"));
            for batch in [1, 4, 16, 32] {
                let id = BenchmarkId::new("sockets per message", batch);
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|sockets| {
                        let (sent_in, received_in) = pass(&mut bench, sockets, batch);
                        if side == "send" { sent_in } else { received_in }
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = handoff
}
criterion_main!(benches);
