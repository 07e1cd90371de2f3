//! Makes the kernel draw at random among some of the listening sockets of a port (SO_REUSEPORT).
//!
//! Owns the assembly of the program, in classic BPF, which any process may attach without a
//! capability. It runs for each new connection, draws a random number and names a socket by its
//! place in the port's group: sockets are in the order in which they began to listen, while none of
//! them is closed. For a place that does not exist the kernel chooses by hash.

use std::os::fd::{AsFd, AsRawFd as _};

use std::fmt;

use nix::errno::Errno;
use nix::libc;

use crate::error::Error;
use crate::listener::{Listener, OpenOptions};
use crate::picking::{Alarm, BoardLayout, PICKED_MAX, Pickable, Picking, Rule};
use crate::shared::SharedPage;

/// How often a socket is drawn: its share of the sum of all weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lot {
    /// Its place in the group.
    pub place: u16,
    /// At least 1.
    pub weight: u32,
}

/// How the kernel chooses among the sockets of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A program reads the counters of the workers and picks the one with the fewest connections in
    /// flight. It needs CAP_BPF.
    Exact,
    /// A program draws at random among the sockets that are not excluded. It needs no capability.
    Unprivileged,
    /// By hash, among all.
    Plain,
}

/// The form available here, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormDecision {
    /// The form.
    pub form: Form,
    /// The reason for it.
    pub reason: String,
}

impl Form {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Unprivileged => "unprivileged",
            Self::Plain => "plain",
        }
    }

    /// Tries the forms on a temporary socket, the best one first. Of workers that do not count the
    /// connections they accept (`is_counted`), only those that wait for them are known.
    #[must_use]
    pub fn find(is_counted: bool) -> FormDecision {
        let why_not = match attempt(&|listener| pick(listener, None)) {
            Ok(()) if is_counted => {
                let reason = match attempt(&|listener| pick(listener, Some(&Alarm::new()?))) {
                    Ok(()) => {
                        "the kernel picks by the counters of workers, and watches the queues of \
                         native ones"
                            .into()
                    }
                    Err(errno) => format!(
                        "the kernel picks by the counters of workers, but cannot watch their \
                         queues: {}; the primary checks them every 5 ms while connections arrive",
                        errno.desc()
                    ),
                };
                return FormDecision { form: Self::Exact, reason };
            }
            Ok(()) => {
                let reason = "the kernel picks by what waits for workers, which do not count what \
                              they accept";
                return FormDecision { form: Self::Exact, reason: reason.into() };
            }
            Err(Errno::EPERM) => "exact picks take CAP_BPF".to_owned(),
            Err(errno) => format!("exact picks fail: {}", errno.desc()),
        };
        match attempt(&|listener| steer(listener, &[Lot { place: 0, weight: 1 }])) {
            Ok(()) => FormDecision {
                form: Self::Unprivileged,
                reason: format!(
                    "the kernel chooses at random among workers that can take a connection; \
                     {why_not}"
                ),
            },
            Err(errno) => FormDecision {
                form: Self::Plain,
                reason: format!(
                    "by the kernel's hash; SO_ATTACH_REUSEPORT_CBPF fails: {}; {why_not}",
                    errno.desc()
                ),
            },
        }
    }
}

impl FormDecision {
    /// The form for this many workers.
    #[must_use]
    pub fn among(self, workers: usize) -> Self {
        if self.form != Form::Exact || workers <= PICKED_MAX {
            return self;
        }
        let reason = format!(
            "the kernel chooses at random among workers that can take a connection; exact picks \
             are among at most {PICKED_MAX}"
        );
        Self { form: Form::Unprivileged, reason }
    }
}

impl fmt::Display for FormDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.form.name(), self.reason)
    }
}

fn pick(listener: &Listener, alarm: Option<&Alarm>) -> Result<(), Errno> {
    let layout = BoardLayout {
        excluded: 0,
        come: [0; 2],
        gone: [0; 2],
        picked: 0,
        accepted: 0,
        correction: 0,
        time: 0,
        patience: 0,
        told: 0,
    };
    let (mut picking, board) = (Picking::new(1, layout)?, SharedPage::create_map()?);
    picking.enter(0, listener)?;
    let pickable = [Pickable { socket: 0, board: board.as_fd() }];
    picking.pick_among(listener, Rule::Least, &pickable, alarm)
}

fn attempt(form: &dyn Fn(&Listener) -> Result<(), Errno>) -> Result<(), Errno> {
    let options = OpenOptions {
        backlog: 1,
        share_port: true,
        ipv6_only: false,
        mode: None,
        blocking: false,
        defer_accept: false,
    };
    let address = "127.0.0.1:0".parse().map_err(|_| Errno::EINVAL)?;
    let listener = Listener::open(&address, options).map_err(|error| match error {
        Error::Listen { source, .. } | Error::System { source, .. } => source.into(),
        _ => Errno::EINVAL,
    })?;
    form(&listener)
}

/// `BPF_LD | BPF_W | BPF_ABS`: loads the accumulator from an offset.
const LOAD: u16 = 0x20;
/// The offset of a random number (`SKF_AD_OFF + SKF_AD_RANDOM`).
const RANDOM: u32 = 0xffff_f000 + 56;
/// `BPF_ALU | BPF_MOD | BPF_K`.
const MODULO: u16 = 0x94;
/// `BPF_ALU | BPF_ADD | BPF_K`.
const ADD: u16 = 0x04;
/// `BPF_JMP | BPF_JGE | BPF_K`: skips a number of instructions from a value on.
const JUMP_FROM: u16 = 0x35;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// `BPF_RET | BPF_A`.
const RETURN_ACCUMULATOR: u16 = 0x16;

/// Adjacent sockets with the same weight.
#[derive(Clone, Copy, Debug)]
struct EqualSockets {
    first: u16,
    sockets: u32,
    weight: u32,
}

/// Draws new connections to the port of `socket` by these lots. Earlier connections stay where they
/// are.
///
/// # Errors
/// The kernel refuses the program, or the port has only one socket (EINVAL).
pub fn steer(socket: &impl AsFd, lots: &[Lot]) -> Result<(), Errno> {
    let mut program = assemble(lots);
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&program)).expect("a structure is small");
    // SAFETY: the kernel reads the structure and the instructions that it points to, all of which
    // live until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

/// The program: a random number below the sum of the weights, and a chain of comparisons. A run of
/// sockets with one lot each is one step. Without a lot the result is no place, so the kernel
/// chooses by hash.
fn assemble(lots: &[Lot]) -> Vec<libc::sock_filter> {
    let sum: u32 = lots.iter().map(|lot| lot.weight).sum();
    if sum == 0 {
        return vec![instruction(RETURN, 0, u32::MAX)];
    }
    let mut program = vec![instruction(LOAD, 0, RANDOM), instruction(MODULO, 0, sum)];
    let mut drawn = 0;
    for EqualSockets { first, sockets, weight } in runs(lots) {
        let before = drawn;
        drawn += sockets * weight;
        let step = match sockets {
            1 => vec![instruction(RETURN, 0, first.into())],
            // Both count up together, so the place is the number plus a constant.
            _ => vec![
                instruction(ADD, 0, u32::from(first).wrapping_sub(before)),
                instruction(RETURN_ACCUMULATOR, 0, 0),
            ],
        };
        if drawn < sum {
            let over = u8::try_from(step.len()).expect("a step is short");
            program.push(instruction(JUMP_FROM, over, drawn));
        }
        program.extend(step);
    }
    program
}

fn runs(lots: &[Lot]) -> Vec<EqualSockets> {
    let mut runs: Vec<EqualSockets> = Vec::new();
    for lot in lots.iter().filter(|lot| lot.weight > 0) {
        match runs.last_mut() {
            Some(run)
                if (run.weight, lot.weight) == (1, 1)
                    && u32::from(run.first) + run.sockets == u32::from(lot.place) =>
            {
                run.sockets += 1;
            }
            _ => runs.push(EqualSockets { first: lot.place, sockets: 1, weight: lot.weight }),
        }
    }
    runs
}

fn instruction(code: u16, over: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: over, jf: 0, k: value }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpStream;

    use proptest::prelude::*;

    use super::*;
    use crate::listener::open_shared;

    const BACKLOG: u32 = 512;

    /// Interprets the program as the kernel does when it draws `random`.
    fn run(program: &[libc::sock_filter], random: u32) -> u32 {
        let (mut accumulator, mut next) = (0u32, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program[next];
            next += 1;
            match code {
                LOAD if k == RANDOM => accumulator = random,
                MODULO => accumulator %= k,
                ADD => accumulator = accumulator.wrapping_add(k),
                JUMP_FROM => next += usize::from(if accumulator >= k { jt } else { jf }),
                RETURN => return k,
                RETURN_ACCUMULATOR => return accumulator,
                code => panic!("an instruction of another kind: {code:#x}"),
            }
        }
    }

    fn lots(pairs: &[(u16, u32)]) -> Vec<Lot> {
        pairs.iter().map(|(place, weight)| Lot { place: *place, weight: *weight }).collect()
    }

    fn any_lots() -> impl Strategy<Value = Vec<(u16, u32)>> {
        let weight = prop_oneof![Just(1u32), 1u32..17];
        prop::collection::vec((1u16..3, weight), 1..40).prop_map(|steps| {
            let mut place = 0;
            let pairs = steps.into_iter().map(|(step, weight)| {
                place += step;
                (place - 1, weight)
            });
            pairs.collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn each_place_is_drawn_as_often_as_it_has_lots(pairs in any_lots(), begin in any::<u32>()) {
            let program = assemble(&lots(&pairs));
            let sum = pairs.iter().map(|(_, weight)| weight).sum::<u32>();
            let begin = (begin / sum).saturating_sub(1) * sum;
            let mut found: BTreeMap<u32, u32> = BTreeMap::new();
            (0..sum).for_each(|add| *found.entry(run(&program, begin + add)).or_default() += 1);
            let expected: BTreeMap<u32, u32> =
                pairs.iter().map(|(place, weight)| (u32::from(*place), *weight)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_longest_program_is_one_that_the_kernel_takes() {
        let all: Vec<(u16, u32)> = (0..1024).map(|place| (place, 2)).collect();
        assert!(assemble(&lots(&all)).len() <= 4096, "BPF_MAXINSNS");
        let all: Vec<(u16, u32)> = (0..1024).map(|place| (place, 1)).collect();
        assert_eq!(assemble(&lots(&all)).len(), 4, "one run");
        assert_eq!(run(&assemble(&[]), 5), u32::MAX, "no place");
    }

    #[test]
    fn the_form_is_found_and_says_why() {
        let is_allowed = SharedPage::create_map().is_ok();
        for (is_counted, word) in [(true, "by the counters"), (false, "by what waits")] {
            let found = Form::find(is_counted);
            let (form, words) = match is_allowed {
                true => (Form::Exact, format!("exact (the kernel picks {word}")),
                false => (Form::Unprivileged, "unprivileged (the kernel chooses".to_owned()),
            };
            assert_eq!(found.form, form, "{found}");
            assert!(found.to_string().starts_with(&words), "{found}");
            assert_eq!(found.clone().among(PICKED_MAX), found);
            assert_eq!(found.among(PICKED_MAX + 1).form, Form::Unprivileged);
        }
    }

    fn group(count: usize) -> Vec<Listener> {
        let options = OpenOptions {
            backlog: BACKLOG,
            share_port: true,
            ipv6_only: false,
            mode: None,
            blocking: false,
            defer_accept: false,
        };
        let address = "127.0.0.1:0".parse().expect("an address");
        let first = Listener::open(&address, options).expect("a free port");
        let mut group = vec![first];
        while group.len() < count {
            group.push(open_shared(group[0].address(), options).expect("one more"));
        }
        group
    }

    fn accepted(group: &[Listener]) -> Vec<usize> {
        let take = |one: &Listener| std::iter::from_fn(|| one.accept_now().ok().flatten()).count();
        group.iter().map(take).collect()
    }

    #[test]
    fn the_kernel_draws_by_the_lots_and_none_is_lost_when_they_change() {
        let group = group(4);
        let connect = |_| TcpStream::connect(group[0].address()).expect("it listens, and has room");
        steer(&group[0], &lots(&[(1, 1), (3, 3)])).expect("no capability is needed");
        let _clients: Vec<TcpStream> = (0..200).map(connect).collect();
        let counts = accepted(&group);
        assert_eq!((counts[0], counts[2], counts[1] + counts[3]), (0, 0, 200), "{counts:?}");
        assert!(counts[3] > counts[1], "{counts:?}");
        let mut clients = Vec::new();
        for turn in 0..200 {
            let place = turn % 4;
            steer(&group[usize::from(place)], &lots(&[(place, 1)])).expect("it was let before");
            clients.push(connect(0));
        }
        assert_eq!(accepted(&group), [50; 4]);
        steer(&group[0], &[]).expect("it was let before");
        clients.extend((0..50).map(connect));
        assert_eq!(accepted(&group).iter().sum::<usize>(), 50, "by hash");
    }
}
