//! The role of this process.

use super::Cluster;
use crate::error::Result;
use crate::protocol::environment;
use crate::worker::Worker;

/// What this process is. A worker has no way to fork: only a [`Cluster`] does, and only a primary
/// has one.
///
/// ```compile_fail,E0599
/// # fn main() -> clusterlb::Result<()> {
/// if let clusterlb::Role::Worker(worker) = clusterlb::role()? {
///     worker.fork()?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Role {
    /// It starts workers.
    Primary(Cluster),
    /// It was started by a primary.
    Worker(Worker),
}

/// Makes this process what it was started as: a worker if the environment says so
/// (`CLUSTERLB_WORKER_ID`; Node: `NODE_UNIQUE_ID`), otherwise a primary.
///
/// # Errors
/// As [`Cluster::primary`] and [`Worker::current`].
pub fn role() -> Result<Role> {
    match is_worker() {
        true => Worker::current().map(Role::Worker),
        false => Cluster::primary().map(Role::Primary),
    }
}

/// Whether this process was started as a worker (Node: `cluster.isWorker`). Programs that a worker
/// starts inherit the environment variable, so let it remove that from theirs.
#[must_use]
pub fn is_worker() -> bool {
    environment::is_worker()
}

/// Whether this process was not started as a worker (Node: `cluster.isPrimary`).
#[must_use]
pub fn is_primary() -> bool {
    !is_worker()
}
