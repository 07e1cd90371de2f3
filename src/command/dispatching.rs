//! Who dispatches connections to workers in a run, and the words for it.

use clusterlb::{Dialect, Dispatch, Policy};
use clusterlb_sys::steering::{Form, FormDecision};

use super::settings::{Program, Settings};

/// Who dispatches connections to workers.
#[derive(Clone, Debug)]
pub(super) struct Dispatching {
    /// None if workers accept.
    dispatch: Option<Dispatch>,
    /// How the kernel chooses, if it does.
    form: Option<FormDecision>,
    /// Workers accept and report no counts.
    pub(super) is_uncounted: bool,
    /// Workers accept from sockets that all of them have, too.
    shares: bool,
    /// Addresses of inherited sockets.
    inherited: Vec<String>,
}

impl Dispatching {
    /// As the settings ask for it and this machine allows it, for this many workers.
    pub(super) fn decide(settings: &Settings, workers: usize) -> Self {
        let none = settings.policy == Policy::None;
        let by_kernel = settings.dispatch == Dispatch::Kernel;
        let counts = |program: &Program| match program.dialect {
            Dialect::Native => true,
            // The preload counts for the kernel's dispatch only.
            Dialect::Node => by_kernel && settings.preload,
            Dialect::ListenFds => false,
        };
        let shares = |program: &Program| program.dialect == Dialect::ListenFds;
        let is_counted = settings.program.as_ref().is_none_or(counts);
        Self {
            dispatch: (!none).then_some(settings.dispatch),
            form: by_kernel.then(|| Form::find(is_counted).among(workers)),
            is_uncounted: (none || by_kernel) && !is_counted,
            shares: settings.program.as_ref().is_some_and(shares),
            inherited: Vec::new(),
        }
    }

    /// The same with sockets that were passed to this process.
    pub(super) fn with_inherited(&self, addresses: &[String]) -> Self {
        Self { inherited: addresses.to_vec(), ..self.clone() }
    }

    /// The words about a policy at the start.
    pub(super) fn in_words(&self, policy: Policy) -> String {
        match &self.form {
            Some(form) => format!("{policy}, dispatch kernel: {form}"),
            None => format!("{policy} (the primary accepts and hands over)"),
        }
    }

    /// Who dispatches a listener's connections, and in which form. A unix socket is only one, and
    /// so is an inherited one: the kernel cannot choose among several.
    pub(super) fn at(&self, address: &str) -> (Option<Dispatch>, Option<&'static str>) {
        match &self.form {
            Some(_) if self.is_single(address) => {
                ((!self.shares).then_some(Dispatch::Primary), None)
            }
            form => (self.dispatch, form.as_ref().map(|decision| decision.form.name())),
        }
    }

    /// A remark about a listener.
    pub(super) fn note(&self, address: &str) -> Option<String> {
        let is_exception = self.form.is_some() && self.is_single(address);
        let who = match self.shares {
            true => "the one that is first accepts",
            false => "the primary dispatches it",
        };
        is_exception.then(|| format!("{address} is one socket for all workers: {who}"))
    }

    fn is_single(&self, address: &str) -> bool {
        address.starts_with("unix:") || self.inherited.iter().any(|one| one == address)
    }
}
