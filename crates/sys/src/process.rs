//! Worker processes: started by exec, watched by pidfd, ended by signal.
//!
//! Owns one child. Restarting is up to the caller.

mod descriptors;
mod environment;
mod family;
mod identity;
mod memory_score;
mod pipes;

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Pid, chdir, geteuid, getpid, getppid, setpgid, setsid};

use crate::error::{Error, Result, errno_of};
use crate::inherited::Restored;
use crate::limits::DescriptorLimit;
use crate::signal::{BlockedSignals, Signal};
use descriptors::close_on_exec_from;
pub(crate) use descriptors::{close_from, marks_ranges};
pub use descriptors::{copy_above, copy_of, inherited};
use environment::Block;
pub use family::{own_program, reap_orphans};
use identity::Identity;
use memory_score::MemoryScore;
use pipes::Pipes;

/// `PIDFD_SIGNAL_PROCESS_GROUP`: signals every process in the group that the process leads.
pub(crate) const WHOLE_GROUP: libc::c_uint = 1 << 2;

/// What a worker reads and prints to where it has nothing else.
const NOTHING: &str = "/dev/null";

/// How to start a worker.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The program.
    pub program: PathBuf,
    /// Its `argv[0]`.
    pub name: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables added to this process's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Variables removed from the inherited environment.
    pub removed: Vec<OsString>,
    /// A variable that is set to the pid of the new process.
    pub id_variable: Option<&'static str>,
    /// Working directory; `None` for that of this process.
    pub directory: Option<PathBuf>,
    /// User id (`setuid(2)`). If a user or group is set, supplementary groups are dropped.
    pub user: Option<u32>,
    /// Group id (`setgid(2)`).
    pub group: Option<u32>,
    /// Drops all capabilities and prevents gaining any by an exec (`no_new_privs`).
    pub confined: bool,
    /// Its standard input, output and error.
    pub streams: [Stream; 3],
    /// Makes it lead a process group and a session: signals of a terminal (Ctrl-C, hang-up) reach
    /// the primary only, and printing never stops it (`stty tostop`). Its signal mask is then
    /// empty.
    pub own_group: bool,
    /// Otherwise, the signals blocked in it, so that no terminal signal ends it before it has set
    /// its own handling; `None` for the mask of the calling thread.
    pub blocked_signals: Option<BlockedSignals>,
    /// Descriptor limit.
    pub descriptor_limit: DescriptorLimit,
    /// Sends it SIGTERM when the thread that started it ends.
    pub ends_with_parent: bool,
    /// Descriptors that it inherits under their current numbers. Apart from these and `placed`, it
    /// inherits none, whichever library opened them.
    pub inherited: Vec<BorrowedFd<'a>>,
    /// Descriptors that it gets under these numbers, each at least 3.
    pub placed: Vec<(RawFd, OwnedFd)>,
}

/// A standard stream of a new process.
#[derive(Debug, Default)]
pub enum Stream {
    /// Inherited from this process.
    Inherit,
    /// `/dev/null`.
    #[default]
    Nothing,
    /// A pipe; its other end is in [`Started`].
    Pipe,
    /// This descriptor.
    Descriptor(OwnedFd),
}

/// A started process.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: WorkerProcess,
    /// Writing end of its standard input, if that is a pipe.
    pub input: Option<ChildStdin>,
    /// Reading end of its standard output, if that is a pipe.
    pub output: Option<ChildStdout>,
    /// Reading end of its standard error, if that is a pipe.
    pub errors: Option<ChildStderr>,
}

/// A running worker process.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    watch: Arc<OwnedFd>,
}

/// Signals a process. It may outlive the process and then has no effect.
#[derive(Clone, Debug)]
pub struct Remote {
    watch: Arc<OwnedFd>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
}

impl Launch<'_> {
    /// Starts the process.
    ///
    /// # Errors
    /// Too many processes, not enough memory, no permission to change the user, or a program that
    /// cannot be executed.
    pub fn start(self) -> Result<Started> {
        let step = format!("start a worker ({})", self.program.display());
        let changes_identity = self.user.is_some() || self.group.is_some();
        let failed = |source| match source {
            Errno::EPERM if changes_identity => Error::Environment {
                step: step.clone(),
                source: source.into(),
                hint: "running it as another user or group takes CAP_SETUID and CAP_SETGID, and \
                       in a user namespace that /proc/self/setgroups says allow"
                    .into(),
            },
            Errno::ENOENT if !Path::new(NOTHING).exists() => Error::Environment {
                step: format!("open {NOTHING} for a worker"),
                source: source.into(),
                hint: "mount a /dev in the sandbox".into(),
            },
            _ => Error::system(step.clone(), source),
        };
        let numbers = self.placed.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let aside = Aside::above(numbers, &self.inherited, self.placed).map_err(failed)?;
        let environment = Block::new(&self.removed, self.environment, self.id_variable);
        let environment = environment.map_err(failed)?;
        let directory = self.directory.map(|path| CString::new(path.into_os_string().into_vec()));
        let directory = directory.transpose().map_err(|_| failed(Errno::EINVAL))?;
        // `prepare` sets the environment, and also user and directory, whose order matters.
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
            memory_score: MemoryScore::of_worker(),
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
        // async-signal-safe, writes to its own memory, and allocates nothing.
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

/// The steps in the new process before the exec.
#[derive(Debug)]
struct Preparation {
    inherited: Vec<RawFd>,
    placed: Vec<(RawFd, RawFd)>,
    memory_score: MemoryScore,
    identity: Identity,
    directory: Option<CString>,
    /// Start a session.
    leads: bool,
    /// Signals to block; `None` for the mask of the calling thread.
    blocked: Option<BlockedSignals>,
    environment: Block,
    /// The process whose end also ends this one.
    parent: Option<Pid>,
    restored: Restored,
    /// The soft and hard limit, if they differ from those of this process.
    descriptor_limit: Option<(u64, u64)>,
}

impl Preparation {
    fn run(&mut self) -> io::Result<()> {
        close_on_exec_from(3);
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
        self.memory_score.assume();
        self.identity.assume()?;
        if let Some(directory) = &self.directory {
            chdir(directory.as_c_str())?;
        }
        if let Some(parent) = self.parent {
            // After the change of user, which would reset it.
            prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
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
            // The standard library does not change the signal mask in this case.
            blocked.install()?;
        }
        if let Some((soft, hard)) = self.descriptor_limit {
            // Last, because the numbers above may exceed it.
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        self.environment.install(std::process::id());
        Ok(())
    }
}

/// Descriptors for a new process, moved out of the range of their target numbers.
#[derive(Debug)]
struct Aside {
    inherited: Vec<RawFd>,
    placed: Vec<(RawFd, OwnedFd)>,
    /// Occupy free numbers, so that the standard library does not use them.
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
            // The kernel assigns the lowest free number from this one on.
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
    // Fails only if the process has already ended.
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

    /// A handle for signalling it.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote { watch: Arc::clone(&self.watch) }
    }

    /// How it ended; `None` while it runs. Reaps the process.
    ///
    /// # Errors
    /// The process was reaped elsewhere.
    pub fn try_wait(&mut self) -> Result<Option<Ending>> {
        let status = self.child.try_wait();
        let status =
            status.map_err(|error| Error::system("wait for a worker", errno_of(&error)))?;
        Ok(status.map(Ending::from))
    }

    /// Kills it if it is still running, and reaps it. Returns how it ended; `None` if it was reaped
    /// elsewhere.
    pub fn end(&mut self) -> Option<Ending> {
        if let Ok(None) = self.child.try_wait() {
            // Fails only if the process has already ended.
            let _ = self.remote().kill_group();
        }
        self.child.wait().ok().map(Ending::from)
    }
}

impl Remote {
    /// A handle for a pid. The process must be a child: only a child's pid cannot be reused before
    /// it is reaped.
    ///
    /// # Errors
    /// There is no such process, or descriptors are exhausted.
    pub fn of(pid: u32) -> Result<Self> {
        let watch = open_watch(pid);
        let watch = watch.map_err(|errno| Error::system("watch a process (pidfd_open)", errno))?;
        Ok(Self { watch: Arc::new(watch) })
    }

    /// Sends a signal; no effect on a process that has ended.
    ///
    /// # Errors
    /// The process has changed its user, and this one may not signal it.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match self.send(signal, 0) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::system("signal a worker", errno)),
        }
    }

    /// Kills the process, and its process group if it leads one and the kernel supports this on a
    /// pidfd (Linux 6.9). Using the group's number would not be safe, because it may have been
    /// reused.
    ///
    /// # Errors
    /// The process has changed its user, and this one may not signal it.
    pub fn kill_group(&self) -> Result<()> {
        // Fails on older kernels, and for a process that leads no group.
        let _ = self.send(Signal::SIGKILL, WHOLE_GROUP);
        self.signal(Signal::SIGKILL)
    }

    fn send(&self, signal: Signal, flags: libc::c_uint) -> std::result::Result<(), Errno> {
        send(&self.watch, signal.as_raw(), flags)
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
    /// A worker does not outlive its handle.
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

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// There is no such process; the kernel is older than 5.3; descriptors are exhausted.
pub(crate) fn open_watch(pid: u32) -> std::result::Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two numbers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = Errno::result(raw)?;
    let raw = RawFd::try_from(raw).expect("descriptors are small numbers");
    // SAFETY: the kernel has just installed this descriptor for us; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Opens a pidfd of this process and sends signal 0, the same calls as for workers.
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

/// Sets the process name for `ps` and `top`; the kernel keeps 15 bytes. Without this, a program
/// started through `/proc/self/exe` would be called `exe`.
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // The name is cosmetic.
        let _ = prctl::set_name(&name);
    }
}

/// Exits at once, without running destructors, for a worker that has lost its primary.
pub fn end(code: i32) -> ! {
    #[expect(clippy::exit, reason = "a library has no other way to end a program, as Node's does")]
    std::process::exit(code)
}

#[cfg(test)]
mod tests;
