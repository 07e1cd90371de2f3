//! Which connections have waited too long. Pure: time is an argument.
//!
//! All waits of a class last equally long, so each class is a queue ordered by deadline: arming,
//! moving and disarming cost a few writes, and a turn of the loop checks only the front of each
//! queue.

/// What a connection waits for, where that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Class {
    /// The rest of a request's head.
    Head = 0,
    /// A further request.
    Idle = 1,
    /// More of a request's body.
    Body = 2,
    /// The client to read the output.
    Send = 3,
    /// The client to close after an error answer.
    Linger = 4,
    /// A first request, while the worker is leaving.
    Leave = 5,
}

/// Number of classes.
const CLASSES: usize = 6;

/// The time limit of each class, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Durations {
    pub(super) by_class_ns: [u64; CLASSES],
}

/// "No neighbour" and "in no queue".
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    deadline_ns: u64,
    class: Option<Class>,
}

const UNLINKED: Link = Link { previous: NONE, next: NONE, deadline_ns: 0, class: None };

/// The queues.
#[derive(Debug)]
pub(super) struct Deadlines {
    durations: Durations,
    links: Vec<Link>,
    first: [u32; CLASSES],
    last: [u32; CLASSES],
}

impl Deadlines {
    pub(super) fn new(durations: Durations) -> Self {
        Self { durations, links: Vec::new(), first: [NONE; CLASSES], last: [NONE; CLASSES] }
    }

    /// The class that a connection waits in.
    pub(super) fn class(&self, index: u32) -> Option<Class> {
        self.links.get(index as usize).and_then(|link| link.class)
    }

    /// Starts a wait, ending the previous one.
    pub(super) fn arm(&mut self, index: u32, class: Class, now_ns: u64) {
        self.disarm(index);
        let place = index as usize;
        if place >= self.links.len() {
            self.links.resize(place + 1, UNLINKED);
        }
        let queue = class as usize;
        let previous = self.last[queue];
        let deadline_ns = now_ns.saturating_add(self.durations.by_class_ns[queue]);
        self.links[place] = Link { previous, next: NONE, deadline_ns, class: Some(class) };
        match previous {
            NONE => self.first[queue] = index,
            previous => self.links[previous as usize].next = index,
        }
        self.last[queue] = index;
    }

    /// Ends a connection's wait.
    pub(super) fn disarm(&mut self, index: u32) {
        let Some(link) = self.links.get(index as usize).copied() else {
            return;
        };
        let Some(class) = link.class else { return };
        let queue = class as usize;
        match link.previous {
            NONE => self.first[queue] = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        match link.next {
            NONE => self.last[queue] = link.previous,
            next => self.links[next as usize].previous = link.previous,
        }
        self.links[index as usize] = UNLINKED;
    }

    /// The next deadline, if any.
    pub(super) fn next_ns(&self) -> Option<u64> {
        let fronts = self.first.iter().filter(|front| **front != NONE);
        fronts.map(|front| self.links[*front as usize].deadline_ns).min()
    }

    /// The connection that has waited longest in a class.
    pub(super) fn first(&self, class: Class) -> Option<u32> {
        Some(self.first[class as usize]).filter(|first| *first != NONE)
    }

    /// Ends one wait past its deadline, and returns whose.
    pub(super) fn expire(&mut self, now_ns: u64) -> Option<(u32, Class)> {
        for queue in 0..CLASSES {
            let front = self.first[queue];
            if front == NONE {
                continue;
            }
            let Link { deadline_ns, class: Some(class), .. } = self.links[front as usize] else {
                continue;
            };
            if deadline_ns <= now_ns {
                self.disarm(front);
                return Some((front, class));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DURATIONS: Durations = Durations { by_class_ns: [10, 100, 20, 30, 5, 1] };
    const ALL: [Class; CLASSES] =
        [Class::Head, Class::Idle, Class::Body, Class::Send, Class::Linger, Class::Leave];

    #[test]
    fn moving_to_another_class_forgets_the_first() {
        let mut deadlines = Deadlines::new(DURATIONS);
        deadlines.arm(3, Class::Head, 0);
        deadlines.arm(3, Class::Idle, 5);
        assert_eq!(deadlines.next_ns(), Some(105));
        assert_eq!(deadlines.expire(104), None);
        assert_eq!(deadlines.expire(105), Some((3, Class::Idle)));
        assert_eq!(deadlines.next_ns(), None);
    }

    proptest! {
        /// Compared with a plain table, searched linearly.
        #[test]
        fn behaves_like_a_plain_table(
            steps in prop::collection::vec((0u32..20, 0usize..8, 0u64..15), 1..300),
        ) {
            let mut deadlines = Deadlines::new(DURATIONS);
            let mut table: Vec<Option<(u64, Class)>> = vec![None; 20];
            let mut now_ns = 0;
            for (index, action, passed_ns) in steps {
                now_ns += passed_ns;
                match ALL.get(action) {
                    Some(class) => {
                        deadlines.arm(index, *class, now_ns);
                        let deadline_ns = now_ns + DURATIONS.by_class_ns[*class as usize];
                        table[index as usize] = Some((deadline_ns, *class));
                    }
                    None if action == 6 => {
                        deadlines.disarm(index);
                        table[index as usize] = None;
                    }
                    None => {
                        while let Some((expired, class)) = deadlines.expire(now_ns) {
                            let entry = table[expired as usize].take();
                            prop_assert!(matches!(entry, Some((at, one))
                                if at <= now_ns && one == class));
                        }
                        prop_assert!(table.iter().flatten().all(|(at, _)| *at > now_ns));
                    }
                }
                let soonest = table.iter().flatten().map(|(at, _)| *at).min();
                prop_assert_eq!(deadlines.next_ns(), soonest);
            }
        }
    }
}
