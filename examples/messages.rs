//! Workers report each request to the primary, which counts them: the message example of Node's
//! documentation.
//!
//! ```sh
//! cargo run --example messages         # or with an address: -- 127.0.0.1:0
//! curl http://127.0.0.1:8000/
//! ```

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use clusterlb::{Cluster, Connection, Event, Result, Role, Worker};

/// Interval at which the count is printed.
const TICK: Duration = Duration::from_secs(1);
/// Maximum number of bytes read of a request.
const REQUEST_BYTES_MAX: u64 = 8192;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n\
    hello world\n";

fn main() -> Result<()> {
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(&cluster),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: &Cluster) -> Result<()> {
    let mut events = cluster.events()?;
    for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
        cluster.fork()?;
    }
    let (mut requests, mut tick) = (0_u64, Instant::now() + TICK);
    loop {
        match events.recv_timeout(tick.saturating_duration_since(Instant::now())) {
            // A message is any value that serde can serialise and deserialise.
            Ok(Event::Message { message, .. }) if message.parse::<String>()? == "request" => {
                requests += 1;
            }
            Ok(Event::Listening { worker, address }) => {
                println!("worker {} serves {address}", worker.id());
            }
            Ok(Event::Exit { .. }) if cluster.workers().is_empty() => return Ok(()),
            _ => {}
        }
        if Instant::now() >= tick {
            println!("requests: {requests}");
            tick += TICK;
        }
    }
}

fn serve(worker: &Worker) -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    let listener = worker.bind(&address)?;
    for connection in listener.incoming() {
        let (connection, worker) = (connection?, worker.clone());
        thread::spawn(move || {
            answer(connection)?;
            // Never blocks: messages that the primary has not read are queued, up to a bound.
            worker.send("request").map_err(io::Error::other)
        });
    }
    worker.disconnected().wait();
    Ok(())
}

fn answer(connection: Connection) -> io::Result<()> {
    let mut client = connection.into_tcp()?;
    let request = BufReader::new((&mut client).take(REQUEST_BYTES_MAX));
    for line in request.lines() {
        if line?.is_empty() {
            break;
        }
    }
    client.write_all(ANSWER)
}
