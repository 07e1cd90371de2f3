//! A worker that dies is replaced; one that was asked to leave is not.
//!
//! ```sh
//! cargo run --example respawn          # or with an address: -- 127.0.0.1:0
//! nc 127.0.0.1 8000                    # say "crash", "leave", or anything else
//! ```

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::ExitCode;

use clusterlb::{Cluster, Event, Restart, Result, Role, Supervisor, SupervisorEvent, Worker};

const WORKERS: u16 = 2;
/// Maximum number of bytes read from a client.
const LINE_BYTES_MAX: u64 = 1024;

fn main() -> Result<ExitCode> {
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(cluster).map(|()| ExitCode::SUCCESS),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: Cluster) -> Result<()> {
    Supervisor::new(cluster)
        .workers(WORKERS)
        .restart(Restart::OnFailure)
        .handle_signals()
        .on_event(report)
        .run()
        .map(drop)
}

fn report(event: &SupervisorEvent) {
    match event {
        SupervisorEvent::Cluster(Event::Listening { worker, address }) => {
            println!("worker {} serves {address}", worker.id());
        }
        SupervisorEvent::Cluster(Event::Exit { worker, ending, .. }) => {
            match worker.exited_after_disconnect() {
                Some(true) => println!("worker {} left, as it was asked to", worker.id()),
                _ => println!("worker {} died: {ending:?}", worker.id()),
            }
        }
        // Immediate, unless its predecessors were short-lived too.
        SupervisorEvent::Respawn { slot, delay, .. } => {
            println!("slot {slot} gets another worker in {delay:?}");
        }
        _ => {}
    }
}

fn serve(worker: &Worker) -> Result<ExitCode> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    let listener = worker.bind(&address)?;
    // One client at a time, for simplicity.
    for connection in listener.incoming() {
        let mut client = connection?.into_tcp()?;
        let mut said = String::new();
        // A client that sends nothing, or invalid UTF-8, counts as an empty line.
        let _ = BufReader::new((&mut client).take(LINE_BYTES_MAX)).read_line(&mut said);
        match said.trim_end() {
            "crash" => return Ok(ExitCode::from(3)),
            // The loop ends when every connection assigned to this worker has been served.
            "leave" => drop(worker.disconnect()),
            _ => {}
        }
        // Fails if the client has disconnected, which does not end the worker.
        let _ = writeln!(client, "worker {} has heard you", worker.id());
    }
    worker.disconnected().wait();
    Ok(ExitCode::SUCCESS)
}
