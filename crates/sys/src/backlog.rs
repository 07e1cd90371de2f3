//! The accept queue of a listening TCP socket: its length, and how long a connection waited in it.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

/// The number of connections in the accept queue (`tcp_info` of `tcp(7)`: for a listening socket,
/// `tcpi_unacked` is the length of the queue).
///
/// # Errors
/// The socket is not a TCP socket.
pub fn length(listener: &impl AsFd) -> Result<u32, Errno> {
    information(listener).map(|information| information.tcpi_unacked)
}

/// The most connections that the queue holds (`tcpi_sacked` of a listening socket).
///
/// # Errors
/// The socket is not a TCP socket.
pub fn length_max(listener: &impl AsFd) -> Result<u32, Errno> {
    information(listener).map(|information| information.tcpi_sacked)
}

/// Connections that the kernel rejected because the queue was full, since the socket was opened
/// (`SO_MEMINFO`).
///
/// # Errors
/// The kernel does not report it.
pub fn overflows(listener: &impl AsFd) -> Result<u32, Errno> {
    const DROPS: usize = 8;
    let mut numbers = [0_u32; DROPS + 1];
    let room = size_of_val(&numbers);
    let mut length = libc::socklen_t::try_from(room).expect("nine numbers are small");
    let descriptor = listener.as_fd().as_raw_fd();
    let place = numbers.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes to the numbers, which live on.
    let result = unsafe {
        libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_MEMINFO, place, &raw mut length)
    };
    Errno::result(result)?;
    match usize::try_from(length) {
        Ok(written) if written >= room => Ok(numbers[DROPS]),
        _ => Err(Errno::ENOPROTOOPT),
    }
}

/// How long a connection that was just accepted had been queued. The kernel sets the time of the
/// last data sent when the connection is established, and nothing has been sent since.
///
/// # Errors
/// The socket is not a TCP socket.
pub fn waited(accepted: &impl AsFd) -> Result<Duration, Errno> {
    let information = information(accepted)?;
    Ok(Duration::from_millis(u64::from(information.tcpi_last_data_sent)))
}

fn information(socket: &impl AsFd) -> Result<libc::tcp_info, Errno> {
    // SAFETY: a structure of plain numbers, for which all bits zero are zeros.
    let mut information: libc::tcp_info = unsafe { std::mem::zeroed() };
    let room = size_of::<libc::tcp_info>();
    let mut length = libc::socklen_t::try_from(room).expect("a structure is small");
    let descriptor = socket.as_fd().as_raw_fd();
    let place = (&raw mut information).cast();
    // SAFETY: the kernel writes at most `length` bytes to the structure, which lives on.
    let result = unsafe {
        libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length)
    };
    Errno::result(result).map(|_| information)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_queue_has_a_length_and_its_connections_an_age() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        assert_eq!(length(&listener), Ok(0));
        let before = Instant::now();
        let mut silent: Vec<TcpStream> =
            (0..3).map(|_| TcpStream::connect(address).expect("there is room")).collect();
        // The last step of a handshake may come a moment after the client's.
        while length(&listener) != Ok(3) {
            assert!(before.elapsed() < Duration::from_secs(60), "{:?}", length(&listener));
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(60));
        // Neither data from the client nor its end resets the time.
        silent[0].write_all(b"late").expect("the loopback takes it");
        silent.clear();
        let (first, _) = listener.accept().expect("it waits");
        let waited = waited(&first).expect("it is TCP");
        // The kernel's resolution is a tick of up to 10 ms.
        assert!(waited >= Duration::from_millis(40), "{waited:?}");
        assert!(waited <= before.elapsed() + Duration::from_millis(20), "{waited:?}");
        assert_eq!(length(&listener), Ok(2));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // SAFETY: listen takes two numbers; the socket listens already, with a longer queue.
        let shortened = unsafe { libc::listen(listener.as_raw_fd(), 1) };
        assert_eq!((shortened, overflows(&listener)), (0, Ok(0)));
        let address = listener.local_addr().expect("it is bound");
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let _open: Vec<_> = (0..4).map(|_| connect()).collect();
        assert!(overflows(&listener).is_ok_and(|count| count > 0));
    }

    #[test]
    fn other_sockets_have_neither() {
        let (unix, _far) = UnixStream::pair().expect("a pair");
        assert!(length(&unix).is_err());
        assert!(waited(&unix).is_err());
    }
}
