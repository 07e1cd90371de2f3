//! The result of a run: its exit code, output and counters, which must balance.

use serde::Deserialize;
use serde_json::Value;

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) events: Vec<Value>,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Ended {
    /// The counters, after checking that they balance.
    pub(crate) fn summary(&self) -> Summary {
        let event = self.events.last().filter(|event| event["event"] == "summary");
        let event = event.unwrap_or_else(|| panic!("the last event is no summary: {self:#?}"));
        let summary: Summary = serde_json::from_value(event.clone()).expect("all fields");
        summary.assert_balanced();
        summary
    }

    /// The events with this name.
    pub(crate) fn named(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |event| event["event"] == name)
    }

    /// Fails unless the run and every worker exited with code 0.
    pub(crate) fn assert_in_order(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(self.named("kill").next().is_none(), "{self:?}");
        assert!(self.named("exit").all(|event| event["code"] == 0), "{self:?}");
    }

    /// Fails unless the run ended with this code after one line that contains all of these words.
    pub(crate) fn assert_refusal(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines: Vec<&str> = self.errors.lines().collect();
        assert_eq!(lines.len(), 1, "one line: {self:?}");
        for word in words {
            assert!(lines[0].contains(word), "no {word:?} in {:?}", lines[0]);
        }
    }
}

/// The counters of a run.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) accepted: u64,
    pub(crate) stolen: u64,
    pub(crate) refused: u64,
    pub(crate) redispatched: u64,
    pub(crate) dropped: u64,
    pub(crate) aborted: u64,
    pub(crate) pauses: u64,
    pub(crate) top_two_percent: f64,
    pub(crate) max_over_mean: f64,
    pub(crate) workers: Vec<Books>,
}

/// The counters of one worker.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Books {
    pub(crate) id: u64,
    pub(crate) pid: u32,
    pub(crate) assigned: u64,
    pub(crate) own: u64,
    pub(crate) claimed: u64,
    pub(crate) finished: u64,
    pub(crate) returned: u64,
    pub(crate) aborted: u64,
    pub(crate) requests: u64,
    pub(crate) headers_refused: u64,
}

impl Summary {
    fn assert_balanced(&self) {
        let sum = |field: fn(&Books) -> u64| self.workers.iter().map(field).sum::<u64>();
        assert_eq!(
            self.accepted + self.redispatched,
            sum(|one| one.assigned) + self.dropped,
            "{self:#?}"
        );
        for one in &self.workers {
            assert_eq!(one.assigned, one.returned + one.finished + one.aborted, "{self:#?}");
            assert!(one.claimed <= one.assigned - one.returned, "{self:#?}");
        }
        assert_eq!(self.aborted, sum(|one| one.aborted), "{self:#?}");
        let own = sum(|one| one.own);
        assert!(self.stolen <= self.accepted && own <= self.accepted, "{self:#?}");
        assert!(self.refused <= self.redispatched, "{self:#?}");
    }

    /// Connections of each worker, in the order of their ids.
    pub(crate) fn shares(&self) -> Vec<u64> {
        self.workers.iter().map(|one| one.assigned - one.returned).collect()
    }

    /// Fails unless every connection was accepted once, assigned once and finished.
    pub(crate) fn assert_clean(&self, accepted: u64) {
        let wrong = (self.refused, self.redispatched, self.dropped, self.aborted);
        assert_eq!((self.accepted, wrong), (accepted, (0, 0, 0, 0)), "{self:#?}");
    }

    /// Fails unless the shares differ by at most one.
    pub(crate) fn assert_even(&self) {
        assert_even(&self.shares());
    }
}

/// Fails unless the counts differ by at most one.
pub(crate) fn assert_even(counts: &[u64]) {
    let least = counts.iter().min().copied().unwrap_or(0);
    let most = counts.iter().max().copied().unwrap_or(0);
    assert!(most - least <= 1, "{counts:?}");
}
