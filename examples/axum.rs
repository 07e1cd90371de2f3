//! An axum application on every core: `cargo run --example axum [ADDRESS]`, then `curl
//! http://127.0.0.1:8000/`.
//!
//! The primary starts one worker per core and hands each connection to one of them. Each worker
//! runs the application on a single-threaded runtime. When a worker is asked to leave, axum
//! finishes the requests in flight and returns.

use std::error::Error;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::routing::get;
use clusterlb::adapter::axum::PeerAddr;
use clusterlb::adapter::tokio::Listener;
use clusterlb::{Cluster, Event, Role, Supervisor, SupervisorEvent, Worker};

fn main() -> Result<(), Box<dyn Error>> {
    match clusterlb::role()? {
        Role::Primary(cluster) => Ok(run_primary(cluster)?),
        Role::Worker(worker) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(worker))
        }
    }
}

/// The primary: one worker per CPU, until Ctrl-C.
fn run_primary(cluster: Cluster) -> clusterlb::Result<()> {
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
    // Waits until every connection is finished and the primary has been told.
    worker.disconnected().await;
    Ok(())
}

async fn hello(
    State(worker): State<Worker>,
    ConnectInfo(PeerAddr(client)): ConnectInfo<PeerAddr>,
) -> String {
    format!("hello {client}, from worker {}\n", worker.id())
}
