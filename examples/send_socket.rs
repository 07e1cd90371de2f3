//! Routing by content: the primary accepts, peeks at what the client sends, and sends the socket to
//! the responsible worker. The worker reads the data from the first byte.
//!
//! ```sh
//! cargo run --example send_socket      # or with an address: -- 127.0.0.1:0
//! echo anna | nc 127.0.0.1 8000        # names with the same first letter go to the same worker
//! ```

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use clusterlb::{Cluster, Handle, Result, Role, Worker, WorkerHandle};

const WORKERS: usize = 3;
/// Timeout for the client's first byte, and for its whole line.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum length of a name.
const NAME_BYTES_MAX: u64 = 1024;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(&cluster),
        Role::Worker(worker) => Ok(serve(&worker)?),
    }
}

fn primary(cluster: &Cluster) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let workers: Result<Vec<WorkerHandle>> = (0..WORKERS).map(|_| cluster.fork()).collect();
    let workers = workers?;
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    // A listener of the program, unknown to the cluster.
    let listener = TcpListener::bind(address)?;
    println!("the primary serves {}", listener.local_addr()?);
    for client in listener.incoming() {
        let (client, workers) = (client?, workers.clone());
        // One thread per client, so that a silent client does not delay the others.
        thread::spawn(move || route(client, &workers));
    }
    Ok(())
}

fn route(client: TcpStream, workers: &[WorkerHandle]) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut first = [0];
    client.peek(&mut first)?;
    let worker = &workers[usize::from(first[0]) % workers.len()];
    // Sends the socket with the message and closes it here. The client's data stays in the socket
    // buffer.
    worker.send_handle("a client for you", client).map_err(io::Error::other)
}

fn serve(worker: &Worker) -> Result<()> {
    for message in worker.messages() {
        let note: String = message.parse()?;
        // A message may carry any type of descriptor and keeps its type.
        if let Some(Handle::Tcp(client)) = message.take_handle() {
            let id = worker.id().get();
            thread::spawn(move || greet(client, id, &note));
        }
    }
    Ok(())
}

fn greet(mut client: TcpStream, id: u32, note: &str) -> io::Result<()> {
    let mut name = String::new();
    BufReader::new((&mut client).take(NAME_BYTES_MAX)).read_line(&mut name)?;
    writeln!(client, "hello {}, this is worker {id} ({note})", name.trim_end())
}
