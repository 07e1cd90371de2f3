//! What one thread has seen, recorded in the current second's interval and the live counters.
//!
//! A complete second goes to the collector and an empty interval comes back, so that summing up
//! and printing take no time of the generator's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use super::Message;
use super::connection::Request;
use crate::collect::Interval;
use crate::latency::HIGHEST_NS;
use crate::plan::{SECOND_NS, Start};
use crate::tally::ErrorKind;

/// A start later than this after its plan counts as late.
const LATE_NS: u64 = 1_000_000;

/// Counters that others may read while the thread runs, warm-up included. One writer.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Live {
    pub(super) started: AtomicU64,
    pub(super) completed: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Of those failed, the ones whose connect was refused.
    pub(super) refused: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) in_flight: AtomicU64,
    /// The last failure's `ErrorKind`, plus one.
    pub(super) last_failure: AtomicU64,
}

/// Adds to a counter that only this thread writes: no locked instruction is needed.
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Where the measured time lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) warmup_ns: u64,
    pub(super) end_ns: Option<u64>,
    /// Whether starts were planned, so that their lateness means something.
    pub(super) planned: bool,
}

/// Records for one thread.
#[derive(Debug)]
pub(super) struct Recorder {
    window: Window,
    interval: Box<Interval>,
    sender: Sender<Message>,
    spare: Receiver<Box<Interval>>,
    live: Arc<Live>,
    in_flight: u64,
    last_end_ns: u64,
}

impl Recorder {
    pub(super) fn new(
        window: Window,
        sender: Sender<Message>,
        spare: Receiver<Box<Interval>>,
        live: Arc<Live>,
    ) -> Self {
        Self { window, interval: Box::default(), sender, spare, live, in_flight: 0, last_end_ns: 0 }
    }

    /// Hands over every second that is past at `now_ns`.
    pub(super) fn roll(&mut self, now_ns: u64) {
        let second = now_ns.saturating_sub(self.window.warmup_ns) / SECOND_NS;
        while self.interval.second < second {
            let next = self.interval.second + 1;
            self.hand_over(next);
        }
    }

    /// Hands over the last second.
    pub(super) fn finish(&mut self) {
        let next = self.interval.second + 1;
        self.hand_over(next);
    }

    fn hand_over(&mut self, next: u64) {
        // What comes back has been emptied elsewhere: here that could delay a start.
        let mut fresh = self.spare.try_recv().unwrap_or_default();
        fresh.second = next;
        let full = std::mem::replace(&mut self.interval, fresh);
        // The collector is gone only if the run has failed elsewhere.
        let _ = self.sender.send(Message::Interval(full));
    }

    /// Requests begun and not ended.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// When the last measured request was answered or failed.
    pub(super) fn last_end_ns(&self) -> u64 {
        self.last_end_ns
    }

    pub(super) fn started(&mut self, start: Start, now_ns: u64) {
        bump(&self.live.started);
        self.in_flight += 1;
        self.live.in_flight.store(self.in_flight, Ordering::Relaxed);
        if !start.measured {
            return;
        }
        self.interval.tally.started += 1;
        if self.window.planned {
            let lateness_ns = now_ns.saturating_sub(start.start_ns);
            // Zero cannot be recorded as such; the histogram's first bucket is for it.
            self.interval.latencies.lateness.saturating_record(lateness_ns.max(1));
            if lateness_ns > LATE_NS {
                self.interval.tally.late += 1;
                bump(&self.live.late);
            }
        }
    }

    pub(super) fn dropped(&mut self, measured: u64) {
        self.interval.tally.dropped += measured;
    }

    pub(super) fn connected(&mut self, start: Start, now_ns: u64) {
        if start.measured {
            self.interval.tally.connected += 1;
            let waited_ns = self.latency(start, now_ns);
            self.interval.latencies.connect.saturating_record(waited_ns);
        }
    }

    pub(super) fn first_byte(&mut self, start: Start, now_ns: u64) {
        if start.measured {
            let waited_ns = self.latency(start, now_ns);
            self.interval.latencies.first_byte.saturating_record(waited_ns);
        }
    }

    /// An answer is complete; without a status in connect and echo mode.
    pub(super) fn completed(&mut self, request: Request, status: Option<u16>, now_ns: u64) {
        bump(&self.live.completed);
        self.ended(request.start, now_ns);
        if !request.start.measured {
            return;
        }
        self.interval.tally.completed += 1;
        if self.window.end_ns.is_none_or(|end_ns| now_ns < end_ns) {
            self.interval.tally.completed_in_time += 1;
        }
        if let Some(status) = status {
            self.interval.tally.status(status);
        }
    }

    /// The last byte of an answer has come.
    pub(super) fn response(&mut self, start: Start, now_ns: u64) {
        if start.measured {
            let waited_ns = self.latency(start, now_ns);
            self.interval.latencies.response.saturating_record(waited_ns);
        }
    }

    pub(super) fn failed(&mut self, start: Start, kind: ErrorKind, example: &str, now_ns: u64) {
        bump(&self.live.failed);
        if kind == ErrorKind::ConnectRefused {
            bump(&self.live.refused);
        }
        self.live.last_failure.store(kind as u64 + 1, Ordering::Relaxed);
        self.ended(start, now_ns);
        if start.measured {
            self.interval.tally.fail(kind);
        }
        let examples = &mut self.interval.tally.examples;
        examples.entry(kind).or_insert_with(|| example.to_owned());
    }

    /// The end of the run cut a request off.
    pub(super) fn unfinished(&mut self, measured: u64) {
        self.interval.tally.unfinished += measured;
    }

    pub(super) fn held_lost(&mut self) {
        self.interval.tally.held_lost += 1;
    }

    pub(super) fn sent(&mut self, bytes: usize, now_ns: u64) {
        if now_ns >= self.window.warmup_ns {
            self.interval.tally.bytes_sent += bytes as u64;
        }
    }

    pub(super) fn received(&mut self, bytes: usize, now_ns: u64) {
        if now_ns >= self.window.warmup_ns {
            self.interval.tally.bytes_received += bytes as u64;
        }
    }

    fn ended(&mut self, start: Start, now_ns: u64) {
        if start.measured {
            self.last_end_ns = now_ns;
        }
        self.in_flight -= 1;
        self.live.in_flight.store(self.in_flight, Ordering::Relaxed);
    }

    /// From the start, which in an open loop is the planned one: a late start counts.
    fn latency(&mut self, start: Start, now_ns: u64) -> u64 {
        let waited_ns = now_ns.saturating_sub(start.start_ns).max(1);
        self.interval.tally.saturated += u64::from(waited_ns > HIGHEST_NS);
        waited_ns
    }
}
