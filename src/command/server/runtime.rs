//! The built-in worker on the library's adapter for tokio-uring: one task per connection, the same
//! protocols.
//!
//! For async handlers, and for comparison with the worker's own loop (`--runtime`). Its runtime is
//! driven by epoll, needs two system calls a turn, and cannot accept; connections come from the
//! primary's inbox.

use std::cell::RefCell;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::command::handler::{Context, HttpLimits, Next, Session, Waiting};
use crate::command::server::SyntheticWork;
use crate::command::settings::{ServeSettings, Settings};
use clusterlb::adapter::uring::{Listener, Stream};
use clusterlb::protocol::environment;
use clusterlb::protocol::scoreboard::Statistic;
use clusterlb::{ListenOptions, Result, Worker};
use clusterlb_sys::engine::ring::{self, RingShape};
use clusterlb_sys::peer::reset_on_close;
use clusterlb_sys::process;
use clusterlb_sys::readiness::Readiness;
use clusterlb_sys::signal::{self, Signal, Signals};

/// Bytes per read.
const READ_BYTES: usize = 4096;
/// Output of one step; at the bound the session waits until it is sent.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// How long a client may pause within a body, or read nothing of an answer.
const STALL: Duration = Duration::from_secs(60);
/// How long the rest of a refused request is discarded.
const LINGER: Duration = Duration::from_secs(2);
/// Most bytes discarded after an error answer before the connection is closed anyway.
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// How long a leaving worker waits for the first request of a connection.
const LEAVE: Duration = Duration::from_secs(1);

/// Runs as a worker until the primary or a signal ends it.
///
/// # Errors
/// The inheritance is incomplete, or an address cannot be served.
pub(crate) fn run(settings: &Settings) -> Result<()> {
    // Blocked before the library starts its thread, which inherits the mask.
    signal::block(&super::FOR_THE_PRIMARY)?;
    let signals = Signals::receive(&[Signal::SIGTERM])?;
    let worker = Worker::current()?;
    process::set_name(&format!("clusterlb:{}", worker.id()));
    // Without the primary nothing can replace this worker, so it finishes open connections, as
    // after a request to leave.
    worker.on_disconnect(|| {});
    let mut builder = tokio_uring::builder();
    if let Some(bytes) = environment::ring_bytes()? {
        ring::limit_locked_bytes(bytes);
        // Twice the default number of completions, less where memory is short.
        let shape = RingShape { submissions: 256, completions: 512 }.within(bytes);
        builder.entries(shape.submissions);
    }
    let server = Rc::new(Server {
        settings: settings.serve.clone(),
        limits: HttpLimits::default(),
        draining: watch::Sender::new(false),
        synthetic_work: RefCell::new(SyntheticWork::new(&settings.serve, worker.id().get())),
        worker,
    });
    builder.start(async move {
        let worker = &server.worker;
        let asked: Vec<_> = settings
            .listen
            .iter()
            .map(|address| worker.bind_async(&address.to_string(), ListenOptions::default()))
            .collect();
        for listener in asked {
            let listener = Listener::new(listener.await?)?;
            tokio_uring::spawn(accept(Rc::clone(&server), listener));
        }
        request_to_leave(worker, signals).await?;
        server.draining.send_replace(true);
        let cut = Instant::now() + worker.grace().unwrap_or(settings.grace);
        if timeout_at(cut, worker.disconnected()).await.is_err() {
            // The process ends with open connections, so they must not count as finished.
            worker.kill();
        }
        Ok(())
    })
}

/// Waits until the primary or a signal asks this worker to leave.
async fn request_to_leave(worker: &Worker, mut signals: Signals) -> Result<()> {
    let ready = Readiness::of(&signals)?;
    tokio::select! {
        () = worker.leaving() => Ok(()),
        signal = ready.readable() => {
            signal?;
            while signals.next_signal()?.is_some() {
                drop(worker.disconnect());
            }
            Ok(())
        }
    }
}

/// Takes connections until there are no more, a task for each.
async fn accept(server: Rc<Server>, listener: Listener) {
    // It fails only when the runtime ends.
    while let Ok(Some(stream)) = listener.accept().await {
        tokio_uring::spawn(serve(Rc::clone(&server), stream));
    }
}

/// Shared by all connections.
#[derive(Debug)]
struct Server {
    worker: Worker,
    settings: ServeSettings,
    limits: HttpLimits,
    draining: watch::Sender<bool>,
    synthetic_work: RefCell<Option<SyntheticWork>>,
}

impl Server {
    fn step(&self, session: &mut Session, input: &[u8], output: &mut Vec<u8>) -> (usize, Next) {
        self.in_context(|context| {
            let progress = session.on_bytes(input, output, context);
            let answered = u64::from(progress.answered);
            self.worker.count(Statistic::Requests, answered);
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

    /// The session's time limit; a stream has none.
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
async fn serve(server: Rc<Server>, stream: Stream) {
    if converse(&server, &stream).await.is_err() {
        server.worker.count(Statistic::Resets, 1);
    }
}

/// Why reading ended without bytes.
enum Quiet {
    Ended,
    TimedOut,
    Leaving,
}

async fn converse(server: &Server, stream: &Stream) -> std::io::Result<()> {
    let mut session = Session::new(server.settings.serve);
    let (mut kept, mut output) = (Vec::new(), Vec::new());
    let mut head_begun = Instant::now();
    let mut next = Next::Read;
    loop {
        if next == Next::Read {
            let waiting = session.waiting();
            if waiting != Waiting::Head && waiting != Waiting::FirstRequest {
                head_begun = Instant::now();
            }
            match read(server, stream, &session, head_begun, &mut kept).await? {
                None => {}
                Some(Quiet::Leaving) => return Ok(()),
                Some(Quiet::Ended) => {
                    server.in_context(|context| session.on_end(&kept, &mut output, context));
                    next = Next::Close;
                }
                Some(Quiet::TimedOut) => {
                    server.worker.count(Statistic::Timeouts, 1);
                    next = server.in_context(|context| session.on_timeout(&mut output, context));
                }
            }
        }
        if matches!(next, Next::Read | Next::Resume) {
            let consumed;
            (consumed, next) = server.step(&mut session, &kept, &mut output);
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

/// Appends received bytes to `kept`, or returns why there are none.
async fn read(
    server: &Server,
    stream: &Stream,
    session: &Session,
    head_begun: Instant,
    kept: &mut Vec<u8>,
) -> std::io::Result<Option<Quiet>> {
    let mut draining = server.draining.subscribe();
    let waiting = session.waiting();
    let mut deadline = server.patience(session).map(|patience| match waiting {
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
        tokio::select! {
            (count, buffer) = &mut reading => {
                let count = count?;
                kept.extend_from_slice(&buffer[..count]);
                return Ok((count == 0).then_some(Quiet::Ended));
            }
            // The worker begins to leave: the limits above change.
            _ = draining.changed() => {}
            () = sleep_until(until) => {
                if deadline.is_some() {
                    return Ok(Some(Quiet::TimedOut));
                }
            }
        }
    }
}

/// Discards the rest of the input, so that closing does not reset the connection and lose the
/// answer.
async fn linger(stream: &Stream) -> std::io::Result<()> {
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
    // The client is still sending; it will not stop.
    if !matches!(timeout(LINGER, rest).await, Ok(Ok(true))) {
        reset_on_close(&**stream);
    }
    Ok(())
}
