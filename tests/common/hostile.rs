//! What holds beside a hostile worker, which is the first one, in whatever language it attacks.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::cluster::Cluster;
use super::machine;

/// Time limit of every step while a worker floods the primary. Generous: the program under test may
/// be a slow build on a busy machine, where another Node alone takes many seconds to start.
pub(crate) const PROMPT: Duration = Duration::from_secs(60);

/// Another worker is killed and replaced.
pub(crate) fn assert_replaced(cluster: &Cluster) {
    let victim = *cluster.workers().last().expect("there are workers");
    assert_ne!(victim.id, 1, "not the hostile one");
    let (begun, online) = (Instant::now(), cluster.count("online"));
    machine::signal(victim.pid, Signal::SIGKILL);
    cluster.until("another worker", |heard| {
        let exited = heard.named("exit").any(|event| event["id"] == victim.id);
        (exited && heard.named("online").count() > online).then_some(())
    });
    assert!(begun.elapsed() < PROMPT, "replaced after {:?}", begun.elapsed());
}

/// The run ends on request.
pub(crate) fn assert_ends(cluster: Cluster) {
    let begun = Instant::now();
    let ended = cluster.stop(Signal::SIGTERM);
    assert!(begun.elapsed() < PROMPT, "ended after {:?}", begun.elapsed());
    assert_eq!(ended.code, Some(0), "{:?}", ended.errors);
}
