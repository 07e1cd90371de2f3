//! Counters of a run, and the kinds of errors it knows. Pure sums: adding loses nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why a request did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// No listener, or it refused.
    ConnectRefused,
    /// No connection within the timeout.
    ConnectTimeout,
    /// The connection could not be made for another reason.
    ConnectFailed,
    /// No free port, descriptor or memory on this side.
    Local,
    /// The server reset the connection.
    Reset,
    /// No complete answer within the timeout.
    Timeout,
    /// The server closed before the answer was complete.
    ClosedEarly,
    /// The answer could not be understood, or other bytes came back than were sent.
    BadResponse,
    /// TLS was not agreed on, or broke off.
    TlsFailed,
}

impl ErrorKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed,
        Self::Local,
        Self::Reset,
        Self::Timeout,
        Self::ClosedEarly,
        Self::BadResponse,
        Self::TlsFailed,
    ];

    /// For people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect refused",
            Self::ConnectTimeout => "connect timeout",
            Self::ConnectFailed => "connect failed",
            Self::Local => "no local resource",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::ClosedEarly => "closed early",
            Self::BadResponse => "bad response",
            Self::TlsFailed => "TLS failed",
        }
    }
}

/// Counters of one thread and second, or of any sum of those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests begun.
    pub started: u64,
    /// Requests answered completely, whatever the status.
    pub completed: u64,
    /// Of those, answered before the measured time was over.
    pub completed_in_time: u64,
    /// Connections established.
    pub connected: u64,
    /// Requests that failed, by kind.
    pub errors: [u64; ErrorKind::ALL.len()],
    /// Answers by hundreds of the status: 1 is 1xx; 0 is no status at all.
    pub statuses: [u64; 6],
    /// Bytes handed to the kernel.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Starts more than a millisecond after the plan.
    pub late: u64,
    /// Planned starts that were never made.
    pub dropped: u64,
    /// Requests that the end of the run cut off.
    pub unfinished: u64,
    /// Latencies above what a histogram holds, recorded at its bound.
    pub saturated: u64,
    /// Held connections that the server ended.
    pub held_lost: u64,
    /// The first failure of each kind, described.
    pub examples: BTreeMap<ErrorKind, String>,
}

impl Tally {
    /// Counts a failed request.
    pub(crate) fn fail(&mut self, kind: ErrorKind) {
        self.errors[kind as usize] += 1;
    }

    /// Counts an answer's status; 0 is none.
    pub(crate) fn status(&mut self, status: u16) {
        let class = usize::from(status / 100);
        if let Some(counter) = self.statuses.get_mut(class) {
            *counter += 1;
        } else {
            self.statuses[0] += 1;
        }
    }

    /// Failed requests of all kinds.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.iter().sum()
    }

    /// Adds what the other holds; of two examples the one already here stays.
    pub fn add(&mut self, other: &Self) {
        let Self {
            started,
            completed,
            completed_in_time,
            connected,
            errors,
            statuses,
            bytes_sent,
            bytes_received,
            late,
            dropped,
            unfinished,
            saturated,
            held_lost,
            examples,
        } = other;
        self.started += started;
        self.completed += completed;
        self.completed_in_time += completed_in_time;
        self.connected += connected;
        self.bytes_sent += bytes_sent;
        self.bytes_received += bytes_received;
        self.late += late;
        self.dropped += dropped;
        self.unfinished += unfinished;
        self.saturated += saturated;
        self.held_lost += held_lost;
        for (sum, part) in self.errors.iter_mut().zip(errors) {
            *sum += part;
        }
        for (sum, part) in self.statuses.iter_mut().zip(statuses) {
            *sum += part;
        }
        for (kind, example) in examples {
            self.examples.entry(*kind).or_insert_with(|| example.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally() -> impl Strategy<Value = Tally> {
        (any::<[u32; 11]>(), any::<[u32; 9]>(), any::<[u32; 6]>()).prop_map(
            |(numbers, errors, statuses)| Tally {
                started: numbers[0].into(),
                completed: numbers[1].into(),
                completed_in_time: numbers[2].into(),
                connected: numbers[3].into(),
                bytes_sent: numbers[4].into(),
                bytes_received: numbers[5].into(),
                late: numbers[6].into(),
                dropped: numbers[7].into(),
                unfinished: numbers[8].into(),
                saturated: numbers[9].into(),
                held_lost: numbers[10].into(),
                errors: errors.map(u64::from),
                statuses: statuses.map(u64::from),
                examples: BTreeMap::new(),
            },
        )
    }

    proptest! {
        #[test]
        fn sums_do_not_depend_on_order(a in tally(), b in tally()) {
            let (mut forth, mut back) = (a.clone(), b.clone());
            forth.add(&b);
            back.add(&a);
            prop_assert_eq!(&forth, &back);
            prop_assert_eq!(forth.failed(), a.failed() + b.failed());
        }
    }

    #[test]
    fn numbers_of_kinds_are_their_places() {
        for (place, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }

    #[test]
    fn unusual_statuses_are_counted_as_none() {
        let mut tally = Tally::default();
        for status in [0, 99, 200, 299, 503, 600, 999] {
            tally.status(status);
        }
        assert_eq!(tally.statuses, [4, 0, 2, 0, 0, 1]);
    }
}
