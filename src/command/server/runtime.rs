//! The built-in worker on the tokio-uring runtime: one task a connection, the same protocols.
//!
//! With `adapter/uring`, the only file that names tokio-uring. It exists for people who write
//! handlers as async functions and for comparing that with the worker's own loop (`--runtime`). Its
//! runtime is driven by epoll, needs two system calls a turn, and cannot accept; connections come
//! from the primary's inbox.

use std::cell::{Cell, RefCell};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use clusterlb_sys::signal::Signal;
use nix::errno::Errno;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_uring::net::TcpStream;

use crate::command::server::handler::{Context, HttpLimits, Next, Session, Waiting};
use crate::command::server::{ControlClient, PrimaryRequest, SyntheticWork};
use crate::command::settings::{ServeSettings, Settings};
use clusterlb::protocol::environment::Inheritance;
use clusterlb::protocol::handoff;
use clusterlb::protocol::latency::HandoffLatency;
use clusterlb::protocol::scoreboard::{Statistic, WorkerPage};
use clusterlb::{Error, Result};
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::engine::PAYLOAD_BYTES_MAX;
use clusterlb_sys::fdpass::{self, DESCRIPTORS_PER_MESSAGE_MAX};
use clusterlb_sys::limits;
use clusterlb_sys::peer::reset_on_close;
use clusterlb_sys::readiness::Readiness;
use clusterlb_sys::ring::RingShape;
use clusterlb_sys::signal::{self, Signals};
use clusterlb_sys::waker::Waker;

/// Bytes read at once.
const READ_BYTES: usize = 4096;
/// Output of one step; at the bound the session waits until it is sent.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// How long a client may send nothing in the middle of a body, or take nothing of an answer.
const STALL: Duration = Duration::from_secs(60);
/// How long the rest of a refused request is read away.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes read away after an error answer before the connection is closed anyway.
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// How long a leaving worker waits for the first request of a connection.
const LEAVE: Duration = Duration::from_secs(1);
/// How soon a worker short of descriptors looks again.
const ROOM_RETRY: Duration = Duration::from_millis(10);
/// Descriptors that are never given to connections.
const DESCRIPTORS_RESERVED: usize = 16;

/// Runs as a worker until the primary or a signal says otherwise.
///
/// # Errors
/// The inheritance is incomplete, or an address cannot be served.
pub(crate) fn run(settings: &Settings, inheritance: Inheritance) -> Result<()> {
    signal::block(&super::FOR_THE_PRIMARY)?;
    let signals = Signals::receive(&[Signal::SIGTERM])?;
    if let Some(cpu) = inheritance.cpu {
        clusterlb_sys::cpu::pin_to(cpu)?;
    }
    let inbox = inheritance.inbox.ok_or_else(|| {
        Error::usage("this worker has no inbox", "use --policy rr with --runtime tokio-uring")
    })?;
    let control_client = ControlClient::open(inheritance.control, &settings.listen)?;
    let worker = Rc::new(Worker {
        settings: settings.serve.clone(),
        limits: HttpLimits::default(),
        page: RefCell::new(WorkerPage::open(inheritance.page)?),
        waker: inheritance.waker,
        open: Cell::new(0),
        finished: Notify::new(),
        draining: watch::Sender::new(false),
        synthetic_work: RefCell::new(SyntheticWork::new(&settings.serve, inheritance.id.0)),
    });
    let grace = settings.grace;
    let mut builder = tokio_uring::builder();
    if let Some(bytes) = inheritance.ring_bytes {
        // As many completions as would be there twice over by default, less where memory is short.
        let shape = RingShape { submissions: 256, completions: 512 }.within(bytes);
        builder.entries(shape.submissions);
    }
    builder.start(async move {
        let receiving = tokio_uring::spawn(receive(Rc::clone(&worker), inbox));
        let mut control_client = control_client;
        let cut = be_told(&worker, &mut control_client, signals, grace).await?;
        let latency = tokio::time::timeout_at(cut, async {
            let latency = receiving.await;
            while worker.open.get() > 0 {
                worker.finished.notified().await;
            }
            latency
        });
        // A task that failed or was cut has nothing to tell.
        let latency = latency.await.ok().and_then(std::result::Result::ok);
        control_client.say_farewell(latency.and_then(|latency| latency.summary()));
        Ok(())
    })
}

#[derive(Debug)]
struct Worker {
    settings: ServeSettings,
    limits: HttpLimits,
    page: RefCell<WorkerPage>,
    waker: Waker,
    open: Cell<usize>,
    finished: Notify,
    draining: watch::Sender<bool>,
    synthetic_work: RefCell<Option<SyntheticWork>>,
}

/// Does what the primary says until it is time to leave; tells when connections are cut.
async fn be_told(
    worker: &Rc<Worker>,
    control_client: &mut ControlClient,
    mut signals: Signals,
    grace: Duration,
) -> Result<Instant> {
    let (orders_ready, signals_ready) = (Readiness::of(control_client)?, Readiness::of(&signals)?);
    loop {
        let orders = std::pin::pin!(orders_ready.readable());
        let signal = std::pin::pin!(signals_ready.readable());
        let mut leave = None;
        match first_of(orders, signal).await {
            First::Left(ready) => {
                ready?;
                // Cleared before reading: what arrives meanwhile makes it ready again.
                orders_ready.exhausted().await;
                for order in control_client.hear()? {
                    match order {
                        PrimaryRequest::Leave { grace: given } => {
                            leave = Some(given.unwrap_or(grace))
                        }
                        PrimaryRequest::Begin => control_client.announce_ready()?,
                        // Connections come through the inbox; validation has seen to that.
                        PrimaryRequest::Accept { .. } => {}
                    }
                }
            }
            First::Right(ready) => {
                ready?;
                signals_ready.exhausted().await;
                while signals.next_signal()?.is_some() {
                    control_client.announce_leaving()?;
                    leave = Some(grace);
                }
            }
        }
        if let Some(grace) = leave {
            worker.draining.send_replace(true);
            return Ok(Instant::now() + grace);
        }
    }
}

enum First<L, R> {
    Left(L),
    Right(R),
}

/// Whichever of the two is ready first; the other is left as it is.
async fn first_of<L, R>(
    mut left: impl Future<Output = L> + Unpin,
    mut right: impl Future<Output = R> + Unpin,
) -> First<L, R> {
    use std::pin::Pin;
    use std::task::Poll;
    std::future::poll_fn(move |context| {
        if let Poll::Ready(value) = Pin::new(&mut left).poll(context) {
            return Poll::Ready(First::Left(value));
        }
        Pin::new(&mut right).poll(context).map(First::Right)
    })
    .await
}

/// Takes sockets from the inbox until it ends, a task for each.
async fn receive(worker: Rc<Worker>, inbox: OwnedFd) -> HandoffLatency {
    let mut latency = HandoffLatency::new();
    let Ok(ready) = Readiness::of(&inbox) else {
        return latency;
    };
    let used = limits::descriptors_open() + DESCRIPTORS_RESERVED;
    let mut payload = [0; PAYLOAD_BYTES_MAX];
    let mut sockets = Vec::new();
    loop {
        // The kernel drops descriptors that find no room, so a message is only taken when all of
        // it is sure to fit.
        while !worker.has_room(used) {
            // The runtime closes descriptors a little after a connection has ended.
            let _ = timeout(ROOM_RETRY, worker.finished.notified()).await;
        }
        if ready.readable().await.is_err() {
            return latency;
        }
        match fdpass::receive(inbox.as_fd(), &mut payload, &mut sockets) {
            Ok(arrival) if arrival.bytes == 0 => return latency,
            Ok(arrival) => {
                let now_ns = monotonic_ns();
                let records = handoff::records(&payload[..arrival.bytes]);
                let promised = records.map_or(0, |records| {
                    let count = records.len();
                    records.for_each(|record| latency.record(record.accepted_ns, now_ns));
                    count
                });
                worker.claimed(sockets.len(), promised.saturating_sub(sockets.len()), now_ns);
                for socket in sockets.drain(..) {
                    tokio_uring::spawn(serve(Rc::clone(&worker), socket));
                }
            }
            Err(Errno::EAGAIN) => ready.exhausted().await,
            Err(Errno::EINTR) => {}
            Err(_) => return latency,
        }
    }
}

fn descriptor_limit() -> usize {
    let (limit, _) = limits::descriptor_limits().unwrap_or((1024, 1024));
    usize::try_from(limit).unwrap_or(usize::MAX)
}

impl Worker {
    /// Whether a full message's descriptors are sure to fit, besides those `used` for other things.
    /// Counting is only worth it when it may be tight. The limit may have fallen.
    fn has_room(&self, used: usize) -> bool {
        let limit = descriptor_limit();
        let room = limit.saturating_sub(used).max(DESCRIPTORS_PER_MESSAGE_MAX);
        let open = self.open.get();
        open + 2 * DESCRIPTORS_PER_MESSAGE_MAX <= room
            || (open + DESCRIPTORS_PER_MESSAGE_MAX <= room
                && limits::descriptors_open() + DESCRIPTORS_PER_MESSAGE_MAX <= limit)
    }

    fn claimed(&self, arrived: usize, lost: usize, now_ns: u64) {
        let mut page = self.page.borrow_mut();
        match arrived + lost {
            0 => page.answer_probe(),
            count => page.add_claimed(count as u64, now_ns),
        }
        if lost > 0 {
            page.add(Statistic::Truncated, lost as u64);
            page.add_finished(lost as u64);
        }
        self.open.set(self.open.get() + arrived);
        self.publish(&mut page);
    }

    fn closed(&self) {
        let mut page = self.page.borrow_mut();
        page.add_finished(1);
        self.open.set(self.open.get() - 1);
        self.publish(&mut page);
        self.finished.notify_waiters();
    }

    fn publish(&self, page: &mut WorkerPage) {
        if page.publish() {
            // A bell that is full is ringing already.
            self.waker.wake();
        }
    }

    fn step(&self, session: &mut Session, input: &[u8], output: &mut Vec<u8>) -> (usize, Next) {
        self.in_context(|context| {
            let progress = session.on_bytes(input, output, context);
            let answered = u64::from(progress.answered);
            self.page.borrow_mut().add(Statistic::Requests, answered);
            if let Some(synthetic_work) = self.synthetic_work.borrow_mut().as_mut() {
                (0..answered).for_each(|_| synthetic_work.perform());
            }
            (progress.consumed, progress.next)
        })
    }

    fn in_context<T>(&self, step: impl FnOnce(&Context<'_>) -> T) -> T {
        let date = httpdate::fmt_http_date(SystemTime::now());
        step(&Context {
            date: &date,
            draining: *self.draining.borrow(),
            limits: &self.limits,
            output_max: OUTPUT_BYTES_MAX,
        })
    }

    /// How long the session may wait, and whether it waits for a request that need not come.
    fn patience(&self, session: &Session) -> Option<Duration> {
        match session.waiting() {
            Waiting::FirstRequest | Waiting::Head => Some(self.settings.header_timeout),
            Waiting::NextRequest => Some(self.settings.idle_timeout),
            Waiting::Body => Some(STALL),
            Waiting::Stream => None,
        }
    }
}

/// One connection, from claim to close.
async fn serve(worker: Rc<Worker>, socket: OwnedFd) {
    // The runtime only needs a stream socket here; whether it is TCP or unix makes no difference
    // to reading, writing and shutting down.
    let stream = TcpStream::from_std(std::net::TcpStream::from(socket));
    if converse(&worker, &stream).await.is_err() {
        worker.page.borrow_mut().add(Statistic::Resets, 1);
    }
    // A read that was given up on may still be armed; this ends it.
    let _ = stream.shutdown(Shutdown::Both);
    drop(stream);
    worker.closed();
}

/// Why reading ended without bytes.
enum Quiet {
    Ended,
    TimedOut,
    Leaving,
}

async fn converse(worker: &Worker, stream: &TcpStream) -> std::io::Result<()> {
    let mut session = Session::new(worker.settings.serve);
    let (mut kept, mut output) = (Vec::new(), Vec::new());
    let mut head_begun = Instant::now();
    let mut next = Next::Read;
    loop {
        if next == Next::Read {
            let waiting = session.waiting();
            if waiting != Waiting::Head && waiting != Waiting::FirstRequest {
                head_begun = Instant::now();
            }
            match read(worker, stream, &session, head_begun, &mut kept).await? {
                None => {}
                Some(Quiet::Leaving) => return Ok(()),
                Some(Quiet::Ended) => {
                    worker.in_context(|context| session.on_end(&kept, &mut output, context));
                    next = Next::Close;
                }
                Some(Quiet::TimedOut) => {
                    worker.page.borrow_mut().add(Statistic::Timeouts, 1);
                    next = worker.in_context(|context| session.on_timeout(&mut output, context));
                }
            }
        }
        if matches!(next, Next::Read | Next::Resume) {
            let consumed;
            (consumed, next) = worker.step(&mut session, &kept, &mut output);
            kept.drain(..consumed);
        }
        if !output.is_empty() {
            let writing = timeout(STALL, stream.write_all(std::mem::take(&mut output)));
            let Ok((written, mut buffer)) = writing.await else {
                return Ok(());
            };
            written?;
            buffer.clear();
            output = buffer;
        }
        match next {
            Next::Read | Next::Resume => {}
            Next::Close => return Ok(()),
            Next::CloseLingering => return linger(stream).await,
        }
    }
}

/// Appends what the client sends to `kept`, or tells why nothing came.
async fn read(
    worker: &Worker,
    stream: &TcpStream,
    session: &Session,
    head_begun: Instant,
    kept: &mut Vec<u8>,
) -> std::io::Result<Option<Quiet>> {
    let mut draining = worker.draining.subscribe();
    let waiting = session.waiting();
    let mut deadline = worker.patience(session).map(|patience| match waiting {
        Waiting::Head | Waiting::FirstRequest => head_begun + patience,
        _ => Instant::now() + patience,
    });
    let mut reading = std::pin::pin!(stream.read(vec![0; READ_BYTES]));
    loop {
        let leaving = *draining.borrow_and_update();
        match waiting {
            Waiting::NextRequest if leaving => return Ok(Some(Quiet::Leaving)),
            Waiting::FirstRequest if leaving => {
                let latest = Instant::now() + LEAVE;
                deadline = deadline.map(|deadline| deadline.min(latest));
            }
            _ => {}
        }
        let until = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
        let mut told = std::pin::pin!(async {
            let told = std::pin::pin!(draining.changed());
            let time = std::pin::pin!(sleep_until(until));
            matches!(first_of(told, time).await, First::Left(_))
        });
        match first_of(reading.as_mut(), told.as_mut()).await {
            First::Left((count, buffer)) => {
                let count = count?;
                kept.extend_from_slice(&buffer[..count]);
                return Ok((count == 0).then_some(Quiet::Ended));
            }
            // The worker begins to leave: the limits above are set anew.
            First::Right(true) => {}
            First::Right(false) if deadline.is_none() => {}
            First::Right(false) => return Ok(Some(Quiet::TimedOut)),
        }
    }
}

/// Reads the rest away, so that closing does not reset the connection and lose the answer.
async fn linger(stream: &TcpStream) -> std::io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let rest = async {
        let mut buffer = vec![0; READ_BYTES];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            let (count, returned) = stream.read(buffer).await;
            match count? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
            buffer = returned;
        }
        std::io::Result::Ok(left > 0)
    };
    // A client that has not stopped by now is not going to.
    if !matches!(timeout(LINGER, rest).await, Ok(Ok(true))) {
        reset_on_close(stream);
    }
    Ok(())
}
