//! The fixture of the adapter tests: a cluster of echo servers, and timeouts.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use clusterlb::{
    Cluster, Completion, Event, Events, ForkOptions, ListenRule, OverloadFactor, Policy,
    WorkerCounts, WorkerHandle,
};

use crate::server::{ADAPTER, ADDRESS, Adapter, FIRST_BYTES, PROXIED};
pub(crate) use crate::wait::{PATIENCE, eventually};

/// A cluster under test. Dropping it ends all processes.
pub(crate) struct Stage {
    cluster: Cluster,
    events: Events,
    adapter: Adapter,
    workers: usize,
    /// axum's timeout for the first bytes of its last clients.
    pub(crate) first_bytes: Duration,
    /// Connections begin with a header, because the workers say so.
    pub(crate) is_proxied: bool,
    leaving: Option<Completion>,
}

impl Stage {
    pub(crate) fn new(adapter: Adapter, policy: Policy, workers: usize) -> Self {
        Self::behind(adapter, policy, workers, vec![])
    }

    /// With a balancer in front of these addresses.
    pub(crate) fn behind(
        adapter: Adapter,
        policy: Policy,
        workers: usize,
        proxied: Vec<ListenRule>,
    ) -> Self {
        let cluster = Cluster::primary().expect("a primary");
        cluster
            .setup_primary(|settings| {
                settings.args.clear();
                settings.policy = policy;
                settings.proxy_protocol = proxied;
                // Otherwise a busy machine makes the scheduler skip workers, and no order is
                // certain.
                settings.scheduling.hang_after_ns = None;
                settings.scheduling.limits.overload_factor = OverloadFactor::Off;
            })
            .expect("valid settings");
        let events = cluster.events().expect("descriptors");
        let (first_bytes, is_proxied) = (PATIENCE, false);
        Self { cluster, events, adapter, workers, first_bytes, is_proxied, leaving: None }
    }

    /// Starts the workers, and returns the bound address.
    pub(crate) fn serve(&mut self, address: &str) -> String {
        for _ in 0..self.workers {
            let options = ForkOptions::default()
                .variable(ADAPTER, self.adapter.to_string())
                .variable(PROXIED, self.is_proxied.to_string())
                .variable(FIRST_BYTES, self.first_bytes.as_millis().to_string())
                .variable(ADDRESS, address);
            self.cluster.fork_with(options).expect("a worker");
        }
        let mut served = String::new();
        for _ in 0..self.workers {
            served = self.until("a worker to serve", |event| match event {
                Event::Listening { address, .. } => Some(match address.port {
                    Some(port) => format!("{}:{port}", address.address),
                    None => format!("unix:{}", address.address),
                }),
                _ => None,
            });
        }
        served
    }

    /// The first future event for which `look` returns something.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.unwrap_or_else(|_| panic!("in vain: waited for {what}"));
            if let Some(found) = look(event) {
                return found;
            }
        }
    }

    /// Asks all workers to leave.
    pub(crate) fn leave(&mut self) {
        self.leaving = Some(self.cluster.disconnect());
    }

    pub(crate) fn has_left(&self) -> bool {
        self.leaving.as_ref().is_some_and(Completion::is_complete)
    }

    /// Ends in order, which implies that no connection is open; returns the workers' counts.
    pub(crate) fn end(mut self) -> Vec<WorkerCounts> {
        let completion = self.leaving.take().unwrap_or_else(|| self.cluster.disconnect());
        assert!(
            completion.wait_timeout(PATIENCE),
            "workers are left: {:?}",
            self.cluster.workers()
        );
        let exits = (0..self.workers).map(|_| {
            self.until("a worker to exit", |event| match event {
                Event::Exit { worker, counts, .. } => Some((worker, counts)),
                _ => None,
            })
        });
        let exits: Vec<(WorkerHandle, WorkerCounts)> = exits.collect();
        let ordered = |worker: &WorkerHandle| worker.exited_after_disconnect() == Some(true);
        assert!(exits.iter().all(|(worker, _)| ordered(worker)));
        exits.into_iter().map(|(_, counts)| counts).collect()
    }
}

/// Whether no socket listens at a TCP address.
pub(crate) fn is_refused(address: &str) -> bool {
    let refused = std::io::ErrorKind::ConnectionRefused;
    TcpStream::connect(address).is_err_and(|error| error.kind() == refused)
}
