//! An echo server on tokio-uring, on every core: `cargo run --example echo [ADDRESS]`, then
//! `nc 127.0.0.1 8000`.

use std::error::Error;
use std::io;

use clusterlb::adapter::uring::{Listener, Stream};
use clusterlb::{Cluster, Event, Role, Supervisor, SupervisorEvent, Worker};
use tokio_uring::buf::BoundedBuf;

/// Read buffer size.
const READ_BYTES: usize = 16 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    match clusterlb::role()? {
        Role::Primary(cluster) => Ok(run_primary(cluster)?),
        Role::Worker(worker) => serve(&worker),
    }
}

/// The primary: one worker per CPU, until Ctrl-C.
fn run_primary(cluster: Cluster) -> clusterlb::Result<()> {
    Supervisor::new(cluster).handle_signals().on_event(report).run().map(drop)
}

fn report(event: &SupervisorEvent) {
    if let SupervisorEvent::Cluster(Event::Listening { worker, address }) = event {
        println!("worker {} serves {address}", worker.id());
    }
}

/// A worker: one task per connection, until the primary asks it to leave.
fn serve(worker: &Worker) -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".to_owned());
    tokio_uring::start(async {
        let listener = Listener::bind(worker, &address).await?;
        while let Some(stream) = listener.accept().await? {
            tokio_uring::spawn(echo(stream));
        }
        worker.disconnected().await;
        Ok(())
    })
}

/// Buffers are lent to the kernel and returned with the result.
async fn echo(stream: Stream) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (length, filled) = stream.read(buffer).await;
        let length = length?;
        if length == 0 {
            return Ok(());
        }
        let (written, sent) = stream.write_all(filled.slice(..length)).await;
        written?;
        buffer = sent.into_inner();
    }
}
