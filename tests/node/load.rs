//! Continuous requests while something is done to the workers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{Client, GET_CLOSE, eventually};

/// Clients at once.
const CLIENTS: usize = 4;

/// The outcome of the requests.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) answered: u64,
    /// The clients' ports of those that failed.
    pub(crate) failed: Vec<u16>,
}

/// Sends requests on new connections during `harm`, which can wait for a number of further answers.
pub(crate) fn during(address: &str, harm: impl FnOnce(&dyn Fn(u64))) -> Load {
    let answered = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    let go_on = |count: u64| {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests to be answered", || {
            (answered.load(Ordering::Relaxed) >= before + count).then_some(())
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    match ask(address) {
                        Ok(()) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(port) => failed.lock().expect("no client has panicked").push(port),
                    }
                }
            });
        }
        // The clients have to end in any case.
        let harmed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| harm(&go_on)));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = harmed {
            std::panic::resume_unwind(panic);
        }
    });
    let failed = failed.into_inner().expect("no client has panicked");
    Load { answered: answered.into_inner(), failed }
}

/// One request. On failure, the client's port, or 0 if it could not connect.
fn ask(address: &str) -> Result<(), u16> {
    let mut client = Client::connect(address).map_err(|_| 0_u16)?;
    let port = client.port();
    let answer = client.try_send(GET_CLOSE).and_then(|()| client.try_receive(true));
    // The server closes without further bytes.
    let mut closed = || client.rest().is_ok_and(|rest| rest.is_empty());
    match answer {
        Ok(response) if response.status == 200 && closed() => Ok(()),
        _ => Err(port),
    }
}
