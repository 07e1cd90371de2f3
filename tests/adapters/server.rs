//! The workers: an echo server for each adapter.

use std::fmt;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use axum::extract::ConnectInfo;
use clusterlb::adapter::axum::PeerAddr;
use clusterlb::adapter::{tokio as on_tokio, uring};
use clusterlb::{Connection, Endpoint, ListenOptions, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Variable with the name of the adapter.
pub(crate) const ADAPTER: &str = "CLUSTERLB_TEST_ADAPTER";
/// Variable with the address.
pub(crate) const ADDRESS: &str = "CLUSTERLB_TEST_ADDRESS";
/// Variable with axum's timeout for the first bytes of its last clients, in milliseconds.
pub(crate) const FIRST_BYTES: &str = "CLUSTERLB_TEST_FIRST_BYTES_MS";
/// A request at which the server panics.
pub(crate) const PANIC: &str = "panic";
/// A request that is answered with the client's address, and except by axum the local one.
pub(crate) const WHO: &str = "who";
/// Variable that says whether the server asks for headers.
pub(crate) const PROXIED: &str = "CLUSTERLB_TEST_PROXIED";
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

fn options() -> ListenOptions {
    match std::env::var(PROXIED).as_deref() {
        Ok("true") => ListenOptions::default().proxy_protocol(),
        _ => ListenOptions::default(),
    }
}

/// The answer to [`WHO`].
fn ends(peer: clusterlb::Result<Endpoint>, local: clusterlb::Result<Endpoint>) -> Vec<u8> {
    let text =
        |end: clusterlb::Result<Endpoint>| end.map_or_else(|_| "?".into(), |end| end.to_string());
    format!("{} {}\n", text(peer), text(local)).into_bytes()
}

/// The answer to a request.
fn answer(request: &[u8], who: &[u8]) -> Vec<u8> {
    fail_if_asked(request);
    if request.starts_with(WHO.as_bytes()) { who.to_vec() } else { request.to_vec() }
}

fn fail_if_asked(request: &[u8]) {
    if request.starts_with(PANIC.as_bytes()) {
        panic!("{PANIC}");
    }
}

fn serve_std(worker: &Worker, address: &str) {
    let listener = worker.bind_with(address, options()).expect("the address is free");
    for connection in listener.incoming() {
        let connection = connection.expect("the listener is open");
        thread::spawn(move || echo_std(connection));
    }
    worker.disconnected().wait();
}

fn echo_std(connection: Connection) {
    let local = connection.local_addr().expect("it has an own end");
    let who = ends(connection.peer_addr(), connection.local_addr());
    // A disconnected client is not an error here.
    let _ = match local.inet() {
        Some(_) => echo_blocking(connection.into_tcp().expect("a TCP socket"), &who),
        None => echo_blocking(connection.into_unix().expect("a unix socket"), &who),
    };
}

fn echo_blocking(mut stream: impl Read + Write, who: &[u8]) -> std::io::Result<()> {
    let mut buffer = [0; READ_BYTES];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&answer(&buffer[..length], who))?;
    }
}

fn serve_tokio(worker: &Worker, address: &str) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = on_tokio::Listener::bind_with(worker, address, options()).await;
        let listener = listener.expect("the address is free");
        while let Some(stream) = listener.accept().await.expect("the listener is open") {
            assert!(stream.accepted_ns() > 0 && stream.listener().is_some());
            tokio::spawn(echo_tokio(stream));
        }
        worker.disconnected().await;
    });
}

async fn echo_tokio(mut stream: on_tokio::Stream) -> std::io::Result<()> {
    let who = ends(stream.peer_addr(), stream.local_addr());
    let mut buffer = [0; READ_BYTES];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&answer(&buffer[..length], &who)).await?;
    }
}

fn serve_axum(worker: &Worker, address: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let listener = on_tokio::Listener::bind_with(worker, address, options()).await;
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
        let listener = uring::Listener::bind_with(worker, address, options()).await;
        let listener = listener.expect("the address is free");
        while let Some(stream) = listener.accept().await.expect("the listener is open") {
            tokio_uring::spawn(echo_uring(stream));
        }
        worker.disconnected().await;
    });
}

async fn echo_uring(stream: uring::Stream) -> std::io::Result<()> {
    let who = ends(stream.peer_addr(), stream.local_addr());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (length, filled) = stream.read(buffer).await;
        let length = length?;
        if length == 0 {
            return Ok(());
        }
        if filled.starts_with(GIVE_UP.as_bytes()) {
            let reading = stream.read(filled);
            let given_up = tokio::time::timeout(Duration::from_millis(1), reading).await.is_err();
            assert!(given_up, "the client says nothing more");
            return Ok(());
        }
        stream.write_all(answer(&filled[..length], &who)).await.0?;
        buffer = filled;
    }
}
