//! A worker that dies is replaced; one that was asked to leave is not.
//!
//! ```sh
//! cargo run --example respawn          # or with an address: -- 127.0.0.1:0
//! nc 127.0.0.1 8000                    # say "crash", "leave", or anything else
//! ```

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clusterlb::{Cluster, Event, Result, Role, Worker};

const WORKERS: usize = 2;
/// Before a worker is replaced: one that cannot even start is not forked in a hot loop.
const PAUSE: Duration = Duration::from_millis(100);
/// Most that a client may say.
const LINE_BYTES_MAX: u64 = 1024;

fn main() -> Result<ExitCode> {
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(&cluster).map(|()| ExitCode::SUCCESS),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: &Cluster) -> Result<()> {
    let events = cluster.events()?;
    for _ in 0..WORKERS {
        cluster.fork()?;
    }
    for event in events {
        match event {
            Event::Listening { worker, address } => {
                println!("worker {} serves {address}", worker.id());
            }
            Event::Exit { worker, ending, .. } => {
                if worker.exited_after_disconnect() == Some(true) {
                    println!("worker {} left, as it was asked to", worker.id());
                } else {
                    println!("worker {} died: {ending:?}. restarting ...", worker.id());
                    thread::sleep(PAUSE);
                    cluster.fork()?;
                }
                if cluster.workers().is_empty() {
                    break;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn serve(worker: &Worker) -> Result<ExitCode> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    let listener = worker.listen(&address)?;
    // One client at a time, since this is about the workers.
    for connection in listener.incoming() {
        let mut client = connection?.into_tcp()?;
        let mut said = String::new();
        // Whoever goes without a word, or says something that is no text, has said nothing.
        let _ = BufReader::new((&mut client).take(LINE_BYTES_MAX)).read_line(&mut said);
        match said.trim_end() {
            "crash" => return Ok(ExitCode::from(3)),
            // The loop ends when everything that was on its way here has been served.
            "leave" => drop(worker.disconnect()),
            _ => {}
        }
        // A client that does not wait for its answer is no reason to end.
        let _ = writeln!(client, "worker {} has heard you", worker.id());
    }
    worker.disconnected().wait();
    Ok(ExitCode::SUCCESS)
}
