//! Graceful shutdown with a timeout: press Enter, and the workers have this time to finish their
//! connections; those that have not finished are killed.
//!
//! ```sh
//! cargo run --example graceful         # or: -- ADDRESS SECONDS
//! nc 127.0.0.1 8000                    # an echo; after the shutdown it says goodbye
//! ```

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clusterlb::{Cluster, Connection, Event, Result, Role, Supervisor, SupervisorEvent, Worker};

const WORKERS: u16 = 2;

fn main() -> Result<()> {
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(cluster),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: Cluster) -> Result<()> {
    let seconds = std::env::args().nth(2).and_then(|number| number.parse().ok());
    let grace = Duration::from_secs(seconds.unwrap_or(10));
    let mut supervisor =
        Supervisor::new(cluster.clone()).workers(WORKERS).grace(grace).on_event(report);
    let handle = supervisor.handle()?;
    // On another thread, because the main one runs the supervisor.
    thread::spawn(move || {
        println!("press Enter to shut down");
        // Treats a read error like the end of the input.
        let _ = io::stdin().read_line(&mut String::new());
        for worker in cluster.workers().values() {
            // An application message that ends connections which would otherwise stay open. Fails
            // if the worker has just ended, which is harmless.
            let _ = worker.send("shutdown");
        }
        handle.stop(None).map(drop)
    });
    supervisor.run()?;
    println!("all workers have gone");
    Ok(())
}

fn report(event: &SupervisorEvent) {
    match event {
        SupervisorEvent::Cluster(Event::Listening { worker, address }) => {
            println!("worker {} serves {address}", worker.id());
        }
        SupervisorEvent::Cluster(Event::Exit { worker, ending, .. }) => {
            println!("worker {} ended: {ending:?}", worker.id());
        }
        SupervisorEvent::Killed { workers, .. } => println!("{workers:?} takes too long"),
        _ => {}
    }
}

fn serve(worker: &Worker) -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    let listener = worker.bind(&address)?;
    let shutdown = Arc::new(AtomicBool::new(false));
    let (heard, messages) = (Arc::clone(&shutdown), worker.messages());
    thread::spawn(move || messages.for_each(|_| heard.store(true, Ordering::Relaxed)));
    for connection in listener.incoming() {
        let (connection, shutdown) = (connection?, Arc::clone(&shutdown));
        thread::spawn(move || echo(connection, &shutdown));
    }
    // Completes when the last connection has been dropped.
    worker.disconnected().wait();
    Ok(())
}

fn echo(connection: Connection, shutdown: &AtomicBool) -> io::Result<()> {
    let mut client = connection.into_tcp()?;
    let lines = BufReader::new(client.try_clone()?).lines();
    for line in lines {
        let line = line?;
        if shutdown.load(Ordering::Relaxed) {
            return writeln!(client, "{line}, and goodbye");
        }
        writeln!(client, "{line}")?;
    }
    Ok(())
}
