//! Makes processes slow by stopping and continuing them in turns, so that any server can have
//! unequal workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::queueing::Speed;

/// How long they run in each turn: enough to take a request, or to answer one.
const RUNS: Duration = Duration::from_micros(300);
/// How long they are stopped in each turn. A worker that blocks for a millisecond a request then
/// does about one in each turn, a quarter of what it could.
const STOPPED: Duration = Duration::from_micros(4_000);

/// What this makes of a worker.
pub const SPEED: Speed = Speed::InTurns { stopped: STOPPED, runs: RUNS };

/// The processes are slow as long as this lives.
#[derive(Debug)]
pub struct DutyCycle {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DutyCycle {
    /// Makes these processes slow; nothing happens for none.
    #[must_use]
    pub fn of(processes: &[u32]) -> Self {
        let processes = processes.iter().filter_map(|pid| i32::try_from(*pid).ok());
        let processes: Vec<Pid> = processes.map(Pid::from_raw).collect();
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let thread = (!processes.is_empty()).then(|| thread::spawn(move || run(processes, &told)));
        Self { ended, thread }
    }
}

/// A process that has ended gets no further signals: its number may be reused.
fn run(mut processes: Vec<Pid>, ended: &AtomicBool) {
    let mut signal = |signal| processes.retain(|process| kill(*process, signal).is_ok());
    while !ended.load(Ordering::Relaxed) {
        signal(Signal::SIGSTOP);
        thread::sleep(STOPPED);
        signal(Signal::SIGCONT);
        thread::sleep(RUNS);
    }
}

impl Drop for DutyCycle {
    /// The processes go on.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // The thread ends with the processes continued.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_goes_on_when_it_is_no_longer_slowed() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a process");
        drop(DutyCycle::of(&[child.id()]));
        // It ends because its input does, which a stopped process would not notice.
        drop(child.stdin.take());
        assert!(child.wait().expect("it ends").success());
    }

    #[test]
    fn ended_processes_cause_no_error() {
        let mut child = Command::new("true").spawn().expect("a process");
        let slowed = DutyCycle::of(&[child.id()]);
        child.wait().expect("it ends");
        thread::sleep(2 * STOPPED);
        drop(slowed);
        drop(DutyCycle::of(&[]));
    }
}
