//! The library's choices for clap, with a line of help each.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clusterlb::{AcceptMechanism, Dispatch, EngineChoice, Policy};

/// Reads a policy.
pub(super) fn policies() -> impl TypedValueParser<Value = Policy> {
    let values = Policy::ALL.map(|policy| PossibleValue::new(policy.name()).help(about(policy)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Policy>())
}

/// Parses the dispatcher.
pub(super) fn dispatchers() -> impl TypedValueParser<Value = Dispatch> {
    let values = Dispatch::ALL
        .map(|dispatch| PossibleValue::new(dispatch.name()).help(about_dispatching(dispatch)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Dispatch>())
}

fn about_dispatching(dispatch: Dispatch) -> &'static str {
    match dispatch {
        Dispatch::Primary => "The primary accepts and hands over: exact, and takes a core",
        Dispatch::Kernel => {
            "The kernel, through a listening socket for each worker: no process in between. The \
             primary gives what a worker does not accept in time to others. With every --policy \
             but central and none"
        }
    }
}

/// Parses the accept mechanism.
pub(super) fn mechanisms() -> impl TypedValueParser<Value = AcceptMechanism> {
    let values = AcceptMechanism::ALL
        .map(|mechanism| PossibleValue::new(mechanism.name()).help(about_accepting(mechanism)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<AcceptMechanism>())
}

/// Parses the engine.
pub(super) fn engines() -> impl TypedValueParser<Value = EngineChoice> {
    let values = EngineChoice::ALL
        .map(|choice| PossibleValue::new(choice.name()).help(about_engine(choice)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<EngineChoice>())
}

fn about_engine(choice: EngineChoice) -> &'static str {
    match choice {
        EngineChoice::Auto => {
            "io_uring where it works; epoll where anything refuses it, as container runtimes do"
        }
        EngineChoice::IoUring => "io_uring; where it does not work, the run fails and says why",
        EngineChoice::Epoll => "epoll; io_uring is not tried",
    }
}

fn about(policy: Policy) -> &'static str {
    match policy {
        Policy::Rr => "The primary accepts and hands over, round robin (SCHED_RR)",
        Policy::Least => "The primary hands over to the worker with the fewest in flight",
        Policy::Fastest => {
            "The primary hands over to the worker that should be done first: fewest in flight \
             times what a connection usually takes it"
        }
        Policy::Central => {
            "The primary hands over to an idle worker, one connection at a time; the others wait \
             in one queue: for requests that keep a worker busy, not for kept connections"
        }
        Policy::Sticky => {
            "The primary hands over to the worker that the client's address maps to, unless that \
             worker is overloaded: for sessions that live in one worker's memory"
        }
        Policy::None => "The workers accept, the kernel chooses (SCHED_NONE)",
    }
}

fn about_accepting(mechanism: AcceptMechanism) -> &'static str {
    match mechanism {
        AcceptMechanism::Epoll => {
            "epoll, level-triggered: every idle worker is woken, one wins; what Node does"
        }
        AcceptMechanism::EpollDrain => {
            "As epoll, but accepting until the queue is empty; what libuv did before 1.45"
        }
        AcceptMechanism::EpollExclusive => {
            "epoll with EPOLLEXCLUSIVE: one worker is woken, mostly the same one"
        }
        AcceptMechanism::Uring => {
            "One io_uring accept at a time: idle workers take turns; needs io_uring"
        }
        AcceptMechanism::UringMultishot => {
            "A multishot io_uring accept: the first worker to arm it gets everything; needs \
             io_uring"
        }
        AcceptMechanism::Reuseport => {
            "A listening socket for each worker (SO_REUSEPORT): the kernel spreads by hash. What a \
             Node worker does not accept in time is given to others"
        }
    }
}
