//! The events of a primary, their order, and the ways to receive them.

use std::sync::mpsc::{RecvTimeoutError, TryRecvError, channel};

use clusterlb::{AddressKind, Ending, Event, ForkOptions};

use crate::puppet::{BRIEF, Order, Reply, Service};
use crate::stage::{PATIENCE, Stage, ask};
use crate::trials;

trials!(
    a_life_is_told_in_order,
    callbacks_threads_and_tasks_are_told_the_same,
    a_callback_may_fork,
    events_of_one_worker_are_its_own,
    events_end_with_the_cluster,
    a_worker_is_off_the_list_before_its_last_event,
    a_slow_subscriber_loses_no_event,
);

fn name(event: &Event) -> &'static str {
    match event {
        Event::Setup { .. } => "setup",
        Event::Fork { .. } => "fork",
        Event::Online { .. } => "online",
        Event::Listening { .. } => "listening",
        Event::Message { .. } => "message",
        Event::Disconnect { .. } => "disconnect",
        Event::Exit { .. } => "exit",
        _ => "other",
    }
}

fn a_life_is_told_in_order() {
    let mut stage = Stage::new();
    let all = stage.cluster.events().expect("descriptors");
    let worker = stage.puppet();
    assert!(worker.is_connected() && !worker.is_dead());
    assert_eq!((worker.id().get(), worker.exited_after_disconnect()), (1, None));
    let address = stage.try_listen(&worker, "127.0.0.1:0", Default::default(), Service::Greet);
    let address = address.expect("a free port");
    let told = stage.listening(&worker);
    assert_eq!((told.address.as_str(), told.kind), ("127.0.0.1", AddressKind::V4));
    assert_eq!(format!("{}:{}", told.address, told.port.expect("a port")), address);
    assert_eq!(ask(&address).expect("it serves"), "worker 1\n");
    stage.end();
    let all: Vec<&str> = all.map(|event| name(&event)).collect();
    // The reply may arrive before the listening event: two threads of the worker send them.
    let mut middle = all[2..4].to_vec();
    middle.sort_unstable();
    assert_eq!(middle, ["listening", "message"]);
    assert_eq!((&all[..2], &all[4..]), (&["fork", "online"][..], &["disconnect", "exit"][..]));
    assert!(!worker.is_connected() && worker.is_dead());
}

fn callbacks_threads_and_tasks_are_told_the_same() {
    let mut stage = Stage::new();
    let (told, heard) = channel();
    let tell = move |event| told.send(name(&event)).expect("the test listens");
    stage.cluster.on(tell).expect("a thread");
    let iterator = stage.cluster.events().expect("descriptors");
    let mut events = stage.cluster.events().expect("descriptors");
    let awaiting = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut names = Vec::new();
            while let Some(event) = events.recv_async().await {
                names.push(name(&event));
            }
            names
        })
    });
    let worker = stage.puppet();
    stage.ask(&worker, &Order::Echo("hi there".into()));
    stage.end();
    let iterated: Vec<&str> = iterator.map(|event| name(&event)).collect();
    assert_eq!(iterated, ["fork", "online", "message", "disconnect", "exit"]);
    assert_eq!(awaiting.join().expect("it does not panic"), iterated);
    assert_eq!(heard.iter().collect::<Vec<_>>(), iterated, "and the callback's thread has ended");
}

fn a_callback_may_fork() {
    let mut stage = Stage::new();
    let cluster = stage.cluster.clone();
    let (told, heard) = channel();
    let respawn = move |event| {
        if let Event::Exit { worker, .. } = event
            && worker.id().get() < 4
        {
            let options = ForkOptions::default().variable(BRIEF, "7");
            let next = cluster.fork_with(options).expect("a worker");
            told.send((worker.id().get(), next.id().get())).expect("the test listens");
        }
    };
    stage.cluster.on(respawn).expect("a thread");
    let first = stage.cluster.fork_with(ForkOptions::default().variable(BRIEF, "7"));
    let first = first.expect("a worker");
    assert_eq!(stage.exit(&first).0, Ending::Code(7));
    for id in 1..4 {
        assert_eq!(heard.recv_timeout(PATIENCE), Ok((id, id + 1)));
    }
}

fn events_of_one_worker_are_its_own() {
    let mut stage = Stage::new();
    let (first, second) = (stage.puppet(), stage.puppet());
    let events = second.events().expect("descriptors");
    stage.ask(&first, &Order::Echo(1.into()));
    stage.ask(&second, &Order::Echo(2.into()));
    stage.end();
    let events: Vec<Event> = events.collect();
    let names: Vec<&str> = events.iter().map(name).collect();
    assert_eq!(names, ["message", "disconnect", "exit"]);
    assert!(events.iter().all(|event| event.worker() == Some(&second)));
}

fn events_end_with_the_cluster() {
    let stage = Stage::new();
    let worker = stage.cluster.fork().expect("a worker");
    let mut events = stage.cluster.events().expect("descriptors");
    drop(stage);
    assert!(events.by_ref().all(|event| event.worker() == Some(&worker)));
    assert!(events.next().is_none());
    assert_eq!(events.try_recv().err(), Some(TryRecvError::Disconnected));
    let waited = events.recv_timeout(PATIENCE).err();
    assert_eq!(waited, Some(RecvTimeoutError::Disconnected));
    assert!(worker.send("too late").is_err());
    worker.disconnect();
}

fn a_worker_is_off_the_list_before_its_last_event() {
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let id = worker.id();
    assert_eq!(stage.cluster.workers()[&id], worker);
    let cluster = stage.cluster.clone();
    let events = stage.cluster.events().expect("descriptors");
    let watching = std::thread::spawn(move || {
        let (mut listed, mut last) = (Vec::new(), None);
        for event in events {
            if matches!(event, Event::Disconnect { .. } | Event::Exit { .. }) {
                listed.push(cluster.workers().contains_key(&id));
                last = Some(event);
            }
            if listed.len() == 2 {
                break;
            }
        }
        (listed, last)
    });
    worker.kill(clusterlb::Signal::SIGKILL).expect("it is ours");
    stage.exit(&worker);
    let (listed, last) = watching.join().expect("it does not panic");
    assert!(!listed[1], "{listed:?}");
    assert!(matches!(last, Some(Event::Exit { .. })));
}

fn a_slow_subscriber_loses_no_event() {
    const COUNT: u64 = 60_000;
    let mut stage = Stage::new();
    let worker = stage.puppet();
    let behind = stage.cluster.events().expect("descriptors");
    worker.send(&Order::Count { to: COUNT }).expect("the puppet reads");
    // Every other subscriber is delayed too, but loses no event.
    let reading = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let numbers = behind.filter_map(|event| match event {
            Event::Message { message, .. } => Some(message.parse::<Reply>().expect("a reply")),
            _ => None,
        });
        numbers.take(usize::try_from(COUNT).expect("it is small")).collect::<Vec<_>>()
    });
    for number in 0..COUNT {
        assert_eq!(stage.reply(&worker), Reply::Number(number));
    }
    let numbers = reading.join().expect("it does not panic");
    assert!(numbers.into_iter().eq((0..COUNT).map(Reply::Number)));
    // A subscriber that was dropped must not delay the others.
    stage.ask(&worker, &Order::Echo(1.into()));
    stage.end();
}
