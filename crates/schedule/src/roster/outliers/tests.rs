//! A small simulation: clients that return at once, workers that serve, and one of them that closes
//! every connection at once, or is only fast.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;
use crate::id::ListenerId;
use crate::{Client, Sample, SchedulerConfig};

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const FIRST: ListenerId = ListenerId::new(0);

#[derive(Clone, Copy, Debug)]
struct Model {
    workers: usize,
    clients: usize,
    /// Time of a connection at the others.
    service_ns: u64,
    /// One after the other, or all at once.
    serial: bool,
    /// The worker in slot 0: its time of a connection, and whether it answers.
    first_ns: u64,
    first_answers: bool,
    /// From then on it is like the others.
    mended_ns: u64,
    eject_ns: Option<u64>,
    policy: Policy,
}

const MODEL: Model = Model {
    workers: 3,
    clients: 16,
    service_ns: 5 * MS,
    serial: false,
    first_ns: 20 * US,
    first_answers: false,
    mended_ns: u64::MAX,
    eject_ns: None,
    policy: Policy::Rr,
};

#[derive(Debug, Default)]
struct Outcome {
    shares: Vec<u64>,
    judgements: Vec<(Slot, Judgement)>,
}

impl Outcome {
    /// The first worker's percentage.
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts needs no more")]
    fn first_percent(&self) -> f64 {
        self.shares[0] as f64 * 100.0 / self.shares.iter().sum::<u64>() as f64
    }
}

#[derive(Debug, Default)]
struct Worker {
    claimed: u64,
    finished: u64,
    free_ns: u64,
    claimed_at_ns: u64,
}

/// An event: a client connects, or a worker's connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Comes,
    Claims(usize),
    Ends(usize),
    /// Only time passes.
    Passes,
}

impl Model {
    fn takes_ns(&self, place: usize, now_ns: u64) -> u64 {
        let is_odd = place == 0 && now_ns < self.mended_ns;
        if is_odd { self.first_ns } else { self.service_ns }
    }

    fn roster(&self, slots: &[Slot]) -> Roster {
        let config = SchedulerConfig {
            eject_outliers_ns: self.eject_ns,
            slow_start_ns: 0,
            ..SchedulerConfig::default()
        };
        let mut roster = Roster::new(self.policy, config, 1);
        for slot in slots {
            roster.attach(*slot, 0);
            roster.join(*slot, FIRST);
        }
        roster
    }

    /// Shares of the time after `from_ns`, until `until_ns`.
    fn run(self, from_ns: u64, until_ns: u64) -> Outcome {
        let slots: Vec<Slot> = (0..).map(Slot::new).take(self.workers).collect();
        let mut roster = self.roster(&slots);
        let mut workers: Vec<Worker> = slots.iter().map(|_| Worker::default()).collect();
        let mut outcome = Outcome { shares: vec![0; self.workers], ..Outcome::default() };
        let mut agenda: BinaryHeap<Reverse<(u64, Event)>> =
            (1..=self.clients as u64).map(|one| Reverse((one * 37 * US, Event::Comes))).collect();
        agenda.push(Reverse((PAUSE_NS, Event::Passes)));
        let mut waiting = 0;
        let mut looks: Vec<Slot> = Vec::new();
        while let Some(Reverse((now_ns, event))) = agenda.pop().filter(|one| one.0.0 < until_ns) {
            match event {
                Event::Comes => waiting += 1,
                Event::Claims(place) => {
                    workers[place].claimed += 1;
                    workers[place].claimed_at_ns = now_ns;
                }
                Event::Passes => agenda.push(Reverse((now_ns + PAUSE_NS, Event::Passes))),
                Event::Ends(place) => {
                    workers[place].finished += 1;
                    agenda.push(Reverse((now_ns + 100 * US, Event::Comes)));
                }
            }
            // As in the data path, which connections and inspections wake.
            if waiting == 0 && looks.is_empty() {
                continue;
            }
            for (slot, worker) in slots.iter().zip(&workers) {
                let Worker { claimed, finished, claimed_at_ns, .. } = *worker;
                let sample = Sample { claimed, finished, claimed_at_ns, ..Sample::default() };
                roster.observe(*slot, sample, now_ns);
            }
            outcome.judgements.extend(roster.compare(now_ns));
            looks.retain(|slot| match roster.look(*slot) {
                Look::Pending => true,
                look => {
                    let answers = slot.get() > 0 || self.first_answers || now_ns >= self.mended_ns;
                    let known = (look == Look::Finished).then_some(answers);
                    let judgement = roster.end_look(*slot, known, now_ns);
                    outcome.judgements.extend(judgement.map(|one| (*slot, one)));
                    false
                }
            });
            while waiting > 0 {
                let Some(slot) = roster.pick(FIRST, Client::default()) else { break };
                waiting -= 1;
                roster.deliver(slot, 1, now_ns);
                looks.extend(roster.begin_look(slot, now_ns).then_some(slot));
                let place = slot.index();
                outcome.shares[place] += u64::from(now_ns >= from_ns);
                let takes_ns = self.takes_ns(place, now_ns);
                let begins_ns = match self.serial {
                    true => workers[place].free_ns.max(now_ns),
                    false => now_ns,
                };
                workers[place].free_ns = begins_ns + takes_ns;
                agenda.push(Reverse((begins_ns, Event::Claims(place))));
                agenda.push(Reverse((begins_ns + takes_ns, Event::Ends(place))));
            }
        }
        outcome
    }
}

const OUTLIER: (Slot, Judgement) = (Slot::new(0), Judgement::Outlier { ejected_ns: None });

#[test]
fn a_worker_that_closes_at_once_attracts_at_most_its_share() {
    for serial in [false, true] {
        for policy in [Policy::Rr, Policy::Least, Policy::Fastest] {
            let model = Model { serial, policy, ..MODEL };
            // Without detection it gets far more.
            let unknown = Model { first_answers: true, ..model }.run(2_000 * MS, 10_000 * MS);
            assert!(unknown.first_percent() > 40.0, "{model:?}: {unknown:?}");
            let known = model.run(2_000 * MS, 10_000 * MS);
            assert!(known.first_percent() <= 35.0, "{model:?}: {known:?}");
            assert_eq!(known.judgements, [OUTLIER], "{model:?}");
        }
    }
}

#[test]
fn a_fast_worker_that_answers_keeps_what_it_can_serve() {
    let fast = Model { first_answers: true, first_ns: 500 * US, ..MODEL };
    let outcome = fast.run(2_000 * MS, 10_000 * MS);
    assert!(outcome.first_percent() > 40.0, "{outcome:?}");
    assert_eq!(outcome.judgements, []);
}

#[test]
fn an_outlier_that_is_mended_gets_its_share_again() {
    for first_answers in [false, true] {
        // Its time shows it, or the findings of inspections.
        let model = Model { mended_ns: 5_000 * MS, first_ns: 20 * US, first_answers, ..MODEL };
        let outcome = model.run(8_000 * MS, 16_000 * MS);
        let expected: &[_] =
            if first_answers { &[] } else { &[OUTLIER, (Slot::new(0), Judgement::Normal)] };
        assert_eq!(outcome.judgements, expected);
        assert!((outcome.first_percent() - 33.3).abs() < 1.0, "{outcome:?}");
    }
}

#[test]
fn an_ejected_outlier_gets_a_trial_after_each_time_and_longer_times() {
    let model = Model { eject_ns: Some(1_000 * MS), ..MODEL };
    let outcome = model.run(500 * MS, 10_000 * MS);
    let times = outcome.judgements.iter().map(|(slot, judgement)| match judgement {
        Judgement::Outlier { ejected_ns: Some(ejected_ns) } => (slot.get(), ejected_ns / MS),
        other => panic!("{other:?}"),
    });
    assert_eq!(times.collect::<Vec<_>>(), [1, 2, 3, 4].map(|one| (0, one * 1_000)));
    assert!(outcome.first_percent() < 10.0, "{outcome:?}");
}

#[test]
fn of_two_workers_one_stays_and_an_only_one_is_needed() {
    let model = Model { workers: 2, eject_ns: Some(1_000 * MS), ..MODEL };
    let outcome = model.run(500 * MS, 5_000 * MS);
    assert!(outcome.first_percent() < 20.0, "{outcome:?}");
    let config = SchedulerConfig { eject_outliers_ns: Some(1_000 * MS), ..Default::default() };
    let mut roster = Roster::new(Policy::Rr, config, 1);
    for slot in [Slot::new(0), Slot::new(1)] {
        roster.attach(slot, 0);
        roster.join(slot, FIRST);
    }
    for _ in 0..STREAK {
        roster.end_look(Slot::new(0), Some(false), MS);
    }
    assert!(!roster.may_eject(Slot::new(1), MS), "it is the last");
    roster.observe(Slot::new(0), Sample::default(), MS);
    let hung = |roster: &Roster| [0, 1].map(|place: usize| roster.loads()[place].hung);
    assert_eq!(hung(&roster), [true, false]);
    roster.mark_dead(Slot::new(1));
    assert!(!hung(&roster)[0] && roster.has_room(FIRST));
}

#[test]
fn what_comes_back_says_nothing() {
    let mut roster = Roster::new(Policy::Rr, SchedulerConfig::default(), 1);
    roster.attach(Slot::new(0), 0);
    roster.join(Slot::new(0), FIRST);
    assert_eq!(roster.look(Slot::new(0)), Look::Void);
    roster.workers[0].as_mut().expect("it is there").conduct.is_suspicious = true;
    assert_eq!(roster.pick(FIRST, Client::default()), Some(Slot::new(0)));
    assert!(roster.begin_look(Slot::new(0), PAUSE_NS));
    assert!(!roster.begin_look(Slot::new(0), 3 * PAUSE_NS), "one at a time");
    assert_eq!(roster.look(Slot::new(0)), Look::Pending);
    roster.taken_back(Slot::new(0), 1);
    assert_eq!(roster.look(Slot::new(0)), Look::Void);
    assert_eq!(roster.end_look(Slot::new(0), None, PAUSE_NS), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn no_answering_worker_is_judged_and_no_failing_one_attracts_load(
        workers in 3..6usize,
        clients in 6..40usize,
        service_ms in 2..20u64,
        first_us in 5..400u64,
        serial in any::<bool>(),
        first_answers in any::<bool>(),
    ) {
        let (service_ns, first_ns) = (service_ms * MS, first_us * US);
        let model =
            Model { workers, clients, service_ns, first_ns, serial, first_answers, ..MODEL };
        let outcome = model.run(3_000 * MS, 6_000 * MS);
        let fair = 100.0 / f64::from(u8::try_from(workers).expect("few"));
        match first_answers {
            true => prop_assert_eq!(outcome.judgements, []),
            false => prop_assert!(outcome.first_percent() <= fair + 2.0, "{:?}", outcome),
        }
    }

    #[test]
    fn failures_are_forgotten(ended in 0..10_000u64, passed_ns in 0..u64::MAX / 4) {
        let mut conduct = Conduct { is_outlier: true, peers_ns: 5e6, ..Conduct::default() };
        conduct.note(ended, ended, MS);
        prop_assert!(u64::from(conduct.failure_load()) <= ended);
        conduct.note(ended, ended, passed_ns);
        prop_assert!(u64::from(conduct.failure_load()) <= ended);
        conduct.note(ended, ended, u64::MAX / 2);
        prop_assert_eq!(conduct.failure_load(), 0);
    }
}
