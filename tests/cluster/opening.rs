//! Addresses requested asynchronously, or without success.

use std::net::{TcpListener, TcpStream, UdpSocket};

use clusterlb::{ListenOptions, Policy, Transport, WorkerHandle};

use crate::ports::free_ports;
use crate::puppet::{Order, Reply, Service};
use crate::stage::{Stage, eventually, greeter, kept};
use crate::trials;
use crate::tricks::Trick;

trials!(
    an_address_is_awaited_without_holding_up_the_thread,
    errors_reach_the_awaiting_task,
    an_address_without_a_waiter_is_given_back,
    datagrams_are_closed_while_they_are_bound,
    a_panic_at_a_refusal_breaks_nothing_else,
);

fn await_order(address: &str) -> Order {
    Order::Trick(Trick::Await { address: address.to_owned() })
}

fn an_address_is_awaited_without_holding_up_the_thread() {
    let mut stage = Stage::with(|settings| settings.scheduling.limits.inflight_max = Some(1));
    let first = stage.puppet();
    let address = stage.serve(&first, "127.0.0.1:0", Service::Keep);
    let (_open, _) = kept(&address);
    // A connection waits for the only worker, so its listener can be neither removed nor reopened.
    let waiting = TcpStream::connect(&address).expect("the backlog has room");
    first.disconnect();
    let second = stage.puppet();
    second.send(&await_order("127.0.0.1:0")).expect("the puppet reads");
    assert_eq!(stage.reply(&second), Reply::Number(5), "the runtime's only thread goes on");
    drop(waiting);
    eventually("the first worker to have gone", || {
        let _ = first.send(&Order::Release);
        first.is_dead().then_some(())
    });
    assert_eq!(stage.reply(&second), Reply::Serving { address });
    stage.end();
}

fn errors_reach_the_awaiting_task() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("it is bound").to_string();
    for (address, why) in [(address.as_str(), "Address already in use"), ("nonsense", "no port")] {
        let mut reply = stage.ask(&worker, &await_order(address));
        if matches!(reply, Reply::Number(_)) {
            // On a busy machine this takes a while.
            reply = stage.reply(&worker);
        }
        let Reply::Refused { text, .. } = reply else { panic!("{reply:?}") };
        assert!(text.contains(address) && text.contains(why), "{text}");
    }
    stage.end();
}

/// Requests an address and cancels the request, before or after the reply.
fn ask_in_vain(
    stage: &mut Stage,
    worker: &WorkerHandle,
    address: &str,
    options: ListenOptions,
    patience_ms: u64,
) {
    let trick = Trick::AskInVain { address: address.to_owned(), options, patience_ms };
    assert_eq!(stage.ask(worker, &Order::Trick(trick)), Reply::Done);
}

fn an_address_without_a_waiter_is_given_back() {
    let options = ListenOptions::default();
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let (fickle, constant) = (stage.puppet(), stage.puppet());
        for patience_ms in [0, 0, 0, 1, 30] {
            let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = probe.local_addr().expect("it is bound").to_string();
            drop(probe);
            ask_in_vain(&mut stage, &fickle, &address, options, patience_ms);
            eventually("the address to be free", || TcpListener::bind(&address).ok());
        }
        // Listeners of other workers are not affected.
        let address = stage.listen(&constant, "127.0.0.1:0");
        for patience_ms in [0, 0, 0, 1, 30] {
            ask_in_vain(&mut stage, &fickle, "127.0.0.1:0", options, patience_ms);
            assert!((0..4).all(|_| greeter(&address) == 2));
        }
        // In the end it serves too.
        assert_eq!(stage.listen(&fickle, "127.0.0.1:0"), address);
        eventually("it to be greeted by", || (greeter(&address) == 1).then_some(()));
        stage.end();
    }
}

fn datagrams_are_closed_while_they_are_bound() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let options = ListenOptions::default().transport(Transport::Datagram);
    let address = format!("127.0.0.1:{}", free_ports(&["127.0.0.1"], 1)[0]);
    for patience_ms in [0, 0, 0, 1, 30] {
        ask_in_vain(&mut stage, &worker, &address, options, patience_ms);
        eventually("the address to be free", || UdpSocket::bind(&address).ok());
    }
    for _ in 0..5 {
        // The worker closes it as soon as it has it.
        worker.send(&Order::Udp { address: address.clone(), options }).expect("the puppet reads");
        assert_eq!(
            stage.ask(&worker, &Order::Close { address: address.clone() }),
            Reply::Serving { address: address.clone() }
        );
        assert_eq!(stage.reply(&worker), Reply::Done);
    }
    stage.end();
    eventually("the address to be free", || UdpSocket::bind(&address).ok());
}

fn a_panic_at_a_refusal_breaks_nothing_else() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let served = stage.listen(&worker, "127.0.0.1:0");
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("it is bound").to_string();
    let trick = Trick::Panic { address: address.clone() };
    assert_eq!(stage.ask(&worker, &Order::Trick(trick)), Reply::Done);
    // Messages, connections and other addresses work.
    assert_eq!(stage.ask(&worker, &Order::Echo(1.into())), Reply::Echo(1.into()));
    assert_eq!(greeter(&served), 1);
    drop(other);
    eventually("the port to be free", || {
        stage.try_listen(&worker, &address, ListenOptions::default(), Service::Greet).ok()
    });
    assert_eq!(greeter(&address), 1);
    stage.end();
}
