//! Waits on an epoll set with nanosecond timeouts, which `epoll_wait(2)` does not have, or with
//! milliseconds where `epoll_pwait2(2)` is missing.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

/// Linux is older than 5.11, or a sandbox does not know the call.
static WITHOUT_NANOSECONDS: AtomicBool = AtomicBool::new(false);

/// Waits until a descriptor is ready or the timeout, if there is one, has passed. Returns the
/// number of events written.
///
/// # Errors
/// EINTR if a signal arrived.
pub fn wait(
    set: &Epoll,
    ready: &mut [EpollEvent],
    at_most_ns: Option<u64>,
) -> Result<usize, Errno> {
    if !WITHOUT_NANOSECONDS.load(Ordering::Relaxed) {
        match wait_precisely(set, ready, at_most_ns) {
            // The errors of a call that is there.
            Err(errno @ (Errno::EINTR | Errno::EBADF | Errno::EINVAL | Errno::EFAULT)) => {
                return Err(errno);
            }
            Err(_) => WITHOUT_NANOSECONDS.store(true, Ordering::Relaxed),
            Ok(count) => return Ok(count),
        }
    }
    // Rounded up: waking too early would spin until the deadline.
    let at_most = at_most_ns.map_or(EpollTimeout::NONE, |at_most_ns| {
        let at_most_ms = i32::try_from(at_most_ns.div_ceil(1_000_000)).unwrap_or(i32::MAX);
        EpollTimeout::try_from(at_most_ms).expect("it is not negative")
    });
    set.wait(ready, at_most)
}

/// Whether this machine waits for nanoseconds.
pub(crate) fn is_precise(set: &Epoll) -> bool {
    wait_precisely(set, &mut [EpollEvent::empty()], Some(0)).is_ok()
}

fn wait_precisely(
    set: &Epoll,
    ready: &mut [EpollEvent],
    at_most_ns: Option<u64>,
) -> Result<usize, Errno> {
    let most = libc::c_int::try_from(ready.len()).unwrap_or(libc::c_int::MAX);
    let at_most = at_most_ns.map(|at_most_ns| libc::timespec {
        tv_sec: (at_most_ns / 1_000_000_000).cast_signed(),
        tv_nsec: (at_most_ns % 1_000_000_000).cast_signed(),
    });
    let at_most = at_most.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let no_signals = std::ptr::null::<libc::sigset_t>();
    // SAFETY: `ready` has room for `most` events, of which it is a transparent wrapper, and the
    // time, if there is one, lives during the call.
    let count = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            set.0.as_raw_fd(),
            ready.as_mut_ptr().cast::<libc::epoll_event>(),
            most,
            at_most,
            no_signals,
            0_usize,
        )
    };
    Ok(usize::try_from(Errno::result(count)?).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{EpollCreateFlags, EpollFlags};
    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn it_ends_with_an_event_or_with_the_time() {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
        let eventfd = EventFd::new().expect("an eventfd");
        set.add(&eventfd, EpollEvent::new(EpollFlags::EPOLLIN, 7)).expect("room for one");
        let mut ready = [EpollEvent::empty(); 2];
        assert_eq!(wait(&set, &mut ready, Some(1_000)), Ok(0));
        eventfd.write(1).expect("room for one");
        assert_eq!(wait(&set, &mut ready, None), Ok(1));
        assert_eq!(ready[0].data(), 7);
    }
}
