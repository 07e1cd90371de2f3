//! Worker processes: started by exec, watched by pidfd, ended by signal.
//!
//! Owns one child. Refuses to restart anything: that is decided above.

mod environment;
mod family;
mod identity;
mod pipes;

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, chdir, geteuid, getpid, getppid, setpgid, setsid};

use crate::error::{Error, Result, errno_of};
use crate::inherited::Restored;
use crate::limits::DescriptorLimit;
use crate::signal::BlockedSignals;
use environment::Block;
pub use family::{own_program, reap_orphans};
use identity::Identity;
use pipes::Pipes;

/// `PIDFD_SIGNAL_PROCESS_GROUP`: to everybody in the group that the process leads.
pub(crate) const WHOLE_GROUP: libc::c_uint = 1 << 2;

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
    pub environment: Vec<(OsString, OsString)>,
    /// Variables of this process that the new one does not get.
    pub removed: Vec<OsString>,
    /// One more variable, whose value is the id of the new process.
    pub id_variable: Option<&'static str>,
    /// Where it runs; without one, where this process does.
    pub directory: Option<PathBuf>,
    /// Who it runs as (`setuid(2)`, `setgid(2)`); with either, supplementary groups are dropped.
    pub user: Option<u32>,
    /// The group that it runs as.
    pub group: Option<u32>,
    /// It keeps no capability, and cannot get any by what it executes (`no_new_privs`).
    pub confined: bool,
    /// Its standard input, output and error.
    pub streams: [Stream; 3],
    /// It leads a process group and a session, so that what a terminal sends to the primary's
    /// group (Ctrl-C, hanging up) is for the primary alone, and no terminal stops it when it
    /// prints (`stty tostop`). No signal is blocked in it then.
    pub own_group: bool,
    /// Signals that are blocked in it otherwise, so that nothing from a terminal ends it before it
    /// has said what it wants; without a word, those that are blocked here.
    pub blocked_signals: Option<BlockedSignals>,
    /// How many descriptors it may open.
    pub descriptor_limit: DescriptorLimit,
    /// It gets SIGTERM when the thread that starts it ends, with its process or before.
    pub ends_with_parent: bool,
    /// Descriptors that it inherits under their present numbers. It gets no others, whoever has
    /// opened them, but for those below.
    pub inherited: Vec<BorrowedFd<'a>>,
    /// Descriptors that it gets under these numbers, each 3 or more.
    pub placed: Vec<(RawFd, OwnedFd)>,
}

/// A standard stream of a new process.
#[derive(Debug, Default)]
pub enum Stream {
    /// As in this process.
    Inherit,
    /// Empty, or swallowing everything.
    #[default]
    Nothing,
    /// A pipe, whose other end is in [`Started`].
    Pipe,
    /// This descriptor.
    Descriptor(OwnedFd),
}

/// A process that has been started.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: WorkerProcess,
    /// The other end of its standard input, if that is a pipe.
    pub input: Option<ChildStdin>,
    /// The other end of its standard output, if that is a pipe.
    pub output: Option<ChildStdout>,
    /// The other end of its standard error, if that is a pipe.
    pub errors: Option<ChildStderr>,
}

/// A running worker process.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    watch: Arc<OwnedFd>,
}

/// What can be done to a process from afar. It outlives the process, and then does nothing.
#[derive(Clone, Debug)]
pub struct Remote {
    watch: Arc<OwnedFd>,
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
    /// Starts the process.
    ///
    /// # Errors
    /// Too many processes, too little memory, no right to become somebody else, or the program
    /// cannot be executed.
    pub fn start(self) -> Result<Started> {
        let step = format!("start a worker ({})", self.program.display());
        let changes_identity = self.user.is_some() || self.group.is_some();
        let failed = |source| match source {
            Errno::EPERM if changes_identity => Error::Environment {
                step: step.clone(),
                source,
                hint: "running it as another user or group takes CAP_SETUID and CAP_SETGID, and \
                       in a user namespace that /proc/self/setgroups says allow"
                    .into(),
            },
            _ => Error::system(step.clone(), source),
        };
        let numbers = self.placed.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let aside = Aside::above(numbers, &self.inherited, self.placed).map_err(failed)?;
        let environment = Block::new(&self.removed, self.environment, self.id_variable);
        let environment = environment.map_err(failed)?;
        let directory = self.directory.map(|path| CString::new(path.into_os_string().into_vec()));
        let directory = directory.transpose().map_err(|_| failed(Errno::EINVAL))?;
        // Its environment is left alone: `prepare` puts another one in its place. So does it with
        // user and folder, which have an order of their own.
        let mut command = Command::new(&self.program);
        command.arg0(&self.name).args(self.arguments);
        let becomes_other = self.group.is_some() || self.user.is_some();
        let identity = Identity {
            user: self.user,
            group: self.group,
            drops_groups: becomes_other && geteuid().is_root(),
            confined: self.confined,
        };
        let pipes = Pipes::new(self.streams, self.user, self.group).map_err(failed)?;
        let [input, output, errors] = pipes.theirs;
        command.stdin(input).stdout(output).stderr(errors);
        let (inherited, placed) = aside.numbers();
        let parent = self.ends_with_parent.then(getpid);
        let none = self.own_group.then(BlockedSignals::none);
        let mut preparation = Preparation {
            inherited,
            placed,
            identity,
            directory,
            leads: self.own_group,
            blocked: none.or(self.blocked_signals),
            environment,
            parent,
            restored: Restored::new(),
            descriptor_limit: self.descriptor_limit.for_child(),
        };
        let prepare = move || preparation.run();
        // SAFETY: between fork and exec `run` makes system calls only, which are
        // async-signal-safe, writes to memory of its own, and allocates nothing.
        let command = unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn().map_err(|error| failed(errno_of(&error)))?;
        let input = child.stdin.take();
        let [output, errors] = pipes.ours;
        let (output, errors) = (output.map(ChildStdout::from), errors.map(ChildStderr::from));
        match open_watch(child.id()) {
            Ok(watch) => {
                let process = WorkerProcess { child, watch: Arc::new(watch) };
                Ok(Started { process, input, output, errors })
            }
            Err(errno) => Err(abandon(child, errno)),
        }
    }
}

/// What is done in the new process before the program runs.
#[derive(Debug)]
struct Preparation {
    inherited: Vec<RawFd>,
    placed: Vec<(RawFd, RawFd)>,
    identity: Identity,
    directory: Option<CString>,
    /// It leads a session.
    leads: bool,
    /// Signals that are blocked, unless they are those of the thread that starts it.
    blocked: Option<BlockedSignals>,
    environment: Block,
    /// Whom it shall not survive.
    parent: Option<Pid>,
    restored: Restored,
    /// The soft and the hard limit, if they differ from those here.
    descriptor_limit: Option<(u64, u64)>,
}

impl Preparation {
    fn run(&mut self) -> io::Result<()> {
        close_on_exec_from(3)?;
        for number in &self.inherited {
            // SAFETY: the numbers were borrowed from open descriptors, which the fork copied.
            let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        for (number, descriptor) in &self.placed {
            // SAFETY: two numbers; this process owns nothing yet that could be replaced.
            let result = unsafe { libc::dup2(*descriptor, *number) };
            Errno::result(result)?;
        }
        self.identity.assume()?;
        if let Some(directory) = &self.directory {
            chdir(directory.as_c_str())?;
        }
        if let Some(parent) = self.parent {
            // Behind the change of user, which would undo it.
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            if getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
        }
        self.restored.apply()?;
        if self.leads {
            // A sandbox may refuse sessions and still allow groups.
            setsid().or_else(|_| setpgid(Pid::from_raw(0), Pid::from_raw(0)).map(|()| getpid()))?;
        }
        if let Some(blocked) = self.blocked {
            // The standard library leaves the mask as it is here.
            blocked.install()?;
        }
        if let Some((soft, hard)) = self.descriptor_limit {
            // Last: the numbers above may be beyond it.
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        self.environment.install(std::process::id());
        Ok(())
    }
}

/// Lets no descriptor from this number on pass to another program.
fn close_on_exec_from(first: RawFd) -> std::result::Result<(), Errno> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: three numbers; nothing is closed, only marked.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    Errno::result(result).map(drop)
}

/// Descriptors for a new process, out of the way of the numbers that some of them shall have.
#[derive(Debug)]
struct Aside {
    inherited: Vec<RawFd>,
    placed: Vec<(RawFd, OwnedFd)>,
    /// Keep free numbers from being used by what the standard library opens for itself.
    _fillers: Vec<OwnedFd>,
}

impl Aside {
    fn above(
        numbers: RawFd,
        inherited: &[BorrowedFd<'_>],
        placed: Vec<(RawFd, OwnedFd)>,
    ) -> std::result::Result<Self, Errno> {
        let raw: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        if placed.iter().any(|(number, _)| *number < 3 || raw.contains(number)) {
            return Err(Errno::EBUSY);
        }
        let mut fillers = Vec::new();
        let mut aside = Vec::new();
        for (number, descriptor) in placed {
            // The kernel takes the lowest free number from there on.
            let copy = fcntl(&descriptor, FcntlArg::F_DUPFD_CLOEXEC(numbers + 1))?;
            // SAFETY: the kernel has just installed this descriptor for us.
            aside.push((number, unsafe { OwnedFd::from_raw_fd(copy) }));
            drop(descriptor);
            let filler = fcntl(&aside[0].1, FcntlArg::F_DUPFD_CLOEXEC(number))?;
            // SAFETY: the kernel has just installed this descriptor for us.
            fillers.push(unsafe { OwnedFd::from_raw_fd(filler) });
        }
        Ok(Self { inherited: raw, placed: aside, _fillers: fillers })
    }

    fn numbers(&self) -> (Vec<RawFd>, Vec<(RawFd, RawFd)>) {
        let placed = self.placed.iter().map(|(number, one)| (*number, one.as_raw_fd()));
        (self.inherited.clone(), placed.collect())
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

    /// What others may hold to signal it.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote { watch: Arc::clone(&self.watch) }
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

    /// Ends it by force, unless it has ended, and reaps it. Tells how it ended; nothing, if
    /// somebody else has reaped it.
    pub fn end(&mut self) -> Option<Ending> {
        if let Ok(None) = self.child.try_wait() {
            // It can only fail if the process has been faster.
            let _ = self.remote().kill_group();
        }
        self.child.wait().ok().map(Ending::from)
    }
}

impl Remote {
    /// A process by its number, which must be that of a child: others may have gone, and their
    /// numbers been given away.
    ///
    /// # Errors
    /// There is none, or there are too few descriptors.
    pub fn of(pid: u32) -> Result<Self> {
        let watch = open_watch(pid);
        let watch = watch.map_err(|errno| Error::system("watch a process (pidfd_open)", errno))?;
        Ok(Self { watch: Arc::new(watch) })
    }

    /// Sends a signal; a process that has already ended is left alone.
    ///
    /// # Errors
    /// The process has become somebody else's, whom this one must not signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match self.send(signal, 0) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::system("signal a worker", errno)),
        }
    }

    /// Ends the process by force, and with it what it has started, if it leads a group and the
    /// kernel can find that by the process (Linux 6.9). By a number it would not be safe: that may
    /// be somebody else's by now.
    ///
    /// # Errors
    /// The process has become somebody else's, whom this one must not signal.
    pub fn kill_group(&self) -> Result<()> {
        // An older kernel does not know how, and whoever leads no group has nobody to be found.
        let _ = self.send(Signal::SIGKILL, WHOLE_GROUP);
        self.signal(Signal::SIGKILL)
    }

    fn send(&self, signal: Signal, flags: libc::c_uint) -> std::result::Result<(), Errno> {
        send(&self.watch, signal as i32, flags)
    }
}

impl AsFd for Remote {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
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
        self.end();
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

/// A descriptor that tells of a process's end.
///
/// # Errors
/// There is no such process; the kernel is older than 5.3; too few descriptors.
pub(crate) fn open_watch(pid: u32) -> std::result::Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two numbers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = Errno::result(raw)?;
    let raw = RawFd::try_from(raw).expect("descriptors are small numbers");
    // SAFETY: the kernel has just installed this descriptor for us; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Watches this process, and signals nothing to it, as is done with workers.
///
/// # Errors
/// The kernel or a sandbox refuses `pidfd_open` or `pidfd_send_signal`.
pub(crate) fn try_pidfd() -> Result<()> {
    let watch = open_watch(std::process::id());
    let watch = watch.map_err(|errno| Error::system("watch a process (pidfd_open)", errno))?;
    send(&watch, 0, 0).map_err(|errno| Error::system("signal a process by its pidfd", errno))
}

fn send(watch: &OwnedFd, signal: i32, flags: libc::c_uint) -> std::result::Result<(), Errno> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: numbers and a null pointer, which stands for the usual signal information.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, watch.as_raw_fd(), signal, none, flags)
    };
    Errno::result(result).map(drop)
}

/// Names this process for `ps` and `top`; the kernel keeps 15 bytes. A program started through
/// `/proc/self/exe` would be called `exe`.
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // A process without a name of its own works just as well.
        let _ = prctl::set_name(&name);
    }
}

/// A copy of whatever is open under `number` in this process.
///
/// # Errors
/// Nothing is, or there are too few descriptors.
pub fn copy_of(number: RawFd) -> Result<OwnedFd> {
    let failed = |errno| Error::system(format!("duplicate descriptor {number}"), errno);
    if number < 0 {
        return Err(failed(Errno::EBADF));
    }
    // SAFETY: the descriptor is only duplicated, and only while this function runs.
    let original = unsafe { BorrowedFd::borrow_raw(number) };
    original.try_clone_to_owned().map_err(|error| failed(errno_of(&error)))
}

/// A copy of a descriptor under a number above this one.
///
/// # Errors
/// Too few descriptors.
pub fn copy_above(number: RawFd, descriptor: BorrowedFd<'_>) -> Result<OwnedFd> {
    let copy = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(number + 1))
        .map_err(|errno| Error::system("duplicate a descriptor for a worker", errno))?;
    // SAFETY: the kernel has just installed this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Ends this process, as a worker does that has lost its primary. No destructor runs.
pub fn end(code: i32) -> ! {
    #[expect(clippy::exit, reason = "a library has no other way to end a program, as Node's does")]
    std::process::exit(code)
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

#[cfg(test)]
mod tests;
