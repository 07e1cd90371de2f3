//! Receiving and sending bytes in the epoll engine.
//!
//! Owns the known readiness of each connection, by the key of its operations, and the buffers. A
//! call that would block registers the socket, edge-triggered. From then on readiness is remembered
//! here until a call has consumed it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv, send};

use super::super::CHUNK_BYTES;
use super::super::event::{BufferId, Chunk, EngineEvent, Key};
use super::{EpollEngine, ReadyKind};

const BUFFER_BYTES: usize = CHUNK_BYTES as usize;
/// Buffers that can be filled and not given back.
const BUFFERS_MAX: usize = 512;
/// Maximum number of buffers received from a connection per turn.
const CHUNKS_PER_TURN: usize = 4;

/// Buffers, allocated on demand.
#[derive(Debug, Default)]
pub(super) struct Pool {
    buffers: Vec<Box<[u8; BUFFER_BYTES]>>,
    /// Last in, first out: the most recent buffer is in the CPU's cache.
    free: Vec<u16>,
}

impl Pool {
    fn take(&mut self) -> Option<BufferId> {
        if let Some(free) = self.free.pop() {
            return Some(BufferId(free));
        }
        let next = u16::try_from(self.buffers.len()).ok()?;
        (self.buffers.len() < BUFFERS_MAX).then(|| {
            self.buffers.push(Box::new([0; BUFFER_BYTES]));
            BufferId(next)
        })
    }

    fn give_back(&mut self, buffer: BufferId) {
        self.free.push(buffer.0);
    }
}

/// The events for which the epoll set watches a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Watched {
    #[default]
    Not,
    Reading,
    Both,
}

/// The known readiness for receiving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Input {
    /// Unknown: the socket is not watched.
    #[default]
    Unknown,
    /// Nothing to read; epoll reports when there is.
    None,
    /// There may be something to read.
    Some,
    /// There may be something to read, followed by an end or error of which epoll reports nothing
    /// more.
    Last,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Receive {
    #[default]
    Off,
    Once,
    Many,
}

/// A connection.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// `None` before its first operation.
    key: Option<Key>,
    raw: RawFd,
    watched: Watched,
    input: Input,
    receive: Receive,
    /// It is among the eager streams.
    queued: bool,
    send: Option<Send>,
}

/// A send that waits for room.
#[derive(Debug)]
struct Send {
    buffer: Vec<u8>,
    from: usize,
    sent: usize,
    /// The socket to close after it.
    socket: Option<OwnedFd>,
}

impl Send {
    /// Sends until everything is sent or the socket is full; `None` in the latter case.
    fn attempt(&mut self, raw: RawFd) -> Option<Result<usize, Errno>> {
        let mut flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if self.socket.is_some() {
            // The last bytes wait for the close.
            flags |= MsgFlags::from_bits_retain(libc::MSG_MORE);
        }
        loop {
            match send(raw, &self.buffer[self.from + self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return None,
                Err(errno) if self.sent == 0 => return Some(Err(errno)),
                // The next call reports the error.
                Err(_) => return Some(Ok(self.sent)),
            }
            if self.from + self.sent >= self.buffer.len() {
                return Some(Ok(self.sent));
            }
        }
    }
}

impl EpollEngine {
    /// The state of a key's connection, created if the key is new.
    fn stream(&mut self, key: Key, socket: BorrowedFd<'_>) -> &mut Stream {
        let place = key.index as usize;
        if place >= self.streams.len() {
            self.streams.resize_with(place + 1, Stream::default);
        }
        let stream = &mut self.streams[place];
        if stream.key != Some(key) {
            *stream = Stream { key: Some(key), raw: socket.as_raw_fd(), ..Stream::default() };
        }
        stream
    }

    fn known(&mut self, key: Key) -> Option<&mut Stream> {
        let stream = self.streams.get_mut(key.index as usize)?;
        (stream.key == Some(key)).then_some(stream)
    }

    pub(in super::super) fn receive_once(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let stream = self.stream(key, socket);
        stream.receive = Receive::Once;
        if stream.input != Input::None {
            // Most new connections bring their request with them.
            self.receive(key);
        }
    }

    pub(in super::super) fn receive_many(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let stream = self.stream(key, socket);
        stream.receive = Receive::Many;
        match stream.input {
            Input::None => {}
            Input::Some | Input::Last => self.receive(key),
            // epoll reports at once if there is something to read.
            Input::Unknown => self.watch_stream(key, Watched::Reading),
        }
    }

    pub(in super::super) fn cancel_receive(&mut self, key: Key) {
        let Some(stream) = self.known(key).filter(|stream| stream.receive != Receive::Off) else {
            return;
        };
        stream.receive = Receive::Off;
        self.happened.push(ended(key, Err(Errno::ECANCELED)));
    }

    /// Receives up to one turn's share.
    fn receive(&mut self, key: Key) {
        for _ in 0..CHUNKS_PER_TURN {
            let Some(buffer) = self.pool.take() else { break };
            let bytes = &mut self.pool.buffers[usize::from(buffer.0)][..];
            let stream = &mut self.streams[key.index as usize];
            let received = recv(stream.raw, bytes, MsgFlags::MSG_DONTWAIT);
            let is_last = stream.input == Input::Last;
            if let Ok(length @ 1..) = received {
                let armed = stream.receive == Receive::Many;
                if !armed {
                    stream.receive = Receive::Off;
                }
                // A short read means that the socket is empty (`epoll(7)`).
                let is_empty = length < BUFFER_BYTES && !is_last;
                let is_watched = stream.watched != Watched::Not;
                if is_empty {
                    stream.input = if is_watched { Input::None } else { Input::Unknown };
                }
                let length = u32::try_from(length).expect("bounded by a buffer");
                let outcome = Ok(Some(Chunk { buffer, length }));
                self.happened.push(EngineEvent::Received { key, outcome, armed });
                if armed && is_empty && !is_watched {
                    return self.watch_stream(key, Watched::Reading);
                }
                if !armed || is_empty {
                    return;
                }
                continue;
            }
            self.pool.give_back(buffer);
            match received {
                Err(Errno::EAGAIN) if stream.watched == Watched::Not => {
                    return self.watch_stream(key, Watched::Reading);
                }
                Err(Errno::EAGAIN) => {
                    stream.input = Input::None;
                    return;
                }
                Err(Errno::EINTR) => {}
                outcome => {
                    stream.receive = Receive::Off;
                    return self.happened.push(ended(key, outcome.map(|_| None)));
                }
            }
        }
        let stream = &mut self.streams[key.index as usize];
        stream.input = stream.input.max_some();
        if !std::mem::replace(&mut stream.queued, true) {
            self.eager.push_back(key);
        }
    }

    /// Continues where a turn's share did not suffice, or no buffer was free.
    pub(super) fn receive_eagerly(&mut self) {
        for _ in 0..self.eager.len() {
            let Some(key) = self.eager.pop_front() else { return };
            let Some(stream) = self.known(key) else { continue };
            stream.queued = false;
            if stream.receive != Receive::Off {
                self.receive(key);
            }
        }
    }

    pub(super) fn on_stream_ready(&mut self, key: Key, flags: EpollFlags) {
        let Some(stream) = self.known(key) else { return };
        let failed = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if failed || flags.contains(EpollFlags::EPOLLRDHUP) {
            stream.input = Input::Last;
        } else if flags.contains(EpollFlags::EPOLLIN) && stream.input != Input::Last {
            stream.input = Input::Some;
        }
        let reads = stream.receive != Receive::Off && stream.input != Input::None && !stream.queued;
        let writes = stream.send.is_some() && (failed || flags.contains(EpollFlags::EPOLLOUT));
        if reads {
            self.receive(key);
        }
        if writes {
            self.go_on_sending(key);
        }
    }

    /// Registers a socket, or extends the events for which it is watched.
    fn watch_stream(&mut self, key: Key, wanted: Watched) {
        let stream = &mut self.streams[key.index as usize];
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        if wanted == Watched::Both {
            flags |= EpollFlags::EPOLLOUT;
        }
        let mut event = EpollEvent::new(flags, key.pack(ReadyKind::Stream as u8));
        // SAFETY: the caller of the engine keeps the socket open while anything is armed on it,
        // unless it is ours to close.
        let socket = unsafe { BorrowedFd::borrow_raw(stream.raw) };
        let done = match stream.watched {
            Watched::Not => self.set.add(socket, event),
            _ => self.set.modify(socket, &mut event),
        };
        match done {
            Ok(()) if stream.watched == Watched::Not => {
                stream.watched = wanted;
                stream.input = Input::None;
            }
            Ok(()) => stream.watched = wanted,
            // Out of memory, or too many watches (fs.epoll.max_user_watches).
            Err(errno) => self.fail(key, errno),
        }
    }

    /// Ends the operations on a socket that cannot be watched.
    fn fail(&mut self, key: Key, errno: Errno) {
        let stream = &mut self.streams[key.index as usize];
        if std::mem::take(&mut stream.receive) != Receive::Off {
            self.happened.push(ended(key, Err(errno)));
        }
        if let Some(Send { buffer, .. }) = stream.send.take() {
            self.happened.push(EngineEvent::Sent { key, buffer, outcome: Err(errno) });
        }
    }

    pub(in super::super) fn bytes(&self, chunk: &Chunk) -> &[u8] {
        &self.pool.buffers[usize::from(chunk.buffer.0)][..chunk.length as usize]
    }

    pub(in super::super) fn recycle(&mut self, chunk: Chunk) {
        self.pool.give_back(chunk.buffer);
    }

    pub(in super::super) fn send(
        &mut self,
        key: Key,
        socket: BorrowedFd<'_>,
        buffer: Vec<u8>,
        from: usize,
    ) {
        let raw = socket.as_raw_fd();
        let _ = self.stream(key, socket);
        self.begin_sending(key, raw, Send { buffer, from, sent: 0, socket: None });
    }

    pub(in super::super) fn send_last(&mut self, key: Key, socket: OwnedFd, buffer: Vec<u8>) {
        let raw = socket.as_raw_fd();
        let _ = self.stream(key, socket.as_fd());
        self.begin_sending(key, raw, Send { buffer, from: 0, sent: 0, socket: Some(socket) });
    }

    fn begin_sending(&mut self, key: Key, raw: RawFd, mut send: Send) {
        if let Some(outcome) = send.attempt(raw) {
            return self.happened.push(EngineEvent::Sent { key, buffer: send.buffer, outcome });
        }
        self.streams[key.index as usize].send = Some(send);
        if self.streams[key.index as usize].watched != Watched::Both {
            // epoll reports at once if there is room by now.
            self.watch_stream(key, Watched::Both);
        }
    }

    fn go_on_sending(&mut self, key: Key) {
        let Some(stream) = self.known(key) else { return };
        let Some(mut send) = stream.send.take() else { return };
        match send.attempt(stream.raw) {
            Some(outcome) => {
                self.happened.push(EngineEvent::Sent { key, buffer: send.buffer, outcome });
            }
            None => stream.send = Some(send),
        }
    }

    pub(in super::super) fn cancel_send(&mut self, key: Key) {
        let Some(send) = self.known(key).and_then(|stream| stream.send.take()) else { return };
        let outcome = if send.sent > 0 { Ok(send.sent) } else { Err(Errno::ECANCELED) };
        self.happened.push(EngineEvent::Sent { key, buffer: send.buffer, outcome });
    }
}

impl Input {
    /// Assumes that there is more to read.
    fn max_some(self) -> Self {
        if self == Self::Last { Self::Last } else { Self::Some }
    }
}

fn ended(key: Key, outcome: Result<Option<Chunk>, Errno>) -> EngineEvent {
    EngineEvent::Received { key, outcome, armed: false }
}
