//! The workers: an echo server for each adapter.

use std::fmt;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use axum::extract::ConnectInfo;
use clusterlb::adapter::axum::PeerAddr;
use clusterlb::adapter::{tokio as on_tokio, uring};
use clusterlb::{Connection, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_uring::buf::BoundedBuf;

/// Variable with the name of the adapter.
pub(crate) const ADAPTER: &str = "CLUSTERLB_TEST_ADAPTER";
/// Variable with the address.
pub(crate) const ADDRESS: &str = "CLUSTERLB_TEST_ADDRESS";
/// Variable with axum's timeout for the first bytes of its last clients, in milliseconds.
pub(crate) const FIRST_BYTES: &str = "CLUSTERLB_TEST_FIRST_BYTES_MS";
/// A request at which the server panics.
pub(crate) const PANIC: &str = "panic";
/// A request that axum answers with the client's address.
pub(crate) const WHO: &str = "who";
/// A request after which the tokio-uring server starts another read and soon cancels it.
pub(crate) const GIVE_UP: &str = "give up";

const READ_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adapter {
    /// One thread per connection.
    Std,
    /// A runtime with two threads.
    Tokio,
    Axum,
    Uring,
}

impl Adapter {
    pub(crate) const ALL: [Self; 4] = [Self::Std, Self::Tokio, Self::Axum, Self::Uring];
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Std => "std",
            Self::Tokio => "tokio",
            Self::Axum => "axum",
            Self::Uring => "uring",
        })
    }
}

pub(crate) fn main() {
    // Tests make it panic; that output is not interesting.
    std::panic::set_hook(Box::new(|panic| {
        if panic.payload().downcast_ref::<String>().is_none_or(|text| text != PANIC) {
            eprintln!("{panic}");
        }
    }));
    let name = std::env::var(ADAPTER).expect("the test names one");
    let adapter = Adapter::ALL.into_iter().find(|adapter| adapter.to_string() == name);
    let worker = Worker::current().expect("it was started by a primary");
    let address = std::env::var(ADDRESS).expect("the test names one");
    match adapter.expect("the test knows it") {
        Adapter::Std => serve_std(&worker, &address),
        Adapter::Tokio => serve_tokio(&worker, &address),
        Adapter::Axum => serve_axum(&worker, &address),
        Adapter::Uring => serve_uring(&worker, &address),
    }
}

fn fail_if_asked(request: &[u8]) {
    if request.starts_with(PANIC.as_bytes()) {
        panic!("{PANIC}");
    }
}

fn serve_std(worker: &Worker, address: &str) {
    let listener = worker.bind(address).expect("the address is free");
    for connection in listener.incoming() {
        let connection = connection.expect("the listener is open");
        thread::spawn(move || echo_std(connection));
    }
    worker.disconnected().wait();
}

fn echo_std(connection: Connection) {
    let local = connection.local_addr().expect("it has an own end");
    // A disconnected client is not an error here.
    let _ = match local.inet() {
        Some(_) => echo_blocking(connection.into_tcp().expect("a TCP socket")),
        None => echo_blocking(connection.into_unix().expect("a unix socket")),
    };
}

fn echo_blocking(mut stream: impl Read + Write) -> std::io::Result<()> {
    let mut buffer = [0; READ_BYTES];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        fail_if_asked(&buffer[..length]);
        stream.write_all(&buffer[..length])?;
    }
}

fn serve_tokio(worker: &Worker, address: &str) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = on_tokio::Listener::bind(worker, address).await;
        let listener = listener.expect("the address is free");
        while let Some(stream) = listener.accept().await.expect("the listener is open") {
            assert!(stream.accepted_ns() > 0 && stream.listener().is_some());
            tokio::spawn(echo_tokio(stream));
        }
        worker.disconnected().await;
    });
}

async fn echo_tokio(mut stream: on_tokio::Stream) -> std::io::Result<()> {
    let mut buffer = [0; READ_BYTES];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        fail_if_asked(&buffer[..length]);
        stream.write_all(&buffer[..length]).await?;
    }
}

fn serve_axum(worker: &Worker, address: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = on_tokio::Listener::bind(worker, address).await;
        let listener = listener.expect("the address is free");
        let first_bytes_ms = std::env::var(FIRST_BYTES).expect("the test sets it");
        let first_bytes_ms = first_bytes_ms.parse().expect("a number");
        let ended = listener.ended_within(Duration::from_millis(first_bytes_ms));
        let app = axum::Router::new().route("/", axum::routing::post(echo_axum));
        let app = app.into_make_service_with_connect_info::<PeerAddr>();
        let served = axum::serve(listener, app).with_graceful_shutdown(ended).await;
        served.expect("it never fails");
        worker.disconnected().await;
    });
}

async fn echo_axum(
    ConnectInfo(PeerAddr(client)): ConnectInfo<PeerAddr>,
    request: String,
) -> String {
    fail_if_asked(request.as_bytes());
    match request == WHO {
        true => client.to_string(),
        false => request,
    }
}

fn serve_uring(worker: &Worker, address: &str) {
    tokio_uring::start(async {
        let listener = uring::Listener::bind(worker, address).await;
        let listener = listener.expect("the address is free");
        while let Some(stream) = listener.accept().await.expect("the listener is open") {
            tokio_uring::spawn(echo_uring(stream));
        }
        worker.disconnected().await;
    });
}

async fn echo_uring(stream: uring::Stream) -> std::io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (length, filled) = stream.read(buffer).await;
        let length = length?;
        if length == 0 {
            return Ok(());
        }
        fail_if_asked(&filled[..length]);
        if filled.starts_with(GIVE_UP.as_bytes()) {
            let reading = stream.read(filled);
            let given_up = tokio::time::timeout(Duration::from_millis(1), reading).await.is_err();
            assert!(given_up, "the client says nothing more");
            return Ok(());
        }
        let (written, sent) = stream.write_all(filled.slice(..length)).await;
        written?;
        buffer = sent.into_inner();
    }
}
