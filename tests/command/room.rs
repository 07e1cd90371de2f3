//! Descriptors for tests with hundreds of clients. All tests of this program share its limit.
//!
//! Owns the number in use. A test that finds too few waits for another one to end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit};

use crate::common::lacking;

/// Reserved for tests with few clients.
const FOR_OTHERS: u64 = 200;

static TAKEN: Mutex<u64> = Mutex::new(0);
static RETURNED: Condvar = Condvar::new();

/// Room for a number of clients, until dropped.
#[derive(Debug)]
pub(crate) struct Room {
    clients: u64,
}

impl Room {
    /// Waits for room. `None` if the limit is too low for this many clients.
    pub(crate) fn for_clients(clients: usize) -> Option<Self> {
        let clients = clients as u64;
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits can be read");
        let most = limit.saturating_sub(FOR_OTHERS);
        if most < clients {
            lacking("descriptors for the clients (ulimit -n)");
            return None;
        }
        let has_none = |taken: &mut u64| *taken + clients > most;
        let taken = RETURNED.wait_while(taken(), has_none);
        *taken.unwrap_or_else(PoisonError::into_inner) += clients;
        Some(Self { clients })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *taken() -= self.clients;
        RETURNED.notify_all();
    }
}

fn taken() -> MutexGuard<'static, u64> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}
