//! Readiness messages in systemd's protocol (`sd_notify(3)`): received from workers, and sent to
//! the service manager of this process.
//!
//! Owns a datagram socket that any program can address by name, and one connected to the manager.
//! Reports the sender's pid; the caller decides whether to trust it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, bind, getsockname, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use crate::error::{Error, Result};

/// How long the service manager may take to make room for a message.
const PATIENCE: Duration = Duration::from_millis(100);
/// Maximum length of a message; the rest is cut off.
const WORD_BYTES_MAX: usize = 4096;

/// The receiving socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    name: String,
}

/// The connection to the service manager that started this process.
#[derive(Debug)]
pub struct ManagerSocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl ManagerSocket {
    /// The manager named by `NOTIFY_SOCKET`; `None` without the variable or the socket.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET")?;
        let address = match name.as_bytes().split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name).ok()?,
            _ => SocketAddr::from_pathname(&name).ok()?,
        };
        let socket = UnixDatagram::unbound().ok()?;
        // A manager that is slower than this misses the message.
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(Self { socket, address })
    }

    /// Sends assignments to the manager, one per line.
    pub fn send(&self, text: &str) {
        let _ = self.socket.send_to_addr(text.as_bytes(), &self.address);
    }
}

impl ManagerSocket {
    /// Sends assignments together with a descriptor.
    pub fn send_with(&self, text: &str, descriptor: BorrowedFd<'_>) {
        let name = match self.address.as_pathname() {
            Some(path) => UnixAddr::new(path),
            None => UnixAddr::new_abstract(self.address.as_abstract_name().unwrap_or_default()),
        };
        let Ok(name) = name else { return };
        let descriptors = [descriptor.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let slices = [IoSlice::new(text.as_bytes())];
        let none = MsgFlags::empty();
        // As in `send`: a manager that is slower than its time misses the message.
        let _ = sendmsg(self.socket.as_raw_fd(), &slices, &rights, none, Some(&name));
    }
}

/// A message.
#[derive(Debug)]
pub struct Notification {
    /// Pid of the sender, from the kernel.
    pub pid: u32,
    /// Assignments, one per line.
    pub text: Vec<u8>,
}

impl NotifySocket {
    /// Opens a socket in the abstract namespace, which workers of any user can reach.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn open() -> Result<Self> {
        let failed = |errno| Error::system("open a socket for sd_notify", errno);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Unix, SockType::Datagram, flags, None).map_err(failed)?;
        setsockopt(&socket, sockopt::PassCred, &true).map_err(failed)?;
        // For an unnamed address the kernel chooses the name.
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed()).map_err(failed)?;
        let bound: UnixAddr = getsockname(socket.as_raw_fd()).map_err(failed)?;
        let name = bound.as_abstract().ok_or_else(|| failed(Errno::EADDRNOTAVAIL))?;
        let name = format!("@{}", String::from_utf8_lossy(name));
        Ok(Self { socket, name })
    }

    /// Its name, in the form of `NOTIFY_SOCKET`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next message, if there is one. Attached descriptors are closed, which is the signal that
    /// `sd_notify_barrier(3)` waits for.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn receive(&self) -> Result<Option<Notification>> {
        let mut text = vec![0; WORD_BYTES_MAX];
        // Room for credentials only: the kernel closes descriptors that do not fit.
        let mut room = cmsg_space!(UnixCredentials);
        let mut slices = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received =
            recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut slices, Some(&mut room), flags);
        let message = match received {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(Error::system("receive a word by sd_notify", errno)),
        };
        let length = message.bytes;
        let pid = message.cmsgs().into_iter().flatten().find_map(|one| match one {
            ControlMessageOwned::ScmCredentials(who) => u32::try_from(who.pid()).ok(),
            _ => None,
        });
        text.truncate(length);
        Ok(Some(Notification { pid: pid.unwrap_or(0), text }))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use super::*;

    #[test]
    fn words_are_received_with_their_sender_and_nothing_is_kept_open() {
        let notify = NotifySocket::open().expect("a socket");
        assert!(notify.receive().expect("it can be read").is_none());
        let name = notify.name().strip_prefix('@').expect("an abstract name");
        let address = SocketAddr::from_abstract_name(name).expect("an address");
        let client = UnixDatagram::unbound().expect("a socket");
        client.connect_addr(&address).expect("it is there");
        client.send(b"READY=1\nSTATUS=up").expect("room");
        let word = notify.receive().expect("it can be read").expect("a word");
        assert_eq!((word.pid, &*word.text), (std::process::id(), &b"READY=1\nSTATUS=up"[..]));
        let (mut reader, writer) = pipe().expect("a pipe");
        let descriptors = [writer.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let slices = [IoSlice::new(b"BARRIER=1")];
        let none = MsgFlags::empty();
        sendmsg::<UnixAddr>(client.as_raw_fd(), &slices, &rights, none, None).expect("room");
        drop(writer);
        assert_eq!(notify.receive().expect("it can be read").expect("a word").text, b"BARRIER=1");
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut rest).expect("the other end is closed");
    }
}
