//! Readers that stop reading: nothing grows, nothing is lost, others continue.

use clusterlb::Dialect;
use clusterlb::internals::dialect::node::Serialization;
use clusterlb::{Cluster, Event};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::bridge::{SERVER, ask};
use super::front::{Front, Setup};
use super::nodes::{Node, with_each};
use crate::common::{Client, GET, PATIENCE, eventually, machine};

/// Sends this many long messages on request, and reports how many were sent.
const FLOOD: &str = "
    let sent = 0;
    require('http').createServer((request, response) => {
        if (request.url === '/flood') {
            const text = 'x'.repeat(65000);
            for (let number = 0; number < 300; number++)
                process.send([number, text], undefined, undefined, () => sent++);
        }
        response.end(String(sent));
    }).listen(0, '127.0.0.1');";

const FLOOD_NOW: &[u8] = b"GET /flood HTTP/1.1\r\nHost: test\r\n\r\n";

#[test]
fn a_worker_that_floods_a_primary_which_is_behind_waits_and_others_go_on() {
    with_each(|node| {
        for serialization in [Serialization::Json, Serialization::Advanced] {
            let mut front = Front::start();
            let flooder = front.fork(&Setup { serialization, ..Setup::new(node, FLOOD) }, 1);
            let mut inside = Client::to(front.address(0));
            inside.ask(GET);
            let other = front.fork(&Setup { serialization, ..Setup::new(node, SERVER) }, 1);
            front.deaf = true;
            inside.ask(FLOOD_NOW);
            // Its writes stop once the bridge and the socket are full.
            let mut sent = 0;
            let mut same = 0;
            while same < 20 {
                let now: u32 = inside.ask(GET).body.parse().expect("a number");
                same = if now == sent && now > 0 { same + 1 } else { 0 };
                sent = now;
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            assert!(sent < 100, "{sent} messages of 65 KB were never read");
            let pid = front.workers[other].pid().to_string();
            // On a busy machine it may be passed over for a while.
            eventually("the other one to answer", || (ask(front.address(0)) == pid).then_some(()));
            front.deaf = false;
            front.until("every message", |front| front.workers[flooder].messages.len() == 300);
            let numbers = front.workers[flooder].messages.iter().map(|one| one[0].as_u64());
            assert!(numbers.eq((0..300).map(Some)), "none is lost, and they keep their order");
            front.finish();
        }
    });
}

#[test]
fn what_a_worker_has_said_before_its_end_is_told_however_late() {
    with_each(|node| {
        let mut front = Front::start();
        let flooder = front.fork(&Setup::new(node, FLOOD), 1);
        front.deaf = true;
        let mut inside = Client::to(front.address(0));
        inside.ask(FLOOD_NOW);
        eventually("the flood to begin", || {
            inside.ask(GET).body.parse::<u32>().is_ok_and(|sent| sent > 5).then_some(())
        });
        machine::signal(front.workers[flooder].pid(), Signal::SIGKILL);
        let worker = &mut front.workers[flooder];
        let id = worker.id;
        eventually("its end", || worker.try_ended().then_some(()));
        front.order(clusterlb::internals::dialect::node::bridge::BridgeRequest::Cut { worker: id });
        front.deaf = false;
        front.until("its channel to close", |front| front.workers[flooder].gone.is_some());
        let messages = &front.workers[flooder].messages;
        assert!(messages.len() > 5, "{}", messages.len());
        let numbers = messages.iter().map(|one| one[0].as_u64());
        assert!(numbers.eq((0..messages.len() as u64).map(Some)));
        front.finish();
    });
}

#[test]
fn a_worker_that_does_not_read_is_sent_a_bounded_amount() {
    let echo = "process.on('message', ([number]) => process.send(number));
        require('http').createServer().listen(0);";
    with_each(|node| {
        let mut front = Front::start();
        let place = front.fork(&Setup::new(node, echo), 1);
        let pid = front.workers[place].pid();
        machine::suspend(pid);
        let text = "x".repeat(1_000_000);
        let sent = (0..100).take_while(|number| front.send(place, &json!([number, text]))).count();
        assert_eq!(sent, 33, "messages of a million bytes within 32 MiB");
        machine::signal(pid, Signal::SIGCONT);
        front.until("every message", |front| front.workers[place].messages.len() == sent);
        assert!(front.workers[place].messages.iter().map(Value::as_u64).eq((0..33).map(Some)));
        assert!(front.send(place, &json!([33])), "there is room again");
        front.until("the last", |front| front.workers[place].messages.len() == sent + 1);
        front.finish();
    });
}

fn cluster(node: &Node, script: &std::path::Path) -> Cluster {
    let cluster = Cluster::primary().expect("a primary");
    let change = cluster.setup_primary(|settings| {
        settings.dialect = Dialect::Node;
        settings.exec.clone_from(&node.program);
        settings.args = vec![script.into()];
    });
    change.expect("valid settings");
    cluster
}

#[test]
fn a_subscriber_that_does_not_read_holds_up_what_workers_say_and_not_their_ends() {
    let flood = "
        require('http').createServer().listen(0);
        for (let number = 0; number < 40000; number++) process.send(number);
        setInterval(() => {}, 1000);";
    with_each(|node| {
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("flood.js");
        std::fs::write(&script, flood).expect("the folder is writable");
        let cluster = cluster(node, &script);
        let mut behind = cluster.events().expect("descriptors");
        let mut keen = cluster.events().expect("descriptors");
        let worker = cluster.fork().expect("a worker");
        let mut told = 0;
        // Somewhat below the limit by which a worker may be ahead of a subscriber.
        while told < 4_000 {
            let event = keen.recv_timeout(PATIENCE).expect("an event");
            told += usize::from(matches!(event, Event::Message { .. }));
        }
        worker.kill(clusterlb::Signal::SIGKILL).expect("it is ours");
        loop {
            match keen.recv_timeout(PATIENCE).expect("its end is told") {
                Event::Exit { worker: one, .. } if one == worker => break,
                _ => {}
            }
        }
        let mut numbers: Vec<usize> = Vec::new();
        loop {
            match behind.recv_timeout(PATIENCE).expect("nothing is lost") {
                Event::Message { message, .. } => numbers.push(message.parse().expect("a number")),
                Event::Exit { .. } => break,
                _ => {}
            }
        }
        assert!(numbers.len() < 40_000, "it was not read for ever");
        assert!(numbers.iter().copied().eq(0..numbers.len()), "what was read is in order");
    });
}
