//! An axum application on every core: `cargo run --example axum [ADDRESS]`, then
//! `curl http://127.0.0.1:8000/`.
//!
//! The primary starts a worker a core and hands each connection to one of them; each worker is the
//! same application on a runtime of its own, with one thread. When a worker is asked to leave, axum
//! answers what is under way and ends.

use std::error::Error;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::routing::get;
use clusterlb::adapter::axum::PeerAddr;
use clusterlb::adapter::tokio::Listener;
use clusterlb::{Cluster, Event, Role, Supervisor, SupervisorEvent, Worker};

fn main() -> Result<(), Box<dyn Error>> {
    match clusterlb::role()? {
        Role::Primary(cluster) => Ok(lead(cluster)?),
        Role::Worker(worker) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(worker))
        }
    }
}

/// The primary: a worker for each CPU, until Ctrl-C.
fn lead(cluster: Cluster) -> clusterlb::Result<()> {
    Supervisor::new(cluster).handle_signals().on_event(report).run().map(drop)
}

fn report(event: &SupervisorEvent) {
    if let SupervisorEvent::Cluster(Event::Listening { worker, address }) = event {
        println!("worker {} serves {address}", worker.id());
    }
}

/// A worker: the application.
async fn serve(worker: Worker) -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".to_owned());
    let listener = Listener::bind(&worker, &address).await?;
    let ended = listener.ended();
    let app = Router::new().route("/", get(hello)).with_state(worker.clone());
    let app = app.into_make_service_with_connect_info::<PeerAddr>();
    axum::serve(listener, app).with_graceful_shutdown(ended).await?;
    // Every connection is finished; the primary is told.
    worker.disconnected().await;
    Ok(())
}

async fn hello(
    State(worker): State<Worker>,
    ConnectInfo(PeerAddr(client)): ConnectInfo<PeerAddr>,
) -> String {
    format!("hello {client}, from worker {}\n", worker.id())
}
