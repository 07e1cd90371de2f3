//! State inherited from the parent process: corrects it for this process and restores it for
//! children.
//!
//! Owns the record made before the standard library changes anything, and the signal dispositions,
//! signal mask and umask at the start of the command. Limits belong to `limits`.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use nix::sys::stat::{Mode, umask};

use crate::error::{Error, Result};
use crate::signal::Signal;

/// Dispositions that this process changes for itself; children get the original ones.
const CHANGED: [Signal; 9] = [
    Signal::SIGPIPE,
    Signal::SIGXFSZ,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGSTKFLT,
];

/// Bit set of the standard descriptors that were closed.
static CLOSED: AtomicU32 = AtomicU32::new(0);
/// Bit set of the signals that were ignored.
static IGNORED: AtomicU32 = AtomicU32::new(0);
/// The umask to restore in children; larger than any mode if it was not changed.
static UMASK: AtomicU32 = AtomicU32::new(u32::MAX);

/// Runs before `main`: the standard library opens /dev/null for closed descriptors and ignores
/// SIGPIPE, which hides the original state.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    for number in 0..3 {
        // SAFETY: F_GETFD takes two numbers and changes nothing.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << number, Ordering::Relaxed);
        }
    }
    for signal in CHANGED.into_iter().chain([Signal::SIGHUP, Signal::SIGCHLD]) {
        if is_ignored_now(signal) {
            IGNORED.fetch_or(bit(signal), Ordering::Relaxed);
        }
    }
}

fn bit(signal: Signal) -> u32 {
    1 << (signal as i32)
}

fn is_ignored_now(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one to the place given.
    let result = unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all bits zero are a valid action, and the kernel may have written another one.
    let action = unsafe { action.assume_init() };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether a standard descriptor (0 to 2) was closed when this process started.
#[must_use]
pub fn was_closed(number: i32) -> bool {
    (0..3).contains(&number) && CLOSED.load(Ordering::Relaxed) & (1 << number) != 0
}

/// Whether a signal was ignored when this process started; recorded for those that `repair`
/// changes, SIGPIPE, SIGHUP and SIGCHLD.
#[must_use]
pub fn was_ignored(signal: Signal) -> bool {
    IGNORED.load(Ordering::Relaxed) & bit(signal) != 0
}

/// Corrects state that a parent may have left: an ignored SIGCHLD, with which the kernel discards
/// exit statuses, and a umask that removes the owner's permissions. Ignores SIGXFSZ, so that a full
/// file is an error (EFBIG), SIGTTIN and SIGTTOU, so that `stty tostop` stops nothing, and those of
/// timers and readiness, which nothing here asks for and which would end it.
///
/// # Errors
/// The kernel refused a disposition, which it never does for these signals.
pub fn repair() -> Result<()> {
    collect_children()?;
    for signal in CHANGED {
        dispose(signal, SigHandler::SigIgn)?;
    }
    let inherited = umask(Mode::from_bits_truncate(0o077));
    umask(inherited);
    if inherited.intersects(Mode::S_IRWXU) {
        UMASK.store(inherited.bits(), Ordering::Relaxed);
        umask(inherited - Mode::S_IRWXU);
    }
    Ok(())
}

/// Makes the kernel keep the exit statuses of children, in case SIGCHLD is ignored.
///
/// # Errors
/// The kernel refused a disposition, which it never does for this signal.
pub fn collect_children() -> Result<()> {
    match is_ignored_now(Signal::SIGCHLD) {
        true => dispose(Signal::SIGCHLD, SigHandler::SigDfl),
        false => Ok(()),
    }
}

/// Unblocks all signals in this thread and those it starts later.
///
/// # Errors
/// The kernel refused the mask, which it never does.
pub fn unblock_signals() -> Result<()> {
    let set = SigSet::empty().thread_set_mask();
    set.map_err(|errno| Error::system("unblock signals", errno))
}

fn dispose(signal: Signal, handler: SigHandler) -> Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither ignoring a signal nor its default action runs code of this process.
    let result = unsafe { sigaction(signal.into(), &action) };
    result.map(drop).map_err(|errno| Error::system(format!("set what {signal} does"), errno))
}

/// The state to restore in a new process. Built before the fork, applied after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    ignored: u32,
    umask: Option<Mode>,
}

impl Restored {
    pub(crate) fn new() -> Self {
        let mode = UMASK.load(Ordering::Relaxed);
        let umask = (mode != u32::MAX).then(|| Mode::from_bits_truncate(mode));
        Self { ignored: IGNORED.load(Ordering::Relaxed), umask }
    }

    /// Makes system calls only, as required between fork and exec.
    pub(crate) fn apply(self) -> std::result::Result<(), Errno> {
        for signal in CHANGED {
            let handler = match self.ignored & bit(signal) {
                0 => SigHandler::SigDfl,
                _ => SigHandler::SigIgn,
            };
            let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
            // SAFETY: neither ignoring a signal nor its default action runs code of this process.
            unsafe { sigaction(signal.into(), &action) }?;
        }
        if let Some(mode) = self.umask {
            umask(mode);
        }
        Ok(())
    }
}
