//! Workers that leave while they are requesting, computing, or sending.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};

use clusterlb::Signal;
use clusterlb::{Ending, Event, ListenOptions, Policy, Transport, WorkerHandle};
use nix::errno::Errno;

use crate::puppet::{Order, Reply, Service};
use crate::stage::{PATIENCE, Stage, eventually, greeter, is_alive, uninterrupted, until_free};
use crate::trials;
use crate::tricks::Trick;

trials!(
    a_worker_that_serves_nothing_leaves_while_another_serves_on,
    a_worker_without_datagrams_leaves_while_another_serves_on,
    a_request_to_listen_may_cross_the_word_to_leave,
    a_worker_that_leaves_as_soon_as_it_serves_ends_with_0,
    a_worker_that_is_refused_may_leave,
    an_outgoing_connection_keeps_a_worker_that_has_left,
    a_worker_whose_channel_is_cut_exits_with_0,
    a_worker_that_computes_for_ever_is_killed,
);

const POLICIES: [Policy; 2] = [Policy::Rr, Policy::None];

fn listen_order(address: &str) -> Order {
    Order::Listen {
        address: address.to_owned(),
        options: ListenOptions::default(),
        service: Service::Greet,
    }
}

fn a_worker_that_serves_nothing_leaves_while_another_serves_on() {
    for policy in POLICIES {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let (serving, idle) = (stage.puppet(), stage.puppet());
        let address = stage.listen(&serving, "127.0.0.1:0");
        idle.disconnect();
        stage.disconnected(&idle);
        assert_eq!(stage.exit(&idle).0, Ending::Code(0));
        assert!((0..4).all(|_| greeter(&address) == 1));
        serving.disconnect();
        assert_eq!(stage.exit(&serving).0, Ending::Code(0));
        until_free(&address);
        stage.end();
    }
}

fn a_worker_without_datagrams_leaves_while_another_serves_on() {
    let mut stage = Stage::new();
    let (serving, idle) = (stage.puppet(), stage.puppet());
    let options = ListenOptions::default().transport(Transport::Datagram);
    let order = Order::Udp { address: "127.0.0.1:0".into(), options };
    let Reply::Serving { address } = stage.ask(&serving, &order) else { panic!("a free port") };
    idle.disconnect();
    assert_eq!(stage.exit(&idle).0, Ending::Code(0));
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    client.connect(&address).expect("a loopback has routes");
    client.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    client.send(b"still there").expect("a loopback has room");
    let mut answer = [0; 32];
    let length = uninterrupted(|| client.recv(&mut answer)).expect("an answer from there");
    assert_eq!(&answer[..length], b"1 still there");
    serving.disconnect();
    assert_eq!(stage.exit(&serving).0, Ending::Code(0));
    eventually("the port to be free", || UdpSocket::bind(&address).ok());
    stage.end();
}

/// In every order of the request, the message, and the worker's reaction to either.
fn a_request_to_listen_may_cross_the_word_to_leave() {
    const ROUNDS: usize = 12;
    for policy in POLICIES {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let staying = stage.puppet();
        let address = stage.listen(&staying, "127.0.0.1:0");
        let mut answers = Vec::new();
        for round in 0..ROUNDS {
            let worker = stage.puppet();
            worker.send(&listen_order("127.0.0.1:0")).expect("the puppet reads");
            std::thread::sleep(std::time::Duration::from_micros(100 * round as u64));
            worker.disconnect();
            stage.disconnected(&worker);
            assert_eq!(stage.exit(&worker).0, Ending::Code(0));
            answers.push(worker);
        }
        for worker in answers {
            // If the event came at all, it came before the channel ended.
            let said = stage.already(|event| match event {
                Event::Message { worker: one, message } if *one == worker => {
                    Some(message.parse::<Reply>().expect("a reply"))
                }
                _ => None,
            });
            match said {
                Some(Reply::Serving { address: served }) => assert_eq!(served, address),
                Some(Reply::Refused { errno, .. }) => assert_eq!(errno, Errno::ECANCELED as i32),
                None => {}
                other => panic!("{other:?}"),
            }
        }
        assert!((0..4).all(|_| greeter(&address) == 1), "no other worker serves");
        stage.end();
        until_free(&address);
    }
}

fn a_worker_that_leaves_as_soon_as_it_serves_ends_with_0() {
    for policy in POLICIES {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        // Several at once, so that one of them is interrupted between two steps.
        let workers: Vec<WorkerHandle> = (0..6).map(|_| stage.puppet()).collect();
        for worker in &workers {
            worker.send(&listen_order("127.0.0.1:0")).expect("the puppet reads");
            worker.send(&Order::Disconnect).expect("the puppet reads");
        }
        for worker in &workers {
            let Reply::Serving { address } = stage.reply(worker) else { panic!("a free port") };
            stage.listening(worker);
            stage.disconnected(worker);
            assert_eq!(worker.exited_after_disconnect(), Some(true), "known before it has ended");
            assert_eq!(stage.exit(worker).0, Ending::Code(0));
            until_free(&address);
        }
        stage.end();
    }
}

fn a_worker_that_is_refused_may_leave() {
    for policy in POLICIES {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let worker = stage.puppet();
        let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = other.local_addr().expect("it is bound").to_string();
        let trick = Trick::LeaveIfRefused { address };
        worker.send(&Order::Trick(trick)).expect("the puppet reads");
        stage.until("the refusal", |event| match event {
            Event::Refused { worker: one, .. } => (*one == worker).then_some(()),
            _ => None,
        });
        stage.disconnected(&worker);
        assert_eq!(stage.exit(&worker).0, Ending::Code(0));
        assert_eq!(worker.exited_after_disconnect(), Some(true));
        stage.end();
    }
}

fn an_outgoing_connection_keeps_a_worker_that_has_left() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let address = stage.listen(&worker, "127.0.0.1:0");
    let far = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let trick = Trick::StayFor { address: far.local_addr().expect("it is bound").to_string() };
    assert_eq!(stage.ask(&worker, &Order::Trick(trick)), Reply::Done);
    let (outgoing, _) = far.accept().expect("the worker connects");
    worker.disconnect();
    stage.disconnected(&worker);
    until_free(&address);
    assert!(is_alive(worker.pid()) && !worker.is_dead(), "its program may go on");
    assert!(!stage.has_heard(|event| matches!(event, Event::Exit { .. })));
    drop(outgoing);
    assert_eq!(stage.exit(&worker).0, Ending::Code(0));
    assert_eq!(worker.exited_after_disconnect(), Some(true));
    stage.end();
}

fn a_worker_whose_channel_is_cut_exits_with_0() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let address = stage.serve(&worker, "127.0.0.1:0", Service::Keep);
    let (mut open, _) = crate::stage::kept(&address);
    // It sends an invalid message, so the primary closes the channel.
    worker.send(&Order::Trick(Trick::Garble)).expect("the puppet reads");
    stage.disconnected(&worker);
    assert_eq!(stage.exit(&worker).0, Ending::Code(0));
    assert_eq!(worker.exited_after_disconnect(), Some(false));
    let _ = open.read_to_end(&mut Vec::new());
    stage.end();
}

fn a_worker_that_computes_for_ever_is_killed() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    worker.send(&Order::Trick(Trick::Spin)).expect("the puppet reads");
    worker.kill(Signal::SIGTERM).expect("it is ours");
    assert_eq!(stage.exit(&worker).0, Ending::Signal(Signal::SIGTERM as i32));
    stage.end();
}
