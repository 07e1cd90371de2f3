//! The other end of the admin interface: one request a connection, over a unix socket or TCP.
//!
//! Owns the wording of what can go wrong on the way. Its errors name the address that was tried.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use clusterlb::{Error, ErrorKind, ListenAddress, Result};
use clusterlb_sys::error::errno_of;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::AdminAddress;
use super::views::{DoneView, RefusedView};

/// How long an answer to a look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How large an answer may be: 1024 workers need less than a tenth.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A client of a run.
#[derive(Debug)]
pub(super) struct Client {
    runtime: Runtime,
    address: ListenAddress,
}

impl Client {
    /// A client of the run at this address.
    ///
    /// # Errors
    /// There is no default address; too few descriptors.
    pub(super) fn new(address: &AdminAddress) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Error::system("start a client of the run", errno_of(&error)))?;
        Ok(Self { runtime, address: address.resolve()? })
    }

    /// Looks at something.
    ///
    /// # Errors
    /// There is no run, it refuses, or its answer is none.
    pub(super) fn look<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let text = self.look_as_text(path)?;
        serde_json::from_str(&text).map_err(|_| self.no_run("its answer is no JSON as expected"))
    }

    /// Looks at something, and takes the answer as it is.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub(super) fn look_as_text(&self, path: &str) -> Result<String> {
        self.runtime.block_on(async {
            let asked = timeout(LOOK_LIMIT, async {
                let response = self.send(Method::GET, path).await?;
                self.text(response).await
            });
            asked.await.unwrap_or_else(|_| Err(self.no_run("it does not answer")))
        })
    }

    /// Does something, and waits until it is done. Gives what is said of it.
    ///
    /// # Errors
    /// There is no run, it refuses, or what was asked for has failed.
    pub(super) fn act(&self, path: &str) -> Result<String> {
        self.runtime.block_on(async {
            let response = self.send(Method::POST, path).await?;
            let text = self.text(response).await?;
            let done: Option<DoneView> = serde_json::from_str(&text).ok();
            done.map(|done| done.done).ok_or_else(|| self.no_run("its answer is none"))
        })
    }

    /// Passes on what comes, until it ends or `take` does not want more.
    ///
    /// # Errors
    /// There is no run, or it refuses.
    pub(super) fn follow(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<()> {
        self.runtime.block_on(async {
            let response = self.send(Method::GET, path).await?;
            if response.status() != StatusCode::OK {
                return self.text(response).await.map(drop);
            }
            let mut body = response.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if frame.data_ref().is_some_and(|bytes: &Bytes| take(bytes).is_err()) {
                    break;
                }
            }
            Ok(())
        })
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>> {
        let unreachable = |error: io::Error| self.unreachable(&error);
        match &self.address {
            ListenAddress::Unix(path_of_socket, _) => {
                let stream = UnixStream::connect(path_of_socket).await.map_err(unreachable)?;
                self.exchange(stream, method, path).await
            }
            ListenAddress::Abstract(name) => {
                use std::os::linux::net::SocketAddrExt as _;
                use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
                let open = || {
                    let name = SocketAddr::from_abstract_name(name)?;
                    let stream = StdUnixStream::connect_addr(&name)?;
                    stream.set_nonblocking(true)?;
                    UnixStream::from_std(stream)
                };
                self.exchange(open().map_err(unreachable)?, method, path).await
            }
            address => {
                let stream = TcpStream::connect(address.to_string()).await.map_err(unreachable)?;
                self.exchange(stream, method, path).await
            }
        }
    }

    async fn exchange<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: T,
        method: Method,
        path: &str,
    ) -> Result<Response<Incoming>> {
        let broken = |_| self.no_run("what listens there speaks no HTTP");
        let (mut sender, connection) =
            http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "clusterlb")
            .header(header::ACCEPT, "application/json, */*")
            .body(Body::empty())
            .map_err(|error| Error::usage(format!("{path}: {error}"), "leave odd signs out"))?;
        sender.send_request(request).await.map_err(broken)
    }

    /// The text of an answer, unless it is a refusal.
    async fn text(&self, response: Response<Incoming>) -> Result<String> {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|_| self.no_run("it ended in the middle of its answer"))?;
        let text = String::from_utf8_lossy(&bytes.to_bytes()).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        let refused: RefusedView = serde_json::from_str(&text)
            .map_err(|_| self.no_run(&format!("it answers with {status}")))?;
        let what = format!("the run at {} refuses: {}", self.address, refused.error);
        Err(match status {
            StatusCode::UNPROCESSABLE_ENTITY => Error::usage(what, refused.remedy),
            StatusCode::NOT_FOUND => Error::cluster(ErrorKind::NoSuchWorker, what, refused.remedy),
            _ => Error::cluster(ErrorKind::Workers, what, refused.remedy),
        })
    }

    fn unreachable(&self, error: &io::Error) -> Error {
        let errno = errno_of(error);
        let (kind, hint) = match errno {
            Errno::EACCES | Errno::EPERM => (
                ErrorKind::PermissionDenied,
                "the run there belongs to another user: ask as that user, or as root",
            ),
            Errno::ECONNREFUSED => (
                ErrorKind::NotFound,
                "no run listens there (any more): start one with --admin, or name its address \
                 with --admin",
            ),
            _ => (
                ErrorKind::NotFound,
                "start a run with --admin, or name the address of one that was started with it",
            ),
        };
        Error::cluster(
            kind,
            format!("cannot reach a run at {}: {}", self.address, errno.desc()),
            hint,
        )
    }

    fn no_run(&self, why: &str) -> Error {
        Error::cluster(
            ErrorKind::Disconnected,
            format!("no answer from a run at {}: {why}", self.address),
            "see that the run lives, and that this is the address of its --admin",
        )
    }
}
