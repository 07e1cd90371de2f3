//! Listeners behind a balancer that sends the PROXY protocol.

use clusterlb::{ListenRule, Policy, WorkerCounts};

use crate::assert_books;
use crate::client::Client;
use crate::headers::{headers, without_header};
use crate::server::{Adapter, WHO};
use crate::stage::Stage;

fn refused(counts: &[WorkerCounts]) -> u64 {
    counts.iter().map(|one| one.headers_refused).sum()
}

/// The header and the request arrive together, apart, and in small pieces.
pub(crate) fn clients_are_those_that_are_named(adapter: Adapter) {
    for (policy, by_worker) in [(Policy::Rr, true), (Policy::None, false)] {
        let rules = if by_worker { vec![] } else { vec![ListenRule::All] };
        let mut stage = Stage::behind(adapter, policy, 2, rules);
        stage.is_proxied = by_worker;
        let address = stage.serve("127.0.0.1:0");
        let mut connections = 0;
        for (header, named) in headers() {
            for piece_bytes in [header.len(), 1, 7] {
                let mut client = Client::connect(adapter, &address);
                let [peer, local] = match named {
                    Some(named) => named.map(str::to_owned),
                    None => [client.own_address(), address.clone()],
                };
                client.send_header(&header, piece_bytes);
                client.send(WHO);
                let expected = match adapter {
                    Adapter::Axum => peer,
                    _ => format!("{peer} {local}"),
                };
                assert_eq!(client.receive(), expected);
                client.send("more");
                assert_eq!(client.receive(), "more");
                connections += 1;
            }
        }
        let counts = stage.end();
        assert_books(&counts, connections);
        assert_eq!(refused(&counts), 0);
    }
}

pub(crate) fn one_without_a_header_is_closed(adapter: Adapter) {
    let mut stage = Stage::new(adapter, Policy::Rr, 2);
    stage.is_proxied = true;
    let address = stage.serve("127.0.0.1:0");
    let all = without_header();
    for bytes in &all {
        let mut client = Client::connect(adapter, &address);
        client.send_header(bytes, bytes.len());
        client.half_close();
        client.expect_end();
    }
    let counts = stage.end();
    assert_books(&counts, all.len());
    assert_eq!(refused(&counts), all.len() as u64);
}

/// A worker that leaves still serves connections whose headers come late.
pub(crate) fn late_headers(adapter: Adapter) {
    let mut stage = Stage::new(adapter, Policy::Rr, 1);
    stage.is_proxied = true;
    let address = stage.serve("127.0.0.1:0");
    let (header, _) = headers().swap_remove(0);
    let (early, late) = header.split_at(9);
    let begin = || {
        let mut client = Client::connect(adapter, &address);
        client.send_header(early, early.len());
        client
    };
    // To wait for the limit once is enough.
    let mut silent = (adapter == Adapter::Std).then(begin);
    let mut slow = begin();
    let mut prompt = begin();
    prompt.send_header(late, late.len());
    prompt.send("first");
    assert_eq!(prompt.receive(), "first");
    drop(prompt);
    stage.leave();
    slow.send_header(late, late.len());
    slow.send("second");
    assert_eq!(slow.receive(), "second");
    drop(slow);
    // Nothing more comes: it is closed at the limit, and then the worker has left.
    let late = silent.iter_mut().map(Client::expect_end).count();
    let counts = stage.end();
    assert_books(&counts, 2 + late);
    assert_eq!(refused(&counts), late as u64);
}
