//! Reports to the service manager (`sd_notify(3)`): ready, reloading, stopping, figures, signs of
//! life, and the listening sockets that it keeps across a restart.
//!
//! Owns the messages, their timing, and the thread that sends them: a manager that does not read
//! blocks nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clusterlb::{Cluster, Result, SupervisorEvent, SupervisorHandle, SupervisorStage, WorkerState};
use clusterlb_sys::clock::monotonic_ns;
use clusterlb_sys::notify::ManagerSocket;
use clusterlb_sys::signal::spawn_without_signals;

/// Interval of figures.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// How long the primary's threads may take to answer before a sign of life is skipped.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// The service manager, if it started this process with a notify socket.
#[derive(Debug)]
pub(super) struct ServiceManager {
    notices: Option<Sender<Notice>>,
    thread: Option<JoinHandle<()>>,
    /// Listeners not served yet.
    listeners_left: usize,
}

/// A message for the thread.
#[derive(Debug)]
enum Notice {
    /// Sends these assignments.
    Text(String),
    /// A listener was opened: sends the assignments, then stores its socket.
    Served(Option<String>),
}

impl ServiceManager {
    /// The manager that `NOTIFY_SOCKET` names, for a run with this many listeners. A program that
    /// listens itself is ready with its first listener.
    ///
    /// # Errors
    /// Too few threads.
    pub(super) fn from_environment(
        listeners: usize,
        cluster: &Cluster,
        handle: &SupervisorHandle,
        given: Vec<String>,
    ) -> Result<Self> {
        let mut manager = Self { notices: None, thread: None, listeners_left: listeners.max(1) };
        let Some(socket) = ManagerSocket::from_environment() else { return Ok(manager) };
        let (notices, received) = channel();
        let teller = Teller {
            socket,
            cluster: cluster.clone(),
            handle: handle.clone(),
            watchdog: watchdog(
                std::process::id(),
                std::env::var("WATCHDOG_USEC").ok().as_deref(),
                std::env::var("WATCHDOG_PID").ok().as_deref(),
            ),
            given,
            kept: BTreeMap::new(),
            missed: BTreeSet::new(),
            figures: String::new(),
        };
        manager.notices = Some(notices);
        manager.thread =
            Some(spawn_without_signals("service-manager", move || teller.run(&received))?);
        Ok(manager)
    }

    /// Reports an event, if it concerns the manager.
    pub(super) fn on_event(&mut self, event: &SupervisorEvent) {
        let text = match event {
            SupervisorEvent::Listening { address, .. } => {
                let was_left = self.listeners_left;
                self.listeners_left = was_left.saturating_sub(1);
                let text = format!("READY=1\nSTATUS=serving {address}");
                return self.send(Notice::Served((was_left == 1).then_some(text)));
            }
            SupervisorEvent::Reloading { .. } => {
                let now_us = monotonic_ns() / 1000;
                format!("RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=replacing workers")
            }
            SupervisorEvent::Reloaded => "READY=1\nSTATUS=all workers are replaced".to_owned(),
            SupervisorEvent::ReloadStopped { reason } => {
                format!("READY=1\nSTATUS=replacing stopped: {}", reason.replace('\n', " "))
            }
            SupervisorEvent::Stopping { reason, .. } => format!("STATUS=stopping soon ({reason})"),
            SupervisorEvent::Draining { reason, .. } => {
                format!("STOPPING=1\nSTATUS=draining ({reason})")
            }
            _ => return,
        };
        self.send(Notice::Text(text));
    }

    fn send(&self, notice: Notice) {
        if let Some(notices) = &self.notices {
            // The thread receives until this end closes.
            let _ = notices.send(notice);
        }
    }
}

impl Drop for ServiceManager {
    /// Waits until all messages are sent.
    fn drop(&mut self) {
        drop(self.notices.take());
        if let Some(thread) = self.thread.take() {
            // A panic there leaves nothing to clean up here.
            let _ = thread.join();
        }
    }
}

/// The interval in which the manager wants a sign of life of this process, if it does.
fn watchdog(pid: u32, usec: Option<&str>, receiver: Option<&str>) -> Option<Duration> {
    let usec: u64 = usec?.parse().ok().filter(|usec| *usec > 0)?;
    let is_ours = receiver.is_none_or(|receiver| receiver.parse() == Ok(pid));
    is_ours.then(|| Duration::from_micros(usec))
}

/// The thread's state.
#[derive(Debug)]
struct Teller {
    socket: ManagerSocket,
    cluster: Cluster,
    handle: SupervisorHandle,
    watchdog: Option<Duration>,
    /// Bound addresses of the sockets that the manager passed, and therefore has.
    given: Vec<String>,
    /// Sockets that the manager keeps: their names and addresses.
    kept: BTreeMap<String, String>,
    /// Those missing at the last check.
    missed: BTreeSet<String>,
    figures: String,
}

impl Teller {
    fn run(mut self, notices: &Receiver<Notice>) {
        // Four signs of life per interval, so that a late or lost one does not end the run.
        let interval = self.watchdog.map_or(FIGURES_EVERY, |time| (time / 4).min(FIGURES_EVERY));
        let mut is_ready = false;
        let mut next = Instant::now() + interval;
        loop {
            match notices.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Notice::Text(text)) => self.socket.send(&text),
                Ok(Notice::Served(ready)) => {
                    // First of all messages: some managers read only one.
                    if let Some(text) = ready {
                        is_ready = true;
                        self.socket.send(&text);
                    }
                    if is_ready {
                        self.keep_sockets();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    next = Instant::now() + interval;
                    // A manager counts the time from READY=1 on.
                    if is_ready {
                        self.give_sign_of_life();
                        self.keep_sockets();
                        self.send_figures();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Only if the control plane and the data path have answered.
    fn give_sign_of_life(&self) {
        let Some(time) = self.watchdog else { return };
        if self.cluster.ping(ANSWER_LIMIT.min(time / 4)).is_ok() {
            self.socket.send("WATCHDOG=1");
        }
    }

    /// Stores the present sockets with the manager, and removes one that was closed here, once two
    /// checks miss it. At the end of the run all stay, for the next one.
    fn keep_sockets(&mut self) {
        let Ok(sockets) = self.cluster.listener_sockets() else { return };
        let stage = self.handle.snapshot().stage;
        if !matches!(stage, SupervisorStage::Starting | SupervisorStage::Serving) {
            return;
        }
        let mut missed: BTreeSet<String> = self.kept.keys().cloned().collect();
        for (_, address, socket) in sockets {
            if self.given.contains(&address) {
                continue;
            }
            let name = name_of(&address);
            missed.remove(&name);
            if self.kept.insert(name.clone(), address).is_none() {
                self.socket.send_with(&format!("FDSTORE=1\nFDNAME={name}"), socket.as_fd());
            }
        }
        for name in missed.intersection(&self.missed) {
            self.socket.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
            self.kept.remove(name);
        }
        self.missed = missed;
    }

    fn send_figures(&mut self) {
        let snapshot = self.handle.snapshot();
        let serving = |state| state == WorkerState::Serving;
        let serving = snapshot.workers.iter().filter(|one| serving(one.state)).count();
        let in_flight: u64 = snapshot.workers.iter().map(|one| one.counts.in_flight()).sum();
        let counts = self.cluster.counts();
        let accepted = counts.accepted + self.cluster.worker_counts().own;
        let figures = format!(
            "STATUS={serving} of {} workers serve; {in_flight} connections in flight, {accepted} \
             accepted, {} dropped",
            snapshot.slots.len(),
            counts.dropped
        );
        if figures != self.figures {
            self.socket.send(&figures);
            self.figures = figures;
        }
    }
}

/// A socket's name in the manager's store, where names have no colons.
fn name_of(address: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    format!("clusterlb-{}", address.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_that_of_this_process() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(7, Some("1000000"), Some("7")), second);
        assert_eq!(watchdog(7, Some("1000000"), None), second);
        for (usec, pid) in
            [(None, None), (Some("0"), None), (Some("x"), None), (Some("1"), Some("8"))]
        {
            assert_eq!(watchdog(7, usec, pid), None, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn names_in_the_store_have_no_colons() {
        assert_eq!(name_of("[::1]:80"), "clusterlb----1--80");
        assert_ne!(name_of("127.0.0.1:80"), name_of("127.0.0.1:81"));
    }
}
