//! The page as its sides see it.

use super::*;
use crate::id::ListenerId;
use crate::sys::picking::{BoardLayout, Told};

fn pair() -> (PrimaryPage, WorkerPage) {
    let primary = PrimaryPage::create().expect("a page");
    let memory = primary.as_fd().try_clone_to_owned().expect("a duplicate");
    (primary, WorkerPage::open(memory).expect("the same version"))
}

#[test]
fn in_flight_is_the_difference_of_two_writers() {
    let (mut primary, mut worker) = pair();
    primary.add_assigned(5);
    primary.add_returned(1);
    worker.add_claimed(3, 7);
    worker.add_finished(None, 1, 8);
    assert!(!worker.publish());
    let counters = primary.counters();
    assert_eq!((counters.in_flight(), counters.unclaimed()), (3, 1));
    assert_eq!(primary.view().expect("a view").counters(), counters);
}

#[test]
fn claim_times_and_the_loop_s_delay_are_seen_by_others() {
    let (primary, _worker) = pair();
    let view = primary.view().expect("a view");
    let mut times = ClaimTimes::default();
    [1, 60_000, u64::MAX].into_iter().for_each(|took_ns| times.record(took_ns, 3));
    primary.show_claim_times(&times);
    assert_eq!(view.claim_times(), times);
    let program = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
    let program = program.expect("a page");
    program.word(PROGRAM, BEATS).store(3, Ordering::Relaxed);
    program.word(PROGRAM, LATE).store(7, Ordering::Relaxed);
    assert_eq!(view.loop_delay(), (3, 7));
}

#[test]
fn a_lying_worker_is_cut_to_what_is_possible() {
    let (mut primary, mut worker) = pair();
    primary.add_assigned(2);
    worker.add_claimed(1_000, 7);
    worker.add_finished(None, 1_000, 8);
    let _ = worker.publish();
    assert_eq!(primary.counters().in_flight(), 0);
}

#[test]
fn a_connection_that_a_worker_accepts_is_assigned_and_claimed() {
    let (mut primary, mut worker) = pair();
    primary.add_assigned(2);
    worker.add_own(None, 7);
    worker.add_own(None, 7);
    worker.add_claimed(1, 7);
    worker.add_finished(None, 2, 8);
    let _ = worker.publish();
    let counters = primary.counters();
    assert_eq!((counters.assigned, counters.own, counters.claimed), (4, 2, 3));
    assert_eq!((counters.in_flight(), counters.unclaimed()), (2, 1));
    assert_eq!((primary.sample().own, primary.sample().claimed), (2, 1));
    assert_eq!(primary.view().expect("a view").counters(), counters);
    worker.add_finished(None, 1_000, 8);
    let _ = worker.publish();
    assert_eq!(primary.counters().in_flight(), 0, "cut to what is possible");
}

#[test]
fn connections_are_seen_by_listener() {
    let (mut primary, mut worker) = pair();
    primary.add_assigned(5);
    worker.add_own(Some(ListenerId::new(4)), 7);
    worker.add_finished(Some(ListenerId::new(3)), 2, 8);
    worker.add_finished(Some(ListenerId::new(4)), 1, 8);
    worker.add_finished(None, 1, 8);
    let _ = worker.publish();
    let program = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
    let program = program.expect("a page");
    program.word(PROGRAM, ENDED).store(1, Ordering::Relaxed);
    program.word(PROGRAM, ENDED_OF).store(4 << 48 | 1, Ordering::Relaxed);
    let view = primary.view().expect("a view");
    let share = |listener, own, finished| ListenerShare {
        listener: ListenerId::new(listener),
        own,
        finished,
    };
    assert_eq!(view.by_listener(&view.counters()), [share(4, 1, 1), share(3, 0, 3)]);
}

#[test]
fn a_wake_up_is_asked_for_and_arrives() {
    let (mut primary, mut worker) = pair();
    primary.set_wake(Wake::Always);
    assert!(worker.publish() && worker.is_awaited());
    primary.set_wake(Wake::Probe);
    assert!(!worker.is_awaited());
    assert!(!worker.publish());
    worker.answer_probe();
    assert!(worker.publish());
    assert!(!worker.publish());
    primary.set_wake(Wake::Never);
    worker.answer_probe();
    assert!(!worker.publish());
    assert_eq!(primary.sample().answered_probes, 2);
}

#[test]
fn what_a_program_reports_is_added_and_what_it_refused_is_not() {
    let (mut primary, mut worker) = pair();
    assert!(!worker.program_reports());
    let program = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
    let program = program.expect("a page");
    program.word(PROGRAM, DOES).store(REPORTS, Ordering::Relaxed);
    assert!(worker.program_reports() && !worker.program_receives());
    primary.add_assigned(3);
    worker.add_claimed(2, 7);
    worker.take_off_refused(1);
    let _ = worker.publish();
    primary.add_returned(1);
    assert_eq!(primary.counters().finished, 0, "the report of the refused one is still to come");
    program.word(PROGRAM, ENDED).store(2, Ordering::Relaxed);
    program.word(PROGRAM, MOVED).store(9, Ordering::Relaxed);
    assert_eq!((primary.counters().finished, primary.counters().in_flight()), (1, 1));
    assert_eq!((primary.sample().finished, primary.sample().turn_begun_ns), (1, 9));
    assert_eq!(primary.view().expect("a view").counters(), primary.counters());
}

#[test]
fn a_connection_that_a_program_receives_is_claimed() {
    let (mut primary, mut worker) = pair();
    let program = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
    let program = program.expect("a page");
    program.word(PROGRAM, DOES).store(REPORTS | RECEIVES, Ordering::Relaxed);
    assert!(primary.program_receives() && worker.program_receives());
    primary.add_assigned(4);
    worker.add_claimed(1, 7);
    worker.answer_probe();
    let _ = worker.publish();
    program.word(PROGRAM, RECEIVED).store(2, Ordering::Relaxed);
    program.word(PROGRAM, RECEIVED_AT).store(9, Ordering::Relaxed);
    program.word(PROGRAM, ANSWERED).store(1, Ordering::Relaxed);
    let sample = primary.sample();
    assert_eq!((sample.claimed, sample.claimed_at_ns, sample.answered_probes), (3, 9, 2));
    assert_eq!((primary.counters().claimed, primary.counters().unclaimed()), (3, 1));
    program.word(PROGRAM, RECEIVED).store(u64::MAX, Ordering::Relaxed);
    assert!(primary.counters().claimed <= 4, "what a program says is cut to what is possible");
}

#[test]
fn a_stranger_s_page_is_refused() {
    let page = SharedPage::create().expect("a page");
    let memory = page.as_fd().try_clone_to_owned().expect("a duplicate");
    assert!(WorkerPage::open(memory).is_err());
}

#[test]
fn what_a_program_accepts_reaches_the_kernel_s_copy_when_that_is_renewed() {
    let Some(mut primary) = PrimaryPage::create_with_copy() else {
        println!("skipped: pages for the kernel take CAP_BPF");
        return;
    };
    let open = |descriptor: BorrowedFd<'_>| {
        SharedPage::open(descriptor.try_clone_to_owned().expect("a duplicate")).expect("a page")
    };
    let program = open(primary.as_fd());
    let kernel = open(primary.board().expect("a copy"));
    let at = |offset: i16| {
        let offset = usize::try_from(offset).expect("in the page");
        let line = offset / SharedPage::offset_of(1);
        kernel.word(line, offset % SharedPage::offset_of(1) / size_of::<u64>())
    };
    let words = || {
        let BoardLayout { come, gone, .. } = KERNEL_LAYOUT;
        [come[0], come[1], gone[0], gone[1]].map(|offset| at(offset).load(Ordering::Relaxed))
    };
    program.word(PROGRAM_OWN, ACCEPTED).store(5, Ordering::Relaxed);
    program.word(PROGRAM, ENDED).store(2, Ordering::Relaxed);
    primary.add_assigned(3);
    primary.add_returned(1);
    assert_eq!(words(), [0; 4]);
    primary.copy_counters();
    assert_eq!(words(), [3, 5, 1, 2]);
    assert_eq!((primary.counters().own, primary.counters().in_flight()), (5, 5));
    // The kernel has picked it for seven, of which one has not come.
    at(KERNEL_LAYOUT.picked).store(7, Ordering::Relaxed);
    primary.correct_picks(1);
    assert_eq!(primary.waiting_picks(), 1);
    primary.set_excluded(true);
    assert_eq!(at(KERNEL_LAYOUT.excluded).load(Ordering::Relaxed), 1);
    let untouched = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
    let word = untouched.expect("a page").word(PRIMARY, EXCLUDED).load(Ordering::Relaxed);
    assert_eq!(word, 0, "the worker's page is a different one");
}

#[test]
fn what_the_kernel_counts_is_corrected_only_while_nothing_moves() {
    let page = SharedPage::create().expect("a page");
    let primary = PrimaryPage::begin(page, Board::Itself);
    let copy = SharedPage::open(primary.as_fd().try_clone_to_owned().expect("a duplicate"));
    let copy = copy.expect("a page");
    let at = |offset: i16| {
        let offset = usize::try_from(offset).expect("in the page");
        let line = offset / SharedPage::offset_of(1);
        copy.word(line, offset % SharedPage::offset_of(1) / size_of::<u64>())
    };
    let picked = at(KERNEL_LAYOUT.picked);
    picked.store(5, Ordering::Relaxed);
    let moving = || {
        picked.fetch_add(1, Ordering::Relaxed);
        Some(0)
    };
    assert!(!primary.correct_picks_by(moving));
    assert_eq!(primary.waiting_picks(), 8, "it is as before");
    assert!(!primary.correct_picks_by(|| None));
    assert!(primary.correct_picks_by(|| Some(2)), "it was higher");
    assert_eq!(primary.waiting_picks(), 2);
    assert!(!primary.correct_picks_by(|| Some(3)));
    assert_eq!(primary.waiting_picks(), 3);
    primary.set_patience(7);
    assert_eq!(at(KERNEL_LAYOUT.patience).load(Ordering::Relaxed), 7);
    assert_eq!(primary.take_told(), None);
    at(KERNEL_LAYOUT.told).store(1, Ordering::Relaxed);
    assert_eq!(primary.take_told(), Some(Told::Stuck));
    assert_eq!(primary.take_told(), None, "once");
}
