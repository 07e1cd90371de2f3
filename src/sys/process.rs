//! Worker processes: started by exec, watched by pidfd, ended by signal.
//!
//! Owns one child. Refuses to restart anything: the supervisor decides that.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;

use crate::error::{Error, Result, errno_of};

/// How a worker is started.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The program.
    pub program: PathBuf,
    /// Its name as it shall see it (`argv[0]`).
    pub name: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables added to this process's environment.
    pub environment: Vec<(String, String)>,
    /// Descriptors that it inherits under their present numbers; all others are close-on-exec.
    pub inherited: Vec<BorrowedFd<'a>>,
}

/// A running worker process.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    watch: OwnedFd,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It left by itself with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Launch<'_> {
    /// Starts the process. Signals are unblocked and handled as by default in it
    /// (`std::process::Command` does both), its standard input is empty.
    ///
    /// # Errors
    /// Too many processes, too little memory, or the program cannot be executed.
    pub fn start(self) -> Result<WorkerProcess> {
        let inherited: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new(&self.program);
        command.arg0(&self.name).args(self.arguments).envs(self.environment).stdin(Stdio::null());
        let unprotect = move || {
            for number in &inherited {
                // SAFETY: the numbers were borrowed from open descriptors, which the fork copied.
                let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
                fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only calls fcntl, which is async-signal-safe,
        // and allocates nothing.
        let command = unsafe { command.pre_exec(unprotect) };
        let step = || format!("start a worker ({})", self.program.display());
        let child = command.spawn().map_err(|error| Error::system(step(), errno_of(&error)))?;
        match open_watch(child.id()) {
            Ok(watch) => Ok(WorkerProcess { child, watch }),
            Err(errno) => Err(abandon(child, errno)),
        }
    }
}

fn abandon(mut child: Child, errno: Errno) -> Error {
    // It has just been started, so both can only fail if it is gone already.
    let _ = child.kill();
    let _ = child.wait();
    Error::system("watch a worker (pidfd_open)", errno)
}

impl WorkerProcess {
    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; a process that has already ended is left alone.
    pub fn signal(&self, signal: Signal) {
        let none = std::ptr::null::<libc::siginfo_t>();
        let descriptor = self.watch.as_raw_fd();
        // SAFETY: numbers and a null pointer, which stands for the usual signal information.
        let _ = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, descriptor, signal as i32, none, 0)
        };
    }

    /// How it ended, if it has; the process is reaped by this.
    ///
    /// # Errors
    /// Somebody else has reaped it.
    pub fn try_wait(&mut self) -> Result<Option<Ending>> {
        let status = self.child.try_wait();
        let status =
            status.map_err(|error| Error::system("wait for a worker", errno_of(&error)))?;
        Ok(status.map(Ending::from))
    }
}

impl AsFd for WorkerProcess {
    /// Readable once the process has ended (`pidfd_open(2)`).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl Drop for WorkerProcess {
    /// No worker outlives its handle.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Code(-1),
        }
    }
}

fn open_watch(pid: u32) -> std::result::Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two numbers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = Errno::result(raw)?;
    let raw = RawFd::try_from(raw).expect("descriptors are small numbers");
    // SAFETY: the kernel has just installed this descriptor for us; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Names this process for `ps` and `top`; the kernel keeps 15 bytes. A program started through
/// `/proc/self/exe` would be called `exe`.
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // A process without a name of its own works just as well.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// Takes over a descriptor that the parent process passed under `number`, once.
///
/// # Errors
/// Nothing is open under that number, or it is close-on-exec and so was not passed.
pub fn inherited(number: RawFd, what: &str) -> Result<OwnedFd> {
    let failed = |errno| Error::system(format!("take over {what} (descriptor {number})"), errno);
    if number < 3 {
        return Err(failed(Errno::EBADF));
    }
    // SAFETY: the descriptor is only asked about, and only while this function runs.
    let candidate = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(candidate, FcntlArg::F_GETFD).map_err(failed)?;
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(failed(Errno::EBADF));
    }
    fcntl(candidate, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed)?;
    // SAFETY: an open, inherited descriptor that nothing here owns: what this process opens is
    // close-on-exec, and so is this one from now on, so that it cannot be taken twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
