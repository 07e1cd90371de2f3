//! Sends and receives descriptors over a unix socket with `sendmsg(2)` and `recvmsg(2)`
//! (SCM_RIGHTS), outside an engine.
//!
//! Owns socket pairs and single messages. Framing and meaning belong to the callers.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair,
    sockopt,
};

use crate::error::{Error, Result, errno_of};

/// Maximum number of descriptors per message. The kernel's bound (SCM_MAX_FD) is 253.
pub const DESCRIPTORS_PER_MESSAGE_MAX: usize = 32;

/// A received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Length of the payload; 0 means that the peer is closed.
    pub bytes: usize,
    /// Descriptors were lost because this process had none free (MSG_CTRUNC).
    pub truncated: bool,
}

/// Makes a descriptor non-blocking, in every process that shares it.
///
/// # Errors
/// None for an open socket.
pub fn set_nonblocking(descriptor: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// A duplicate of a descriptor, to be sent.
///
/// # Errors
/// Descriptors are exhausted.
pub fn duplicate(descriptor: &impl AsFd) -> Result<OwnedFd> {
    let duplicate = descriptor.as_fd().try_clone_to_owned();
    duplicate.map_err(|error| Error::system("duplicate a socket to send it", errno_of(&error)))
}

/// A connected pair that keeps message boundaries (SOCK_SEQPACKET), non-blocking, close-on-exec.
///
/// # Errors
/// Descriptors are exhausted.
pub fn packet_pair() -> Result<(OwnedFd, OwnedFd)> {
    pair(SockType::SeqPacket)
}

/// A connected pair of byte streams, non-blocking, close-on-exec.
///
/// # Errors
/// Descriptors are exhausted.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd)> {
    pair(SockType::Stream)
}

fn pair(kind: SockType) -> Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, kind, None, flags)
        .map_err(|errno| Error::system("create a socket pair for a worker", errno))
}

/// Limits the data queued by `socket`, in bytes of kernel memory.
///
/// # Errors
/// The kernel refused the option.
pub fn bound_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> Result<()> {
    setsockopt(&socket, sockopt::SndBuf, &bytes)
        .map_err(|errno| Error::system("bound the send buffer of a worker's channel", errno))
}

/// Sends `bytes` and `descriptors` as one message; the descriptors stay open here.
///
/// # Errors
/// EAGAIN when the socket is full; EPIPE when the peer is closed; ETOOMANYREFS when this user has
/// too many descriptors in flight.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> std::result::Result<usize, Errno> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
}

/// Receives one message; its descriptors, close-on-exec, are appended to `descriptors`.
///
/// # Errors
/// EAGAIN when nothing has arrived.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> std::result::Result<Arrival, Errno> {
    receive_up_to(socket, bytes, descriptors, DESCRIPTORS_PER_MESSAGE_MAX)
}

/// As [`receive`], with room for this many descriptors; the kernel closes the others.
///
/// # Errors
/// EAGAIN when nothing has arrived.
pub fn receive_up_to(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    descriptors_max: usize,
) -> std::result::Result<Arrival, Errno> {
    let room = CONTROL_HEADER_BYTES + descriptors_max * size_of::<RawFd>();
    let mut control = ControlSpace::default();
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut header = empty_header();
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = room.min(control.0.len());
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the header points at `bytes` and `control`, both alive and writable during the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let bytes = usize::try_from(Errno::result(received)?).unwrap_or(0);
    let length = header.msg_controllen.min(control.0.len());
    // SAFETY: these control bytes come straight from recvmsg and are looked at this once.
    unsafe { adopt_descriptors(&control.0[..length], descriptors) };
    Ok(Arrival { bytes, truncated: header.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Buffer for the control data of one message, aligned for the kernel.
#[derive(Debug)]
#[repr(C, align(8))]
pub(super) struct ControlSpace(pub(super) [u8; CONTROL_BYTES]);

impl Default for ControlSpace {
    fn default() -> Self {
        Self([0; CONTROL_BYTES])
    }
}

/// A pidfd of the sender, which any process that shares the socket can request (SO_PASSPIDFD, Linux
/// 6.5). This program does not, so a received one is closed.
const SCM_PIDFD: libc::c_int = 4;

/// Length of a control message's header: length, level and type.
const CONTROL_HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
/// Length of the control data of a full message (CMSG_SPACE of its descriptors).
pub(super) const CONTROL_BYTES: usize =
    CONTROL_HEADER_BYTES + DESCRIPTORS_PER_MESSAGE_MAX * size_of::<RawFd>();

/// An empty message header.
pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: a msghdr is plain numbers and pointers, for which all zeros mean "none".
    unsafe { std::mem::zeroed() }
}

/// Writes an SCM_RIGHTS control message and returns its length in bytes.
pub(super) fn write_rights(control: &mut ControlSpace, descriptors: &[OwnedFd]) -> usize {
    let data = descriptors.len().min(DESCRIPTORS_PER_MESSAGE_MAX) * size_of::<RawFd>();
    let length = CONTROL_HEADER_BYTES + data;
    control.0[..8].copy_from_slice(&length.to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    let room = control.0[CONTROL_HEADER_BYTES..].chunks_exact_mut(size_of::<RawFd>());
    for (place, descriptor) in room.zip(descriptors) {
        place.copy_from_slice(&descriptor.as_raw_fd().to_ne_bytes());
    }
    length
}

/// Takes ownership of every descriptor named in the control data of a received message.
///
/// # Safety
/// `control` was written by the kernel for a message just received, and is passed here once: each
/// descriptor in it is then open and has no other owner.
pub(super) unsafe fn adopt_descriptors(control: &[u8], descriptors: &mut Vec<OwnedFd>) {
    let mut rest = control;
    while rest.len() >= CONTROL_HEADER_BYTES {
        let length = usize::from_ne_bytes(word(rest, 0)).clamp(CONTROL_HEADER_BYTES, rest.len());
        let level = i32::from_ne_bytes(half(rest, 8));
        let kind = i32::from_ne_bytes(half(rest, 12));
        if level == libc::SOL_SOCKET && matches!(kind, libc::SCM_RIGHTS | SCM_PIDFD) {
            let numbers = rest[CONTROL_HEADER_BYTES..length].chunks_exact(size_of::<RawFd>());
            for raw in numbers.map(|number| RawFd::from_ne_bytes(half(number, 0))) {
                // If the kernel cannot create the pidfd, it passes an error number instead.
                if raw < 0 {
                    continue;
                }
                // SAFETY: the caller vouches that the kernel installed it for this message.
                let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
                if kind == libc::SCM_RIGHTS {
                    descriptors.push(descriptor);
                }
            }
        }
        rest = &rest[length.next_multiple_of(8).min(rest.len())..];
    }
}

fn word(bytes: &[u8], at: usize) -> [u8; 8] {
    bytes[at..at + 8].try_into().expect("eight bytes were sliced")
}

fn half(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes[at..at + 4].try_into().expect("four bytes were sliced")
}

const _: () = assert!(CONTROL_HEADER_BYTES == 16, "a 64-bit kernel's control message header");

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_travel_with_their_message() {
        let (left, right) = packet_pair().expect("a pair");
        let (socket, far) = stream_pair().expect("a pair");
        send(left.as_fd(), b"one", &[socket.as_fd()]).expect("room for one message");
        drop(socket);
        let mut bytes = [0; 16];
        let mut descriptors = Vec::new();
        let arrival = receive(right.as_fd(), &mut bytes, &mut descriptors).expect("a message");
        assert_eq!(arrival, Arrival { bytes: 3, truncated: false });
        send(descriptors[0].as_fd(), b"hi", &[]).expect("the socket still works");
        let arrival = receive(far.as_fd(), &mut bytes, &mut descriptors).expect("bytes");
        assert_eq!((arrival.bytes, &bytes[..2]), (2, &b"hi"[..]));
    }

    #[test]
    fn what_another_holder_of_the_socket_asks_for_does_not_stay_open() {
        let (left, right) = packet_pair().expect("a pair");
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("it is small");
        const SO_PASSPIDFD: libc::c_int = 76;
        // SAFETY: the kernel reads a number, which lives during the call.
        let asked = unsafe {
            libc::setsockopt(
                right.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PASSPIDFD,
                (&raw const on).cast(),
                length,
            )
        };
        if asked != 0 {
            eprintln!("not tested: no SO_PASSPIDFD before Linux 6.5");
            return;
        }
        send(left.as_fd(), b"one", &[left.as_fd()]).expect("room for one message");
        let (mut bytes, mut descriptors) = ([0; 16], Vec::new());
        receive(right.as_fd(), &mut bytes, &mut descriptors).expect("a message");
        assert!(descriptors.len() <= 1, "the pidfd is not one of them");
    }

    #[test]
    fn a_closed_end_reads_as_nothing() {
        let (left, right) = packet_pair().expect("a pair");
        drop(left);
        let arrival = receive(right.as_fd(), &mut [0; 16], &mut Vec::new()).expect("an end");
        assert_eq!(arrival.bytes, 0);
    }
}
