//! A child process of a measurement: its output is read line by line, and dropping it ends it.
//!
//! Owns the process and its descendants, which share a process group. A terminal's Ctrl-C therefore
//! reaches only the measuring process, and no descendant outlives the measurement. Does not
//! interpret the output.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{self as kernel, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::interrupt::{Halt, Interrupt};
use crate::error::{Error, Result, errno_of};
use crate::sys::signal::Signal;

/// Interval between checks of a process that prints nothing.
const LOOK: Duration = Duration::from_millis(5);
/// Maximum number of lines of standard error kept; older ones are dropped.
const ERROR_LINES_MAX: usize = 20;
/// How long to wait for remaining output after the process has ended.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// A running process.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    reaped: bool,
    output: Receiver<String>,
    errors: Receiver<String>,
    complaints: Vec<String>,
}

/// The result of a process.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; `None` if waiting for it failed.
    pub status: Option<ExitStatus>,
    /// The process did not end when asked and was killed.
    pub forced: bool,
    /// Lines of standard output that had not been read.
    pub lines: Vec<String>,
    /// The last lines of standard error.
    pub complaints: Vec<String>,
}

impl Child {
    /// Starts a process in a new process group, without standard input.
    ///
    /// # Errors
    /// The program does not exist or cannot be executed.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command
            .process_group(0)
            .spawn()
            .map_err(|error| Error::system(format!("start {name}"), errno_of(&error)))?;
        let output = process.stdout.take().expect("standard output was asked for");
        let errors = process.stderr.take().expect("standard error was asked for");
        Ok(Self {
            name: name.to_owned(),
            process,
            reaped: false,
            output: lines_of(output),
            errors: lines_of(errors),
            complaints: Vec::new(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).expect("process ids are positive"))
    }

    /// The next line of standard output; `None` if the process ended or closed it.
    ///
    /// # Errors
    /// A signal arrived, or no line within the time.
    pub fn next_line(
        &mut self,
        within: Duration,
        interrupt: &mut Interrupt,
    ) -> std::result::Result<Option<String>, Halt> {
        let deadline = Instant::now() + within;
        loop {
            match self.output.recv_timeout(LOOK) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => interrupt.check()?,
            }
            if Instant::now() >= deadline {
                return Err(self.failure(&format!("said nothing for {within:?}")).into());
            }
        }
    }

    /// Whether the process has ended. It is not reaped, so that its pid is not reused.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(self.pid()), look), Ok(WaitStatus::StillAlive))
    }

    /// Waits for the process to end. `during` is called every few milliseconds with the time since
    /// the call.
    ///
    /// # Errors
    /// A signal arrived, or the process did not end within the time.
    pub fn wait(
        &mut self,
        within: Duration,
        interrupt: &mut Interrupt,
        during: &mut dyn FnMut(Duration),
    ) -> std::result::Result<(), Halt> {
        let begun = Instant::now();
        while !self.has_ended() {
            during(begun.elapsed());
            interrupt.sleep(LOOK)?;
            if begun.elapsed() >= within {
                return Err(self.failure(&format!("did not end within {within:?}")).into());
            }
        }
        Ok(())
    }

    /// Asks the process to end, waits, and kills it after the time.
    #[must_use]
    pub fn end(mut self, signal: Signal, within: Duration) -> Ended {
        let deadline = Instant::now() + within;
        // Signalling a process that has just ended is harmless.
        let _ = kill(self.pid(), kernel::Signal::from(signal));
        while !self.has_ended() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        let forced = !self.has_ended();
        let status = self.destroy();
        let lines = rest_of(&self.output);
        self.complaints.extend(rest_of(&self.errors));
        let complaints = self.last_complaints();
        Ended { status, forced, lines, complaints }
    }

    /// An error that names the process and quotes its standard error.
    #[must_use]
    pub fn failure(&mut self, what: &str) -> Error {
        if self.has_ended() {
            // The last lines may still be in the pipe.
            std::thread::sleep(2 * LOOK);
        }
        self.complaints.extend(self.errors.try_iter());
        let complaints = self.last_complaints();
        failure(&self.name, what, &complaints)
    }

    fn last_complaints(&mut self) -> Vec<String> {
        let from = self.complaints.len().saturating_sub(ERROR_LINES_MAX);
        self.complaints.split_off(from)
    }

    /// Kills the rest of the process group and reaps the process.
    fn destroy(&mut self) -> Option<ExitStatus> {
        // The group id is not reused before its leader is reaped.
        let _ = killpg(self.pid(), kernel::Signal::SIGCONT);
        let _ = killpg(self.pid(), kernel::Signal::SIGKILL);
        self.reaped = true;
        self.process.wait().ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.destroy();
        }
    }
}

/// An error that names a process, the problem, and its last lines of standard error.
#[must_use]
pub fn failure(name: &str, what: &str, complaints: &[String]) -> Error {
    let last = complaints.iter().rev().find(|line| !line.trim().is_empty());
    let said = last.map_or_else(String::new, |line| format!(" ({})", line.trim()));
    Error::Workers {
        what: format!("{name} {what}{said}"),
        hint: "start it by hand to see more; `clusterlb check` shows what this machine allows"
            .into(),
    }
}

/// Reads lines in a thread. The thread ends when the last process that can write to the pipe has
/// ended.
fn lines_of(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut bytes = Vec::new();
        while matches!(source.read_until(b'\n', &mut bytes), Ok(1..)) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Remaining output of a process that has ended.
fn rest_of(lines: &Receiver<String>) -> Vec<String> {
    let deadline = Instant::now() + OUTPUT_PATIENCE;
    let mut rest = Vec::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        rest.push(line);
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("/bin/sh");
        Child::start("a shell", command.args(["-c", script])).expect("there is a shell")
    }

    fn exists(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    fn until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn output_is_heard_and_an_orderly_end_is_told() {
        let child = shell(
            "trap 'echo bye; echo oops >&2; exit 3' TERM; echo hi; \
                           while :; do sleep 0.01; done",
        );
        let first = child.output.recv_timeout(Duration::from_secs(20));
        assert_eq!(first.as_deref(), Ok("hi"));
        let ended = child.end(Signal::SIGTERM, Duration::from_secs(20));
        assert_eq!((ended.forced, ended.lines), (false, vec!["bye".to_owned()]));
        assert_eq!(ended.complaints, ["oops"]);
        assert_eq!(ended.status.and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn what_does_not_want_to_end_is_ended_with_all_it_has_started() {
        let child = shell("trap '' TERM; sleep 1000 & echo $!; kill -STOP $!; wait");
        let line = child.output.recv_timeout(Duration::from_secs(20)).expect("a number");
        let pid = line.parse().expect("a process id");
        assert!(exists(pid));
        let ended = child.end(Signal::SIGTERM, Duration::from_millis(50));
        assert!(ended.forced);
        until(|| !exists(pid));
    }

    #[test]
    fn what_is_forgotten_is_ended_too() {
        let child = shell("sleep 1000 & echo $!; wait");
        let line = child.output.recv_timeout(Duration::from_secs(20)).expect("a number");
        let pid = line.parse().expect("a process id");
        drop(child);
        until(|| !exists(pid));
    }

    #[test]
    fn failures_carry_the_last_words() {
        let error = failure("nginx", "ended at once", &["a".into(), "no port".into(), " ".into()]);
        assert_eq!(error.to_string(), "nginx ended at once (no port)");
        assert!(!matches!(error.kind(), ErrorKind::Usage | ErrorKind::Environment));
    }
}
