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
        let is_counted = settings.program.as_ref().is_none_or(counts);
        Self {
            dispatch: (!none).then_some(settings.dispatch),
            form: by_kernel.then(|| Form::find(is_counted).among(workers)),
            is_uncounted: (none || by_kernel) && !is_counted,
        }
    }

    /// The words about a policy at the start.
    pub(super) fn in_words(&self, policy: Policy) -> String {
        match &self.form {
            Some(form) => format!("{policy}, dispatch kernel: {form}"),
            None => format!("{policy} (the primary accepts and hands over)"),
        }
    }

    /// Who dispatches a listener's connections, and in which form. A unix socket is only one, so
    /// the kernel cannot choose among several.
    pub(super) fn at(&self, address: &str) -> (Option<Dispatch>, Option<&'static str>) {
        match &self.form {
            Some(_) if is_single(address) => (Some(Dispatch::Primary), None),
            form => (self.dispatch, form.as_ref().map(|decision| decision.form.name())),
        }
    }

    /// A remark about a listener.
    pub(super) fn note(&self, address: &str) -> Option<String> {
        let is_exception = self.form.is_some() && is_single(address);
        is_exception
            .then(|| format!("{address} is one socket for all workers: the primary dispatches it"))
    }
}

fn is_single(address: &str) -> bool {
    address.starts_with("unix:")
}
