//! The servers of one worker: requested, open, closed. Pure.
//!
//! Owns the keys, which are valid on this worker's channel only.

use std::sync::Arc;

use serde_json::Value;

use super::QueryId;
use crate::id::ListenerId;
use crate::settings::LISTENERS_MAX;

/// Maximum number of servers per worker, requested or open. At the bound a request fails with
/// ENOBUFS.
pub(super) const SERVERS_MAX: usize = LISTENERS_MAX;

/// A request that waits for its reply.
#[derive(Clone, Debug)]
pub(super) struct PendingQuery {
    pub(super) query: QueryId,
    /// Sequence number for the reply.
    pub(super) to: i64,
    pub(super) data: Value,
}

/// An open server.
#[derive(Clone, Debug)]
struct OpenServer {
    key: Arc<str>,
    listener: ListenerId,
    /// Whether it receives connections rather than datagrams.
    connects: bool,
}

/// All servers of a worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Listens {
    pending: Vec<PendingQuery>,
    servers: Vec<OpenServer>,
    keys: u64,
}

impl Listens {
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() + self.servers.len() >= SERVERS_MAX
    }

    pub(super) fn add_pending(&mut self, query: PendingQuery) {
        self.pending.push(query);
    }

    pub(super) fn pending(&self, query: QueryId) -> Option<&PendingQuery> {
        self.pending.iter().find(|pending| pending.query == query)
    }

    pub(super) fn take_pending(&mut self, query: QueryId) -> Option<PendingQuery> {
        let place = self.pending.iter().position(|pending| pending.query == query)?;
        Some(self.pending.remove(place))
    }

    /// Creates a key that this worker has not had before.
    pub(super) fn new_key(&mut self) -> String {
        self.keys += 1;
        self.keys.to_string()
    }

    pub(super) fn open(&mut self, key: String, listener: ListenerId, connects: bool) {
        self.servers.push(OpenServer { key: key.into(), listener, connects });
    }

    /// Removes a server. Returns its listener if this was the worker's last server on it. An
    /// unknown or closed key has no effect.
    pub(super) fn close(&mut self, key: &str) -> Option<ListenerId> {
        let place = self.servers.iter().position(|server| *server.key == *key)?;
        let listener = self.servers.remove(place).listener;
        self.key_of(listener).is_none().then_some(listener)
    }

    /// The key of the most recent server on a listener.
    pub(super) fn key_of(&self, listener: ListenerId) -> Option<&Arc<str>> {
        let mut newest_first = self.servers.iter().rev();
        newest_first.find(|server| server.listener == listener).map(|server| &server.key)
    }

    pub(super) fn has_any(&self) -> bool {
        self.servers.iter().any(|server| server.connects)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.servers.iter().any(|server| *server.key == *key)
    }
}
