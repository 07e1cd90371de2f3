//! Features without a flag, tried on real sockets.
//!
//! Owns the trials. A trial waits for at most one second and leaves no request running.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::types::{CancelBuilder, Fd, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};

use super::Feature;

/// Id of the only buffer group of these trials.
const GROUP: u16 = 1;

/// User data of the trials' requests.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const NOTHING: u64 = 3;

/// Room for one message: the kernel's header, a descriptor and a payload.
const BUFFER_BYTES: u16 = 256;

/// Room for the descriptor of one message.
const CONTROL_BYTES: usize = 64;

/// Makes the kernel complete a no-op.
///
/// # Errors
/// Entering the ring is refused, or nothing completes.
pub(super) fn complete_nothing(ring: &mut IoUring) -> io::Result<()> {
    push(ring, &opcode::Nop::new().build().user_data(NOTHING))?;
    ring.submit_and_wait(1)?;
    let completion = ring.completion().next();
    let is_done = completion.is_some_and(|entry| entry.user_data() == NOTHING);
    is_done.then_some(()).ok_or_else(|| Errno::ENOSYS.into())
}

/// Tries each feature; any failure counts as missing.
pub(super) fn try_all(ring: &mut IoUring) -> Vec<Feature> {
    let mut working = Vec::new();
    if accepts_repeatedly(ring).unwrap_or(false) {
        working.push(Feature::MultishotAccept);
    }
    let cancels = cancel_everything(ring).is_ok();
    if cancels {
        working.push(Feature::SyncCancel);
    }
    let mut buffers = Buffers::new();
    if buffers.register(ring).is_err() {
        return working;
    }
    working.push(Feature::BufferRing);
    // A receive is started only if it can be cancelled: it must not outlive its buffer.
    if cancels && receives_repeatedly(ring, &buffers).unwrap_or(false) {
        working.push(Feature::MultishotReceive);
    }
    let ended = !cancels || cancel_everything(ring).is_ok();
    if ring.submitter().unregister_buf_ring(GROUP).is_err() || !ended {
        std::mem::forget(buffers);
    }
    working
}

/// Whether one request accepts a connection and stays armed.
fn accepts_repeatedly(ring: &mut IoUring) -> io::Result<bool> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC);
    push(ring, &accept.build().user_data(ACCEPT))?;
    ring.submit()?;
    let _client = TcpStream::connect(listener.local_addr()?)?;
    let Some(completion) = completion_of(ring, ACCEPT)? else {
        return Ok(false);
    };
    if completion.result() < 0 {
        return Ok(false);
    }
    drop(adopt(completion.result()));
    Ok(cqueue::more(completion.flags()))
}

/// Whether one request receives a message with its descriptor into a buffer chosen by the kernel
/// and stays armed.
fn receives_repeatedly(ring: &mut IoUring, buffers: &Buffers) -> io::Result<bool> {
    let kind = (AddressFamily::Unix, SockType::SeqPacket);
    let (near, far) = socketpair(kind.0, kind.1, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: msghdr is plain integers and pointers, for which zero is a value.
    let mut shape: libc::msghdr = unsafe { std::mem::zeroed() };
    shape.msg_controllen = CONTROL_BYTES as _;
    let receive = opcode::RecvMsgMulti::new(Fd(near.as_raw_fd()), &raw const shape, GROUP);
    let receive = receive.flags(libc::MSG_CMSG_CLOEXEC.cast_unsigned());
    push(ring, &receive.build().user_data(RECEIVE))?;
    ring.submit()?;
    let descriptors = [far.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let payload = [IoSlice::new(b"probe")];
    sendmsg::<()>(far.as_raw_fd(), &payload, &rights, MsgFlags::MSG_DONTWAIT, None)?;
    let Some(completion) = completion_of(ring, RECEIVE)? else {
        return Ok(false);
    };
    let Ok(length) = usize::try_from(completion.result()) else {
        return Ok(false);
    };
    let message = buffers.room.get(..length).unwrap_or_default();
    let Ok(message) = RecvMsgOut::parse(message, &shape) else {
        return Ok(false);
    };
    let descriptor = passed_descriptor(message.control_data()).map(adopt);
    Ok(descriptor.is_some()
        && message.payload_data() == b"probe"
        && cqueue::buffer_select(completion.flags()) == Some(0)
        && cqueue::more(completion.flags()))
}

/// The descriptor in a control message, which consists of length, level, type and content.
fn passed_descriptor(control: &[u8]) -> Option<RawFd> {
    let word = |at: usize| {
        let at = size_of::<usize>() + at * size_of::<RawFd>();
        let bytes = control.get(at..at + size_of::<RawFd>())?;
        Some(RawFd::from_ne_bytes(bytes.try_into().ok()?))
    };
    (word(0)? == libc::SOL_SOCKET && word(1)? == libc::SCM_RIGHTS).then(|| word(2))?
}

/// Cancels all requests of the ring; finding none is a success.
fn cancel_everything(ring: &IoUring) -> io::Result<()> {
    let patience = Timespec::new().sec(1);
    let cancelled = ring.submitter().register_sync_cancel(Some(patience), CancelBuilder::any());
    match cancelled {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn push(ring: &mut IoUring, request: &squeue::Entry) -> io::Result<()> {
    // SAFETY: the requests of this file name no memory but a message header, which the kernel
    // copies at submission while its owner waits, and buffers whose owner outlives the request.
    let pushed = unsafe { ring.submission().push(request) };
    pushed.map_err(|_| io::ErrorKind::WouldBlock.into())
}

/// The next completion of one request, within a second. The final completion of an earlier trial's
/// request is skipped.
fn completion_of(ring: &mut IoUring, request: u64) -> io::Result<Option<cqueue::Entry>> {
    let patience = Timespec::new().sec(1);
    let arguments = SubmitArgs::new().timespec(&patience);
    loop {
        if let Some(found) = ring.completion().find(|entry| entry.user_data() == request) {
            return Ok(Some(found));
        }
        match ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ETIME as i32) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn adopt(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor, so it has no other owner.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// A ring of one buffer.
struct Buffers {
    ring: Box<Page>,
    room: Box<[u8; BUFFER_BYTES as usize]>,
}

/// Aligned to the largest page size, because a buffer ring must be page-aligned.
#[repr(align(65536))]
struct Page([u8; 65536]);

impl Buffers {
    fn new() -> Self {
        let mut room = Box::new([0; BUFFER_BYTES as usize]);
        let mut ring = Box::new(Page([0; 65536]));
        // The first entry: address, length and number 0; its last two bytes are the ring's tail.
        let address = room.as_mut_ptr().expose_provenance() as u64;
        ring.0[..8].copy_from_slice(&address.to_ne_bytes());
        ring.0[8..12].copy_from_slice(&u32::from(BUFFER_BYTES).to_ne_bytes());
        ring.0[14..16].copy_from_slice(&1_u16.to_ne_bytes());
        Self { ring, room }
    }

    fn register(&mut self, ring: &IoUring) -> io::Result<()> {
        let address = self.ring.0.as_mut_ptr().expose_provenance() as u64;
        let submitter = ring.submitter();
        super::without_hurry(|| {
            // SAFETY: the page holds more than two entries, and stays until the group is
            // unregistered or, where that fails, for ever; no other code accesses it.
            unsafe { submitter.register_buf_ring_with_flags(address, 2, GROUP, 0) }
        })
    }
}
