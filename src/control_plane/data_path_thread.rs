//! The control plane's handle of the data path's thread.

use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;

use crate::data_path::{
    ClusterCounts, Command, DataPath, DataPathReport, Endpoints, LiveCounts, OwnSocketRules,
};
use crate::error::{Error, ErrorKind, Result, errno_of};
use crate::schedule::Dispatch;
use crate::settings::{ClusterSettings, Dialect};
use crate::sync::mailbox::{EndWaker, Ended};
use crate::sys::engine::EngineKind;
use crate::sys::steering::{Form, FormDecision};
use crate::sys::waker::Waker;

/// The running data path.
#[derive(Debug)]
pub(crate) struct DataPathThread {
    commands: Sender<Command>,
    reports: Receiver<DataPathReport>,
    waker: Arc<Waker>,
    report_waker: Arc<Waker>,
    /// What waits in a socket that no worker has stays there until one has it.
    pub(super) leaves_queues: bool,
    /// Resolves when the thread ends, for any reason.
    ended: Ended,
    thread: Option<JoinHandle<Result<()>>>,
}

/// How workers' own sockets are managed.
fn own_socket_rules(settings: &ClusterSettings) -> Result<OwnSocketRules> {
    check_form(settings)?;
    let is_counted = settings.is_counted_by_kernel();
    Ok(OwnSocketRules {
        is_steered: settings.dispatch == Dispatch::Kernel,
        is_counted,
        lacks_inboxes: settings.dialect == Dialect::ListenFds,
        is_exact: settings.dispatch == Dispatch::Kernel
            && Form::find(is_counted).form == Form::Exact,
    })
}

/// Checks that the kernel can follow the policy here, if it dispatches.
///
/// # Errors
/// The policy takes the workers' counters, which the kernel cannot read here.
pub(crate) fn check_form(settings: &ClusterSettings) -> Result<()> {
    if !settings.dispatch.takes_counters(settings.policy) {
        return Ok(());
    }
    let is_counted = settings.is_counted_by_kernel();
    match Form::find(is_counted) {
        FormDecision { form: Form::Exact, .. } if is_counted || !settings.takes_times() => Ok(()),
        FormDecision { reason, .. } => Err(Error::Environment {
            step: format!("let the kernel dispatch by the policy {}", settings.policy),
            source: Errno::EPERM.into(),
            hint: format!(
                "it takes the form exact, and here: {reason}; give the primary CAP_BPF and workers \
                 that count, use the policy rr or least, or leave dispatching to the primary"
            ),
        }),
    }
}

impl DataPathThread {
    /// Starts the thread and waits until it has its engine. Workers wake `waker`, and the counts
    /// are published in `live_counts`.
    ///
    /// # Errors
    /// The machine refuses the engine, or the CPU.
    pub(crate) fn start(
        settings: &ClusterSettings,
        engine: EngineKind,
        waker: Arc<Waker>,
        live_counts: Arc<LiveCounts>,
    ) -> Result<Self> {
        let report_waker = Arc::new(Waker::new()?);
        let (commands, commands_out) = channel();
        let (reports_in, reports) = channel();
        let endpoints = Endpoints {
            commands: commands_out,
            reports: reports_in,
            waker: Arc::clone(&waker),
            report_waker: Arc::clone(&report_waker),
            live_counts,
        };
        let (started, has_started) = mpsc::sync_channel(1);
        let (policy, scheduling, backlog) =
            (settings.policy, settings.scheduling.clone(), settings.backlog);
        let (workers, cpu) = (settings.workers_expected.get(), settings.primary_cpu);
        let own_sockets = own_socket_rules(settings)?;
        let leaves_queues = own_sockets.lacks_inboxes && !own_sockets.is_exact;
        let (end_bell, ended) = EndWaker::new(Arc::clone(&report_waker));
        // Counted before the thread is pinned to one of them.
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let body = move || {
            let _end_bell = end_bell;
            let prepared = cpu.map_or(Ok(()), crate::sys::cpu::pin_to).and_then(|()| {
                DataPath::new(engine, policy, scheduling, workers, backlog, endpoints)
                    .map(|data_path| data_path.with_own_sockets(own_sockets))
            });
            match prepared {
                Ok(primary) => {
                    let _ = started.send(Ok(()));
                    primary.with_cpus(cpus).run()
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
        let thread = Some(thread);
        Ok(Self { commands, reports, waker, report_waker, leaves_queues, ended, thread })
    }

    /// Sends a command.
    pub(crate) fn command(&self, command: Command) {
        // A data path that has ended has reported it and takes no more commands.
        let _ = self.commands.send(command);
        self.waker.wake();
    }

    /// The sending end, for the bridge.
    pub(crate) fn commands(&self) -> Sender<Command> {
        self.commands.clone()
    }

    /// Its reports since the last call.
    ///
    /// # Errors
    /// It has ended unasked.
    pub(crate) fn reports(&mut self) -> Result<Vec<DataPathReport>> {
        self.report_waker.clear();
        // Checked first: reports from before the end are then in the queue.
        let ended = self.ended.is_so();
        let reports: Vec<DataPathReport> = self.reports.try_iter().collect();
        if ended && !reports.iter().any(|report| matches!(report, DataPathReport::Ended(_))) {
            self.join()?;
            return Err(died());
        }
        Ok(reports)
    }

    /// Drops what could not be handed over, ends the thread and returns the sums.
    ///
    /// # Errors
    /// The data path's error.
    pub(crate) fn end(mut self) -> Result<ClusterCounts> {
        self.command(Command::End);
        self.join()?;
        let totals = self.reports.try_iter().find_map(|report| match report {
            DataPathReport::Ended(totals) => Some(totals),
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

impl Drop for DataPathThread {
    /// Ends the thread, which can no longer receive commands.
    fn drop(&mut self) {
        self.command(Command::End);
        // It has ended, which was the goal; its error does not matter.
        let _ = self.join();
    }
}

impl AsFd for DataPathThread {
    /// Readable when there are reports.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report_waker.as_fd()
    }
}

fn died() -> Error {
    Error::cluster(
        ErrorKind::Defect,
        "the primary's data path ended unexpectedly",
        "this is a defect of clusterlb; the messages above it say where",
    )
}
