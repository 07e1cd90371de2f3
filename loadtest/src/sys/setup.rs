//! Opening an io_uring with the best flags that this kernel grants, or reporting why there is none.
//!
//! Flags are tried; the kernel's version is not looked at.

use std::thread::sleep;
use std::time::Duration;

use io_uring::{Builder, IoUring};
use nix::errno::Errno;

use crate::error::{Error, errno_of};

/// Room for operations not yet handed over. It is small because completions are read only after
/// all of them were carried out: on loopback a connect includes the whole handshake, and with a
/// long queue no completion would be seen for a long time.
const SUBMISSION_ENTRIES: u32 = 32;
/// Kernel threads that may wait for blocking operations; further ones wait for a thread.
const WAITERS_MAX: u32 = 64;
/// Attempts while memory is short, which may pass: dropped rings count as locked until the kernel
/// has torn them down, and under pressure it refuses pages that it reclaims a moment later.
const ATTEMPTS: u32 = 100;
/// The time between these attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Opens a ring with the best flags this kernel grants.
pub(super) fn open(slots: usize) -> Result<(IoUring, &'static str), Error> {
    // Three operations of a slot and their cancels may complete before any is read.
    let entries = slots.saturating_mul(4).clamp(256, 65_536);
    let entries = u32::try_from(entries.next_power_of_two()).expect("clamped to 65536");
    let mut errno = Errno::EINVAL;
    for (level, flags) in
        ["single_issuer,defer_taskrun,submit_all", "coop_taskrun,submit_all", "none"]
            .into_iter()
            .enumerate()
    {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries).setup_clamp();
        match level {
            0 => {
                builder.setup_single_issuer().setup_defer_taskrun();
                builder.setup_taskrun_flag().setup_submit_all();
            }
            1 => {
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            _ => {}
        }
        match build(&builder) {
            Ok(ring) if ring.params().is_feature_ext_arg() => {
                // Only a connect to a unix socket whose queue is full needs a kernel thread to
                // wait in. Kernels before 5.15 know no bound.
                let _ = ring.submitter().register_iowq_max_workers(&mut [1, WAITERS_MAX]);
                return Ok((ring, flags));
            }
            Ok(_) => break,
            Err(found) => errno = found,
        }
        if errno != Errno::EINVAL {
            break;
        }
    }
    Err(unavailable(errno))
}

fn build(builder: &Builder) -> Result<IoUring, Errno> {
    let mut attempts = 1;
    loop {
        match builder.build(SUBMISSION_ENTRIES).map_err(|error| errno_of(&error)) {
            Err(Errno::ENOMEM) if attempts < ATTEMPTS => {
                attempts += 1;
                sleep(PAUSE);
            }
            result => return result,
        }
    }
}

fn unavailable(errno: Errno) -> Error {
    let hint = match errno {
        Errno::EPERM | Errno::EACCES => {
            "a container's seccomp profile or kernel.io_uring_disabled forbids it: allow \
             io_uring_setup, io_uring_enter and io_uring_register, or set the sysctl to 0"
        }
        Errno::ENOMEM => "raise `ulimit -l` (locked memory) or the cgroup's memory limit",
        Errno::EMFILE | Errno::ENFILE => "raise `ulimit -n` (hard limit) or fs.file-max",
        _ => "Linux 5.19 or newer with io_uring is needed",
    };
    Error::environment("create an io_uring", errno.desc(), hint)
}
