//! Datagrams: every worker answers at the same address.
//!
//! ```sh
//! cargo run --example udp              # or: -- ADDRESS [each]
//! echo hello | nc -u -w1 127.0.0.1 8000
//! ```
//!
//! As in Node, the workers share one socket, and the first to read gets the datagram, which is
//! mostly the same worker. With `each`, every worker has its own socket, and the kernel selects one
//! by the sender's address.

use std::time::Duration;

use clusterlb::{
    Cluster, Event, ListenOptions, Result, Role, Supervisor, SupervisorEvent, Transport, Worker,
};

/// Larger than any UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 65_536;

fn main() -> Result<()> {
    match clusterlb::role()? {
        Role::Primary(cluster) => primary(cluster),
        Role::Worker(worker) => serve(&worker),
    }
}

fn primary(cluster: Cluster) -> Result<()> {
    // No grace period: between two datagrams there is nothing to finish.
    Supervisor::new(cluster).grace(Duration::ZERO).handle_signals().on_event(report).run().map(drop)
}

fn report(event: &SupervisorEvent) {
    if let SupervisorEvent::Cluster(Event::Listening { worker, address }) = event {
        println!("worker {} answers at {address}", worker.id());
    }
}

fn serve(worker: &Worker) -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8000".into());
    let transport = match arguments.next().as_deref() {
        Some("each") => Transport::DatagramEach,
        _ => Transport::Datagram,
    };
    let options = ListenOptions::default().transport(transport);
    let socket = worker.bind_udp_with(&address, options)?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let (length, sender) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let answer = format!("worker {} has got {text}", worker.id());
        // UDP does not guarantee delivery; a failed send is a lost datagram.
        let _ = socket.send_to(answer.as_bytes(), sender);
    }
}
