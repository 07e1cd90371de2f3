//! Which types may move to another thread, checked by the compiler.

use std::future::Future;
use std::net::TcpStream;

use clusterlb::adapter::{tokio as on_tokio, uring};
use clusterlb::{
    AcceptMechanism, AddressKind, BindFuture, ClaimTimes, Client, Cluster, ClusterCounts,
    ClusterSettings, Companion, CompanionEvent, Completion, Connection, CreditRule, Datagrams,
    DescriptorLimit, Dialect, Dispatch, Ending, Endpoint, EngineChoice, EngineDecision, EngineKind,
    Error, ErrorKind, Event, Events, FileAccess, Finished, ForkOptions, Guard, Handle, InspectPort,
    LatencySummary, Limits, ListenAddress, ListenOptions, ListenRule, Listener, ListenerCounts,
    ListenerId, ListenerSnapshot, ListeningAddress, Loads, Message, Messages, OverloadFactor,
    Policy, Readiness, ReadyAfter, ReloadChanges, Restart, RestartPolicy, Result, Role,
    RunningCompanion, SchedulerConfig, SchedulerFactory, Serialization, Signal, Skips, Slot,
    SlotSnapshot, SlotState, Snapshot, Status, StreamSetting, Supervisor, SupervisorEvent,
    SupervisorEvents, SupervisorHandle, SupervisorStage, Tracked, Transport, UnknownName, Worker,
    WorkerCounts, WorkerHandle, WorkerId, WorkerLoad, WorkerSnapshot, WorkerState,
};
use tokio::io::{AsyncRead, AsyncWrite};

const fn is_shared_by_threads<T: Send + Sync + Unpin + 'static>() {}
const fn moves_to_a_thread<T: Send + Unpin + 'static>() {}
const fn is_a_stream<T: AsyncRead + AsyncWrite + Unpin>() {}
const fn needs_no_order<T: Future + Send>(_: &T) {}

/// Applies a check to several types.
macro_rules! hold {
    ($promise:ident: $($type:ty),* $(,)?) => {
        const _: () = { $($promise::<$type>();)* };
    };
}

hold!(is_shared_by_threads:
    AcceptMechanism, AddressKind, Client, Cluster, ClusterCounts, ClusterSettings, Completion,
    Connection, CreditRule, Datagrams, Dialect, Ending, Endpoint, EngineChoice, EngineDecision,
    EngineKind, Error, ErrorKind, Event, Events, Finished, ForkOptions, Guard, Handle, InspectPort,
    LatencySummary, Limits,
    ListenAddress, BindFuture<Datagrams>, BindFuture<Listener>, ListenOptions, Listener,
    ListenerId, ListeningAddress, Loads, Message, Messages, Policy, Readiness, Restart,
    RestartPolicy, Result<()>, Role, SchedulerConfig, SchedulerFactory, Serialization, Signal,
    Skips, Slot, SlotSnapshot, SlotState, Snapshot, Status, StreamSetting, Supervisor,
    SupervisorEvent, SupervisorEvents, SupervisorHandle, SupervisorStage, Tracked<TcpStream>,
    Transport, Worker, WorkerCounts, WorkerHandle, WorkerId, WorkerLoad, WorkerSnapshot,
    WorkerState,
    DescriptorLimit, FileAccess, ListenRule, ListenerCounts, ListenerSnapshot,
    ClaimTimes, CompanionEvent, Dispatch, OverloadFactor, ReadyAfter, RunningCompanion,
    UnknownName, ReloadChanges,
);
// Its handler is a closure that is called by one thread.
hold!(moves_to_a_thread: Companion);
hold!(is_shared_by_threads: on_tokio::Listener, on_tokio::Stream);
hold!(is_a_stream: on_tokio::Stream);

/// Futures too: a task may move between threads while it waits.
#[expect(dead_code, reason = "it is only compiled")]
fn what_is_awaited(listener: &on_tokio::Listener, worker: &Worker) {
    needs_no_order(&on_tokio::Listener::bind(worker, ""));
    needs_no_order(&listener.accept());
    needs_no_order(&listener.ended());
    needs_no_order(&worker.bind_async("", ListenOptions::default()));
    needs_no_order(&worker.disconnected());
    needs_no_order(&uring::Listener::bind(worker, ""));
}

/// The list above covers every type that the crate exports.
pub(crate) fn every_type_has_its_promise() {
    let (offers, promises) = (include_str!("../../src/lib.rs"), include_str!("promises.rs"));
    let (_, held) = promises.split_once("hold!(is_shared_by_threads:").expect("see above");
    let held: Vec<&str> = held.split(|letter: char| !letter.is_alphanumeric()).collect();
    let offers = offers.split("pub use ").skip(1).filter_map(|rest| rest.split_once(';'));
    let mut found = 0;
    for name in offers.flat_map(|(offer, _)| offer.split(|letter: char| !letter.is_alphanumeric()))
    {
        // Constants, and the trait whose implementations only need to move to one thread.
        let is_other = name.chars().all(|letter| !letter.is_lowercase()) || name == "Scheduler";
        if name.starts_with(char::is_uppercase) && !is_other {
            assert!(held.contains(&name), "{name} may be shared by threads, or may not");
            found += 1;
        }
    }
    assert!(found > 30, "{found} types");
}
