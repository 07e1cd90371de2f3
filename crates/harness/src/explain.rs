//! Explanatory text for a matrix. Pure.
//!
//! Owns the explanations. They describe how each mechanism chooses a worker and do not rank them:
//! the best spread depends on the workload.

use super::matrix::{Cell, SHARE_CALLED_OUT};
use super::target::{Peer, Target};
use crate::schedule::{AcceptMechanism, Policy};

/// Source of the well-known sentence.
const ORIGIN: &str = "\
Node's documentation says of SCHED_NONE that loads were seen where over 70 % of all connections \
ended up in just two processes out of eight. The sentence came in April 2013 with the commit that \
made round robin the default, and was published without conditions: no machine, kernel, client or \
workload is named with it. libuv then accepted in a loop until nothing was waiting (epoll-drain \
here); since version 1.45 it takes one connection a wake-up (epoll here). Whether a machine shows \
more or less than 70 % therefore neither confirms nor refutes the sentence; it shows what that \
mechanism does there, under that load.";

/// What makes the kernel choose.
const BY_KERNEL: &str = "--dispatch kernel";

/// How a target chooses the worker for a connection.
#[must_use]
pub fn mechanism(target: Target) -> &'static str {
    match target {
        Target::Own { accept: Some(accept), .. } => accepting(accept),
        Target::Own { policy: Policy::Rr | Policy::Least, options, .. }
            if options.contains(BY_KERNEL) =>
        {
            "Each worker accepts from its own socket, and the kernel chooses it. With CAP_BPF it \
             reads the workers' counters and takes one with the fewest in flight, in turn. \
             Without it, it chooses at random among workers that accept and have at most the \
             average open, as of the last few milliseconds. Either way shares are nearly even."
        }
        Target::Own { policy: Policy::Rr, .. } => {
            "Only the primary accepts. It gives each connection to the next worker in turn and \
             skips workers that are behind. There is no race: the counts differ by the skips and \
             by the last round."
        }
        Target::Own { policy: Policy::Least, .. } => {
            "Only the primary accepts. It gives each connection to the worker with the fewest in \
             flight; ties go in turn. Short connections spread nearly evenly; with long ones the \
             numbers of open connections stay even."
        }
        Target::Own { policy: Policy::Fastest, .. } => {
            "Only the primary accepts. It multiplies what a worker has in flight by what a \
             connection usually takes it, and gives to the lowest. Equal workers take turns; a \
             slow one gets as much less as it is slower."
        }
        Target::Own { policy: Policy::Central, .. } => {
            "Only the primary accepts, and gives to an idle worker, one connection at a time; \
             the rest waits in the kernel's queue. Workers that are faster ask for more; where \
             connections stay open, each occupies its worker."
        }
        Target::Own { policy: Policy::Sticky, .. } => {
            "Only the primary accepts. The client's address decides the worker unless that \
             worker is overloaded, so few clients use few workers. This is intended."
        }
        Target::Peer(Peer::Node { primary_accepts: true }) => {
            "Node's primary accepts and keeps a list of idle workers; the first of the list gets \
             the next connection and returns to its end once it has answered the message. Workers \
             that answer late get less, so the counts are near even and not exactly so."
        }
        Target::Own { policy: Policy::None, .. }
        | Target::Peer(Peer::Node { primary_accepts: false }) => {
            "Node's workers wait in epoll_wait on one shared socket and race for each connection, \
             one for each wake-up (libuv 1.45 and later) or until nothing is left (before)."
        }
        Target::Peer(Peer::Nginx { .. } | Peer::Haproxy) => "Its workers are not counted here.",
    }
}

fn accepting(accept: AcceptMechanism) -> &'static str {
    match accept {
        AcceptMechanism::Epoll => {
            "All idle workers wait on one socket and a connection wakes all of them. The first to \
             run takes it, the others find nothing. The kernel's scheduler decides which runs \
             first: mostly a worker whose CPU is free, often the same few. When all are busy, each \
             takes a connection when it becomes free, and the spread evens out."
        }
        AcceptMechanism::EpollDrain => {
            "As epoll, but the winner accepts until the queue is empty, so a burst goes to the \
             first worker to wake. This is how libuv accepted before version 1.45."
        }
        AcceptMechanism::EpollExclusive => {
            "A connection wakes a single waiting worker, and the kernel always searches its list \
             from the same end. A worker that is back in epoll_wait before the next connection \
             gets that one too; the next worker in the list gets only what arrives while it is \
             busy. Idle servers are the most uneven, busy ones are even."
        }
        AcceptMechanism::Uring => {
            "Each worker has one accept request in the kernel's list. A connection completes the \
             first request; its worker appends a new one at the end, so idle workers take turns. \
             With many clients, connections are already queued when a request is submitted, and \
             the running worker takes them out of turn."
        }
        AcceptMechanism::UringMultishot => {
            "A multishot accept keeps its position in the kernel's list after a connection and \
             accepts the next one however busy its worker is. The first worker to arm it therefore \
             gets every connection as long as it runs; the others get none."
        }
        AcceptMechanism::Reuseport => {
            "Each worker has its own socket, and the kernel picks one by a hash of the addresses, \
             whatever the load. The effect is random assignment: nearly even for many \
             connections, uneven for few, and a stalled worker still gets its share."
        }
    }
}

/// The text under a matrix with these rows, one string per paragraph. Each server had this many
/// workers.
#[must_use]
pub fn of_matrix(targets: &[Target], cells: &[Cell], workers: usize) -> Vec<String> {
    let mut words = vec![called_out(targets, cells, workers)];
    words.extend(against_chance(targets, cells));
    let shown = |target: &&Target| cells.iter().any(|cell| cell.target == **target);
    let rows = targets.iter().filter(shown);
    words.extend(rows.map(|target| format!("{target}: {}", mechanism(*target))));
    words.push(ORIGIN.to_owned());
    words
}

/// Lists the cells above the well-known figure.
fn called_out(targets: &[Target], all: &[Cell], workers: usize) -> String {
    let limit = 100.0 * SHARE_CALLED_OUT;
    let measured = all.iter().filter(|cell| cell.summary.is_some()).count();
    let mut lines = Vec::new();
    for target in targets {
        let cells = all.iter().filter(|cell| cell.target == *target);
        let cells: Vec<&Cell> = cells.filter(|cell| cell.is_called_out()).collect();
        let shares = cells.iter().filter_map(|cell| {
            let share = 100.0 * cell.summary?.top_two_share;
            Some(format!("{} {share:.1} %", cell.load))
        });
        let shares = shares.collect::<Vec<_>>().join("; ");
        let shown = all.iter().filter(|cell| cell.target == *target);
        let shown = shown.filter(|cell| cell.summary.is_some()).count();
        if cells.len() == shown && shown > 1 {
            let shares = cells.iter().filter_map(|cell| cell.summary);
            let least = shares.fold(1.0, |least: f64, cell| least.min(cell.top_two_share));
            lines.push(format!("{target} (each of its {shown}, {:.1} % or more)", 100.0 * least));
        } else if !cells.is_empty() {
            lines.push(format!("{target} ({shares})"));
        }
    }
    let count = all.iter().filter(|cell| cell.is_called_out()).count();
    if lines.is_empty() {
        return format!(
            "In none of the {measured} measured cells did two of {workers} workers get more than \
             {limit:.0} % of the connections."
        );
    }
    format!(
        "In {count} of {measured} measured cells two of {workers} workers got more than \
         {limit:.0} % of the connections: {}.",
        lines.join(", ")
    )
}

/// Lists the targets that spread more evenly than random assignment.
fn against_chance(targets: &[Target], all: &[Cell]) -> Option<String> {
    let beats = |cell: &Cell| {
        let (summary, chance) = cell.summary.zip(cell.yardstick)?;
        Some(summary.top_two_share <= chance.top_two_share)
    };
    let rows: Vec<String> = targets
        .iter()
        .filter_map(|target| {
            let cells = all.iter().filter(|cell| cell.target == *target);
            let judged: Vec<bool> = cells.filter_map(beats).collect();
            let better = judged.iter().filter(|better| **better).count();
            (!judged.is_empty()).then(|| format!("{target} {better} of {}", judged.len()))
        })
        .collect();
    (!rows.is_empty()).then(|| {
        format!(
            "The yardstick is random assignment of connections to workers. Loads under which the \
             two busiest workers got at most the share that it gives: {}.",
            rows.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::target::mechanisms;
    use super::*;

    #[test]
    fn every_mechanism_is_explained_and_none_like_another() {
        let others = ["node:rr", "node:none", "least", "fastest", "central", "sticky"]
            .map(|name| name.parse().expect("a target"));
        let mut texts: Vec<&str> = mechanisms().into_iter().chain(others).map(mechanism).collect();
        assert!(texts.iter().all(|text| text.len() > 100));
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), 14);
    }
}
