//! Listeners behind a balancer that sends the PROXY protocol: the built-in worker, with headers of
//! these tests and with those of the real HAProxy.

use crate::common::{
    Client, Cluster, GET, Haproxy, Launch, Summary, free_ports, get, has_program, headers,
    without_header,
};

/// The ways in which the built-in worker gets connections.
const WAYS: [&str; 4] = [
    "--workers 2",
    "--workers 2 --runtime tokio-uring",
    "--workers 2 --policy none",
    "--workers 2 --dispatch kernel",
];

fn start(arguments: &str) -> Cluster {
    Launch::new(&format!("--proxy-protocol all {arguments}")).start()
}

fn refused(summary: &Summary) -> u64 {
    summary.workers.iter().map(|one| one.headers_refused).sum()
}

#[test]
fn requests_behind_a_header_are_answered_however_it_is_split() {
    for way in WAYS {
        let cluster = start(way);
        let mut connections = 0;
        for (header, _) in headers() {
            for piece_bytes in [header.len() + GET.len(), header.len(), 1, 7] {
                let mut client = Client::to(&cluster.address());
                let bytes = [&header, GET].concat();
                bytes.chunks(piece_bytes).for_each(|piece| client.send(piece));
                client.receive().assert_hello();
                // One header a connection.
                client.ask(GET).assert_hello();
                connections += 1;
            }
        }
        let summary = cluster.end();
        summary.assert_clean(connections);
        assert_eq!(refused(&summary), 0, "{way}");
    }
}

#[test]
fn connections_without_a_header_are_closed_and_counted() {
    for way in WAYS {
        let cluster = start(way);
        let all = without_header();
        for bytes in &all {
            let mut client = Client::to(&cluster.address());
            client.send(bytes);
            client.try_half_close();
            // Unread bytes reset the connection.
            assert!(client.rest().unwrap_or_default().is_empty(), "{way}: {bytes:?}");
        }
        let summary = cluster.end();
        summary.assert_clean(all.len() as u64);
        assert_eq!(refused(&summary), all.len() as u64, "{way}");
        assert_eq!(summary.workers.iter().map(|one| one.requests).sum::<u64>(), 0);
    }
}

#[test]
fn a_slow_header_holds_up_nothing_and_has_a_limit() {
    let (header, _) = headers().swap_remove(0);
    for arguments in ["--serve hello", "--serve echo"] {
        let cluster = start(&format!("{arguments} --workers 1 --header-timeout 1s"));
        let mut slow = Client::to(&cluster.address());
        slow.send(&header[..9]);
        let mut prompt = Client::to(&cluster.address());
        prompt.send(&header);
        prompt.send(GET);
        match arguments {
            "--serve hello" => prompt.receive().assert_hello(),
            _ => assert_eq!(prompt.try_receive_bytes(GET.len()).expect("an echo"), GET),
        }
        slow.assert_closed();
        drop(prompt);
        let summary = cluster.end();
        summary.assert_clean(2);
        assert_eq!(refused(&summary), 1, "{arguments}");
    }
}

#[test]
fn a_rule_is_about_the_listeners_that_it_names() {
    let port = free_ports(&["127.0.0.1"], 1)[0];
    let launch = Launch::new("--workers 1").option("--proxy-protocol", &port.to_string());
    let launch = launch.listen(format!("127.0.0.1:{port}")).listen("127.0.0.1:0");
    let cluster = launch.start();
    let (proxied, other): (Vec<String>, Vec<String>) =
        cluster.addresses().into_iter().partition(|one| one.ends_with(&format!(":{port}")));
    get(&other[0]).expect("it is no balancer's").assert_hello();
    let mut client = Client::to(&proxied[0]);
    client.send(&headers()[0].0);
    client.ask(GET).assert_hello();
    drop(client);
    assert!(get(&proxied[0]).is_err(), "it has no header");
    let summary = cluster.end();
    assert_eq!((refused(&summary), summary.accepted), (1, 3));
}

#[test]
fn haproxy_s_headers_and_its_checks_are_read() {
    if !has_program("haproxy") {
        return;
    }
    let cluster = start("--workers 2");
    let (haproxy, ports) = Haproxy::with_headers(&cluster.address(), "check inter 100ms");
    for port in ports {
        for _ in 0..4 {
            get(&format!("127.0.0.1:{port}")).expect("an answer").assert_hello();
        }
    }
    drop(haproxy);
    let summary = cluster.end();
    assert_eq!((refused(&summary), summary.dropped, summary.aborted), (0, 0, 0));
}
