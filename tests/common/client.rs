//! A client over TCP or a unix socket that sends bytes and reads HTTP answers. Every wait is
//! bounded.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::PATIENCE;

/// A request whose connection stays open.
pub(crate) const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";
/// A request whose connection closes.
pub(crate) const GET_CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
/// The answer to every request.
pub(crate) const HELLO: &str = "hello world\n";

/// A connection to the server under test.
#[derive(Debug)]
pub(crate) struct Client {
    reader: BufReader<Stream>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The status line and the header fields.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    /// Whether the server says that it will close.
    pub(crate) fn closes(&self) -> bool {
        let head = self.head.to_ascii_lowercase();
        head.contains("\r\nconnection: close\r\n")
    }

    /// Fails unless this is the greeting.
    pub(crate) fn assert_hello(&self) {
        assert_eq!((self.status, self.body.as_str()), (200, HELLO), "{self:?}");
    }
}

impl Client {
    /// Sends one request on a new connection, which must end behind the answer.
    pub(crate) fn get(address: &str, path: &str) -> io::Result<Response> {
        let mut client = Self::connect(address)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        client.try_send(request.as_bytes())?;
        let response = client.try_receive(true)?;
        match client.rest()? {
            rest if rest.is_empty() => Ok(response),
            rest => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} bytes behind the answer", rest.len()),
            )),
        }
    }

    /// Connects to an address as printed by the server.
    pub(crate) fn connect(address: &str) -> io::Result<Self> {
        let stream = match address.strip_prefix("unix:") {
            None => Stream::Tcp(TcpStream::connect(address)?),
            Some(path) => Stream::Unix(match path.strip_prefix('@') {
                None => UnixStream::connect(path)?,
                Some(name) => UnixStream::connect_addr(&UnixAddress::from_abstract_name(name)?)?,
            }),
        };
        match &stream {
            Stream::Tcp(tcp) => {
                tcp.set_nodelay(true)?;
                tcp.set_read_timeout(Some(PATIENCE))?;
                tcp.set_write_timeout(Some(PATIENCE))?;
            }
            Stream::Unix(unix) => {
                unix.set_read_timeout(Some(PATIENCE))?;
                unix.set_write_timeout(Some(PATIENCE))?;
            }
        }
        let reader = BufReader::new(stream);
        Ok(Self { reader })
    }

    /// Connects, or fails the test.
    pub(crate) fn to(address: &str) -> Self {
        Self::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// Connects and gets one answer, so that a worker holds the connection.
    pub(crate) fn held(address: &str) -> Self {
        let mut client = Self::to(address);
        client.ask(GET).assert_hello();
        client
    }

    /// Sends bytes, or fails the test.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server takes bytes");
    }

    /// Sends bytes.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Reads an answer, or fails the test.
    pub(crate) fn receive(&mut self) -> Response {
        self.try_receive(true).expect("an answer")
    }

    /// Reads an answer that consists of a head alone, or fails the test.
    pub(crate) fn receive_head(&mut self) -> Response {
        self.try_receive(false).expect("an answer's head")
    }

    /// Sends bytes and reads an answer, or fails the test.
    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Response {
        self.send(bytes);
        self.receive()
    }

    /// Reads an answer, and its body unless there is none in spite of the head.
    pub(crate) fn try_receive(&mut self, has_body: bool) -> io::Result<Response> {
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.reader.read_line(&mut head)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, head));
            }
        }
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok())?
        });
        let length = length.unwrap_or(0);
        let mut body = vec![0; if has_body { length } else { 0 }];
        self.reader.read_exact(&mut body)?;
        Ok(Response {
            status: status.ok_or_else(|| broken(&head))?,
            body: String::from_utf8(body).map_err(|_| broken("the body is not text"))?,
            head,
        })
    }

    /// Whether there is unread input, including an end of file.
    pub(crate) fn has_heard(&self) -> bool {
        let mut waiting = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let heard = poll(&mut waiting, PollTimeout::ZERO).expect("a descriptor to look at");
        heard > 0 || !self.reader.buffer().is_empty()
    }

    /// Reads exactly `count` bytes.
    pub(crate) fn try_receive_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads until the server closes.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Fails unless the server closes the connection without another byte.
    pub(crate) fn assert_closed(&mut self) {
        let rest = self.rest().expect("an orderly end");
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }

    /// Another handle on the same connection, for writing from another thread.
    pub(crate) fn writer(&self) -> Box<dyn Write + Send> {
        match self.reader.get_ref() {
            Stream::Tcp(tcp) => Box::new(tcp.try_clone().expect("a descriptor to spare")),
            Stream::Unix(unix) => Box::new(unix.try_clone().expect("a descriptor to spare")),
        }
    }

    /// Shuts down the sending side, but keeps reading.
    pub(crate) fn half_close(&self) {
        assert!(self.try_half_close(), "the connection stands");
    }

    /// Shuts down the sending side; `false` if the server has already closed the connection.
    pub(crate) fn try_half_close(&self) -> bool {
        match self.reader.get_ref() {
            Stream::Tcp(tcp) => tcp.shutdown(Shutdown::Write).is_ok(),
            Stream::Unix(unix) => unix.shutdown(Shutdown::Write).is_ok(),
        }
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self, sockopt::Linger, &linger).expect("TCP sockets linger");
    }

    /// The client's port.
    pub(crate) fn port(&self) -> u16 {
        match self.reader.get_ref() {
            Stream::Tcp(tcp) => tcp.local_addr().expect("a connected socket").port(),
            Stream::Unix(_) => 0,
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.reader.get_ref() {
            Stream::Tcp(tcp) => tcp.as_fd(),
            Stream::Unix(unix) => unix.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(buffer),
            Self::Unix(unix) => unix.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(buffer),
            Self::Unix(unix) => unix.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One request on a new connection, which the server closes.
pub(crate) fn get(address: &str) -> io::Result<Response> {
    Client::get(address, "/")
}

/// Runs `clients` threads that send `each` requests on new connections, and fails unless all are
/// answered.
pub(crate) fn get_from(address: &str, clients: usize, each: usize) {
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                for _ in 0..each {
                    get(address).expect("an answer").assert_hello();
                }
            });
        }
    });
}
