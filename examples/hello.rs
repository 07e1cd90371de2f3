//! HTTP on every core at one address: the first example of Node's documentation.
//!
//! ```sh
//! cargo run --example hello            # or with an address: -- 127.0.0.1:0
//! curl http://127.0.0.1:8000/
//! ```

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::thread;

use clusterlb::{Cluster, Connection, Event, Result, Role, Supervisor, SupervisorEvent, Worker};

/// Maximum number of bytes read of a request.
const REQUEST_BYTES_MAX: u64 = 8192;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n\
    hello world\n";

fn main() -> Result<()> {
    // Both roles run the same program: a variable in the environment marks a worker.
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(cluster),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: Cluster) -> Result<()> {
    println!("primary {} is running", std::process::id());
    // One worker per CPU; a worker that ends is replaced. Ctrl-C lets them finish their
    // connections.
    Supervisor::new(cluster).handle_signals().on_event(report).run().map(drop)
}

fn report(event: &SupervisorEvent) {
    match event {
        SupervisorEvent::Cluster(Event::Listening { worker, address }) => {
            println!("worker {} serves {address}", worker.pid());
        }
        SupervisorEvent::Cluster(Event::Exit { worker, ending, .. }) => {
            println!("worker {} ended: {ending:?}", worker.pid());
        }
        _ => {}
    }
}

fn serve(worker: &Worker) -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    // All workers request the same address and share it. The primary holds the socket, accepts, and
    // assigns each connection to a worker in turn.
    let listener = worker.bind(&address)?;
    for connection in listener.incoming() {
        let connection = connection?;
        // However this thread ends, dropping the connection counts it as finished.
        thread::spawn(move || answer(connection));
    }
    // The worker was asked to leave and gets no more connections: finish the open ones.
    worker.disconnected().wait();
    Ok(())
}

fn answer(connection: Connection) -> io::Result<()> {
    let mut client = connection.into_tcp()?;
    let request = BufReader::new((&mut client).take(REQUEST_BYTES_MAX));
    // The head of a request ends with an empty line.
    for line in request.lines() {
        if line?.is_empty() {
            break;
        }
    }
    client.write_all(ANSWER)
}
