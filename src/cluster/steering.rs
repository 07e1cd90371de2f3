//! Changes to a cluster while it accepts, and a check that it responds.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Cluster;
use crate::control_plane::check_form;
use crate::error::{Error, ErrorKind, Result};
use crate::handle::{Event, Request};
use crate::id::ListenerId;
use crate::schedule::SchedulerConfig;
use crate::settings::Policy;
use crate::sys::listener::Listener;

impl Cluster {
    /// Changes the policy or the scheduling rules. Open connections stay where they are. Publishes
    /// [`Event::Setup`]. [`scheduler`](SchedulerConfig::scheduler) and
    /// [`credits_max`](SchedulerConfig::credits_max) keep their values.
    ///
    /// ```
    /// use clusterlb::{Cluster, Policy};
    ///
    /// let cluster = Cluster::with_policy(Policy::Rr)?;
    /// cluster.reschedule(|policy, rules| {
    ///     *policy = Policy::Least;
    ///     rules.limits.inflight_max = Some(100);
    /// })?;
    /// assert_eq!(cluster.scheduling_policy(), Policy::Least);
    /// # Ok::<(), clusterlb::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Usage`]: from or to [`Policy::None`], because workers have been given listening
    /// sockets, or connections, permanently; the policy, while a custom scheduler chooses. The
    /// cluster has failed. [`Error::Environment`]: the kernel dispatches and cannot follow the
    /// policy here. Nothing is changed then.
    ///
    /// # Panics
    /// If `change` does; nothing is changed then. It must not call this cluster.
    pub fn reschedule(&self, change: impl FnOnce(&mut Policy, &mut SchedulerConfig)) -> Result<()> {
        let mut setup = self.setup();
        let mut settings = (*setup.settings).clone();
        change(&mut settings.policy, &mut settings.scheduling);
        let (before, after) = (setup.settings.policy, settings.policy);
        if before != after && (before == Policy::None || after == Policy::None) {
            return Err(Error::usage(
                format!("the policy cannot change from {before} to {after} during a run"),
                "start another run: under none the workers accept themselves",
            ));
        }
        if before != after && setup.settings.scheduling.scheduler.is_some() {
            return Err(Error::usage(
                "the policy cannot change while a scheduler of the program's own chooses",
                "change what that scheduler does",
            ));
        }
        settings.validate()?;
        check_form(&settings)?;
        let scheduling = Box::new(settings.scheduling.clone());
        self.shared.control.send(Request::Reschedule { policy: after, scheduling })?;
        setup.settings = Arc::new(settings);
        let settings = Arc::clone(&setup.settings);
        // Under the lock, so that setups are published in order.
        self.shared.bus.publish(&Event::Setup { settings });
        Ok(())
    }

    /// Keeps a listening socket that this process was given, by a service manager or an earlier
    /// run: a request for the address it is bound to gets this socket instead of a new one. Returns
    /// the address.
    ///
    /// # Errors
    /// It is not a listening stream socket; the cluster has ended, or failed.
    pub fn adopt(&self, socket: OwnedFd) -> Result<String> {
        let listener = Box::new(Listener::from_passed(socket)?);
        self.shared.control.ask(|answer| Request::Adopt { listener, answer })
    }

    /// Duplicates of the listening TCP sockets that workers share, with their bound addresses: for
    /// a service manager, or another process, that keeps them open. Connections wait in them while
    /// nothing accepts. Closes none.
    ///
    /// # Errors
    /// The cluster has ended, or failed.
    pub fn listener_sockets(&self) -> Result<Vec<(ListenerId, String, OwnedFd)>> {
        self.shared.control.ask(|answer| Request::Sockets { answer })
    }

    /// Waits for an answer of the control plane, and through it of the data path: both have
    /// finished a turn of their loops.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: no answer in this time; the cluster has ended, or failed.
    pub fn ping(&self, within: Duration) -> Result<()> {
        let answer = self.shared.control.ask_within(within, |answer| Request::Ping { answer })?;
        answer.ok_or_else(|| {
            Error::cluster(
                ErrorKind::Busy,
                format!("the primary has not answered within {within:?}"),
                "look at what it is doing; it may be stopped, or starved of CPU",
            )
        })
    }
}
