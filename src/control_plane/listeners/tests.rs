//! Which sockets are found, opened anew and counted.

use super::*;

const OPENING: Opening =
    Opening { backlog: 16, socket_for_each: false, blocking: false, defer_accept: false };

fn key(address: &str, index: u32) -> Key {
    let address = address.parse().expect("an address");
    Key::new(&address, ListenOptions::default(), index)
}

impl Listeners {
    fn open(&mut self, key: &Key, insists: bool) -> Result<ListenerId> {
        self.find_or_open(key, None, OPENING, insists).map(|(id, _)| id)
    }
}

#[test]
fn a_port_that_was_chosen_once_is_chosen_again_until_it_is_forgotten() {
    let mut listeners = Listeners::default();
    let keys = [key("127.0.0.1:0", 0), key("127.0.0.1:0", 1)];
    let opened = keys.each_ref().map(|key| listeners.open(key, false).expect("a free port"));
    let ports = opened.map(|id| listeners.take(id).expect("it is open").address);
    assert_ne!(ports[0], ports[1]);
    for (key, port) in keys.iter().zip(&ports) {
        let again = listeners.open(key, false).expect("the same port");
        assert_eq!(listeners.get_mut(again).expect("it is open").address, *port);
        assert!(!opened.contains(&again), "the number is a new one");
    }
    listeners.clear();
    listeners.forget_port(&keys[0]);
    // Whatever the kernel chooses, it is not bound to choose the same.
    let _taken = std::net::TcpListener::bind(&ports[0]).expect("it is free again");
    assert!(listeners.open(&keys[0], true).is_ok());
}

#[test]
fn a_port_that_another_process_has_now_is_replaced() {
    let mut listeners = Listeners::default();
    let key = key("127.0.0.1:0", 0);
    let first = listeners.open(&key, false).expect("a free port");
    let port = listeners.take(first).expect("it is open").address;
    let _other = std::net::TcpListener::bind(&port).expect("it is free again");
    assert!(is_busy(&listeners.open(&key, true).expect_err("another process has it")));
    let again = listeners.open(&key, false).expect("some port");
    assert_ne!(listeners.get_mut(again).expect("it is open").address, port);
}

#[test]
fn listeners_are_bounded_and_room_comes_back() {
    let mut listeners = Listeners::default();
    let unix = |index: usize| key(&format!("unix:@clusterlb-{}-{index}", std::process::id()), 0);
    let opened: Vec<ListenerId> = (0..LISTENERS_MAX)
        .map(|index| listeners.open(&unix(index), false).expect("a free name"))
        .collect();
    let one_more = unix(LISTENERS_MAX);
    let error = listeners.open(&one_more, false).expect_err("one too many");
    assert!(matches!(error, Error::Listen { source, .. } if source == Errno::ENOBUFS), "{error}");
    assert!(listeners.open(&unix(0), false).is_ok(), "one that is open is found");
    listeners.take(opened[7]);
    assert!(listeners.open(&one_more, false).is_ok());
}

#[test]
fn a_unix_socket_whose_file_is_gone_is_opened_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let mut listeners = Listeners::default();
    let key = key(&format!("unix:{}", path.display()), 0);
    let id = listeners.open(&key, false).expect("a free path");
    assert_eq!(listeners.open(&key, false).expect("it is open"), id);
    assert!(!listeners.get_mut(id).expect("it is open").take_reopened());
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(listeners.open(&key, false).expect("it is opened again"), id);
    assert!(listeners.get_mut(id).expect("it is open").take_reopened());
    std::os::unix::net::UnixStream::connect(&path).expect("it listens");
}

#[test]
fn a_worker_has_a_share_of_the_descriptors_for_what_it_has_opened() {
    let mut listeners = Listeners::default();
    let (greedy, other) = (WorkerId::new(1), WorkerId::new(2));
    let unix =
        |index: usize| key(&format!("unix:@clusterlb-room-{}-{index}", std::process::id()), 0);
    let mut open = |index: usize, worker: WorkerId| {
        listeners.ensure_room(&unix(index), worker, Bounds::new(80, true))?;
        let id = listeners.open(&unix(index), false)?;
        let entry = listeners.get_mut(id).expect("it is open");
        entry.add_user(worker, 1);
        Ok::<_, Error>(())
    };
    let is_full =
        |error: &Error| matches!(error, Error::Listen { source, .. } if *source == Errno::ENOBUFS);
    // A quarter of the descriptors, and three quarters of that.
    (0..15).for_each(|index| open(index, greedy).expect("within its share"));
    assert!(is_full(&open(15, greedy).expect_err("beyond its share")));
    (15..20).for_each(|index| open(index, other).expect("what is left"));
    assert!(is_full(&open(20, other).expect_err("beyond the share of all")));
    listeners.iter_mut().for_each(|entry| entry.held = true);
    let bounds = Bounds::new(80, true);
    assert!(listeners.ensure_room(&unix(20), greedy, bounds).is_ok(), "held: the program's");
}

#[test]
fn a_worker_that_is_not_trusted_leaves_listeners_to_others() {
    let mut listeners = Listeners::default();
    let (greedy, other) = (WorkerId::new(1), WorkerId::new(2));
    let unix =
        |index: usize| key(&format!("unix:@clusterlb-count-{}-{index}", std::process::id()), 0);
    let room = |listeners: &Listeners, worker, is_trusted| {
        listeners.ensure_room(&unix(usize::MAX), worker, Bounds::new(usize::MAX, is_trusted))
    };
    for index in 0..LISTENERS_MAX - LISTENERS_MAX / 4 {
        assert!(room(&listeners, greedy, false).is_ok(), "{index} are within its share");
        let id = listeners.open(&unix(index), false).expect("a free name");
        listeners.get_mut(id).expect("it is open").add_user(greedy, 1);
    }
    assert!(room(&listeners, greedy, false).is_err());
    assert!(room(&listeners, greedy, true).is_ok(), "1024 is its bound");
    assert!(room(&listeners, other, false).is_ok());
}
