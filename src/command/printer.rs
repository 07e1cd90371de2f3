//! The thread that writes to standard output and error: the run's lines, and the output of workers.
//!
//! Owns both streams while it lives. It may block on their readers; nothing else blocks on it.
//! Workers whose pipes it does not read block, as they would on the reader.

use std::collections::VecDeque;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clusterlb_sys::waker::Waker;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use super::escape;
use super::lines::LineBuffer;
use super::output;
use clusterlb::WorkerId;
use clusterlb::{Error, Result};
use clusterlb_sys::error::errno_of;
use clusterlb_sys::signal::spawn_without_signals;

/// Most bytes that wait to be written; further lines are dropped and counted.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes read from one worker before the next one's turn.
const CHUNK_BYTES: usize = 16 * 1024;
/// Bytes read from a worker's pipe at the end: more than a pipe holds was printed while reading.
const LAST_BYTES_MAX: usize = 1024 * 1024;
/// How long the end waits for the reader.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// A destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Standard output.
    Output,
    /// Standard error.
    Errors,
    /// The log's file, if there is one, otherwise standard error.
    Log,
}

/// Prints. Clones share the thread.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    orders: Arc<Mutex<Orders>>,
    waker: Arc<Waker>,
}

#[derive(Debug, Default)]
struct Orders {
    lines: VecDeque<(Destination, Vec<u8>)>,
    waiting_bytes: usize,
    dropped: u64,
    /// The first write error of standard output, except a closed reader.
    failure: Option<Errno>,
    pipes: Vec<Pipe>,
    /// Reopen the log's file: it may have been renamed.
    reopen: bool,
    end: Option<SyncSender<()>>,
}

/// A worker's pipe.
#[derive(Debug)]
struct Pipe {
    descriptor: OwnedFd,
    target: Destination,
    lines: LineBuffer,
}

impl Printer {
    /// Starts the thread. `log` is the log's file, if any.
    ///
    /// # Errors
    /// The file cannot be written; too few descriptors or threads.
    pub(crate) fn start(log: Option<PathBuf>) -> Result<Self> {
        let log = log.map(LogFile::open).transpose()?;
        let printer = Self { orders: Arc::default(), waker: Arc::new(Waker::new()?) };
        let (orders, waker) = (Arc::clone(&printer.orders), Arc::clone(&printer.waker));
        let on_terminal = std::io::stdout().is_terminal();
        let body =
            move || Writer { orders, waker, pipes: vec![], output: vec![], log, on_terminal }.run();
        // A signal must not end the process by way of this thread.
        spawn_without_signals("printer", body).map(drop)?;
        Ok(printer)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().expect("nothing panics while it holds the lines")
    }

    /// Queues a line.
    pub(crate) fn line(&self, target: Destination, text: &str) {
        let mut orders = self.orders();
        let length = text.len() + 1;
        if orders.waiting_bytes > 0 && orders.waiting_bytes + length > WAITING_BYTES_MAX {
            orders.dropped += 1;
            return;
        }
        orders.waiting_bytes += length;
        orders.lines.push_back((target, format!("{text}\n").into_bytes()));
        drop(orders);
        self.waker.wake();
    }

    /// Asks the thread to reopen the log's file, if there is one.
    pub(crate) fn reopen(&self) {
        self.orders().reopen = true;
        self.waker.wake();
    }

    /// Prints a worker's pipe line by line, with the worker's number in front.
    pub(crate) fn print_lines_of(
        &self,
        worker: WorkerId,
        target: Destination,
        pipe: impl Into<OwnedFd>,
    ) {
        let descriptor = pipe.into();
        // A new pipe accepts this flag.
        let _ = fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        let lines = LineBuffer::new(worker.get(), target.is_coloured());
        self.orders().pipes.push(Pipe { descriptor, target, lines });
        self.waker.wake();
    }

    /// Prints what is queued and waits for it, up to a time limit. Returns the write error of
    /// standard output, if there was one.
    pub(crate) fn finish(&self) -> Option<Errno> {
        let (done, is_done) = sync_channel(1);
        self.orders().end = Some(done);
        self.waker.wake();
        wait_for(&is_done);
        self.orders().failure
    }
}

fn wait_for(is_done: &Receiver<()>) {
    // Without a reader or the thread, the rest is lost.
    let _ = is_done.recv_timeout(LAST_PATIENCE);
}

impl Destination {
    fn is_coloured(self) -> bool {
        let is_terminal = match self {
            Self::Output => std::io::stdout().is_terminal(),
            Self::Errors | Self::Log => std::io::stderr().is_terminal(),
        };
        let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        is_terminal && !declined && std::env::var_os("TERM").is_none_or(|name| name != "dumb")
    }

    /// Writes all bytes, however long it takes.
    fn write(self, mut bytes: &[u8]) -> std::result::Result<(), Errno> {
        match self {
            Self::Output => write_all(std::io::stdout().as_fd(), &mut bytes),
            Self::Errors | Self::Log => write_all(std::io::stderr().as_fd(), &mut bytes),
        }
    }
}

/// Writes all bytes, however long it takes. On failure the rest is left.
fn write_all(descriptor: BorrowedFd<'_>, bytes: &mut &[u8]) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        match write(descriptor, bytes) {
            Ok(count) => *bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            // Another process that shares the stream has set it to non-blocking.
            Err(Errno::EAGAIN) => {
                let mut room = [PollFd::new(descriptor, PollFlags::POLLOUT)];
                let _ = poll(&mut room, PollTimeout::NONE);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The log's file.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    /// Lines that could not be written since the last one that was.
    lost: usize,
    /// The last line is incomplete.
    is_cut: bool,
}

impl LogFile {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// [`Error::Usage`]: it cannot be written.
    fn open(path: PathBuf) -> Result<Self> {
        let file = appending(&path).map_err(|error| {
            let why = errno_of(&error).desc();
            let hint = "name a file in a folder that exists and that this user may write to";
            Error::usage(format!("cannot write --log-file {}: {why}", path.display()), hint)
        })?;
        Ok(Self { path, file, lost: 0, is_cut: false })
    }

    /// Writes lines. Those that cannot be written are lost; standard error tells when that begins
    /// and when it ends.
    fn write(&mut self, mut bytes: &[u8]) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let whole = bytes.len();
        let mut end_of_cut: &[u8] = if self.is_cut { b"\n" } else { b"" };
        let written = write_all(self.file.as_fd(), &mut end_of_cut);
        let written = written.and_then(|()| write_all(self.file.as_fd(), &mut bytes));
        let lost = std::mem::take(&mut self.lost);
        let path = self.path.display();
        let text = match written {
            Ok(()) => {
                self.is_cut = false;
                format!("note: {path} can be written again; {lost} lines are missing\n")
            }
            Err(errno) => {
                self.is_cut |= bytes.len() < whole;
                self.lost = lost + lines;
                format!("note: lines of the log are lost: write {path}: {}\n", errno.desc())
            }
        };
        if (lost > 0) != (self.lost > 0) {
            let _ = Destination::Errors.write(text.as_bytes());
        }
    }

    /// Reopens the file. On failure the open one stays.
    fn reopen(&mut self) {
        match appending(&self.path) {
            Ok(file) => (self.file, self.is_cut) = (file, false),
            Err(error) => {
                let (path, why) = (self.path.display(), errno_of(&error).desc());
                let text = format!("note: {path} cannot be opened again ({why}); going on\n");
                let _ = Destination::Errors.write(text.as_bytes());
            }
        }
    }
}

fn appending(path: &Path) -> std::io::Result<File> {
    // A pipe without a reader fails instead of blocking.
    let flags = OFlag::O_NONBLOCK.bits();
    File::options().append(true).create(true).custom_flags(flags).open(path)
}

/// The thread's state.
struct Writer {
    orders: Arc<Mutex<Orders>>,
    waker: Arc<Waker>,
    pipes: Vec<Pipe>,
    /// Bytes collected for one write.
    output: Vec<u8>,
    log: Option<LogFile>,
    /// Standard output is a terminal.
    on_terminal: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            self.waker.clear();
            if let Some(done) = self.print_queued() {
                for place in 0..self.pipes.len() {
                    self.empty(place);
                }
                let _ = done.send(());
                return;
            }
            // Backwards, since pipes that ended are removed.
            for place in (0..ready.len()).rev().filter(|place| ready[*place]) {
                if self.pass_on(place) == Some(0) {
                    self.empty(place);
                    self.pipes.remove(place);
                }
            }
        }
    }

    /// Waits for work. Returns which pipes are ready.
    fn wait(&self) -> Vec<bool> {
        let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let pipes = self.pipes.iter().map(|pipe| readable(pipe.descriptor.as_fd()));
        let mut watched: Vec<PollFd<'_>> = pipes.chain([readable(self.waker.as_fd())]).collect();
        // After an interruption none is ready.
        let _ = poll(&mut watched, PollTimeout::NONE);
        watched[..self.pipes.len()].iter().map(|one| one.any().unwrap_or(false)).collect()
    }

    /// Prints the queued lines. Returns the waiting end, if it is time.
    fn print_queued(&mut self) -> Option<SyncSender<()>> {
        loop {
            let mut orders = self.orders.lock().expect("nothing panics while it holds them");
            self.pipes.append(&mut orders.pipes);
            // Before the lines, so that the note about it is in the new file.
            if std::mem::take(&mut orders.reopen)
                && let Some(log) = &mut self.log
            {
                log.reopen();
            }
            let Some((target, line)) = orders.lines.pop_front() else {
                let dropped = std::mem::take(&mut orders.dropped);
                let end = orders.end.take();
                drop(orders);
                if dropped > 0 {
                    let text = format!("{dropped} lines were lost: the reader was too slow\n");
                    let _ = Destination::Errors.write(text.as_bytes());
                }
                return end;
            };
            orders.waiting_bytes -= line.len();
            drop(orders);
            self.write(target, &line);
        }
    }

    /// Reads once from a pipe and prints complete lines. Returns the number of bytes, if known yet.
    fn pass_on(&mut self, place: usize) -> Option<usize> {
        let pipe = &mut self.pipes[place];
        let mut chunk = [0; CHUNK_BYTES];
        let count = match read(&pipe.descriptor, &mut chunk) {
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(_) => 0,
        };
        pipe.lines.take(&chunk[..count], &mut self.output);
        let target = pipe.target;
        self.write_output(target);
        Some(count)
    }

    /// Prints the rest of a pipe, including an incomplete line.
    fn empty(&mut self, place: usize) {
        let mut left = LAST_BYTES_MAX;
        while let Some(count @ 1..) = self.pass_on(place) {
            left = left.saturating_sub(count);
            if left == 0 {
                break;
            }
        }
        let pipe = &mut self.pipes[place];
        pipe.lines.end(&mut self.output);
        let target = pipe.target;
        self.write_output(target);
    }

    fn write_output(&mut self, target: Destination) {
        let output = std::mem::take(&mut self.output);
        let mut escaped = Vec::with_capacity(output.len());
        escape::printed(&output, &mut escaped);
        self.write(target, &escaped);
        self.output = output;
        self.output.clear();
    }

    /// Writes some lines. On failure they are lost and the run continues; the first such failure,
    /// as of a full disk, is reported.
    fn write(&mut self, target: Destination, bytes: &[u8]) {
        if let (Destination::Log, Some(log)) = (target, &mut self.log) {
            return log.write(bytes);
        }
        let Err(errno) = target.write(bytes) else { return };
        // A closed terminal is a closed reader.
        let has_no_reader = errno == Errno::EPIPE || (errno == Errno::EIO && self.on_terminal);
        if target != Destination::Output || has_no_reader {
            return;
        }
        let mut orders = self.orders.lock().expect("nothing panics while it holds them");
        let is_first = orders.failure.replace(errno).is_none();
        drop(orders);
        if is_first {
            let text = format!("note: lines are lost: {}\n", output::failed(errno));
            let _ = Destination::Errors.write(text.as_bytes());
        }
    }
}
