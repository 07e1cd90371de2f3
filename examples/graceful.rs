//! Graceful shutdown with a timeout: press Enter, and the workers have that long to finish what
//! they have; who has not is killed.
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

use clusterlb::{Cluster, Connection, Event, Result, Role, Signal, Worker};

const WORKERS: usize = 2;

fn main() -> Result<()> {
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(&cluster),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: &Cluster) -> Result<()> {
    let seconds = std::env::args().nth(2).and_then(|number| number.parse().ok());
    let grace = Duration::from_secs(seconds.unwrap_or(10));
    // On a thread of its own, so that the main one can wait for Enter.
    cluster.on(|event| match event {
        Event::Listening { worker, address } => println!("worker {} serves {address}", worker.id()),
        Event::Exit { worker, ending, .. } => println!("worker {} ended: {ending:?}", worker.id()),
        _ => {}
    })?;
    for _ in 0..WORKERS {
        cluster.fork()?;
    }
    println!("press Enter to shut down");
    // An input that cannot be read is as good as one that has ended.
    let _ = io::stdin().read_line(&mut String::new());
    for worker in cluster.workers().values() {
        // The application's own word, for connections that would go on for ever. A worker that has
        // just ended needs none.
        let _ = worker.send("shutdown");
    }
    let gone = cluster.disconnect();
    if !gone.wait_for(grace) {
        for worker in cluster.workers().values() {
            println!("worker {} takes too long", worker.id());
            worker.kill(Signal::SIGKILL)?;
        }
        gone.wait();
    }
    println!("all workers have gone");
    Ok(())
}

fn serve(worker: &Worker) -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    let listener = worker.listen(&address)?;
    let shutdown = Arc::new(AtomicBool::new(false));
    let (heard, messages) = (Arc::clone(&shutdown), worker.messages());
    thread::spawn(move || messages.for_each(|_| heard.store(true, Ordering::Relaxed)));
    for connection in listener.incoming() {
        let (connection, shutdown) = (connection?, Arc::clone(&shutdown));
        thread::spawn(move || echo(connection, &shutdown));
    }
    // Complete when the last connection has been dropped.
    worker.disconnected().wait();
    Ok(())
}

fn echo(connection: Connection, shutdown: &AtomicBool) -> io::Result<()> {
    let mut client = connection.into_tcp().map_err(io::Error::other)?;
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
