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
/// Most that a client may say.
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
        // At once, unless those before it did not live for long either.
        SupervisorEvent::Respawn { slot, delay, .. } => {
            println!("slot {slot} gets another worker in {delay:?}");
        }
        _ => {}
    }
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
