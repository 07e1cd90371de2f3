//! Whether another process takes connections from a socket that it has inherited, from `/proc`.
//!
//! It does if one of its epoll sets has the socket, or if one of its threads is blocked with it in
//! accept, poll, select or a receive. Owns the parsing, and takes its descendants into account:
//! servers accept in processes that they fork. What cannot be read is not known, and a ring shows
//! nothing. It only reads, and at most 64 processes.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;

use nix::libc;
use nix::sys::stat::fstat;

/// Most processes to look at.
const PROCESSES_MAX: usize = 64;
/// Most descriptors of a poll to look at.
const POLLED_MAX: usize = 1024;
/// Bytes of an entry of poll: the descriptor, what is wanted, what there is.
const POLLED_BYTES: usize = 8;

/// Whether a process takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepting {
    /// It waits for them.
    Yes,
    /// It does not wait for them now.
    No,
    /// That cannot be seen.
    Unknown,
}

/// The number by which `/proc` names a socket.
#[must_use]
pub fn number_of(socket: impl AsFd) -> Option<u64> {
    fstat(socket).ok().map(|stat| stat.st_ino)
}

/// Whether a process, or one that it has started, takes connections from one of these sockets.
#[must_use]
pub fn accepts(pid: u32, sockets: &[u64]) -> Accepting {
    let (mut left, mut looked) = (vec![pid], 0);
    let mut found = Accepting::No;
    while let Some(pid) = left.pop() {
        looked += 1;
        match look(pid, sockets) {
            Accepting::Yes => return Accepting::Yes,
            Accepting::Unknown => found = Accepting::Unknown,
            Accepting::No => {}
        }
        if looked + left.len() < PROCESSES_MAX {
            left.extend(children_of(pid));
        }
    }
    found
}

/// Whether a process, and everything that it has started, is stopped by a signal, so that none of
/// it can accept. What cannot be read runs, and so does what is one of more than 64.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    let (mut left, mut looked) = (vec![pid], 0);
    while let Some(pid) = left.pop() {
        looked += 1;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        if looked > PROCESSES_MAX || !stat.is_ok_and(|line| tells_of_stop(&line)) {
            return false;
        }
        left.extend(children_of(pid));
    }
    true
}

/// The state follows the name, which may contain any character.
fn tells_of_stop(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with(['T', 't']))
}

fn children_of(pid: u32) -> Vec<u32> {
    let texts = tasks(pid).map(|task| fs::read_to_string(format!("{task}/children")));
    let texts: Vec<String> = texts.filter_map(Result::ok).collect();
    texts
        .iter()
        .flat_map(|text| text.split_whitespace())
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn tasks(pid: u32) -> impl Iterator<Item = String> {
    let found = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    found.map(|entry| entry.path().display().to_string())
}

fn look(pid: u32, sockets: &[u64]) -> Accepting {
    let Ok(links) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        // It may just have ended; then it accepts nothing.
        let is_there = fs::metadata(format!("/proc/{pid}")).is_ok();
        return if is_there { Accepting::Unknown } else { Accepting::No };
    };
    let (mut held, mut has_ring) = (Vec::new(), false);
    for link in links.flatten() {
        let Some(fd) = link.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(target) = fs::read_link(link.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        match &*target {
            "anon_inode:[eventpoll]" => {
                let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"));
                if text.is_ok_and(|text| watches(&text, sockets)) {
                    return Accepting::Yes;
                }
            }
            "anon_inode:[io_uring]" => has_ring = true,
            _ if socket_in(&target).is_some_and(|number| sockets.contains(&number)) => {
                held.push(fd);
            }
            _ => {}
        }
    }
    match (held.is_empty(), is_blocked_with(pid, &held)) {
        (true, _) => Accepting::No,
        (false, Some(true)) => Accepting::Yes,
        (false, Some(false)) if !has_ring => Accepting::No,
        (false, _) => Accepting::Unknown,
    }
}

/// The number in the link of a descriptor.
fn socket_in(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether an epoll set has one of these sockets, by its lines in `fdinfo`.
fn watches(text: &str, sockets: &[u64]) -> bool {
    let lines = text.lines().filter(|line| line.starts_with("tfd:"));
    let numbers = lines.filter_map(|line| {
        let number = line.split("ino:").nth(1)?.split_whitespace().next()?;
        u64::from_str_radix(number, 16).ok()
    });
    numbers.into_iter().any(|number| sockets.contains(&number))
}

/// Whether a thread is blocked in a call that waits for one of these descriptors; `None` if that
/// cannot be read.
fn is_blocked_with(pid: u32, held: &[i32]) -> Option<bool> {
    let mut has_read = false;
    for task in tasks(pid) {
        let Ok(text) = fs::read_to_string(format!("{task}/syscall")) else { continue };
        has_read = true;
        let Some(call) = Call::parse(&text) else { continue };
        if call.waits_for(held, |at, bytes| {
            File::open(format!("/proc/{pid}/mem"))
                .is_ok_and(|file| file.read_exact_at(bytes, at).is_ok())
        }) {
            return Some(true);
        }
    }
    has_read.then_some(false)
}

/// A system call in which a thread is blocked, with its first arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    number: i64,
    first: u64,
    second: u64,
}

impl Call {
    /// From `/proc/PID/task/TID/syscall`; `None` for a thread that runs.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut next = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        Some(Self { number, first: next()?, second: next()? })
    }

    /// `read` reads the memory of the process.
    fn waits_for(self, held: &[i32], read: impl Fn(u64, &mut [u8]) -> bool) -> bool {
        let is_held = |fd: u64| i32::try_from(fd).is_ok_and(|fd| held.contains(&fd));
        if TAKES.contains(&self.number) {
            return is_held(self.first);
        }
        if POLLS.contains(&self.number) {
            let count = usize::try_from(self.second).unwrap_or(0).min(POLLED_MAX);
            let mut entries = vec![0; count * POLLED_BYTES];
            return read(self.first, &mut entries)
                && entries.chunks_exact(POLLED_BYTES).any(|entry| {
                    let fd = entry[..4].try_into().map(i32::from_ne_bytes);
                    fd.is_ok_and(|fd| held.contains(&fd))
                });
        }
        if SELECTS.contains(&self.number) {
            let count = usize::try_from(self.first).unwrap_or(0).min(POLLED_MAX);
            let mut bits = vec![0; count.div_ceil(64) * 8];
            return self.second != 0
                && read(self.second, &mut bits)
                && held
                    .iter()
                    .filter_map(|fd| usize::try_from(*fd).ok())
                    .any(|fd| fd < count && bits[fd / 8] & (1 << (fd % 8)) != 0);
        }
        false
    }
}

/// Calls that take from the descriptor that is their first argument.
const TAKES: [i64; 4] =
    [libc::SYS_accept, libc::SYS_accept4, libc::SYS_recvfrom, libc::SYS_recvmsg];
#[cfg(target_arch = "x86_64")]
const POLLS: [i64; 2] = [libc::SYS_poll, libc::SYS_ppoll];
#[cfg(target_arch = "x86_64")]
const SELECTS: [i64; 2] = [libc::SYS_select, libc::SYS_pselect6];
#[cfg(not(target_arch = "x86_64"))]
const POLLS: [i64; 1] = [libc::SYS_ppoll];
#[cfg(not(target_arch = "x86_64"))]
const SELECTS: [i64; 1] = [libc::SYS_pselect6];

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

    use super::*;

    #[test]
    fn an_epoll_set_shows_what_it_watches() {
        let text = "pos:\t0\nflags:\t02\ntfd:        3 events:       19 data:                3  \
                    pos:0 ino:1f4 sdev:8\n";
        assert!(watches(text, &[500]) && !watches(text, &[501]) && !watches("", &[500]));
    }

    #[test]
    fn a_line_of_stat_shows_a_stop() {
        assert!(tells_of_stop("7 (a) S b) T 1 7") && tells_of_stop("7 (a) t 1"));
        assert!(!tells_of_stop("7 (a) T b) S 1 7") && !tells_of_stop(""));
        assert!(!is_stopped(std::process::id()));
    }

    #[test]
    fn a_call_shows_what_it_waits_for() {
        let accept = format!("{} 0x5 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x7f\n", libc::SYS_accept4);
        let accept = Call::parse(&accept).expect("a call");
        assert!(accept.waits_for(&[5], |_, _| false) && !accept.waits_for(&[6], |_, _| false));
        assert_eq!((Call::parse("running\n"), Call::parse("")), (None, None));
        let memory = |wanted: u64, bytes: &'static [u8]| {
            move |at: u64, into: &mut [u8]| {
                into.copy_from_slice(&bytes[..into.len()]);
                at == wanted
            }
        };
        let poll = Call { number: libc::SYS_ppoll, first: 64, second: 2 };
        let entries = &[1, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0];
        assert!(poll.waits_for(&[7], memory(64, entries)));
        assert!(!poll.waits_for(&[2], memory(64, entries)) && !poll.waits_for(&[7], |_, _| false));
        let select = Call { number: libc::SYS_pselect6, first: 10, second: 128 };
        let bits = &[0, 0b10, 0, 0, 0, 0, 0, 0];
        assert!(select.waits_for(&[9], memory(128, bits)));
        assert!(!select.waits_for(&[8, 70], memory(128, bits)));
    }

    #[test]
    fn this_process_accepts_once_it_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let sockets = [number_of(&listener).expect("a number")];
        let own = std::process::id();
        assert_ne!(accepts(own, &sockets), Accepting::Yes);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, 0)).expect("it is watched");
        assert_eq!(accepts(own, &sockets), Accepting::Yes);
        drop(epoll);
        let address = listener.local_addr().expect("it has one");
        let thread = std::thread::spawn(move || listener.accept().map(drop));
        let deadline = Instant::now() + Duration::from_secs(60);
        while accepts(own, &sockets) != Accepting::Yes {
            assert!(Instant::now() < deadline, "it is blocked in accept, and that is not seen");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(std::net::TcpStream::connect(address).expect("it is accepted"));
        thread.join().expect("it does not panic").expect("a connection");
    }
}
