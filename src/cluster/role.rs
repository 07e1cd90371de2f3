//! Which of the two this process is.

use crate::worker::environment;

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
