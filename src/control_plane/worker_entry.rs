//! The control plane's state of one worker: process, channel, counters, addresses.
//!
//! Owns its start with all inherited descriptors. Others decide when one starts or ends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};

use super::listen_request::Key;
use super::parting::Parting;
use crate::data_path::{CHANNEL_BYTES, NewLink};
use crate::dialect::listen_fds::NOT_FOR_WORKERS;
use crate::dialect::{Descriptors, Named, Spawn, WorkerDialect, WorkerStart};
use crate::error::{Error, Result, errno_of};
use crate::handle::{Bus, ControlHandle, LifeState, Streams, WorkerHandle, WorkerState};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::control::LatencySummary;
use crate::protocol::environment;
use crate::protocol::scoreboard::PrimaryPage;
use crate::schedule::Dispatch;
use crate::settings::{ClusterSettings, Dialect, OWN_PROGRAM, StreamSetting};
use crate::sys::fdpass;
use crate::sys::process::{self, Ending, Launch, Started, Stream, WorkerProcess};
use crate::sys::schedstat::CpuTimes;
use crate::sys::signal::BlockedSignals;
use crate::sys::waker::Waker;

/// A worker.
#[derive(Debug)]
pub(crate) struct WorkerEntry {
    handle: WorkerHandle,
    pub(crate) slot: Slot,
    /// The worker that it replaces, and runs beside until that one leaves.
    pub(crate) predecessor: Option<WorkerId>,
    pub(crate) predecessor_slot: Option<Slot>,
    /// Progress of requesting its predecessor's addresses.
    pub(crate) settling: Settling,
    /// What depends on its dialect.
    pub(crate) dialect: WorkerDialect,
    pub(crate) process: WorkerProcess,
    /// It has said that it runs, which is emitted once.
    pub(crate) online: bool,
    /// Its channel is open, or it has none and runs.
    pub(crate) connected: bool,
    /// It was asked to leave, or has announced that it does.
    pub(crate) leaving: bool,
    /// It gets no more connections, and is asked to leave when it has accepted the last ones.
    pub(crate) parting: Option<Parting>,
    /// The primary has asked it to leave.
    pub(crate) asked_to_leave: bool,
    /// The data path knows that it gets no more connections.
    pub(crate) retired: bool,
    /// The data path knows it.
    pub(crate) attached: bool,
    /// How its process ended; the data path still has to report what it left behind.
    pub(crate) ending: Option<Ending>,
    /// The listeners that it was given and has not closed.
    pub(crate) uses: BTreeSet<ListenerId>,
    /// All listeners that it was ever given: a returned connection must be from one of these.
    pub(crate) has_used: BTreeSet<ListenerId>,
    /// The listeners that it has said it serves.
    pub(crate) serves: BTreeSet<ListenerId>,
    /// Its requests for addresses that can have several sockets, by the key of the first socket,
    /// for as long as one of them is open.
    pub(crate) repeats: HashMap<Key, Repeats>,
    /// From its goodbye.
    pub(crate) handoff: Option<LatencySummary>,
    /// Its CPU times at the end.
    pub(crate) times: CpuTimes,
    /// What the data path gets once the worker serves something.
    pub(crate) link: Option<NewLink>,
}

/// Progress of requesting its predecessor's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Settling {
    /// It serves nothing yet.
    #[default]
    Starting,
    /// It serves something, and may ask for more until this moment.
    Serving { until_ns: u64 },
    /// It needs nothing that it has not requested.
    Settled,
}

/// A worker's requests for one such address.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repeats {
    pub(crate) asked: u32,
    pub(crate) open: u32,
}

/// The inputs of a worker's start.
#[derive(Debug)]
pub(crate) struct SpawnContext<'a> {
    pub(crate) id: WorkerId,
    pub(crate) slot: Slot,
    pub(crate) settings: &'a ClusterSettings,
    /// What depends on its dialect.
    pub(crate) start: WorkerStart<'a>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) inspect_port: Option<u16>,
    /// The primary hands connections over.
    pub(crate) hands_over: bool,
    pub(crate) predecessor: Option<WorkerId>,
    pub(crate) predecessor_slot: Option<Slot>,
    /// Its number, which successors inherit.
    pub(crate) instance: Option<u16>,
    /// Signals blocked in it, unless it leads a process group.
    pub(crate) blocked_signals: BlockedSignals,
    pub(crate) control: ControlHandle,
    pub(crate) bus: Arc<Bus>,
}

impl WorkerEntry {
    /// Starts a worker. `has_data_path` is whether a data path fills its inbox.
    ///
    /// # Errors
    /// Descriptors, processes or memory are exhausted, or the program cannot be executed.
    pub(crate) fn start(mut context: SpawnContext<'_>, has_data_path: bool) -> Result<Self> {
        let (cpu, page, waker) = (context.cpu(), context.page()?, Waker::new()?);
        let view = page.view()?;
        let (control, worker_control) = fdpass::stream_pair()?;
        let has_inbox = context.start.has_inbox(has_data_path, context.hands_over);
        let inbox = if has_inbox { Some(new_inbox()?) } else { None };
        let (streams, mut placed, further) = streams(context.settings)?;
        placed.extend(context.start.take_placed());
        let highest = placed.iter().map(|(number, _)| *number).max().unwrap_or(2);
        let inherited = context.inherited(
            highest,
            &Descriptors {
                control: &worker_control,
                page: &page,
                waker: &waker,
                inbox: inbox.as_ref().map(|(_, receiver)| receiver),
            },
        )?;
        let variables = context.variables(cpu, &inherited);
        let inherited = inherited.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        let started = context.launch(variables, inherited, streams, placed).start()?;
        let Started { process, input, output, errors } = started;
        let is_native = context.start.is_native();
        let pid = process.pid();
        let new_link =
            |(sender, receiver)| NewLink { sender, receiver, page, waker, is_native, pid };
        let link = inbox.map(new_link);
        let (dialect, messages) =
            context.start.into_state(context.settings, control, link.as_ref())?;
        let state = WorkerState {
            id: context.id,
            pid: process.pid(),
            cpu,
            instance: context.instance,
            remote: process.remote(),
            messages,
            life: Mutex::new(LifeState { connected: true, ending: None, voluntary: None }),
            streams: Mutex::new(Streams { input, output, errors, further }),
            control: context.control,
            bus: context.bus,
            view,
            last_counts: OnceLock::new(),
        };
        Ok(Self {
            handle: WorkerHandle { state: Arc::new(state) },
            slot: context.slot,
            predecessor: context.predecessor,
            predecessor_slot: context.predecessor_slot,
            settling: Settling::default(),
            dialect,
            process,
            online: false,
            connected: true,
            leaving: false,
            parting: None,
            asked_to_leave: false,
            retired: false,
            attached: false,
            ending: None,
            uses: BTreeSet::new(),
            has_used: BTreeSet::new(),
            serves: BTreeSet::new(),
            repeats: HashMap::new(),
            handoff: None,
            times: CpuTimes::default(),
            link,
        })
    }

    pub(crate) fn id(&self) -> WorkerId {
        self.handle.id()
    }

    pub(crate) fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }

    /// When it will have settled, if it serves.
    pub(crate) fn settles_ns(&self) -> Option<u64> {
        match self.settling {
            Settling::Serving { until_ns } => Some(until_ns),
            Settling::Starting | Settling::Settled => None,
        }
    }

    /// What it shares with its handles.
    pub(crate) fn state(&self) -> &WorkerState {
        &self.handle.state
    }
}

impl SpawnContext<'_> {
    fn spawn(&self, cpu: Option<usize>) -> Spawn<'_> {
        Spawn { id: self.id, settings: self.settings, cpu, inspect_port: self.inspect_port }
    }

    /// Its counters; for kernel dispatch, in memory that the kernel can read, or with a copy in it.
    fn page(&self) -> Result<PrimaryPage> {
        let page = match (self.settings.dispatch, self.settings.dialect) {
            (Dispatch::Primary, _) => None,
            (Dispatch::Kernel, Dialect::Native) => PrimaryPage::create_for_kernel(),
            (Dispatch::Kernel, _) => PrimaryPage::create_with_copy(),
        };
        page.map_or_else(PrimaryPage::create, Ok)
    }

    /// The descriptors that it inherits, with numbers above `highest`.
    fn inherited(
        &self,
        highest: RawFd,
        descriptors: &Descriptors<'_>,
    ) -> Result<Vec<Named<OwnedFd>>> {
        let inherited = self.start.inherited(descriptors).into_iter();
        let copy = |(name, descriptor): Named<BorrowedFd<'_>>| {
            Ok((name, process::copy_above(highest, descriptor)?))
        };
        inherited.map(copy).collect()
    }

    fn launch<'a>(
        &self,
        environment: Vec<(OsString, OsString)>,
        inherited: Vec<BorrowedFd<'a>>,
        streams: [Stream; 3],
        placed: Vec<Placed>,
    ) -> Launch<'a> {
        let settings = self.settings;
        Launch {
            program: match settings.exec.as_os_str() == OsStr::new(OWN_PROGRAM) {
                true => process::own_program(),
                false => settings.exec.clone(),
            },
            name: name_of(settings),
            arguments: self.arguments(),
            environment,
            removed: self.removed(),
            id_variable: self.start.id_variable(),
            directory: settings.cwd.clone(),
            user: settings.uid,
            group: settings.gid,
            confined: settings.confine,
            streams,
            own_group: settings.own_groups,
            blocked_signals: Some(self.blocked_signals),
            descriptor_limit: settings.descriptor_limit,
            // Others notice the end of their channel.
            ends_with_parent: !self.start.has_channel(),
            inherited,
            placed,
        }
    }

    /// Variables only for this process.
    fn removed(&self) -> Vec<OsString> {
        let own = NOT_FOR_WORKERS.map(OsString::from);
        own.into_iter().chain(self.settings.environment_removed.iter().cloned()).collect()
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = self.settings.exec_argv.clone();
        arguments.extend(self.start.options(&self.spawn(None)));
        arguments.extend(self.settings.args.iter().cloned());
        arguments
    }

    fn cpu(&self) -> Option<usize> {
        if !self.start.is_pinned() {
            return None;
        }
        let cpus = &self.settings.cpus;
        // A successor runs where its predecessor does.
        let number = self.instance.map_or_else(|| self.slot.index(), usize::from);
        cpus[number.checked_rem(cpus.len())?]
    }

    /// The variables that identify workers across replacements.
    fn instance_variables(&self) -> Vec<(OsString, OsString)> {
        let names = [environment::INSTANCE, environment::NODE_INSTANCE];
        let number = self.instance.map(|number| OsString::from(number.to_string()));
        let pairs = names.iter().zip(number.iter().cycle());
        pairs.map(|(name, number)| (name.into(), number.clone())).collect()
    }

    fn variables(
        &self,
        cpu: Option<usize>,
        inherited: &[Named<OwnedFd>],
    ) -> Vec<(OsString, OsString)> {
        let mut variables = self.instance_variables();
        variables.extend(self.environment.iter().cloned());
        self.start.add_variables(&self.spawn(cpu), inherited, &mut variables);
        variables
    }
}

/// Both ends of an inbox.
fn new_inbox() -> Result<(OwnedFd, OwnedFd)> {
    let (sender, receiver) = fdpass::packet_pair()?;
    fdpass::bound_send_buffer(sender.as_fd(), CHANNEL_BYTES)?;
    Ok((sender, receiver))
}

/// The program's name as it sees it.
fn name_of(settings: &ClusterSettings) -> OsString {
    match settings.exec.as_os_str() == OsStr::new(OWN_PROGRAM) {
        true => std::env::args_os().next().unwrap_or_else(|| OsString::from("clusterlb")),
        false => settings.exec.clone().into_os_string(),
    }
}

type Placed = (RawFd, OwnedFd);
type Further = BTreeMap<RawFd, UnixStream>;

/// The streams of a new worker: the standard ones, the descriptors of further ones, and the
/// primary's ends of those.
fn streams(settings: &ClusterSettings) -> Result<([Stream; 3], Vec<Placed>, Further)> {
    let mut standard = match settings.silent && settings.stdio.is_none() {
        true => [Stream::Nothing, Stream::Pipe, Stream::Pipe],
        false => [Stream::Nothing, Stream::Inherit, Stream::Inherit],
    };
    let (mut placed, mut further) = (Vec::new(), Further::new());
    let wanted = settings.stdio.iter().flatten();
    for (number, setting) in (0..).zip(wanted) {
        match (standard.get_mut(usize::try_from(number).unwrap_or(usize::MAX)), setting) {
            (Some(place), StreamSetting::Inherit) => *place = Stream::Inherit,
            (Some(place), StreamSetting::Ignore) => *place = Stream::Nothing,
            (Some(place), StreamSetting::Pipe) => *place = Stream::Pipe,
            (Some(place), StreamSetting::Descriptor(descriptor)) => {
                *place = Stream::Descriptor(process::copy_above(2, descriptor.as_fd())?);
            }
            (None, StreamSetting::Inherit) => placed.push((number, process::copy_of(number)?)),
            (None, StreamSetting::Ignore) => {}
            (None, StreamSetting::Descriptor(descriptor)) => {
                placed.push((number, process::copy_above(2, descriptor.as_fd())?));
            }
            (None, StreamSetting::Pipe) => {
                let pair = UnixStream::pair();
                let (ours, theirs) = pair.map_err(|error| {
                    Error::system("create a pair of sockets for a worker", errno_of(&error))
                })?;
                further.insert(number, ours);
                placed.push((number, theirs.into()));
            }
        }
    }
    Ok((standard, placed, further))
}
