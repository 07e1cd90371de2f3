//! A blocking client of the echo servers: lines, or HTTP for axum.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use crate::server::Adapter;
use crate::stage::PATIENCE;

/// A connection and its protocol.
pub(crate) struct Client {
    stream: BufReader<Socket>,
    speaks_http: bool,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Client {
    pub(crate) fn connect(adapter: Adapter, address: &str) -> Self {
        let socket = match address.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path).expect("a server listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
                Socket::Unix(stream)
            }
            None => {
                let stream = TcpStream::connect(address).expect("a server listens");
                stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
                stream.set_nodelay(true).expect("it is a socket");
                Socket::Tcp(stream)
            }
        };
        Self { stream: BufReader::new(socket), speaks_http: adapter == Adapter::Axum }
    }

    /// The client's address as the server sees it.
    pub(crate) fn own_address(&self) -> String {
        match self.stream.get_ref() {
            Socket::Tcp(stream) => stream.local_addr().expect("it is connected").to_string(),
            Socket::Unix(_) => panic!("it has none"),
        }
    }

    /// Sends what is no request, in pieces.
    pub(crate) fn send_header(&mut self, bytes: &[u8], piece_bytes: usize) {
        for piece in bytes.chunks(piece_bytes) {
            self.stream.get_mut().write_all(piece).expect("the peer reads");
        }
    }

    /// Says that nothing more comes; the server may have closed already.
    pub(crate) fn half_close(&self) {
        let _ = match self.stream.get_ref() {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    fn write(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).expect("the peer reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("an answer");
        assert!(line.ends_with('\n'), "the connection ended after {line:?}");
        line.trim_end().to_owned()
    }

    /// Sends a text to be echoed.
    pub(crate) fn send(&mut self, text: &str) {
        let length = text.len();
        match self.speaks_http {
            true => self.write(&format!(
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{text}"
            )),
            false => self.write(&format!("{text}\n")),
        }
    }

    /// Receives an echo.
    pub(crate) fn receive(&mut self) -> String {
        if !self.speaks_http {
            return self.line();
        }
        assert_eq!(self.line(), "HTTP/1.1 200 OK");
        let mut length = 0;
        loop {
            let field = self.line();
            if field.is_empty() {
                break;
            }
            if let Some(number) = field.strip_prefix("content-length: ") {
                length = number.parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("all of it");
        String::from_utf8(body).expect("what was sent")
    }

    /// Sends the first half of a request, and waits until the server reads it.
    pub(crate) fn begin(&mut self, text: &str) {
        let length = text.len();
        if self.speaks_http {
            self.write(&format!(
                "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
                 content-length: {length}\r\n\r\n"
            ));
            assert_eq!(self.line(), "HTTP/1.1 100 Continue");
            assert_eq!(self.line(), "");
        } else {
            self.send("begun");
            assert_eq!(self.receive(), "begun");
        }
    }

    /// Sends the rest, and waits for the answer.
    pub(crate) fn complete(&mut self, text: &str) -> String {
        match self.speaks_http {
            true => self.write(text),
            false => self.send(text),
        }
        let answer = self.receive();
        if self.speaks_http {
            self.expect_end();
        }
        answer
    }

    /// Expects the server to close or reset the connection without another byte.
    pub(crate) fn expect_end(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        assert_eq!(rest, b"");
    }
}
