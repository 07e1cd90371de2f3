//! Connections that wait in the kernel until their clients have sent data.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Makes connections wait for their first bytes (TCP_DEFER_ACCEPT). After a second the kernel
/// probes a silent client, and the connection can be accepted once it has answered.
pub(crate) fn defer_accept(socket: &OwnedFd) -> Result<(), Errno> {
    let seconds: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>());
    let length = length.expect("a number is small");
    // SAFETY: the kernel reads one number, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use crate::listener::{Listener, OpenOptions};

    #[test]
    fn a_deferred_connection_is_accepted_with_its_first_bytes() {
        let address = "127.0.0.1:0".parse().expect("an address");
        let options = OpenOptions {
            backlog: 16,
            share_port: false,
            ipv6_only: false,
            mode: None,
            blocking: false,
            defer_accept: true,
        };
        let listener = Listener::open(&address, options).expect("it can be opened");
        let mut client = TcpStream::connect(listener.address()).expect("it listens");
        assert!(listener.accept_now().expect("it accepts").is_none(), "it has sent nothing");
        client.write_all(b"hello").expect("it is connected");
        let until = Instant::now() + Duration::from_secs(10);
        while listener.accept_now().expect("it accepts").is_none() {
            assert!(Instant::now() < until, "it is never accepted");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
