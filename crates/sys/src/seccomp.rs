//! A seccomp filter over the system calls of this process, and of every process that it starts.
//!
//! Owns the installation, and the signal handler that names a refused call. Which calls are listed
//! is for the caller to decide.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use syscalls::Sysno;

use crate::error::{Error, Result, errno_of};

/// A listed system call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number on this architecture.
    pub number: libc::c_long,
    /// An argument, and bits that must not be set in it.
    pub without: Option<(u8, u32)>,
}

/// What becomes of a call that is not listed. Either way a line on standard error names it, once
/// for each call.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    /// It fails with EPERM.
    Fails,
    /// The process ends by SIGSYS. The call's number, and one more, is stored here first.
    Ends(&'static AtomicU64),
}

/// `si_code` of a signal that seccomp has raised.
const SYS_SECCOMP: libc::c_int = 1;
/// Place of the call's number in `siginfo_t`, counted in numbers of this size.
const CALL_AT: usize = 6;
/// Numbers for which a call is told only once.
const NUMBERS: usize = 512;

static ENDS: AtomicBool = AtomicBool::new(false);
static RECORD: OnceLock<&AtomicU64> = OnceLock::new();
static TOLD: [AtomicU64; NUMBERS / 64] = [const { AtomicU64::new(0) }; NUMBERS / 64];

/// Refuses every call that is not listed, in all threads and for good. A process that has a filter
/// already has both.
///
/// # Errors
/// The kernel has no seccomp, or a sandbox forbids further filters.
pub fn confine(calls: impl IntoIterator<Item = Call>, refusal: Refusal) -> Result<()> {
    let program = program(calls).map_err(|error| failed(&error))?;
    if let Refusal::Ends(record) = refusal {
        let _ = RECORD.set(record);
        ENDS.store(true, Ordering::Relaxed);
    }
    let handler = SigHandler::SigAction(on_refusal);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER;
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: `on_refusal` makes only calls that are safe in a signal handler.
    let handled = unsafe { sigaction(Signal::SIGSYS, &action) };
    handled.map_err(|errno| Error::system("handle SIGSYS", errno))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))
}

/// The name of a system call of this architecture.
#[must_use]
pub fn name_of(number: u32) -> Option<&'static str> {
    Sysno::new(usize::try_from(number).ok()?).map(|call| call.name())
}

fn program(calls: impl IntoIterator<Item = Call>) -> seccompiler::Result<BpfProgram> {
    let mut rules = std::collections::BTreeMap::new();
    for Call { number, without } in calls {
        let conditions = without.map(|(argument, bits)| {
            let length = SeccompCmpArgLen::Dword;
            let comparison = SeccompCmpOp::MaskedEq(bits.into());
            let condition = SeccompCondition::new(argument, length, comparison, 0)?;
            SeccompRule::new(vec![condition])
        });
        rules.insert(number, conditions.into_iter().collect::<std::result::Result<_, _>>()?);
    }
    let here = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, here)?;
    Ok(filter.try_into()?)
}

fn failed(error: &seccompiler::Error) -> Error {
    let errno = match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => errno_of(error),
        _ => errno_of(&io::Error::from(io::ErrorKind::InvalidInput)),
    };
    Error::system("install a seccomp filter", errno)
}

/// Names the refused call, and lets it fail or ends the process.
extern "C" fn on_refusal(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid description of the signal.
    let code = unsafe { (*info).si_code };
    if code == SYS_SECCOMP {
        // SAFETY: for this code the number is at this place, on every 64-bit architecture.
        let call = unsafe { info.cast::<libc::c_int>().wrapping_add(CALL_AT).read() };
        report(call.cast_unsigned());
        if !ENDS.load(Ordering::Relaxed) {
            // SAFETY: the kernel passes the interrupted thread's state, restored on return.
            let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
            return fail(context);
        }
        if let Some(record) = RECORD.get() {
            record.store(u64::from(call.cast_unsigned()) + 1, Ordering::Release);
        }
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    let _ = unsafe { sigaction(Signal::SIGSYS, &default) };
    let _ = raise(Signal::SIGSYS);
}

/// Lets the interrupted call fail with EPERM.
fn fail(context: &mut libc::ucontext_t) {
    let result = -(Errno::EPERM as i32);
    #[cfg(target_arch = "x86_64")]
    {
        context.uc_mcontext.gregs[libc::REG_RAX as usize] = result.into();
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.regs[0] = i64::from(result).cast_unsigned();
    }
}

/// Writes a line about a refused call, the first time. Safe in a signal handler: no allocation, no
/// lock.
fn report(call: u32) {
    let number = usize::try_from(call).unwrap_or(NUMBERS);
    if let Some(word) = TOLD.get(number / 64) {
        let bit = 1 << (number % 64);
        if word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return;
        }
    }
    let mut line = Line { bytes: [0; 128], length: 0 };
    line.add(b"clusterlb: --seccomp refuses the system call ");
    line.add_number(number);
    if let Some(name) = name_of(call) {
        line.add(b" (");
        line.add(name.as_bytes());
        line.add(b")");
    }
    line.add(b"\n");
    // SAFETY: the buffer is valid for this many bytes.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length) };
}

/// A line in a fixed buffer: a signal handler must not allocate.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Line {
    /// Appends what fits.
    fn add(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn add_number(&mut self, number: usize) {
        let mut divisor = 1;
        while number / divisor >= 10 {
            divisor *= 10;
        }
        while divisor > 0 {
            self.add(&[b"0123456789"[number / divisor % 10]]);
            divisor /= 10;
        }
    }
}

#[cfg(test)]
mod tests;
