//! The client of the admin interface: one request per connection, over a unix socket or TCP.
//!
//! Owns the wording of its errors, which name the address that was tried.

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

use super::views::{DoneView, RefusedView};
use crate::command::admin_address::AdminAddress;

/// Time limit of a read-only request.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// Largest answer; 1024 workers take less than a tenth of it.
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
    /// No default address; too few descriptors.
    pub(super) fn new(address: &AdminAddress) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Error::system("start a client of the run", errno_of(&error)))?;
        Ok(Self { runtime, address: address.resolve()? })
    }

    /// Sends a read-only request.
    ///
    /// # Errors
    /// No run answers, it refuses, or the answer is not valid.
    pub(super) fn look<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let text = self.look_as_text(path)?;
        serde_json::from_str(&text).map_err(|_| self.no_run("its answer is not the expected JSON"))
    }

    /// Sends a read-only request and returns the answer's text.
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

    /// Why the run is not ready, or `None` if it is.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub(super) fn unreadiness(&self) -> Result<Option<String>> {
        self.runtime.block_on(async {
            let asked = timeout(LOOK_LIMIT, async {
                let response = self.send(Method::GET, "/readyz").await?;
                match response.status() {
                    StatusCode::SERVICE_UNAVAILABLE => self.body(response).await.map(Some),
                    _ => self.text(response).await.map(|_| None),
                }
            });
            asked.await.unwrap_or_else(|_| Err(self.no_run("it does not answer")))
        })
    }

    /// Runs an action and waits until it is done. Returns the outcome in words.
    ///
    /// # Errors
    /// No run answers, it refuses, or the action failed.
    pub(super) fn act(&self, path: &str) -> Result<String> {
        self.runtime.block_on(async {
            let response = self.send(Method::POST, path).await?;
            let text = self.text(response).await?;
            let done: Option<DoneView> = serde_json::from_str(&text).ok();
            done.map(|done| done.done)
                .ok_or_else(|| self.no_run("it answered with something else than HTTP"))
        })
    }

    /// Passes lines on until the stream ends or `take` wants no more.
    ///
    /// # Errors
    /// No run answers, or it refuses; `take` failed.
    pub(super) fn follow(&self, path: &str, take: impl Fn(&[u8]) -> Result<bool>) -> Result<()> {
        self.runtime.block_on(async {
            let response = self.send(Method::GET, path).await?;
            if response.status() != StatusCode::OK {
                return self.text(response).await.map(drop);
            }
            let mut body = response.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                let wants_more = frame.data_ref().map_or(Ok(true), |bytes: &Bytes| take(bytes));
                if !wants_more? {
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
        let broken = |_| self.no_run("the program that listens there does not speak HTTP");
        let (mut sender, connection) =
            http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "clusterlb")
            .header(header::ACCEPT, "application/json, */*")
            .body(Body::empty())
            .map_err(|error| {
                Error::usage(
                    format!("{path}: {error}"),
                    "leave out characters that do not belong in an address",
                )
            })?;
        sender.send_request(request).await.map_err(broken)
    }

    /// The text of an answer, whatever its status.
    async fn body(&self, response: Response<Incoming>) -> Result<String> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|_| self.no_run("it ended in the middle of its answer"))?;
        Ok(String::from_utf8_lossy(&bytes.to_bytes()).into_owned())
    }

    /// The text of an answer, or the refusal as an error.
    async fn text(&self, response: Response<Incoming>) -> Result<String> {
        let status = response.status();
        let text = self.body(response).await?;
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
            "check that the run is alive, and that this is the address of its --admin",
        )
    }
}
