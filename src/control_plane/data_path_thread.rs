//! The thread of the primary's data path, as the control plane holds it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::EventFd;

use crate::cluster::ClusterSettings;
use crate::cluster::mailbox::{EndBell, Ended, new_bell, ring, silence};
use crate::data_path::{ClusterCounts, Command, Lines, Primary, Report};
use crate::error::{Error, Result, errno_of};

/// The running data path.
#[derive(Debug)]
pub(crate) struct DataPath {
    commands: Sender<Command>,
    reports: Receiver<Report>,
    bell: Arc<EventFd>,
    report_bell: Arc<EventFd>,
    /// The thread ends, for whatever reason.
    ended: Ended,
    thread: Option<JoinHandle<Result<()>>>,
}

impl DataPath {
    /// Starts the thread and waits until it has its ring. `bell` is what workers ring.
    ///
    /// # Errors
    /// The machine refuses a ring, or the CPU.
    pub(crate) fn start(settings: &ClusterSettings, bell: Arc<EventFd>) -> Result<Self> {
        let report_bell = new_bell()?;
        let (commands, commands_out) = channel();
        let (reports_in, reports) = channel();
        let lines = Lines {
            commands: commands_out,
            reports: reports_in,
            bell: Arc::clone(&bell),
            report_bell: Arc::clone(&report_bell),
        };
        let (started, has_started) = mpsc::sync_channel(1);
        let (policy, scheduling, backlog) =
            (settings.policy, settings.scheduling.clone(), settings.backlog);
        let (workers, cpu) = (settings.workers_expected.get(), settings.primary_cpu);
        let (end_bell, ended) = EndBell::new(Arc::clone(&report_bell));
        let body = move || {
            let _end_bell = end_bell;
            let prepared = cpu
                .map_or(Ok(()), crate::sys::cpu::pin_to)
                .and_then(|()| Primary::new(policy, scheduling, workers, backlog, lines));
            match prepared {
                Ok(primary) => {
                    let _ = started.send(Ok(()));
                    primary.run()
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                    Ok(())
                }
            }
        };
        let thread = thread::Builder::new().name("data-path".into()).spawn(body);
        let thread = thread
            .map_err(|error| Error::system("start the data path's thread", errno_of(&error)))?;
        has_started.recv().unwrap_or_else(|_| Err(died()))?;
        Ok(Self { commands, reports, bell, report_bell, ended, thread: Some(thread) })
    }

    /// Asks for something.
    pub(crate) fn command(&self, command: Command) {
        // A data path that has ended has told so; there is nothing more to ask of it.
        let _ = self.commands.send(command);
        ring(&self.bell);
    }

    /// The sending end, for somebody else who commands.
    pub(crate) fn commands(&self) -> Sender<Command> {
        self.commands.clone()
    }

    /// What it has reported since the last call.
    ///
    /// # Errors
    /// It has ended without being asked to.
    pub(crate) fn reports(&mut self) -> Result<Vec<Report>> {
        silence(&self.report_bell);
        // Looked at first: what was reported before the end is there, then.
        let ended = self.ended.is_so();
        let reports: Vec<Report> = self.reports.try_iter().collect();
        if ended && !reports.iter().any(|report| matches!(report, Report::Ended(_))) {
            self.join()?;
            return Err(died());
        }
        Ok(reports)
    }

    /// Drops what could not be handed over, ends the thread and tells the sums.
    ///
    /// # Errors
    /// What the data path failed with.
    pub(crate) fn end(mut self) -> Result<ClusterCounts> {
        self.command(Command::End);
        self.join()?;
        let totals = self.reports.try_iter().find_map(|report| match report {
            Report::Ended(totals) => Some(totals),
            _ => None,
        });
        totals.ok_or_else(died)
    }

    /// Waits for the thread's end.
    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(died()),
            None => Ok(()),
        }
    }
}

impl Drop for DataPath {
    /// No thread goes on accepting that nobody commands.
    fn drop(&mut self) {
        self.command(Command::End);
        // Whatever it failed with, it has ended now, which is what was wanted.
        let _ = self.join();
    }
}

impl AsFd for DataPath {
    /// Readable when there are reports.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report_bell.as_fd()
    }
}

fn died() -> Error {
    Error::Workers {
        what: "the primary's data path ended unexpectedly".into(),
        hint: "this is a defect of clusterlb; the messages above it say where".into(),
    }
}
