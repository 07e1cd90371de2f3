//! One worker as the control plane holds it: process, channel, counters, what it serves.
//!
//! Owns starting it with everything it inherits. Refuses to decide when to start or end one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::sys::waker::Waker;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::listen_fds::{self, InheritedSockets};
use super::listener_lifetime::Settling;
use super::listeners::Key;
use super::stop::Leftover;
use super::{CHANNEL, ControlHandle};
use crate::cluster::bus::Bus;
use crate::cluster::settings::OWN_PROGRAM;
use crate::cluster::worker_handle::{Shared, State, Streams, duplicate, node_serialization};
use crate::cluster::{ClusterSettings, StreamSetting, WorkerHandle};
use crate::data_path::{CHANNEL_BYTES, NewLink};
use crate::dialect::node;
use crate::dialect::node::bridge::{NewNodeWorker, SendQuota};
use crate::dialect::node::preload::{self, Preload, Reporting};
use crate::dialect::node::session::WindowRule;
use crate::error::{Error, Result, errno_of};
use crate::id::{ListenerId, Slot, WorkerId};
use crate::protocol::control::{Incoming, LatencySummary, Outgoing, halves};
use crate::protocol::environment;
use crate::protocol::scoreboard::PrimaryPage;
use crate::schedule::CreditRule;
use crate::settings::Dialect;
use crate::sys::engine::EngineKind;
use crate::sys::fdpass;
use crate::sys::process::{self, Ending, Launch, Started, Stream, WorkerProcess};
use crate::sys::signal::BlockedSignals;

/// A worker.
#[derive(Debug)]
pub(crate) struct WorkerEntry {
    pub(crate) shared: Arc<Shared>,
    pub(crate) slot: Slot,
    /// Whom it replaces, beside whom it has been started.
    pub(crate) predecessor: Option<WorkerId>,
    /// The slot of that one.
    pub(crate) predecessor_slot: Option<Slot>,
    /// How far it is in asking for what its predecessor served.
    pub(crate) settling: Settling,
    /// The bridge hears it and speaks to it.
    pub(crate) is_node: bool,
    /// It has no channel.
    pub(crate) is_mute: bool,
    /// When one without a channel has run for long enough to count as serving.
    pub(crate) settled_ns: Option<u64>,
    /// One without a channel has said that it serves.
    pub(crate) notified: bool,
    pub(crate) process: WorkerProcess,
    /// What it says; the bridge hears Node workers.
    pub(crate) incoming: Option<Incoming>,
    /// It has said that it runs, which is told once.
    pub(crate) online: bool,
    /// The channel is open.
    pub(crate) connected: bool,
    /// It is read; not while somebody who wants events is behind.
    pub(crate) reads: bool,
    /// Something waits until the channel has room.
    pub(crate) wants_room: bool,
    /// It has been told to leave, or has said that it does.
    pub(crate) leaving: bool,
    /// The primary has told it to leave.
    pub(crate) told: bool,
    /// It has left and is looked at until it ends.
    pub(crate) leftover: Option<Leftover>,
    /// The data path has been told that it gets nothing more.
    pub(crate) retired: bool,
    /// The data path knows it.
    pub(crate) attached: bool,
    /// How its process has ended; the data path still has to say what it left behind.
    pub(crate) ending: Option<Ending>,
    /// What it has been given and has not closed.
    pub(crate) uses: BTreeSet<ListenerId>,
    /// What it has been given at any time: what it gives back is of one of these.
    pub(crate) has_used: BTreeSet<ListenerId>,
    /// What it has said that it serves.
    pub(crate) serves: BTreeSet<ListenerId>,
    /// How often it has asked for an address of which there can be several sockets, as long as it
    /// has one of these open. By the key of the first.
    pub(crate) repeats: HashMap<Key, Repeats>,
    /// From its last words.
    pub(crate) handoff: Option<LatencySummary>,
    /// What the data path will get once the worker serves something.
    pub(crate) link: Option<NewLink>,
    /// What the bridge gets, for a Node worker.
    pub(crate) new_node_worker: Option<Box<NewNodeWorker>>,
    /// What a Node worker has been given and has not told to listen on yet, oldest first.
    pub(crate) untold: Vec<ListenerId>,
}

/// A worker's requests for one such address.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repeats {
    pub(crate) asked: u32,
    pub(crate) open: u32,
}

/// What a worker is started with.
#[derive(Debug)]
pub(crate) struct SpawnContext<'a> {
    pub(crate) id: WorkerId,
    pub(crate) slot: Slot,
    pub(crate) settings: &'a ClusterSettings,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) inspect_port: Option<u16>,
    /// What it takes over, if it has no channel.
    pub(crate) inherited_sockets: InheritedSockets,
    /// The primary hands connections over.
    pub(crate) has_inbox: bool,
    /// The engine of the run, for a worker that can have either.
    pub(crate) engine: Option<EngineKind>,
    pub(crate) predecessor: Option<WorkerId>,
    pub(crate) predecessor_slot: Option<Slot>,
    /// The number that it and its successors are known by.
    pub(crate) instance: Option<u16>,
    /// Signals that are blocked in it, unless it has a group of its own.
    pub(crate) blocked_signals: BlockedSignals,
    /// The primary hands connections over.
    pub(crate) hands_over: bool,
    /// What a Node worker loads before its program.
    pub(crate) preload: Option<&'a Preload>,
    pub(crate) control: ControlHandle,
    pub(crate) bus: Arc<Bus>,
}

impl WorkerEntry {
    /// Starts a worker.
    ///
    /// # Errors
    /// Too few descriptors, processes or memory, or the program cannot be executed.
    pub(crate) fn start(mut context: SpawnContext<'_>) -> Result<Self> {
        let (cpu, page, waker) = (context.cpu(), PrimaryPage::create()?, Waker::new()?);
        let view = page.view()?;
        let (control, worker_control) = fdpass::stream_pair()?;
        let [is_node, is_mute] =
            [Dialect::Node, Dialect::ListenFds].map(|dialect| context.settings.dialect == dialect);
        // For a Node worker it is the bridge's, and its end says that nothing more will come.
        let inbox = if context.has_inbox || is_node { Some(new_inbox()?) } else { None };
        let (streams, mut placed, further) = streams(context.settings)?;
        placed.extend(context.inherited_sockets.take_sockets());
        let highest = placed.iter().map(|(number, _)| *number).max().unwrap_or(2);
        let own = (&worker_control, &page, &waker);
        let inherited = context.inherited(highest, own, inbox.as_ref())?;
        let variables = context.variables(cpu, &inherited);
        let inherited = inherited.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        let started = context.launch(variables, inherited, streams, placed).start()?;
        let Started { process, input, output, errors } = started;
        let pipes = Streams { input, output, errors, further };
        let link = inbox.map(|(sender, receiver)| NewLink { sender, receiver, page, waker });
        let channel = WorkerChannel::new(context.settings, control, link.as_ref())?;
        let shared = Shared {
            id: context.id,
            pid: process.pid(),
            cpu,
            instance: context.instance,
            serialization: context.settings.serialization,
            remote: process.remote(),
            is_mute,
            outgoing: channel.outgoing,
            send_quota: SendQuota::default(),
            view,
            accepts_itself: !context.hands_over,
            last_counts: OnceLock::new(),
            state: Mutex::new(State { connected: true, ending: None, voluntary: None }),
            streams: Mutex::new(pipes),
            control: context.control,
            bus: context.bus,
        };
        Ok(Self {
            shared: Arc::new(shared),
            slot: context.slot,
            predecessor: context.predecessor,
            predecessor_slot: context.predecessor_slot,
            settling: Settling::default(),
            is_node,
            is_mute,
            settled_ns: None,
            notified: false,
            process,
            incoming: channel.incoming,
            online: false,
            connected: true,
            reads: true,
            wants_room: false,
            leaving: false,
            told: false,
            leftover: None,
            retired: false,
            attached: false,
            ending: None,
            uses: BTreeSet::new(),
            has_used: BTreeSet::new(),
            serves: BTreeSet::new(),
            repeats: HashMap::new(),
            handoff: None,
            link,
            new_node_worker: channel.new_node_worker,
            untold: Vec::new(),
        })
    }

    pub(crate) fn id(&self) -> WorkerId {
        self.shared.id
    }

    pub(crate) fn handle(&self) -> WorkerHandle {
        WorkerHandle { shared: Arc::clone(&self.shared) }
    }

    /// Waits for what is wanted of the channel, and for nothing else.
    pub(crate) fn adjust(&self, epoll: &Epoll) {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, self.reads);
        flags.set(EpollFlags::EPOLLOUT, self.wants_room);
        let mut event = EpollEvent::new(flags, CHANNEL | u64::from(self.shared.id.0));
        // It was added when the worker was born, and is deleted when the channel ends.
        if let Some(incoming) = &self.incoming {
            let _ = epoll.modify(incoming, &mut event);
        }
    }
}

/// How a worker is heard and spoken to: directly, or by the bridge.
struct WorkerChannel {
    incoming: Option<Incoming>,
    outgoing: Option<Mutex<Outgoing>>,
    new_node_worker: Option<Box<NewNodeWorker>>,
}

impl WorkerChannel {
    fn new(settings: &ClusterSettings, channel: OwnedFd, link: Option<&NewLink>) -> Result<Self> {
        if let (Dialect::Node, Some(link)) = (settings.dialect, link) {
            let new_node_worker = new_node_worker(settings, channel, link)?;
            return Ok(Self {
                incoming: None,
                outgoing: None,
                new_node_worker: Some(new_node_worker),
            });
        }
        if settings.dialect == Dialect::ListenFds {
            return Ok(Self { incoming: None, outgoing: None, new_node_worker: None });
        }
        let (incoming, outgoing) = halves(channel);
        let outgoing = Some(Mutex::new(outgoing));
        Ok(Self { incoming: Some(incoming), outgoing, new_node_worker: None })
    }
}

impl SpawnContext<'_> {
    /// What the worker inherits, and which variable tells the number. The channel comes first.
    fn inherited(
        &self,
        highest: RawFd,
        (control, page, waker): (&OwnedFd, &PrimaryPage, &Waker),
        inbox: Option<&(OwnedFd, OwnedFd)>,
    ) -> Result<Vec<(&'static str, OwnedFd)>> {
        if self.settings.dialect == Dialect::ListenFds {
            return Ok(Vec::new());
        }
        let passed = |descriptor: &dyn AsFd| process::copy_above(highest, descriptor.as_fd());
        let mut inherited = vec![(environment::CONTROL, passed(control)?)];
        let is_native = self.settings.dialect == Dialect::Native;
        if is_native || self.preload.is_some() {
            inherited.push((environment::BOARD, passed(page)?));
            inherited.push((environment::WAKER, passed(waker)?));
        }
        if let Some((_, receiver)) = inbox.filter(|_| is_native || self.preload.is_some()) {
            inherited.push((environment::INBOX, passed(receiver)?));
        }
        Ok(inherited)
    }

    fn launch<'a>(
        &self,
        environment: Vec<(OsString, OsString)>,
        inherited: Vec<BorrowedFd<'a>>,
        streams: [Stream; 3],
        placed: Vec<Placed>,
    ) -> Launch<'a> {
        let settings = self.settings;
        let is_mute = settings.dialect == Dialect::ListenFds;
        Launch {
            program: match settings.exec.as_os_str() == OsStr::new(OWN_PROGRAM) {
                true => process::own_program(),
                false => settings.exec.clone(),
            },
            name: name_of(settings),
            arguments: self.arguments(),
            environment,
            removed: self.removed(),
            id_variable: is_mute.then_some(listen_fds::ID_VARIABLE),
            directory: settings.cwd.clone(),
            user: settings.uid,
            group: settings.gid,
            confined: settings.confine,
            streams,
            own_group: settings.own_groups,
            blocked_signals: Some(self.blocked_signals),
            descriptor_limit: settings.descriptor_limit,
            // Others notice the end of their channel.
            ends_with_parent: is_mute,
            inherited,
            placed,
        }
    }

    /// Variables that are for this process alone.
    fn removed(&self) -> Vec<OsString> {
        let own = listen_fds::NOT_FOR_WORKERS.map(OsString::from);
        own.into_iter().chain(self.settings.environment_removed.iter().cloned()).collect()
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = self.settings.exec_argv.clone();
        if let (Dialect::Node, Some(port)) = (self.settings.dialect, self.inspect_port) {
            // Behind what it replaces, as by Node's primary.
            arguments.push(format!("--inspect-port={port}").into());
        }
        arguments.extend(self.settings.args.iter().cloned());
        arguments
    }

    fn cpu(&self) -> Option<usize> {
        if self.settings.dialect != Dialect::Native {
            // Workers pin themselves, and programs of others do not.
            return None;
        }
        let cpus = &self.settings.cpus;
        // A successor runs where its predecessor does.
        let number = self.instance.map_or_else(|| self.slot.index(), usize::from);
        cpus[number.checked_rem(cpus.len())?]
    }

    /// By which workers of a kind tell themselves apart, whichever of them it is by now.
    fn instance_variables(&self) -> Vec<(OsString, OsString)> {
        let names = [environment::INSTANCE, environment::NODE_INSTANCE];
        let number = self.instance.map(|number| OsString::from(number.to_string()));
        let pairs = names.iter().zip(number.iter().cycle());
        pairs.map(|(name, number)| (name.into(), number.clone())).collect()
    }

    fn variables(
        &self,
        cpu: Option<usize>,
        inherited: &[(&str, OwnedFd)],
    ) -> Vec<(OsString, OsString)> {
        let mut variables = self.instance_variables();
        variables.extend(self.environment.iter().cloned());
        if self.settings.dialect == Dialect::ListenFds {
            let own = self.inherited_sockets.variables();
            variables.extend(own.into_iter().map(|(name, value)| (name.into(), value.into())));
            return variables;
        }
        if self.settings.dialect == Dialect::Node {
            let number = |place: usize| inherited.get(place).map_or(-1, |(_, one)| one.as_raw_fd());
            let serialization = node_serialization(self.settings.serialization);
            let own = node::environment(self.id, number(0), serialization);
            if let Some(preload) = self.preload {
                let options = preload::options_of(
                    &variables,
                    &self.settings.exec_argv,
                    self.settings.cwd.as_deref(),
                );
                let hang_after = self.settings.scheduling.hang_after_ns.map(Duration::from_nanos);
                let (page, waker, inbox) = (number(1), number(2), number(3));
                let reporting = Reporting { page, waker, inbox, hang_after };
                let own = preload.variables(reporting, options.as_deref());
                variables.extend(own);
            }
            variables.extend(own.map(|(name, value)| (name.into(), value.into())));
            return variables;
        }
        let mut add = |name: &str, value: &dyn ToString| {
            variables.push((name.into(), value.to_string().into()));
        };
        add(environment::ID, &self.id);
        if let Some(engine) = self.engine {
            add(environment::ENGINE, &engine);
        }
        add(environment::SERIALIZATION, &self.settings.serialization.name());
        for (name, descriptor) in inherited {
            add(name, &descriptor.as_raw_fd());
        }
        if let Some(cpu) = cpu {
            add(environment::CPU, &cpu);
        }
        if let Some(port) = self.inspect_port {
            add(environment::INSPECT_PORT, &port);
        }
        variables
    }
}

/// Both ends of an inbox.
fn new_inbox() -> Result<(OwnedFd, OwnedFd)> {
    let (sender, receiver) = fdpass::packet_pair()?;
    fdpass::bound_send_buffer(sender.as_fd(), CHANNEL_BYTES)?;
    Ok((sender, receiver))
}

/// What the bridge needs for a Node worker.
fn new_node_worker(
    settings: &ClusterSettings,
    channel: OwnedFd,
    link: &NewLink,
) -> Result<Box<NewNodeWorker>> {
    Ok(Box::new(NewNodeWorker {
        channel,
        serialization: node_serialization(settings.serialization),
        window: match settings.scheduling.credits {
            CreditRule::Adaptive => WindowRule::default(),
            CreditRule::Fixed(count) => WindowRule::fixed(count),
        },
        inbox: duplicate(&link.receiver)?,
        page: duplicate(&link.page)?,
    }))
}

/// What the program sees as its own name.
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
