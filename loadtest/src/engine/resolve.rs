//! Resolving names with a bound on the time it takes.
//!
//! The system's resolver blocks while its name servers are silent and cannot be interrupted. It
//! runs on a thread that is abandoned if it takes too long or the run is ended.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::TICK_MS;
use crate::error::{Error, errno_of};
use crate::target::{Address, Target};

/// The longest wait for name servers.
const RESOLVE_S_MAX: u64 = 20;

/// The addresses of a target.
pub(super) fn resolve(
    target: &Target,
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<Vec<Address>, Error> {
    let (sender, answer) = channel();
    let (owned, begun) = (target.clone(), Instant::now());
    thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            // The receiver is gone if the run was ended.
            let _ = sender.send(owned.resolve());
        })
        .map_err(|error| Error::system("start a thread to resolve names", errno_of(&error)))?;
    let cause = loop {
        match answer.recv_timeout(Duration::from_millis(TICK_MS)) {
            Ok(addresses) => return addresses,
            Err(RecvTimeoutError::Disconnected) => {
                break "the resolver stopped without an answer".to_owned();
            }
            Err(RecvTimeoutError::Timeout) if interrupted() => break "interrupted".to_owned(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if begun.elapsed() >= Duration::from_secs(RESOLVE_S_MAX) {
            break format!("no name server has answered within {RESOLVE_S_MAX} s");
        }
    };
    Err(Error::Target {
        step: format!("resolve the name in {target}"),
        cause,
        hint: "check /etc/resolv.conf, or give a numeric address".into(),
    })
}
