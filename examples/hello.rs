//! HTTP on every core at one address: the first example of Node's documentation.
//!
//! ```sh
//! cargo run --example hello            # or with an address: -- 127.0.0.1:0
//! curl http://127.0.0.1:8000/
//! ```

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::thread;

use clusterlb::{Cluster, Connection, Event, Result, Role, Supervisor, SupervisorEvent, Worker};

/// Most of a request that is read.
const REQUEST_BYTES_MAX: u64 = 8192;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n\
    hello world\n";

fn main() -> Result<()> {
    // The same program is both: a worker is started with a variable in its environment.
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(cluster),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: Cluster) -> Result<()> {
    println!("primary {} is running", std::process::id());
    // A worker for each CPU, and another one for each that ends. Ctrl-C lets them finish.
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
    // All workers ask for the same address and share it. The primary has the socket, accepts, and
    // gives each worker its turn.
    let listener = worker.listen(&address)?;
    for connection in listener.incoming() {
        let connection = connection?;
        // However this thread ends, the connection counts as finished when it is dropped.
        thread::spawn(move || answer(connection));
    }
    // The worker was asked to leave and gets no more connections: finish those that it has.
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
