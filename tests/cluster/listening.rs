//! Listening: shared, exclusive, closed and reopened, refused, held.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use clusterlb::Signal;
use clusterlb::{AddressKind, ListenOptions, Policy, WorkerHandle};
use nix::errno::Errno;

use crate::missing::lacking;
use crate::puppet::{Order, Reply, Service};
use crate::stage::{Stage, another_primary, ask, eventually, greeter, until_free, until_refused};
use crate::trials;

trials!(
    connections_go_round,
    a_worker_shares_its_address_whatever_the_policy,
    the_backlog_is_that_of_the_first,
    the_nth_port_zero_of_every_worker_is_the_same,
    a_chosen_port_stays_after_all_workers_were_replaced,
    a_fixed_port_is_shared_however_often_it_was_opened,
    a_connection_that_a_worker_drops_is_finished,
    ipv6_alone_leaves_ipv4_free,
    both_families_are_served_by_the_wildcard,
    a_descriptor_is_the_primarys,
    an_exclusive_listener_bypasses_the_primary,
    an_address_in_use_is_told_to_the_worker_and_can_be_tried_again,
    what_cannot_be_bound_is_told_to_the_worker,
    a_privileged_port_is_refused_in_the_worker,
    several_listeners_are_served_by_one_worker,
);

fn connections_go_round() {
    let mut stage = Stage::new();
    let (workers, address) = stage.shared(3);
    let greeted: Vec<u32> = (0..9).map(|_| greeter(&address)).collect();
    assert!(greeted.windows(4).all(|turn| turn[0] == turn[3] && turn[0] != turn[1]), "{greeted:?}");
    stage.cluster.disconnect().wait();
    for worker in &workers {
        let counts = stage.exit(worker).1;
        assert_eq!((counts.assigned, counts.claimed, counts.finished), (3, 3, 3));
    }
}

fn a_worker_shares_its_address_whatever_the_policy() {
    for policy in Policy::ALL {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let (_, address) = stage.shared(2);
        for _ in 0..20 {
            assert!([1, 2].contains(&greeter(&address)), "{policy:?}");
        }
        stage.end();
        until_free(&address);
    }
}

fn the_backlog_is_that_of_the_first() {
    let mut stage = Stage::with(|settings| settings.start_closed = true);
    let workers = [stage.puppet(), stage.puppet()];
    let mut bound = Vec::new();
    for (worker, backlog) in workers.iter().zip([7, 300]) {
        let options = ListenOptions::default().backlog(backlog);
        let one = stage.try_listen(worker, "127.0.0.1:0", options, Service::Greet);
        bound.push(one.expect("a free port"));
    }
    assert_eq!(bound[0], bound[1], "they share it all the same");
    // Linux admits one connection more than the backlog (`listen(2)`); the next one has to wait.
    let address = bound[0].parse().expect("an address");
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
    let let_in = (0..20).map_while(|_| connect().ok()).collect::<Vec<_>>();
    assert_eq!(let_in.len(), 8);
    stage.end();
}

fn the_nth_port_zero_of_every_worker_is_the_same() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let workers = [stage.puppet(), stage.puppet()];
        let ports: Vec<Vec<String>> = workers
            .iter()
            .map(|worker| (0..3).map(|_| stage.listen(worker, "127.0.0.1:0")).collect())
            .collect();
        assert_eq!(ports[0], ports[1]);
        assert!(ports[0][0] != ports[0][1] && ports[0][1] != ports[0][2]);
        stage.end();
    }
}

fn a_chosen_port_stays_after_all_workers_were_replaced() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let mut last = None;
        for generation in 1..=3 {
            let worker = stage.puppet();
            let any = "127.0.0.1:0";
            let ports = [stage.listen(&worker, any), stage.listen(&worker, any)];
            assert!(last.is_none_or(|last| last == ports), "generation {generation}");
            assert_eq!(greeter(&ports[1]), generation);
            // In order or by a signal.
            match generation {
                1 => worker.disconnect(),
                _ => worker.kill(Signal::SIGKILL).expect("it is ours"),
            }
            stage.exit(&worker);
            until_refused(&ports[0]);
            last = Some(ports);
        }
        stage.end();
    }
}

/// A fixed port is shared, however often the worker has opened it before.
fn a_fixed_port_is_shared_however_often_it_was_opened() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let workers = [stage.puppet(), stage.puppet()];
        // Held by the second worker, so that no other process gets it.
        let address = stage.listen(&workers[1], "127.0.0.1:0");
        let fixed = eventually("a fixed port", || {
            let fixed = format!("127.0.0.1:{}", free_port());
            let bound =
                stage.try_listen(&workers[1], &fixed, Default::default(), Service::Greet).ok();
            bound.inspect(|_| drop(stage.listening(&workers[1])))
        });
        assert_ne!(fixed, address);
        for _ in 0..3 {
            assert_eq!(stage.listen(&workers[0], &fixed), fixed);
            eventually("both to serve it", || {
                let greeted: Vec<u32> = (0..20).map(|_| greeter(&fixed)).collect();
                (greeted.contains(&1) && greeted.contains(&2)).then_some(())
            });
            stage.close(&workers[0], &fixed);
        }
        stage.end();
    }
}

/// A worker may drop a connection (Node's `dropMaxConnection`); that does not move it to another
/// worker.
fn a_connection_that_a_worker_drops_is_finished() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let worker = stage.puppet();
        let address = stage.serve(&worker, "127.0.0.1:0", Service::Drop);
        for _ in 0..10 {
            assert_eq!(ask(&address).expect("it is accepted"), "");
        }
        worker.disconnect();
        let counts = stage.exit(&worker).1;
        assert_eq!((counts.assigned, counts.finished, counts.returned), (10, 10, 0), "{policy:?}");
        stage.end();
    }
}

fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        lacking("IPv6");
    }
    has
}

fn port_of(address: &str) -> &str {
    address.rsplit_once(':').expect("a port").1
}

/// An IPv4 port that is free at the moment.
fn free_port() -> u16 {
    let probe = TcpListener::bind("0.0.0.0:0").expect("a free port");
    probe.local_addr().expect("it is bound").port()
}

fn ipv6_alone_leaves_ipv4_free() {
    if !has_ipv6() {
        return;
    }
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let (first, second) = (stage.puppet(), stage.puppet());
        let alone = ListenOptions::default().ipv6_only();
        let port = eventually("a port that is free for both", || {
            let port = free_port();
            let [v4, v6] = [format!("0.0.0.0:{port}"), format!("[::]:{port}")];
            stage.try_listen(&first, &v6, alone, Service::Greet).ok()?;
            assert_eq!(stage.listening(&first).kind, AddressKind::V6);
            let bound = stage.try_listen(&second, &v4, Default::default(), Service::Greet);
            if bound.is_err() {
                stage.close(&first, &v6);
            }
            bound.ok().map(|_| port)
        });
        assert_eq!(greeter(&format!("[::1]:{port}")), 1);
        assert_eq!(greeter(&format!("127.0.0.1:{port}")), 2);
        stage.end();
    }
}

fn both_families_are_served_by_the_wildcard() {
    if !has_ipv6() {
        return;
    }
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let workers = [stage.puppet(), stage.puppet(), stage.puppet()];
        let bound = workers.each_ref().map(|worker| stage.listen(worker, "[::]:0"));
        assert!(bound.iter().all(|one| *one == bound[0]), "{bound:?}");
        let port = port_of(&bound[0]);
        for _ in 0..3 {
            assert!((1..=3).contains(&greeter(&format!("[::1]:{port}"))));
            assert!((1..=3).contains(&greeter(&format!("127.0.0.1:{port}"))));
        }
        stage.end();
    }
}

fn a_descriptor_is_the_primarys() {
    for policy in [Policy::Rr, Policy::None] {
        let own = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = own.local_addr().expect("it is bound").to_string();
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let workers = [stage.puppet(), stage.puppet()];
        for worker in &workers {
            let bound = stage.listen(worker, &format!("fd:{}", own.as_raw_fd()));
            assert_eq!(bound, address);
        }
        assert!((0..6).all(|_| [1, 2].contains(&greeter(&address))));
        let refused = stage.try_listen(&workers[0], "fd:1000", Default::default(), Service::Greet);
        assert_eq!(refused.expect_err("nothing is open there").0, Errno::EBADF as i32);
        stage.end();
        assert!(own.local_addr().is_ok(), "the primary's own is still open");
    }
}

fn an_exclusive_listener_bypasses_the_primary() {
    let mut stage = Stage::new();
    let workers = [stage.puppet(), stage.puppet()];
    let order = Order::ListenAlone { address: "127.0.0.1:0".into() };
    let mut bound = Vec::new();
    for worker in &workers {
        match stage.ask(worker, &order) {
            Reply::Serving { address } => bound.push(address),
            other => panic!("{other:?}"),
        }
    }
    assert_ne!(bound[0], bound[1], "each has another port");
    assert_eq!((greeter(&bound[0]), greeter(&bound[1])), (1, 2));
    let told = |event: &clusterlb::Event| matches!(event, clusterlb::Event::Listening { .. });
    assert!(!stage.has_heard(told));
    stage.end();
    // A worker that leaves closes it too.
    until_refused(&bound[0]);
}

fn refused(stage: &mut Stage, worker: &WorkerHandle, address: &str) -> (Errno, String) {
    let answer = stage.try_listen(worker, address, ListenOptions::default(), Service::Greet);
    let (errno, text) = answer.expect_err("it is not to be had");
    (Errno::from_raw(errno), text)
}

fn an_address_in_use_is_told_to_the_worker_and_can_be_tried_again() {
    for policy in [Policy::Rr, Policy::None] {
        let mut stage = Stage::with(|settings| settings.policy = policy);
        let worker = stage.puppet();
        let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = other.local_addr().expect("it is bound").to_string();
        for _ in 0..2 {
            let (errno, text) = refused(&mut stage, &worker, &address);
            assert_eq!(errno, Errno::EADDRINUSE);
            assert!(text.contains(&address) && text.contains("Address already in use"), "{text}");
        }
        drop(other);
        // The failures leave nothing behind.
        eventually("the port to be free", || {
            stage.try_listen(&worker, &address, Default::default(), Service::Greet).ok()
        });
        assert_eq!(greeter(&address), 1);
        // The same worker already has it.
        assert_eq!(refused(&mut stage, &worker, &address).0, Errno::EADDRINUSE);
        // The settings of the other cluster are taken too.
        let mut second = Stage::new();
        let stranger = second.puppet();
        assert_eq!(refused(&mut second, &stranger, &address).0, Errno::EADDRINUSE);
        second.end();
        stage.end();
    }
}

fn what_cannot_be_bound_is_told_to_the_worker() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "not a socket").expect("the folder is ours");
    let mut stage = Stage::new();
    let worker = stage.puppet();
    for (address, errno) in [
        ("unix:/nowhere/at/all".to_owned(), Errno::ENOENT),
        (format!("unix:{}", file.display()), Errno::EADDRINUSE),
        ("192.0.2.1:0".to_owned(), Errno::EADDRNOTAVAIL),
        ("no-such-name.invalid:80".to_owned(), Errno::EADDRNOTAVAIL),
    ] {
        assert_eq!(refused(&mut stage, &worker, &address).0, errno, "{address}");
    }
    assert_eq!(stage.ask(&worker, &Order::Echo(1.into())), Reply::Echo(1.into()));
    stage.end();
}

fn a_privileged_port_is_refused_in_the_worker() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|first| first.trim() == "0") {
        return lacking("privileged ports (net.ipv4.ip_unprivileged_port_start is 0)");
    }
    // A copy, because the original's directory may be closed to other users.
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("cluster");
    let own = std::env::current_exe().expect("this program has a file");
    std::fs::copy(own, &copy).expect("room for a copy");
    for path in [folder.path(), &copy] {
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, everybody).expect("it is ours");
    }
    let mut primary = another_primary("unprivileged", &copy);
    if nix::unistd::geteuid().is_root() {
        primary.gid(65_534).uid(65_534);
    }
    let output = primary.output().expect("this program runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    // The worker gets the error, whichever side accepts; so does one that asks for another user.
    for policy in ["Rr", "None"] {
        let refusal = "(13, \"cannot bind 127.0.0.1:1: Permission denied\")";
        assert!(told.contains(&format!("{policy}: {refusal}")), "{output:?}");
        let forbidden = told.lines().any(|line| {
            line.starts_with(&format!("{policy}: start")) && line.ends_with("not permitted")
        });
        assert!(forbidden, "{output:?}");
    }
}

fn several_listeners_are_served_by_one_worker() {
    let mut stage = Stage::new();
    let (first, second) = (stage.puppet(), stage.puppet());
    let both = stage.listen(&first, "127.0.0.1:0");
    assert_eq!(stage.listen(&second, "127.0.0.1:0"), both);
    // Only the second worker serves these.
    let further = stage.listen(&second, "127.0.0.1:0");
    let path = tempfile::tempdir().expect("a folder");
    let unix = stage.listen(&second, &format!("unix:{}", path.path().join("socket").display()));
    for _ in 0..4 {
        assert_eq!((greeter(&further), greeter(&unix)), (2, 2));
    }
    let mut turns: Vec<u32> = (0..4).map(|_| greeter(&both)).collect();
    turns.sort_unstable();
    assert_eq!(turns, [1, 1, 2, 2]);
    stage.end();
}
