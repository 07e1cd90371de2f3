//! The chooser of a listener: a built-in policy, or a custom scheduler. Pure.
//!
//! Owns the promise that no worker gets a connection that it cannot take: the choice of a custom
//! scheduler is checked, that of a built-in one need not be.

use std::fmt;
use std::sync::Arc;

use super::filter::Skips;
use super::picker::Picker;
use super::{Client, Loads, Scheduler, WorkerLoad};
use crate::id::{ListenerId, Slot};

/// Makes a scheduler for each listener of a run, so that each listener spreads its connections
/// separately.
///
/// ```
/// use clusterlb_schedule::id::{ListenerId, Slot};
/// use clusterlb_schedule::{
///     Client, Loads, Policy, Roster, Scheduler, SchedulerConfig, SchedulerFactory, WorkerLoad,
/// };
///
/// /// Everything to the first worker that takes it; the others are there for the rest.
/// struct FirstOfAll;
///
/// impl Scheduler for FirstOfAll {
///     fn pick(&mut self, loads: &Loads, _: Client) -> Option<Slot> {
///         let place = loads.iter().position(WorkerLoad::can_take)?;
///         u16::try_from(place).ok().map(Slot::new)
///     }
/// }
///
/// let scheduler = Some(SchedulerFactory::new(|_listener| Box::new(FirstOfAll)));
/// // `ClusterSettings::scheduling` takes such a configuration; a roster alone needs no machine.
/// let config = SchedulerConfig { scheduler, ..SchedulerConfig::default() };
/// let mut roster = Roster::new(Policy::Rr, config, 1);
/// for slot in [Slot::new(0), Slot::new(1)] {
///     roster.attach(slot, 0);
///     roster.join(slot, ListenerId::new(0));
/// }
/// let mut pick = || roster.pick(ListenerId::new(0), Client::default());
/// assert_eq!([pick(), pick(), pick()], [Some(Slot::new(0)); 3]);
/// ```
#[derive(Clone)]
pub struct SchedulerFactory(Arc<dyn Fn(ListenerId) -> Box<dyn Scheduler> + Send + Sync>);

impl SchedulerFactory {
    /// `make` is called once per listener, before accepting from it.
    pub fn new(make: impl Fn(ListenerId) -> Box<dyn Scheduler> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    pub(super) fn make(&self, listener: ListenerId) -> Box<dyn Scheduler> {
        (self.0)(listener)
    }
}

/// Equal only to itself and its clones.
impl PartialEq for SchedulerFactory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for SchedulerFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerFactory").finish_non_exhaustive()
    }
}

/// A listener's scheduler. Two cases instead of one trait object: a pick of the built-in policies
/// costs no indirect call.
pub(super) enum Chooser {
    BuiltIn(Picker),
    Custom(Box<dyn Scheduler>),
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(picker) => picker.fmt(f),
            Self::Custom(_) => f.debug_struct("Custom").finish_non_exhaustive(),
        }
    }
}

impl Scheduler for Chooser {
    fn pick(&mut self, loads: &Loads, client: Client) -> Option<Slot> {
        match self {
            Self::BuiltIn(picker) => picker.pick(loads, client),
            Self::Custom(scheduler) => {
                let named = scheduler.pick(loads, client);
                named.filter(|slot| loads.get(slot.index()).is_some_and(WorkerLoad::can_take))
            }
        }
    }

    fn has_room(&self, loads: &Loads) -> bool {
        match self {
            Self::BuiltIn(picker) => picker.has_room(loads),
            Self::Custom(scheduler) => {
                loads.iter().any(WorkerLoad::can_take) && scheduler.has_room(loads)
            }
        }
    }

    fn wants_client(&self) -> bool {
        match self {
            Self::BuiltIn(picker) => picker.wants_client(),
            Self::Custom(scheduler) => scheduler.wants_client(),
        }
    }

    fn skips(&self) -> Skips {
        match self {
            Self::BuiltIn(picker) => picker.skips(),
            Self::Custom(scheduler) => scheduler.skips(),
        }
    }
}
