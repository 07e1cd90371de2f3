//! A small process that ends the workers of a primary which was killed.
//!
//! A worker notices the end of its primary and leaves, unless it is stopped or computing; then only
//! a signal ends it. The guard holds only a pidfd of every worker. When its socket
//! ends, it waits for the grace period, kills the remaining workers and exits. Owns that process:
//! it is forked without an exec and only makes system calls.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::unistd::{chdir, setsid};

use crate::clock::monotonic_ns;
use crate::error::{Error, Result};
use crate::fdpass;
use crate::process::{Remote, WHOLE_GROUP, close_from};
use crate::signal::Signal;

/// Name in process listings.
const NAME: &[u8] = b"clusterlb-guard";
/// Maximum number of workers watched, the maximum of a primary.
const WORKERS_MAX: usize = 2048;
/// How long `drop` waits for the guard to exit.
const LAST_WAIT_MS: u16 = 1000;
/// The guard's only descriptor at the start.
const SOCKET: RawFd = 0;
/// Length of control data for one descriptor: a header of 16 bytes, the number, and padding.
const CONTROL_BYTES: usize = 24;

/// The primary's handle of the guard. Dropping it ends the guard once no worker is left.
#[derive(Debug)]
pub struct Guard {
    socket: OwnedFd,
}

impl Guard {
    /// Starts a guard that gives workers `grace` after the end of this process.
    ///
    /// The guard is not a child of this process, so code that waits for children does not see it.
    ///
    /// # Errors
    /// Too many processes, or descriptors are exhausted.
    pub fn start(grace: Duration) -> Result<Self> {
        let failed = |errno| Error::system("start the guard over workers (fork)", errno);
        let grace_ns = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        let (ours, theirs) = fdpass::packet_pair()?;
        let origin = ArgumentArea::of_this_process();
        // SAFETY: the new process makes system calls and touches its own stack, nothing else.
        let forked = unsafe { libc::fork() };
        match Errno::result(forked).map_err(failed)? {
            0 => detach(theirs.as_raw_fd(), grace_ns, &origin),
            middle => wait_for(middle),
        }
        Ok(Self { socket: ours })
    }

    /// Makes the guard watch another worker.
    ///
    /// # Errors
    /// The guard has ended, and a new one must be started.
    pub fn watch(&self, worker: &Remote) -> Result<()> {
        let sent = fdpass::send(self.socket.as_fd(), b"+", &[worker.as_fd()]);
        sent.map(drop).map_err(|errno| Error::system("tell the guard of a worker", errno))
    }
}

impl Drop for Guard {
    /// Waits briefly for the guard to exit, so that it does not outlive this process.
    fn drop(&mut self) {
        let how = nix::sys::socket::Shutdown::Write;
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), how);
        let mut ended = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ended, PollTimeout::from(LAST_WAIT_MS));
    }
}

/// Reaps the process between this one and the guard, which exits at once.
fn wait_for(middle: libc::pid_t) {
    loop {
        // SAFETY: a number, and a null pointer, which discards the exit status.
        let waited = unsafe { libc::waitpid(middle, std::ptr::null_mut(), 0) };
        // Other code in this process may have reaped it.
        if Errno::result(waited) != Err(Errno::EINTR) {
            return;
        }
    }
}

/// Detaches from parent, terminal, directory and inherited descriptors, and watches.
fn detach(socket: RawFd, grace_ns: u64, origin: &ArgumentArea) -> ! {
    // SAFETY: as in `Guard::start`.
    let forked = unsafe { libc::fork() };
    if forked != 0 {
        exit();
    }
    let _ = setsid();
    let _ = SigSet::all().thread_set_mask();
    let _ = prctl::set_name(c"clusterlb-guard");
    origin.disown();
    let _ = chdir(c"/");
    // SAFETY: two numbers; nothing of this process is used but the socket.
    let moved = unsafe { libc::dup2(socket, SOCKET) };
    if moved != SOCKET {
        exit();
    }
    close_from(SOCKET + 1);
    PollSet::new().run(grace_ns)
}

/// The memory in which the kernel shows this process's arguments and environment.
struct ArgumentArea {
    arguments: Range<usize>,
    environment: Range<usize>,
}

impl ArgumentArea {
    /// Empty if the kernel does not report it (`proc_pid_stat(5)`, fields 48 to 51).
    fn of_this_process() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name may contain any character and ends at the last bracket; field 3 follows.
        let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let mut fields = behind_name.split(' ').skip(45).map_while(|field| field.parse().ok());
        let mut range = || match (fields.next(), fields.next()) {
            (Some(start), Some(end)) if start < end => start..end,
            _ => 0..0,
        };
        Self { arguments: range(), environment: range() }
    }

    /// Renames the process, so that it is not mistaken for another primary, and erases the
    /// primary's environment.
    fn disown(&self) {
        for area in [&self.arguments, &self.environment] {
            if area.is_empty() {
                continue;
            }
            // SAFETY: the kernel's own account of memory that it has filled in for this program. It
            // is on the stack, writable, and this process no longer reads it.
            unsafe { std::ptr::write_bytes(area.start as *mut u8, 0, area.len()) };
        }
        let length = NAME.len().min(self.arguments.len().saturating_sub(1));
        if length == 0 {
            return;
        }
        let place = self.arguments.start as *mut u8;
        // SAFETY: as above, and no longer than the area.
        unsafe { std::ptr::copy_nonoverlapping(NAME.as_ptr(), place, length) };
    }
}

fn exit() -> ! {
    // SAFETY: ends the process without running anything that the fork has copied.
    unsafe { libc::_exit(0) }
}

/// The descriptors to wait for: the socket first, then a pidfd per worker.
struct PollSet {
    set: [libc::pollfd; WORKERS_MAX + 1],
    count: usize,
}

/// What the guard received.
enum News {
    Worker(RawFd),
    Nothing,
    End,
}

impl PollSet {
    fn new() -> Self {
        let waiting = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut set = [waiting(-1); WORKERS_MAX + 1];
        set[0] = waiting(SOCKET);
        Self { set, count: 1 }
    }

    fn run(mut self, grace_ns: u64) -> ! {
        let mut deadline_ns: Option<u64> = None;
        loop {
            self.wait(deadline_ns);
            self.forget_ended();
            match deadline_ns {
                Some(_) if self.count == 1 => exit(),
                Some(at_ns) if at_ns <= monotonic_ns() => self.kill_all(),
                Some(_) => {}
                None if self.set[0].revents != 0 => match receive() {
                    News::Worker(worker) => self.add(worker),
                    News::Nothing => {}
                    News::End => {
                        // No longer polled.
                        self.set[0].fd = -1;
                        deadline_ns = Some(monotonic_ns().saturating_add(grace_ns));
                        if self.count == 1 {
                            exit();
                        }
                    }
                },
                None => {}
            }
        }
    }

    fn wait(&mut self, deadline_ns: Option<u64>) {
        let left_ms = deadline_ns.map_or(-1, |at_ns| {
            let left_ns = at_ns.saturating_sub(monotonic_ns());
            i32::try_from(left_ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let count = libc::nfds_t::try_from(self.count).unwrap_or(0);
        self.set[..self.count].iter_mut().for_each(|one| one.revents = 0);
        // SAFETY: the first `count` entries are initialised and live during the call.
        let _ = unsafe { libc::poll(self.set.as_mut_ptr(), count, left_ms) };
    }

    fn add(&mut self, worker: RawFd) {
        match self.set.get_mut(self.count) {
            Some(place) => {
                place.fd = worker;
                self.count += 1;
            }
            None => close(worker),
        }
    }

    /// A pidfd is readable once its process has ended.
    fn forget_ended(&mut self) {
        for place in (1..self.count).rev().filter(|place| *place > 0) {
            if self.set[place].revents != 0 {
                close(self.set[place].fd);
                self.count -= 1;
                self.set.swap(place, self.count);
                self.set[self.count].fd = -1;
            }
        }
    }

    fn kill_all(&self) -> ! {
        for worker in &self.set[1..self.count] {
            // Includes its descendants, if it leads a group and the kernel supports this.
            signal(worker.fd, WHOLE_GROUP);
            signal(worker.fd, 0);
        }
        exit()
    }
}

fn signal(worker: RawFd, flags: libc::c_uint) {
    let none = std::ptr::null::<libc::siginfo_t>();
    let kill = Signal::SIGKILL as i32;
    // SAFETY: numbers and a null pointer, which stands for the usual signal information.
    let _ = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, worker, kill, none, flags) };
}

fn close(descriptor: RawFd) {
    // SAFETY: a descriptor that came by the socket and that nothing else here uses.
    let _ = unsafe { libc::close(descriptor) };
}

/// Receives one message, with room for one descriptor; the kernel closes others.
fn receive() -> News {
    let (mut byte, mut control) = ([0_u8; 1], [0_u64; CONTROL_BYTES / 8]);
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut header = fdpass::empty_header();
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points at memory that lives and is writable during the call.
    let received = unsafe { libc::recvmsg(SOCKET, &raw mut header, flags) };
    match Errno::result(received) {
        Err(Errno::EAGAIN | Errno::EINTR) => News::Nothing,
        Ok(0) | Err(_) => News::End,
        // The descriptor's number follows the header of the control message.
        Ok(_) if header.msg_controllen >= 20 => {
            let [low, middle, high, top, ..] = control[2].to_ne_bytes();
            News::Worker(RawFd::from_ne_bytes([low, middle, high, top]))
        }
        Ok(_) => News::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;

    fn sleeper() -> (Child, Remote) {
        let child = Command::new("sleep").arg("600").spawn().expect("there is sleep");
        let remote = Remote::of(child.id()).expect("it runs");
        (child, remote)
    }

    #[test]
    fn remaining_processes_are_killed_after_the_grace_period_and_not_before() {
        let guard = Guard::start(Duration::from_millis(300)).expect("a process");
        let ((mut stopped, remote), (mut ended, other)) = (sleeper(), sleeper());
        guard.watch(&remote).expect("it listens");
        guard.watch(&other).expect("it listens");
        remote.signal(Signal::SIGSTOP).expect("it is ours");
        ended.kill().expect("it runs");
        ended.wait().expect("it is ours");
        let begun = Instant::now();
        // As if this process had been killed, without waiting for the guard.
        let socket = guard.socket.try_clone().expect("a descriptor");
        std::thread::spawn(move || drop(guard));
        nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write).ok();
        let status = stopped.wait().expect("it is ours");
        assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn a_guard_without_workers_goes_at_once() {
        let guard = Guard::start(Duration::from_secs(3600)).expect("a process");
        let (mut child, remote) = sleeper();
        guard.watch(&remote).expect("it listens");
        child.kill().expect("it runs");
        child.wait().expect("it is ours");
        let begun = Instant::now();
        drop(guard);
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    }
}
