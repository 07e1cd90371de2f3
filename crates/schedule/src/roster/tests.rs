//! How suspicion, credits and slow start work together over simulated time.

use super::*;
use crate::{CREDITS_MAX, CreditRule, Limits, OverloadFactor, Policy};

const MS: u64 = 1_000_000;
const FIRST: ListenerId = ListenerId::new(0);

fn roster(workers: u16) -> Roster {
    let config = SchedulerConfig {
        limits: Limits::default(),
        scheduler: None,
        credits: CreditRule::Adaptive,
        credits_max: CREDITS_MAX,
        hang_after_ns: Some(100 * MS),
        unserved_limit_ns: None,
        take_back_after_ns: None,
        eject_outliers_ns: None,
        slow_start_ns: 0,
        coalesce_ns: None,
    };
    let mut roster = Roster::new(Policy::Rr, config, 1);
    for slot in (0..workers).map(Slot::new) {
        roster.attach(slot, 0);
        roster.join(slot, FIRST);
    }
    roster
}

fn give(roster: &mut Roster, now_ns: u64) -> Option<Slot> {
    let slot = roster.pick(FIRST, Client::default())?;
    roster.deliver(slot, 1, now_ns);
    Some(slot)
}

#[test]
fn a_worker_that_does_not_claim_is_suspected_once_and_trusted_when_it_answers() {
    let mut roster = roster(2);
    assert_eq!(give(&mut roster, 0), Some(Slot::new(0)));
    assert_eq!(roster.next_deadline_ns(), Some(100 * MS + 1));
    assert_eq!(roster.suspect(100 * MS), None);
    assert_eq!(roster.suspect(100 * MS + 1), Some(Slot::new(0)));
    assert_eq!(roster.suspect(100 * MS + 1), None);
    roster.taken_back(Slot::new(0), 1);
    // It has no unclaimed connection, and still gets none: it has not answered.
    roster.observe(Slot::new(0), Sample::default(), 200 * MS);
    assert_eq!(give(&mut roster, 200 * MS), Some(Slot::new(1)));
    assert_eq!(roster.loads()[0].in_flight, 0);
    let answered = Sample { answered_probes: 1, ..Sample::default() };
    roster.observe(Slot::new(0), answered, 300 * MS);
    assert!(!roster.is_suspected(Slot::new(0)));
    assert_eq!(give(&mut roster, 300 * MS), Some(Slot::new(0)));
}

#[test]
fn a_worker_stuck_in_a_turn_is_passed_over_while_it_is() {
    let mut roster = roster(2);
    let stuck = Sample { turn_begun_ns: 1, ..Sample::default() };
    roster.observe(Slot::new(0), stuck, 100 * MS + 2);
    assert_eq!(give(&mut roster, 100 * MS + 2), Some(Slot::new(1)));
    roster.observe(Slot::new(0), Sample::default(), 101 * MS);
    assert_eq!(give(&mut roster, 101 * MS), Some(Slot::new(0)));
}

#[test]
fn without_credits_another_worker_or_none_is_picked() {
    let mut roster = roster(1);
    let given = (0..1000).map_while(|_| give(&mut roster, 0)).count();
    assert_eq!(given, 32);
    assert!(!roster.has_room(FIRST));
    let claimed = Sample { claimed: 32, claimed_at_ns: 1000, ..Sample::default() };
    roster.observe(Slot::new(0), claimed, 2000);
    assert!(roster.has_room(FIRST));
    assert_eq!(roster.loads()[0].credits, 64);
}

#[test]
fn a_lying_worker_gains_nothing_and_breaks_nothing() {
    let mut roster = roster(1);
    give(&mut roster, 0);
    let lies = Sample { claimed: u64::MAX, finished: u64::MAX, ..Sample::default() };
    roster.observe(Slot::new(0), lies, 0);
    assert_eq!(roster.loads()[0].in_flight, 0);
}

#[test]
fn a_full_channel_is_waited_for_once() {
    let mut roster = roster(1);
    for _ in 0..3 {
        assert!(roster.pick(FIRST, Client::default()).is_some());
    }
    assert!(roster.refused(Slot::new(0), 2, Refusal::Full));
    assert!(!roster.refused(Slot::new(0), 1, Refusal::Full));
    assert_eq!((roster.loads()[0].in_flight, roster.has_room(FIRST)), (0, false));
    roster.has_room_again(Slot::new(0));
    assert!(roster.has_room(FIRST));
}

#[test]
fn a_listener_only_sees_workers_that_serve_it() {
    let mut roster = Roster::new(Policy::Rr, roster(0).config, 2);
    for slot in [Slot::new(0), Slot::new(1)] {
        roster.attach(slot, 0);
        roster.join(slot, FIRST);
    }
    roster.join(Slot::new(1), ListenerId::new(1));
    assert_eq!(roster.pick(ListenerId::new(1), Client::default()), Some(Slot::new(1)));
    assert_eq!(roster.pick(ListenerId::new(1), Client::default()), Some(Slot::new(1)));
    assert_eq!(roster.pick(FIRST, Client::default()), Some(Slot::new(0)));
    roster.vacate(Slot::new(1));
    assert!(!roster.has_room(ListenerId::new(1)));
}

#[test]
fn listeners_come_and_go_while_others_are_served() {
    let mut roster = roster(2);
    let second = ListenerId::new(700);
    roster.add_listener(second);
    assert!(!roster.is_served(second) && !roster.has_room(second));
    assert_eq!(roster.pick(FIRST, Client::default()), Some(Slot::new(0)));
    roster.join(Slot::new(1), second);
    assert!(roster.is_served(second));
    assert_eq!(roster.pick(second, Client::default()), Some(Slot::new(1)));
    roster.leave(Slot::new(1), second);
    assert_eq!(roster.pick(second, Client::default()), None);
    let passed_over = roster.skips().dead;
    assert!(passed_over > 0);
    roster.remove_listener(second);
    assert_eq!(roster.skips().dead, passed_over, "what was counted stays counted");
    assert!(!roster.has_room(second));
    assert_eq!(roster.pick(FIRST, Client::default()), Some(Slot::new(1)));
    // A new listener at the same position starts without the workers of the old one.
    roster.join(Slot::new(1), FIRST);
    roster.remove_listener(FIRST);
    roster.add_listener(ListenerId::new(701));
    assert!(!roster.is_served(ListenerId::new(701)));
}

#[test]
fn what_a_worker_sends_back_is_not_in_flight() {
    let mut roster = roster(1);
    for _ in 0..3 {
        give(&mut roster, 0);
    }
    roster.sent_back(Slot::new(0), 1);
    assert_eq!(roster.loads()[0].in_flight, 2);
    let sample = Sample { claimed: 2, finished: 2, claimed_at_ns: MS, ..Sample::default() };
    roster.observe(Slot::new(0), sample, 2 * MS);
    assert_eq!(roster.loads()[0].in_flight, 0);
    assert_eq!(roster.next_deadline_ns(), None, "nothing is waited for");
}

#[test]
fn there_is_slack_while_every_worker_has_plenty_and_is_slow_to_claim() {
    let mut roster = roster(2);
    for number in 0..2 * u64::from(PLENTY) {
        assert_eq!(roster.slack_ns(), None, "a worker has {number} at most");
        give(&mut roster, 0);
    }
    assert_eq!(roster.slack_ns(), Some(0), "their times are not known yet");
    let slow = |claimed, at_ms| Sample { claimed, claimed_at_ns: at_ms * MS, ..Sample::default() };
    for (slot, ms) in [(Slot::new(0), 4), (Slot::new(1), 2)] {
        roster.observe(slot, slow(PLENTY.into(), ms), ms * MS);
    }
    let slack_ns = roster.slack_ns().expect("what is claimed is still in flight");
    assert!((MS / 2..2 * MS).contains(&slack_ns), "{slack_ns}: towards that of the faster one");
    roster.observe(Slot::new(0), Sample { finished: 1, ..slow(PLENTY.into(), 4) }, 5 * MS);
    assert_eq!(roster.slack_ns(), None, "it is through with them before long");
    roster.retire(Slot::new(0));
    assert!(roster.slack_ns().is_some(), "a leaving worker gets nothing and does not count");
}

#[test]
fn slow_start_applies_to_joining_workers_and_not_to_the_first_ones() {
    let config = SchedulerConfig { coalesce_ns: None, ..SchedulerConfig::default() };
    let mut roster = Roster::new(Policy::Rr, config, 1);
    let come = |roster: &mut Roster, slot| {
        roster.attach(slot, 0);
        roster.join(slot, FIRST);
    };
    for slot in (0..4).map(Slot::new) {
        come(&mut roster, slot);
    }
    // The last one claims nothing, the others do: a worker above the average gets nothing.
    for number in 0..4 * u64::from(CREDITS_MAX) {
        let now_ns = number * 1000;
        let Some(_) = give(&mut roster, now_ns) else { break };
        for place in 0..3 {
            let claimed = roster.loads()[place].in_flight.into();
            let sample = Sample { claimed, claimed_at_ns: now_ns, ..Sample::default() };
            roster.observe(Slot::new(u16::try_from(place).expect("a few")), sample, now_ns);
        }
    }
    assert!(roster.skips().above_average > 0, "they are compared from the beginning");
    come(&mut roster, Slot::new(4));
    assert_eq!(roster.loads()[4].slow_start_permille, 0, "it has come to others");
}

/// A roster of rotation with early take-back after 2 ms, in which worker 0 has claimed the first
/// connection and works on it.
fn at_work(policy: Policy) -> Roster {
    let config = SchedulerConfig { take_back_after_ns: Some(2 * MS), ..roster(0).config };
    let mut roster = Roster::new(policy, config, 1);
    for slot in (0..2).map(Slot::new) {
        roster.attach(slot, 0);
        roster.join(slot, FIRST);
    }
    give(&mut roster, 0);
    roster.observe(Slot::new(0), working(1), 1);
    roster
}

fn working(claimed: u64) -> Sample {
    Sample { claimed, claimed_at_ns: 1, turn_begun_ns: 1, ..Sample::default() }
}

#[test]
fn what_waits_behind_work_moves_to_an_idle_worker() {
    let mut roster = at_work(Policy::Rr);
    assert_eq!(
        [give(&mut roster, MS), give(&mut roster, MS)],
        [Some(Slot::new(1)), Some(Slot::new(0))]
    );
    let busy = Sample { claimed: 1, claimed_at_ns: MS, ..Sample::default() };
    roster.observe(Slot::new(1), busy, MS);
    assert_eq!(roster.next_deadline_ns(), Some(3 * MS + 1));
    assert_eq!(roster.movable(3 * MS + 1), None, "the other one is busy");
    assert_eq!(roster.next_deadline_ns(), Some(3 * MS + MS / 2 + 2), "and looked at again soon");
    roster.observe(Slot::new(1), Sample { finished: 1, ..busy }, 4 * MS);
    assert_eq!(roster.movable(4 * MS), Some(Slot::new(0)));
    roster.taken_back(Slot::new(0), 1);
    assert_eq!(roster.pick_idle(FIRST), Some(Slot::new(1)));
    assert_eq!(roster.pick_idle(FIRST), None);
    assert_eq!((roster.loads()[0].in_flight, roster.loads()[1].in_flight), (1, 1));
    assert_eq!(roster.movable(9 * MS), None, "nothing is left to move");
    assert_eq!(roster.loads()[0].credits, 0, "it is still at work");
    roster.observe(Slot::new(0), Sample { finished: 1, ..working(1) }, 10 * MS);
    assert_eq!(roster.loads()[0].credits, 1, "the next one shows whether it is fast again");
}

#[test]
fn under_new_rules_a_worker_that_lost_what_waited_for_it_is_judged_anew() {
    let mut roster = at_work(Policy::Rr);
    for _ in 0..2 {
        give(&mut roster, MS);
    }
    roster.observe(Slot::new(1), Sample { finished: 1, ..working(1) }, 2 * MS);
    assert_eq!(roster.movable(3 * MS + 1), Some(Slot::new(0)));
    roster.taken_back(Slot::new(0), 1);
    assert_eq!(roster.loads()[0].credits, 0);
    let without = SchedulerConfig { take_back_after_ns: None, ..roster.config.clone() };
    roster.reconfigure(Policy::Rr, without);
    roster.observe(Slot::new(0), working(1), 4 * MS);
    assert_eq!(roster.next_deadline_ns(), None, "so nothing would end this later");
    assert!(roster.loads()[0].credits > 0);
}

#[test]
fn a_worker_that_is_not_at_work_keeps_what_it_has() {
    let mut roster = at_work(Policy::Rr);
    roster.observe(Slot::new(0), Sample { finished: 1, ..working(1) }, 1);
    give(&mut roster, MS);
    give(&mut roster, MS);
    // It has not been scheduled since; the idle one would not be either.
    assert_eq!(roster.movable(50 * MS), None);
}

#[test]
fn a_sticky_connection_does_not_move_early() {
    let mut roster = at_work(Policy::Sticky);
    roster.observe(Slot::new(0), working(0), 1);
    assert_eq!(roster.movable(50 * MS), None);
    assert_eq!(roster.next_deadline_ns(), Some(100 * MS + 1), "that of a hang");
}

#[test]
fn looks_for_an_idle_worker_become_rare_and_end() {
    let mut roster = at_work(Policy::Rr);
    for _ in 0..2 {
        give(&mut roster, MS);
    }
    roster.config.hang_after_ns = None;
    roster.observe(Slot::new(1), Sample { claimed: 1, ..Sample::default() }, MS);
    let (mut looks, mut now_ns) = (0, 3 * MS + 1);
    while let Some(deadline_ns) = roster.next_deadline_ns() {
        now_ns = now_ns.max(deadline_ns);
        assert_eq!(roster.movable(now_ns), None);
        looks += 1;
    }
    assert!(looks < 60, "{looks} looks");
    assert!(now_ns > 1_000 * MS, "they went on for {now_ns} ns");
}

/// A roster under `fastest` whose first worker takes ten times as long as the second, after this
/// many connections, one at a time.
fn unequal(connections: u64) -> (Roster, [u64; 2]) {
    let config = SchedulerConfig { slow_start_ns: 0, ..SchedulerConfig::default() };
    let mut roster = Roster::new(Policy::Fastest, config, 1);
    for slot in [Slot::new(0), Slot::new(1)] {
        roster.attach(slot, 0);
        roster.join(slot, FIRST);
    }
    let (mut now_ns, mut done) = (0, [0; 2]);
    for _ in 0..connections {
        let slot = give(&mut roster, now_ns).expect("both are idle").index();
        for look in 1..=10 {
            let takes = if slot == 0 { 10 } else { 1 };
            now_ns += MS;
            for worker in [Slot::new(0), Slot::new(1)] {
                let is_it = u64::from(worker.index() == slot);
                let before = done[worker.index()];
                let finished = before + is_it * u64::from(look >= takes);
                let sample = Sample { claimed: before + is_it, finished, ..Sample::default() };
                roster.observe(worker, sample, now_ns);
            }
            roster.update_paces();
        }
        done[slot] += 1;
    }
    (roster, done)
}

#[test]
fn a_slow_worker_is_known_by_its_counters_and_tried_again_now_and_then() {
    let (roster, done) = unequal(60);
    let slowest_us = roster.loads().iter().map(|load| load.usual_us).max();
    // A check at the end of each millisecond sees the remaining ones.
    assert_eq!(slowest_us, Some(9_000));
    // Until sixteen are finished the times are unknown, and the two take turns.
    assert_eq!(done, [16, 44]);
    let (_, later) = unequal(3_000);
    assert!((2..6).contains(&(later[0] - done[0])), "{done:?} {later:?}");
}

#[test]
fn a_doubted_worker_is_passed_over_until_it_answers_and_own_connections_count() {
    let mut roster = roster(2);
    assert!(roster.doubt(Slot::new(0)) && roster.is_probed(Slot::new(0)));
    assert!(!roster.doubt(Slot::new(0)), "one probe is enough");
    assert_eq!(give(&mut roster, 0), Some(Slot::new(1)));
    let answered = Sample { own: 3, finished: 1, answered_probes: 1, ..Sample::default() };
    roster.observe(Slot::new(0), answered, 1);
    assert!(!roster.is_probed(Slot::new(0)) && !roster.loads()[0].hung);
    assert_eq!(roster.loads()[0].in_flight, 2);
    assert!(!roster.doubt(Slot::new(7)), "the slot is empty");
}

#[test]
fn a_worker_gets_several_in_a_row_as_long_as_it_can_take_them() {
    let mut roster = roster(2);
    assert_eq!(give(&mut roster, 0), Some(Slot::new(0)));
    let again = (0..40).take_while(|_| roster.pick_again(Slot::new(0), FIRST)).count();
    assert_eq!((again, roster.loads()[0].in_flight), (31, 32), "it has no more credits");
    assert!(!roster.pick_again(Slot::new(1), ListenerId::new(9)), "it does not serve that one");
    assert_eq!(give(&mut roster, 0), Some(Slot::new(1)));
    let config = SchedulerConfig {
        limits: Limits { inflight_max: Some(2), ..Limits::default() },
        ..SchedulerConfig::default()
    };
    roster.reconfigure(Policy::Rr, config);
    assert!(roster.pick_again(Slot::new(1), FIRST) && !roster.pick_again(Slot::new(1), FIRST));
    let strict = Limits { overload_factor: OverloadFactor::Off, ..Limits::default() };
    let strict = SchedulerConfig { limits: strict, ..SchedulerConfig::default() };
    for (policy, config) in [(Policy::Least, SchedulerConfig::default()), (Policy::Rr, strict)] {
        roster.reconfigure(policy, config);
        assert!(!roster.pick_again(Slot::new(1), FIRST), "{policy} says strictly who is next");
    }
}
