//! A queue, a worker that accepts from it or not, and its detector, in simulated time.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const HANG_AFTER_NS: u64 = 100 * MS;
const INTERVAL_NS: u64 = HANG_AFTER_NS / LOOKS;

/// A queue as in the kernel: the ages of connections in whole milliseconds, readiness reported once
/// per request.
struct World {
    stall_detector: StallDetector,
    queue: VecDeque<u64>,
    armed: bool,
    now_ns: u64,
    accepted: u64,
    /// The wait of each stolen connection, and when it was stolen.
    stolen: Vec<(u64, u64)>,
    /// How often the suspected worker turned out to make progress.
    suspected_in_vain: u64,
}

impl World {
    fn new() -> Self {
        Self {
            stall_detector: StallDetector::new(HANG_AFTER_NS),
            queue: VecDeque::new(),
            armed: true,
            now_ns: 0,
            accepted: 0,
            stolen: Vec::new(),
            suspected_in_vain: 0,
        }
    }

    fn arrive(&mut self) {
        self.queue.push_back(self.now_ns);
    }

    fn accept(&mut self) {
        self.accepted += u64::from(self.queue.pop_front().is_some());
    }

    fn steal(&mut self) -> Option<u64> {
        let waited_ns = self.now_ns - self.queue.pop_front()?;
        self.stolen.push((waited_ns, self.now_ns));
        Some(waited_ns / MS * MS)
    }

    /// The data path's actions in a turn of its loop.
    fn accept_all(&mut self) {
        if self.armed && !self.queue.is_empty() {
            self.armed = false;
            self.stall_detector.came(self.now_ns);
        }
        if self.stall_detector.next_look_ns().is_none_or(|look_ns| look_ns > self.now_ns) {
            return;
        }
        let length = u32::try_from(self.queue.len()).expect("few");
        match self.stall_detector.look(length, None, self.now_ns) {
            Finding::Quiet => self.armed = true,
            Finding::Patient => {}
            Finding::Overdue => {
                let waited_ns = self.steal().expect("it is overdue, so it is there");
                if self.stall_detector.judge(waited_ns, self.now_ns) {
                    while self.steal().is_some() {}
                } else {
                    self.suspected_in_vain += 1;
                }
                self.armed = true;
            }
        }
    }

    /// Runs for some milliseconds: in each, arrivals as drawn, then the worker, then the detector.
    fn run(&mut self, arrivals: &[u8], mut accepts: impl FnMut(u64, usize) -> usize) {
        for count in arrivals {
            (0..*count).for_each(|_| self.arrive());
            let accepts = accepts(self.now_ns / MS, self.queue.len());
            (0..accepts).for_each(|_| self.accept());
            self.accept_all();
            self.now_ns += MS;
        }
    }
}

fn arrivals() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![4 => Just(0u8), 2 => 0u8..3, 1 => 0u8..20], 300..700)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn behind_a_stopped_worker_no_connection_waits_longer_than_patience_and_a_look(
        arrivals in arrivals(),
    ) {
        let mut world = World::new();
        world.run(&arrivals, |_, _| 0);
        let longest = world.stolen.iter().map(|(waited_ns, _)| *waited_ns).max().unwrap_or(0);
        prop_assert!(longest <= HANG_AFTER_NS + INTERVAL_NS, "{longest}");
        let oldest = world.queue.front().map_or(0, |came_ns| world.now_ns - came_ns);
        prop_assert!(oldest <= HANG_AFTER_NS + INTERVAL_NS, "{oldest} and still there");
        // No connection of a working worker was needed to find out.
        prop_assert_eq!(world.suspected_in_vain, 0);
    }

    #[test]
    fn a_worker_that_empties_its_queue_in_time_is_hardly_robbed(
        arrivals in arrivals(),
        pause_ms in 1u64..90,
    ) {
        let mut world = World::new();
        world.run(&arrivals, |ms, waiting| if ms % pause_ms == 0 { waiting } else { 0 });
        prop_assert!(!world.stall_detector.is_stalled());
        // Arrivals in between may hide that the queue was empty, but never for long.
        let stolen = world.stolen.len() as u64;
        prop_assert_eq!(stolen, world.suspected_in_vain);
        prop_assert!(stolen <= world.now_ns / HANG_AFTER_NS, "{stolen}");
    }

    #[test]
    fn an_overloaded_worker_that_accepts_loses_one_connection_in_a_while(
        arrivals in prop::collection::vec(2u8..6, 300..700),
        most in 1usize..3,
    ) {
        // While the queue is short, everything in it is younger than the limit.
        let mut world = World::new();
        let mut given = 0;
        for window in arrivals.chunks(50) {
            world.run(window, |_, _| most);
            // A client closes what is too old before it gets too long.
            while world.queue.len() > 40 * most {
                world.accept();
                given += 1;
            }
        }
        let passed_ns = world.now_ns;
        let robberies = world.suspected_in_vain;
        prop_assert!(!world.stall_detector.is_stalled(), "{given}");
        prop_assert!(robberies <= passed_ns / HANG_AFTER_NS, "{robberies}");
        prop_assert_eq!(world.stolen.len() as u64, robberies);
    }

    #[test]
    fn a_worker_that_wakes_up_is_trusted_again_and_keeps_new_connections(
        blocked in arrivals(),
        awake in arrivals(),
    ) {
        let mut world = World::new();
        world.run(&blocked, |_, _| 0);
        world.run(&awake, |_, waiting| waiting);
        let end_of_block_ns = blocked.len() as u64 * MS;
        let (_, last_ns) = world.stolen.last().copied().unwrap_or_default();
        prop_assert!(last_ns < end_of_block_ns, "robbed at {last_ns} after it woke up");
        // The next accept shows it, if none has so far.
        world.run(&[0; 1200], |_, waiting| waiting);
        world.run(&[1, 0], |_, waiting| waiting);
        world.stall_detector.came(world.now_ns);
        world.run(&[0; 50], |_, waiting| waiting);
        prop_assert!(!world.stall_detector.may_be_stalled());
        prop_assert_eq!(world.stall_detector.next_look_ns(), None);
    }

    #[test]
    fn each_connection_is_taken_exactly_once(
        arrivals in arrivals(),
        accepts in prop::collection::vec(0usize..4, 1..50),
    ) {
        let mut world = World::new();
        let period = accepts.len() as u64;
        world.run(&arrivals, |ms, _| accepts[usize::try_from(ms % period).expect("small")]);
        let came: u64 = arrivals.iter().map(|count| u64::from(*count)).sum();
        let taken = world.accepted + world.stolen.len() as u64 + world.queue.len() as u64;
        prop_assert_eq!(came, taken);
    }
}

#[test]
fn whether_a_worker_is_stalled_for_whom_nothing_comes_is_doubtful() {
    let mut stall_detector = StallDetector::new(HANG_AFTER_NS);
    assert_eq!(stall_detector.next_look_ns(), None);
    stall_detector.came(0);
    assert_eq!(stall_detector.next_look_ns(), Some(INTERVAL_NS));
    assert!(!stall_detector.may_be_stalled());
    for look in 1..LOOKS {
        assert_eq!(stall_detector.look(1, None, look * INTERVAL_NS), Finding::Patient);
        assert!(stall_detector.may_be_stalled());
    }
    assert_eq!(stall_detector.look(1, None, HANG_AFTER_NS), Finding::Overdue);
    assert!(!stall_detector.is_stalled(), "that is for the oldest connection to say");
    assert!(stall_detector.judge(HANG_AFTER_NS, HANG_AFTER_NS));
    let doubted_ns = stall_detector.next_look_ns().expect("a next look is due");
    assert_eq!(stall_detector.look(0, None, doubted_ns - 1), Finding::Quiet);
    assert!(!stall_detector.is_doubtful());
    assert_eq!(stall_detector.look(0, None, doubted_ns), Finding::Quiet);
    assert!(stall_detector.is_doubtful() && stall_detector.may_be_stalled());
    assert_eq!(stall_detector.next_look_ns(), None);
    // What comes and stays shows that it is, even if no other worker can take that.
    let mut without_others = stall_detector.clone();
    without_others.came(2 * doubted_ns);
    let look = without_others.look(1, None, 2 * doubted_ns + INTERVAL_NS);
    assert_eq!((look, without_others.is_doubtful()), (Finding::Overdue, false));
    // It was not, or no longer is.
    stall_detector.came(2 * doubted_ns);
    assert_eq!(stall_detector.look(0, None, 2 * doubted_ns + INTERVAL_NS), Finding::Quiet);
    assert!(!stall_detector.may_be_stalled());
}

#[test]
fn what_is_taken_from_a_worker_that_has_stopped_unseen_is_not_given_back_to_it() {
    let mut stall_detector = StallDetector::new(HANG_AFTER_NS);
    stall_detector.came(0);
    // The first one was accepted between two checks, and blocks the worker.
    assert_eq!(stall_detector.look(50, None, INTERVAL_NS), Finding::Patient);
    assert_eq!(stall_detector.look(50, None, HANG_AFTER_NS), Finding::Overdue);
    assert!(
        !stall_detector.judge(HANG_AFTER_NS - INTERVAL_NS, HANG_AFTER_NS),
        "it has moved since"
    );
    assert!(stall_detector.may_be_stalled());
    assert_eq!(stall_detector.look(49, None, HANG_AFTER_NS + INTERVAL_NS), Finding::Patient);
    assert!(stall_detector.may_be_stalled());
    assert_eq!(stall_detector.look(49, None, 2 * HANG_AFTER_NS), Finding::Overdue);
    assert!(stall_detector.judge(2 * HANG_AFTER_NS - INTERVAL_NS, 2 * HANG_AFTER_NS));
}

#[test]
fn a_stalled_worker_is_robbed_again_sooner() {
    let mut stall_detector = StallDetector::new(HANG_AFTER_NS);
    stall_detector.came(0);
    assert_eq!(stall_detector.look(3, None, HANG_AFTER_NS), Finding::Overdue);
    assert!(stall_detector.judge(HANG_AFTER_NS, HANG_AFTER_NS));
    let now_ns = 2 * HANG_AFTER_NS;
    stall_detector.came(now_ns);
    assert_eq!(stall_detector.look(1, None, now_ns + INTERVAL_NS), Finding::Overdue);
    assert!(stall_detector.judge(INTERVAL_NS, now_ns + INTERVAL_NS));
    // It has accepted the next one.
    stall_detector.came(2 * now_ns);
    assert_eq!(stall_detector.look(0, None, 2 * now_ns + INTERVAL_NS), Finding::Quiet);
    assert!(!stall_detector.is_stalled());
}

const EVERY_NS: u64 = 5_000_000;

#[test]
fn a_worker_that_tells_what_it_accepts_is_looked_at_at_common_moments() {
    let mut stall_detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    stall_detector.came(3 * EVERY_NS + 1);
    assert_eq!(stall_detector.next_look_ns(), Some(4 * EVERY_NS));
    assert_eq!(stall_detector.look(0, Some(true), 4 * EVERY_NS), Finding::Patient);
    assert_eq!(stall_detector.next_look_ns(), Some(5 * EVERY_NS), "without being told");
    assert!(!stall_detector.may_be_stalled());
    assert_eq!(stall_detector.look(0, Some(false), 5 * EVERY_NS), Finding::Quiet);
    assert_eq!(stall_detector.next_look_ns(), None, "nothing comes any more");
}

#[test]
fn what_has_just_come_does_not_speak_against_a_worker_and_what_stays_does() {
    let mut stall_detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    stall_detector.came(0);
    stall_detector.look(0, Some(true), EVERY_NS);
    assert_eq!(stall_detector.look(3, Some(false), 2 * EVERY_NS), Finding::Patient);
    assert!(!stall_detector.may_be_stalled());
    assert_eq!(stall_detector.look(2, Some(false), 3 * EVERY_NS), Finding::Patient);
    assert!(stall_detector.may_be_stalled(), "others have taken one, and it none");
    assert_eq!(stall_detector.look(2, Some(true), 4 * EVERY_NS), Finding::Patient);
    assert!(!stall_detector.may_be_stalled());
}

#[test]
fn a_worker_that_stops_accepting_is_emptied_after_its_time_and_cleared_when_it_accepts() {
    let mut stall_detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    stall_detector.came(0);
    let mut look = 1;
    while stall_detector.look(1, Some(false), look * EVERY_NS) == Finding::Patient {
        look += 1;
        assert!(look * EVERY_NS <= HANG_AFTER_NS + EVERY_NS);
    }
    assert!(stall_detector.judge(look * EVERY_NS, look * EVERY_NS));
    stall_detector.came(look * EVERY_NS);
    assert_eq!(stall_detector.look(0, Some(true), (look + 1) * EVERY_NS), Finding::Patient);
    assert!(!stall_detector.is_stalled());
}

#[test]
fn a_queue_that_is_checked_because_of_its_worker_does_not_speak_against_it_at_once() {
    let mut stall_detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    stall_detector.on_worker_activity(0);
    assert_eq!(stall_detector.look(1, Some(false), EVERY_NS), Finding::Patient);
    assert!(!stall_detector.may_be_stalled(), "it may have come just now");
    assert_eq!(stall_detector.look(1, Some(false), 2 * EVERY_NS), Finding::Patient);
    assert!(stall_detector.may_be_stalled());
    let mut stall_detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    stall_detector.on_worker_activity(0);
    assert_eq!(stall_detector.look(0, Some(false), EVERY_NS), Finding::Quiet);
}

#[test]
fn a_worker_whose_queue_cannot_be_emptied_is_stalled_until_it_shrinks() {
    let mut detector = StallDetector::looking_every(5, 100 * INTERVAL_MIN_NS);
    let (mut now_ns, mut findings) = (0, Vec::new());
    detector.came(now_ns);
    let mut look = |detector: &mut StallDetector, length| {
        now_ns = detector.next_look_ns().expect("connections wait").max(now_ns);
        let finding = detector.look(length, None, now_ns);
        if finding == Finding::Overdue {
            detector.conclude(now_ns);
        }
        finding
    };
    while !detector.is_stalled() {
        findings.push(look(&mut detector, 3));
    }
    assert!(
        findings.len() > 2 && findings.iter().rev().skip(1).all(|one| *one == Finding::Patient)
    );
    assert!((0..50).all(|_| look(&mut detector, 3) == Finding::Overdue));
    look(&mut detector, 2);
    assert!(!detector.is_stalled() && !detector.may_be_stalled());
    assert_eq!(look(&mut detector, 0), Finding::Quiet);
}

#[test]
fn behind_long_work_a_queue_is_checked_soon_and_ever_more_rarely() {
    let mut detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    detector.is_behind_long_work(MS, 0);
    assert_eq!(detector.next_look_ns(), None, "nothing waits");
    detector.came(0);
    let (mut now_ns, mut looks) = (0, Vec::new());
    while now_ns < 60 * MS {
        detector.is_behind_long_work(MS, now_ns);
        now_ns = detector.next_look_ns().expect("one waits");
        assert_eq!(detector.look(1, Some(false), now_ns), Finding::Patient);
        assert!(detector.may_be_stalled());
        looks.push(now_ns);
    }
    assert_eq!(looks[..8], [1, 2, 3, 4, 5, 6, 7, 8].map(|ms| ms * MS));
    let pauses: Vec<u64> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted_by(|one, next| next >= one || *one > EVERY_NS / 2), "{pauses:?}");
    assert!(pauses.iter().all(|pause_ns| (MS..2 * EVERY_NS).contains(pause_ns)), "{pauses:?}");
    // What the worker accepts by then needs no hurry.
    assert_eq!(detector.look(1, Some(true), now_ns), Finding::Patient);
    assert!(detector.next_look_ns().is_some_and(|look_ns| look_ns >= now_ns + EVERY_NS / 2));
}

#[test]
fn what_the_kernel_tells_is_checked_at_once_and_counts_from_when_it_began() {
    let mut detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    detector.told(EVERY_NS, 2 * EVERY_NS);
    assert_eq!(detector.next_look_ns(), Some(2 * EVERY_NS));
    assert_eq!(detector.look(1, Some(false), 2 * EVERY_NS), Finding::Patient);
    assert!(detector.may_be_stalled());
    assert_eq!(detector.still_ns(3 * EVERY_NS), 2 * EVERY_NS);
    let overdue_ns = EVERY_NS + HANG_AFTER_NS;
    assert_eq!(detector.look(1, Some(false), overdue_ns), Finding::Overdue);
    let mut detector = StallDetector::looking_every(EVERY_NS, HANG_AFTER_NS);
    detector.told(EVERY_NS, 2 * EVERY_NS);
    assert_eq!(detector.look(1, Some(true), 2 * EVERY_NS), Finding::Patient);
    assert!(!detector.may_be_stalled(), "it has accepted since the alarm");
    detector.rest();
    assert_eq!(detector.next_look_ns(), None);
}
