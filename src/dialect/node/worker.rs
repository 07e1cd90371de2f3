//! One Node worker as the control plane knows it. Its channel belongs to the bridge.
//!
//! Owns what it inherits, its variables, and when it gets a signal because it does not exit.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::bridge::{NewNodeWorker, SendQuota};
use super::environment;
use super::messages::MessageChannel;
use super::preload::{self, Preload, Reporting};
use super::session::WindowRule;
use crate::data_path::NewLink;
use crate::dialect::{Descriptors, Named, Spawn};
use crate::error::Result;
use crate::id::ListenerId;
use crate::protocol::control::Serialization;
use crate::protocol::environment as variable;
use crate::schedule::CreditRule;
use crate::settings::ClusterSettings;
use crate::sys::activity::CpuTime;
use crate::sys::fdpass::duplicate;

/// How often a worker without the preload is looked at once its channel has ended. If it has used
/// no CPU in between it gets SIGTERM. One that keeps nothing open exits on its own.
const LOOK_NS: u64 = 100_000_000;
/// The name of the inherited link to the preload's script. There is no variable of this name.
const LINK: &str = "link";

/// A worker that is about to be started.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// What it loads before its program.
    pub(crate) preload: Option<&'a Preload>,
}

/// A worker that runs.
#[derive(Debug)]
pub(crate) struct State {
    /// What the bridge needs, until it gets it.
    pub(crate) new_worker: Option<Box<NewNodeWorker>>,
    /// The listeners that it was given and has not announced to listen on, oldest first.
    pub(crate) unannounced: Vec<ListenerId>,
    /// Set once it has left and its program may not exit.
    leftover: Option<Leftover>,
}

/// A worker that has left and cannot report what it has open.
#[derive(Clone, Copy, Debug)]
struct Leftover {
    look_ns: u64,
    /// The CPU time that it had used when it was last looked at, if it was asleep.
    asleep_at: Option<CpuTime>,
}

/// Splits a channel between the bridge and the worker's handles.
pub(in crate::dialect) fn split(
    settings: &ClusterSettings,
    channel: OwnedFd,
    link: &NewLink,
) -> Result<(State, MessageChannel)> {
    let serialization = serialization_of(settings.serialization);
    let new_worker = NewNodeWorker {
        channel,
        serialization,
        window: match settings.scheduling.credits {
            CreditRule::Adaptive => WindowRule::default(),
            CreditRule::Fixed(count) => WindowRule::fixed(count),
        },
        inbox: duplicate(&link.receiver)?,
        page: duplicate(&link.page)?,
    };
    let state =
        State { new_worker: Some(Box::new(new_worker)), unannounced: Vec::new(), leftover: None };
    Ok((state, MessageChannel::new(serialization, SendQuota::default())))
}

/// The debugger's port, after the options that it overrides, as by Node's primary.
pub(in crate::dialect) fn options(spawn: &Spawn<'_>) -> Vec<OsString> {
    spawn.inspect_port.map(|port| format!("--inspect-port={port}").into()).into_iter().collect()
}

impl Start<'_> {
    /// What it inherits: the channel, and for the preload the page, the waker, the inbox and the
    /// link.
    pub(in crate::dialect) fn inherited<'b>(
        &'b self,
        descriptors: &Descriptors<'b>,
    ) -> Vec<Named<BorrowedFd<'b>>> {
        let Descriptors { control, page, waker, inbox } = *descriptors;
        let mut inherited = vec![(variable::CONTROL, control.as_fd())];
        if let Some(preload) = self.preload {
            inherited.push((variable::BOARD, page.as_fd()));
            inherited.push((variable::WAKER, waker.as_fd()));
            inherited.extend(inbox.map(|inbox| (variable::INBOX, inbox.as_fd())));
            inherited.extend(preload.link().map(|link| (LINK, link)));
        }
        inherited
    }

    pub(in crate::dialect) fn add_variables(
        &self,
        spawn: &Spawn<'_>,
        inherited: &[Named<OwnedFd>],
        variables: &mut Vec<(OsString, OsString)>,
    ) {
        let number = |wanted: &str| {
            let found = inherited.iter().find(|(name, _)| *name == wanted);
            found.map_or(-1, |(_, descriptor)| descriptor.as_raw_fd())
        };
        let settings = spawn.settings;
        if let Some(preload) = self.preload {
            let options =
                preload::options_of(variables, &settings.exec_argv, settings.cwd.as_deref());
            let reporting = Reporting {
                page: number(variable::BOARD),
                waker: number(variable::WAKER),
                inbox: number(variable::INBOX),
                link: number(LINK),
                hang_after: settings.scheduling.hang_after_ns.map(Duration::from_nanos),
            };
            let own = preload.variables(reporting, options.as_deref());
            variables.extend(own);
        }
        let serialization = serialization_of(settings.serialization);
        let own = environment(spawn.id, number(variable::CONTROL), serialization);
        variables.extend(own.map(|(name, value)| (name.into(), value.into())));
    }
}

impl State {
    /// Its channel has ended, and it has no preload that lets it exit once it serves nothing.
    pub(crate) fn on_left(&mut self, now_ns: u64) {
        let look_ns = now_ns.saturating_add(LOOK_NS);
        self.leftover = Some(Leftover { look_ns, asleep_at: None });
    }

    /// When it is looked at next.
    pub(crate) fn look_ns(&self) -> Option<u64> {
        self.leftover.map(|leftover| leftover.look_ns)
    }

    /// Looks at it if that is due. `asleep_at` reads its CPU time if it sleeps. Returns whether it
    /// has done nothing since the last look and should be terminated.
    pub(crate) fn is_idle_leftover(
        &mut self,
        now_ns: u64,
        asleep_at: impl FnOnce() -> Option<CpuTime>,
    ) -> bool {
        let due = self.leftover.take_if(|leftover| leftover.look_ns <= now_ns);
        let Some(before) = due else { return false };
        let asleep_at = asleep_at();
        if asleep_at.is_some() && asleep_at == before.asleep_at {
            return true;
        }
        let look_ns = now_ns.saturating_add(LOOK_NS);
        self.leftover = Some(Leftover { look_ns, asleep_at });
        false
    }
}

/// The format of the channel.
fn serialization_of(serialization: Serialization) -> super::Serialization {
    match serialization {
        Serialization::Json => super::Serialization::Json,
        Serialization::Advanced => super::Serialization::Advanced,
    }
}
