//! Listening sockets: opening, adopting, accepting and removing them.
//!
//! Owns the descriptor and, for a unix path, the file. Does not choose addresses or backlogs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, getsockname, getsockopt,
    setsockopt, socket, sockopt,
};

use crate::address::{FileAccess, ListenAddress};
use crate::deferral;
use crate::error::{Error, Result, errno_of};
use crate::peer::unix_endpoint;
use crate::unix_socket::{SocketFile, SocketPlace};

/// A listening stream socket.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: String,
    family: Family,
    /// Removed with the listener.
    file: Option<SocketFile>,
}

/// The kind of a listener's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 or IPv6, with the port.
    Tcp(u16),
    /// A unix socket.
    Unix,
}

/// Options for opening a listener.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Length of the accept queue; the kernel limits it to `net.core.somaxconn`.
    pub backlog: u32,
    /// Share the port with other sockets; the kernel distributes connections between them
    /// (SO_REUSEPORT).
    pub share_port: bool,
    /// Exclude IPv4 at `[::]`.
    pub ipv6_only: bool,
    /// Permissions of a unix socket's file; `None` leaves them to the umask.
    pub mode: Option<u32>,
    /// Make `accept` block, in every process that shares the socket.
    pub blocking: bool,
    /// Let a TCP connection wait in the kernel until the client has sent data, for about a second
    /// at most (TCP_DEFER_ACCEPT). Only where clients speak first.
    pub defer_accept: bool,
}

impl Listener {
    /// Opens `address`.
    ///
    /// # Errors
    /// [`Error::Listen`] with the call that failed; [`Error::Usage`] for an invalid request.
    pub fn open(address: &ListenAddress, options: OpenOptions) -> Result<Self> {
        let listener = match address {
            ListenAddress::Tcp(tcp) => open_tcp(address, *tcp, options),
            // A name lookup can take arbitrarily long, so the caller resolves names first.
            ListenAddress::Name(..) => Err(failure(address, "find")(Errno::EADDRNOTAVAIL)),
            ListenAddress::Unix(path, access) => open_unix(address, Some((path, access)), options),
            ListenAddress::Abstract(_) => open_unix(address, None, options),
            ListenAddress::Inherited(number) => adopt(address, *number),
            // The command finds the sockets that the service manager passed.
            ListenAddress::InheritedName(_) => Err(failure(address, "find")(Errno::ENOENT)),
        };
        listener?.finished(options)
    }

    /// A listening socket passed to this process.
    ///
    /// # Errors
    /// It is not a listening socket.
    pub fn from_passed(socket: OwnedFd) -> Result<Self> {
        let address = ListenAddress::Inherited(socket.as_raw_fd());
        check_and_prepare(&address, socket.as_fd())?;
        // As on sockets that this process opens; without effect on unix sockets.
        let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
        finish(&address, socket, None)
    }

    fn finished(self, options: OpenOptions) -> Result<Self> {
        if options.blocking {
            set_blocking(&self.socket)
                .map_err(|errno| Error::system("let a listening socket block", errno))?;
        }
        Ok(self)
    }

    /// The bound address, with the chosen port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether clients can reach it: the file of a unix socket may have been removed or replaced.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.file.as_ref().is_none_or(SocketFile::is_reachable)
    }

    /// Duplicates the descriptor, for another process or thread that accepts.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn copy(&self) -> Result<OwnedFd> {
        self.socket.try_clone().map_err(|error| {
            Error::system("duplicate a listening socket for a worker", errno_of(&error))
        })
    }

    /// TCP or unix.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// A worker's copy of a listener, which never owns a socket file.
    #[must_use]
    pub fn adopt_copy(socket: OwnedFd, address: String) -> Self {
        let port = address.parse().map_or(None, |address: SocketAddr| Some(address.port()));
        let family = port.map_or(Family::Unix, Family::Tcp);
        Self { socket, address, family, file: None }
    }

    /// Accepts a connection if one is queued, non-blocking and close-on-exec.
    ///
    /// # Errors
    /// Those of `accept4(2)` except EAGAIN.
    pub fn accept_now(&self) -> std::result::Result<Option<OwnedFd>, Errno> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let none = std::ptr::null_mut();
        // SAFETY: null pointers ask for no peer address.
        let raw = unsafe { libc::accept4(self.socket.as_raw_fd(), none, none.cast(), flags) };
        match Errno::result(raw) {
            // SAFETY: accept4 has just installed this descriptor for us.
            Ok(raw) => Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) })),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Rejects new connections, on this descriptor and all its copies; handshakes in progress still
    /// complete. A filter drops SYN packets (SO_ATTACH_FILTER). The clients retry a second later
    /// and are refused if the socket has been closed by then. TCP only; on other sockets, or if the
    /// kernel refuses the filter, this has no effect.
    pub fn turn_away(&self) {
        // The filter sees a segment from its header on: byte 13 holds the flags, of which this is
        // SYN.
        let statement = |code: u32, k: u32| libc::sock_filter {
            code: u16::try_from(code).expect("codes are small"),
            jt: 0,
            jf: 0,
            k,
        };
        let mut program = [
            statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 13),
            libc::sock_filter {
                jf: 1,
                ..statement(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0x02)
            },
            statement(libc::BPF_RET | libc::BPF_K, 0),
            statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        ];
        let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>());
        let length = length.expect("a structure is small");
        // SAFETY: the kernel copies the structure and the four statements that it points to, both
        // of which live until the call returns.
        let _ = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                length,
            )
        };
    }
}

/// Every address of this machine: IPv6 and IPv4 in one socket if there is IPv6, as in Node.
#[must_use]
pub fn unspecified(port: u16) -> SocketAddr {
    match stream(AddressFamily::Inet6) {
        Ok(_) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        Err(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
    }
}

/// Whether this machine can listen on an address: its interface is up and its family is enabled.
#[must_use]
pub fn is_own(address: SocketAddr) -> bool {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let mut any_port = address;
    any_port.set_port(0);
    let bound = stream(family)
        .and_then(|socket| bind(socket.as_raw_fd(), &SockaddrStorage::from(any_port)));
    !matches!(bound, Err(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT | Errno::ENODEV))
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn failure(address: &ListenAddress, step: &'static str) -> impl Fn(Errno) -> Error {
    let address = address.to_string();
    move |source| Error::Listen {
        address: address.clone(),
        step: step.to_owned(),
        source: source.into(),
    }
}

fn open_tcp(address: &ListenAddress, tcp: SocketAddr, options: OpenOptions) -> Result<Listener> {
    if options.share_port && tcp.port() != 0 {
        // Sockets that share a port share it with every process of the same user. An attempt
        // without sharing detects another listener.
        let alone = OpenOptions { share_port: false, ..options };
        drop(bind_tcp(address, tcp, alone)?);
    }
    let socket = bind_tcp(address, tcp, options)?;
    listen(&socket, options.backlog).map_err(failure(address, "listen on"))?;
    finish(address, socket, None)
}

/// Opens another socket of a shared port.
///
/// # Errors
/// [`Error::Listen`] with the call that failed.
pub fn open_shared(bound: &str, options: OpenOptions) -> Result<Listener> {
    let address: ListenAddress = bound.parse()?;
    let ListenAddress::Tcp(tcp) = &address else {
        return Err(failure(&address, "share")(Errno::EOPNOTSUPP));
    };
    let socket = bind_tcp(&address, *tcp, options)?;
    listen(&socket, options.backlog).map_err(failure(&address, "listen on"))?;
    finish(&address, socket, None)?.finished(options)
}

fn set_blocking(socket: &OwnedFd) -> std::result::Result<(), Errno> {
    let flags = OFlag::from_bits_truncate(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map(drop)
}

fn bind_tcp(address: &ListenAddress, tcp: SocketAddr, options: OpenOptions) -> Result<OwnedFd> {
    let family = if tcp.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = stream(family).map_err(failure(address, "open a socket for"))?;
    let set = failure(address, "set the options of");
    setsockopt(&socket, sockopt::ReuseAddr, &true).map_err(&set)?;
    if tcp.is_ipv6() {
        // As in Node, [::] includes IPv4 unless excluded.
        setsockopt(&socket, sockopt::Ipv6V6Only, &options.ipv6_only).map_err(&set)?;
    }
    if options.share_port {
        setsockopt(&socket, sockopt::ReusePort, &true).map_err(&set)?;
    }
    // Accepted sockets inherit the option, which saves a system call per connection.
    setsockopt(&socket, sockopt::TcpNoDelay, &true).map_err(&set)?;
    if options.defer_accept {
        deferral::defer_accept(&socket).map_err(&set)?;
    }
    let name = SockaddrStorage::from(tcp);
    bind(socket.as_raw_fd(), &name).map_err(failure(address, "bind"))?;
    Ok(socket)
}

fn open_unix(
    address: &ListenAddress,
    wanted: Option<(&PathBuf, &FileAccess)>,
    options: OpenOptions,
) -> Result<Listener> {
    let bind_failed = failure(address, "bind");
    let socket = stream(AddressFamily::Unix).map_err(failure(address, "open a socket for"))?;
    let file = match (address, wanted) {
        (ListenAddress::Abstract(name), _) => {
            let name = UnixAddr::new_abstract(name.as_bytes()).map_err(&bind_failed)?;
            bind(socket.as_raw_fd(), &name).map_err(bind_failed)?;
            None
        }
        (_, Some((path, access))) => {
            let place = SocketPlace::open(path).map_err(&bind_failed)?;
            place.remove_stale().map_err(&bind_failed)?;
            // No client can connect before it listens, so none connects with other permissions.
            let mode = access.mode.or(options.mode);
            let file = place.bind(&socket, mode).map_err(bind_failed)?;
            let number = |text: &Option<String>| {
                let number = text.as_ref().map(|text| text.parse::<u32>()).transpose();
                number.map_err(|_| failure(address, "find the owner of")(Errno::ENOENT))
            };
            let (user, group) = (number(&access.user)?, number(&access.group)?);
            file.give_to(user, group).map_err(failure(address, "change the owner of"))?;
            Some(file)
        }
        (_, None) => None,
    };
    listen(&socket, options.backlog).map_err(failure(address, "listen on"))?;
    finish(address, socket, file)
}

/// Ensures that it is a listening socket, and that accepting from it does not block.
fn check_and_prepare(address: &ListenAddress, candidate: BorrowedFd<'_>) -> Result<()> {
    let failed = failure(address, "listen on inherited");
    fcntl(candidate, FcntlArg::F_GETFD).map_err(&failed)?;
    if !getsockopt(&candidate, sockopt::AcceptConn).map_err(&failed)? {
        return Err(failed(Errno::EINVAL));
    }
    if getsockopt(&candidate, sockopt::SockType).map_err(&failed)? != SockType::Stream {
        return Err(failed(Errno::EINVAL));
    }
    let status = fcntl(candidate, FcntlArg::F_GETFL).map_err(&failed)?;
    let status = OFlag::from_bits_truncate(status) | OFlag::O_NONBLOCK;
    fcntl(candidate, FcntlArg::F_SETFL(status)).map_err(&failed).map(drop)
}

fn adopt(address: &ListenAddress, number: RawFd) -> Result<Listener> {
    let failed = failure(address, "listen on inherited");
    // SAFETY: the descriptor is only asked about, and only while this function runs.
    let candidate = unsafe { BorrowedFd::borrow_raw(number.max(0)) };
    let flags = fcntl(candidate, FcntlArg::F_GETFD).map_err(&failed)?;
    check_and_prepare(address, candidate)?;
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        // Sockets opened by this process are close-on-exec and have an owner here.
        let copy = candidate.try_clone_to_owned().map_err(|error| failed(errno_of(&error)))?;
        return finish(address, copy, None);
    }
    fcntl(candidate, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(&failed)?;
    // SAFETY: an open, inherited descriptor that nothing in this process owns: what this process
    // opens is close-on-exec, which was ruled out above, and so is this one from now on.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    finish(address, socket, None)
}

fn stream(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family, SockType::Stream, flags, None)
}

/// Lets a bound socket listen.
pub(crate) fn listen(socket: &impl AsFd, backlog: u32) -> std::result::Result<(), Errno> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: listen takes two numbers.
    let result = unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) };
    Errno::result(result).map(drop)
}

fn finish(address: &ListenAddress, socket: OwnedFd, file: Option<SocketFile>) -> Result<Listener> {
    let bound: SockaddrStorage =
        getsockname(socket.as_raw_fd()).map_err(failure(address, "name the socket of"))?;
    let (address, family) = match (bound.as_sockaddr_in(), bound.as_sockaddr_in6()) {
        (Some(v4), _) => (v4.to_string(), Family::Tcp(v4.port())),
        (_, Some(v6)) => (SocketAddr::from(*v6).to_string(), Family::Tcp(v6.port())),
        _ => (unix_name(&bound, address), Family::Unix),
    };
    Ok(Listener { socket, address, family, file })
}

/// The address as requested, because the bound one may be relative to an opened directory. Of an
/// inherited socket only the bound name is known.
fn unix_name(bound: &SockaddrStorage, address: &ListenAddress) -> String {
    match (address, bound.as_unix_addr()) {
        (ListenAddress::Inherited(_), Some(bound)) => unix_endpoint(bound).to_string(),
        // The file's permissions are not part of the address.
        (ListenAddress::Unix(path, _), _) => format!("unix:{}", path.display()),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests;
