//! The control plane of the primary: starts workers, replaces them, drains, ends.
//!
//! Owns processes, listeners and the run's books. Nothing here is on a connection's way: the data
//! path is another thread, and under the policy `none` there is none.

mod birth;
mod death;
mod ending;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::Signal;

use super::data_path::{DataPath, new_bell};
use super::event::Event;
use super::listeners::Listeners;
use super::member::Member;
use super::restart::Budget;
use super::summary::Summary;
use crate::error::{Error, Result};
use crate::id::WorkerId;
use crate::primary::Command;
use crate::settings::{AcceptMechanism, Policy, Settings};
use crate::sys::clock::monotonic_ns;
use crate::sys::listener::ListenOptions;
use crate::sys::probe::FeatureLevel;
use crate::sys::process::Ending;
use crate::sys::signal::Signals;
use crate::topology::CpuPlan;

/// How long the first workers may take to serve. Far more than a busy machine needs for a thousand
/// of them: one that is slower than this is stuck.
const START_NS: u64 = 60_000_000_000;
/// How long after the grace period a worker that does not end by itself is left alone.
const KILL_SLACK_NS: u64 = 250_000_000;

/// A signal that follows the first this closely is its echo, not a second one.
const ECHO_NS: u64 = 50_000_000;

const SIGNALS: u64 = 0;
const REPORTS: u64 = 1;
/// Tokens of workers: their id, and one bit for which of the two descriptors.
const PROCESS: u64 = 1 << 32;
const CHANNEL: u64 = 1 << 33;

/// A place for a worker.
#[derive(Debug, Default)]
struct Place {
    occupant: Occupant,
    budget: Budget,
}

#[derive(Debug, Default)]
enum Occupant {
    /// Nobody, and nobody will come.
    #[default]
    Nobody,
    /// Nobody, until this moment.
    Awaited { at_ns: u64 },
    /// A worker.
    Alive(Box<Member>),
    /// Its process has ended; the data path still has to say what it left behind.
    Ended(Box<Member>, Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The first workers are on their way.
    Starting {
        until_ns: u64,
    },
    Serving,
    /// The data path hands over what it has and closes so many listeners.
    Quiescing {
        left: usize,
    },
    /// The workers finish what they have.
    Draining,
    /// Everybody has been killed, or told to end at once.
    Killing,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The books.
    pub summary: Summary,
    /// The signal that cut the end short.
    pub forced_by: Option<Signal>,
    /// Why the run could not go on.
    pub failure: Option<Error>,
}

/// A run.
pub struct Supervisor<'a> {
    settings: &'a Settings,
    plan: &'a CpuPlan,
    level: FeatureLevel,
    on_event: &'a mut dyn FnMut(Event),
    epoll: Epoll,
    signals: Signals,
    listeners: Listeners,
    bell: Arc<EventFd>,
    data: Option<DataPath>,
    places: Vec<Place>,
    next_id: u32,
    stage: Stage,
    stopped_ns: u64,
    cut_ns: Option<u64>,
    summary: Summary,
    forced_by: Option<Signal>,
    failure: Option<Error>,
    /// A worker has ended with an error and stayed dead.
    lost_worker: bool,
}

impl std::fmt::Debug for Supervisor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl<'a> Supervisor<'a> {
    /// Opens the listeners and starts the data path and the workers.
    ///
    /// # Errors
    /// An address is not to be had, or the machine refuses what is needed. Nothing is left behind.
    pub fn start(
        settings: &'a Settings,
        plan: &'a CpuPlan,
        level: FeatureLevel,
        on_event: &'a mut dyn FnMut(Event),
    ) -> Result<Self> {
        let signals =
            Signals::receive(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT])?;
        let options = ListenOptions {
            backlog: settings.backlog,
            share_port: settings.policy == Policy::None
                && settings.accept == AcceptMechanism::Reuseport,
        };
        let listeners = Listeners::open(&settings.listen, options, plan.workers.len())?;
        let failed = |errno| Error::system("create an epoll set", errno);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let bell = new_bell()?;
        let mut supervisor = Self {
            settings,
            plan,
            level,
            on_event,
            epoll,
            signals,
            listeners,
            bell,
            data: None,
            places: plan.workers.iter().map(|_| Place::default()).collect(),
            next_id: 1,
            stage: Stage::Starting { until_ns: monotonic_ns() + START_NS },
            stopped_ns: 0,
            cut_ns: None,
            summary: Summary::default(),
            forced_by: None,
            failure: None,
            lost_worker: false,
        };
        supervisor.start_data_path()?;
        supervisor.watch(&supervisor.signals, SIGNALS)?;
        for slot in 0..supervisor.places.len() {
            supervisor.fork(slot)?;
        }
        Ok(supervisor)
    }

    fn start_data_path(&mut self) -> Result<()> {
        if self.settings.policy == Policy::None {
            return Ok(());
        }
        let data = DataPath::start(
            self.settings.rules.clone(),
            self.plan.workers.len(),
            self.settings.backlog,
            self.plan.primary,
            Arc::clone(&self.bell),
        )?;
        self.watch(&data, REPORTS)?;
        for (id, listener) in self.listeners.shared() {
            data.command(Command::AddListener { id, listener });
        }
        self.data = Some(data);
        Ok(())
    }

    fn watch(&self, descriptor: &impl AsFd, token: u64) -> Result<()> {
        self.epoll
            .add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .map_err(|errno| Error::system("watch a descriptor (epoll_ctl)", errno))
    }

    fn tell(&mut self, event: Event) {
        (self.on_event)(event);
    }

    /// Runs until the end and gives the books.
    ///
    /// # Errors
    /// The control plane itself failed. Workers are ended all the same.
    pub fn run(mut self) -> Result<Outcome> {
        let mut ready = [EpollEvent::empty(); 64];
        while !self.is_over() {
            let timeout = self.until_next_deadline();
            let count = match self.epoll.wait(&mut ready, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(Error::system("wait for events (epoll)", errno)),
            };
            for event in &ready[..count] {
                self.attend(event.data())?;
            }
            self.attend_to_time()?;
        }
        self.close_books()
    }

    fn attend(&mut self, token: u64) -> Result<()> {
        match token {
            SIGNALS => {
                while let Some(signal) = self.signals.next_signal()? {
                    self.stop(signal);
                }
            }
            REPORTS => {
                let reports = self.data.as_mut().map_or(Ok(vec![]), DataPath::reports);
                match reports {
                    Ok(reports) => reports.into_iter().for_each(|report| self.heed(report)),
                    Err(error) => self.fail(error),
                }
            }
            _ => {
                let id = WorkerId(u32::try_from(token & 0xffff_ffff).unwrap_or(0));
                let found = self.places.iter().position(
                    |place| matches!(&place.occupant, Occupant::Alive(member) if member.id == id),
                );
                match found {
                    Some(slot) if token & PROCESS != 0 => self.reap(slot)?,
                    Some(slot) => self.hear(slot)?,
                    // The event of a descriptor that was closed in this very round.
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn until_next_deadline(&self) -> EpollTimeout {
        let awaited = self.places.iter().filter_map(|place| match place.occupant {
            Occupant::Awaited { at_ns } => Some(at_ns),
            _ => None,
        });
        let start = match self.stage {
            Stage::Starting { until_ns } => Some(until_ns),
            _ => None,
        };
        let cut = self.cut_ns.filter(|_| self.stage != Stage::Killing);
        let cut = cut.map(|cut_ns| cut_ns.saturating_add(KILL_SLACK_NS));
        let hung = (0..self.places.len()).filter_map(|slot| self.hang_deadline_ns(slot));
        let next_ns = awaited.chain(start).chain(cut).chain(hung).min();
        next_ns.map_or(EpollTimeout::NONE, |next_ns| {
            let left = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
            // Rounded up: waking a moment too early would make the loop spin until the time.
            let left_ms = u16::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX);
            EpollTimeout::from(left_ms)
        })
    }

    fn attend_to_time(&mut self) -> Result<()> {
        let now_ns = monotonic_ns();
        self.kill_hung(now_ns);
        for slot in 0..self.places.len() {
            if matches!(self.places[slot].occupant, Occupant::Awaited { at_ns } if at_ns <= now_ns)
            {
                self.fork_again(slot)?;
            }
        }
        match self.stage {
            Stage::Starting { until_ns } if until_ns <= now_ns => self.fail(Error::Workers {
                what: format!("the workers were not ready after {} s", START_NS / 1_000_000_000),
                hint: "a machine this busy cannot run them; try fewer with --workers".into(),
            }),
            Stage::Quiescing { .. } | Stage::Draining => {
                let cut_ns = self.cut_ns.unwrap_or(u64::MAX).saturating_add(KILL_SLACK_NS);
                if cut_ns <= now_ns {
                    self.kill_all("the grace period is over".into());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn close_books(mut self) -> Result<Outcome> {
        if let Some(mut data) = self.data.take() {
            data.command(Command::End);
            data.join()?;
            for report in data.reports()? {
                self.heed(report);
            }
        } else {
            self.summary.accepted = self.summary.workers.iter().map(|one| one.assigned).sum();
        }
        self.summary.close();
        Ok(Outcome { summary: self.summary, forced_by: self.forced_by, failure: self.failure })
    }
}
