//! Workers whose event loop is late: what the metrics say, and what their primary does with it.

use std::path::Path;
use std::time::Duration;

use super::nodes::with_each;
use super::script::Script;
use crate::common::{Client, Cluster, GET_CLOSE, eventually, get, has_program};

/// Computes for 100 ms on each request to /busy.
const SERVER: &str = "
    require('http').createServer((request, response) => {
        const end = Date.now() + (request.url === '/busy' ? 100 : 0);
        while (Date.now() < end);
        response.end('done');
    }).listen(0, '127.0.0.1');";

const BUSY: &[u8] = b"GET /busy HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

fn metric(cluster: &Cluster, name: &str) -> f64 {
    let admin = cluster.event("admin", 0)["address"].as_str().expect("an address").to_owned();
    let mut client = Client::to(&admin);
    let body = client.ask(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").body;
    let sample = format!("clusterlb_worker_loop_delay_seconds_{name}{{slot=\"0\"}} ");
    let value = body.lines().find_map(|line| line.strip_prefix(&sample));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {sample} in {body}"))
}

#[test]
fn a_worker_that_computes_is_late_and_the_metrics_say_so() {
    if !has_program("node") {
        return;
    }
    let script = Script::named("server.js", SERVER);
    // The loop is sampled every 20 ms while there are connections.
    let arguments = "--workers 1 --hang-after 100ms --admin 127.0.0.1:0";
    let cluster = script.launch_with(Path::new("node"), arguments).start();
    let address = cluster.address();
    get(&address).expect("an answer");
    let looked = eventually("a first look", || {
        let count = metric(&cluster, "count");
        (count > 0.0).then_some(count)
    });
    eventually("a busy turn to be seen", || {
        let mut client = Client::to(&address);
        client.ask(BUSY);
        let is_later = metric(&cluster, "count") > looked;
        (is_later && metric(&cluster, "sum") > 0.05).then_some(())
    });
    cluster.end();
}

/// Whatever such a worker writes last must wake the primary, which sleeps without a deadline.
#[test]
fn connections_wait_no_longer_than_all_workers_compute() {
    let script = Script::named("server.js", SERVER);
    with_each(|node| {
        let arguments = "--workers 1 --hang-after 50ms";
        let cluster = script.launch_with(&node.program, arguments).start();
        let address = cluster.address();
        for _ in 0..20 {
            let mut computes = Client::to(&address);
            computes.send(BUSY);
            std::thread::sleep(Duration::from_millis(75));
            // The worker has computed for too long to get this one now.
            let mut waits = Client::to(&address);
            waits.send(GET_CLOSE);
            assert_eq!([&mut computes, &mut waits].map(|one| one.receive().body), ["done"; 2]);
        }
        let summary = cluster.end();
        assert_eq!((summary.dropped, summary.aborted), (0, 0), "{summary:?}");
    });
}
