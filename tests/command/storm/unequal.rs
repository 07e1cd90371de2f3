//! Unequal workers for the storm: all of them serve one address, and the one in the first slot
//! serves a second address alone.
//!
//! Owns the workers' program, which is this test program: it is started with the name of the test
//! below, and that one serves when a primary has started it. A program of the library, so it copes
//! with a lack of descriptors.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;

use clusterlb::{Role, Tracked};

use crate::common::{HELLO, Launch};

/// Everyone's address and the one of the first slot. A free port each.
const ADDRESSES: [&str; 2] = ["127.0.0.1:0", "127.0.0.2:0"];
const SLOT_VARIABLE: &str = "CLUSTERLB_INSTANCE";

/// Starts the command with these workers.
pub(super) fn launch(arguments: &str) -> Launch {
    let own = std::env::current_exe().expect("this program has a file");
    let own = own.to_str().expect("a path that is text");
    let name = "storm::unequal::workers_serve_unequal_addresses";
    // What the test program says is not for the primary's output.
    let quietly = "exec \"$0\" \"$@\" >/dev/null";
    let words = ["sh", "-c", quietly, own, name, "--exact", "--nocapture", "--test-threads=1"];
    Launch::new(&format!("--dialect native {arguments}")).running(&words).servers(ADDRESSES.len())
}

#[test]
fn workers_serve_unequal_addresses() {
    if clusterlb::is_primary() {
        return;
    }
    let Ok(Role::Worker(worker)) = clusterlb::role() else { panic!("not a worker") };
    let is_first = std::env::var(SLOT_VARIABLE).is_ok_and(|slot| slot == "0");
    let served = &ADDRESSES[..if is_first { 2 } else { 1 }];
    // All of them before the first connection: those may take every descriptor that a falling limit
    // leaves.
    let bind = |address: &&str| worker.bind(address).expect("the primary opens it");
    let listeners: Vec<_> = served.iter().map(bind).collect();
    thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(move || {
                // One thread for each: a slow client holds up no other.
                for connection in listener.incoming() {
                    let stream = connection.and_then(|one| one.into_tcp()).expect("a stream");
                    let spawned = thread::Builder::new().stack_size(64 << 10);
                    spawned.spawn(move || answer(stream)).expect("a thread for it");
                }
            });
        }
    });
    worker.disconnected().wait();
}

/// Answers until the client closes or asks for that.
fn answer(mut stream: Tracked<TcpStream>) {
    let mut head = Vec::new();
    let mut bytes = [0; 512];
    // A client that resets is none to answer.
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        head.extend_from_slice(&bytes[..count]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let closes = head.windows(5).any(|word| word == b"close");
        head.clear();
        let connection = if closes { "close" } else { "keep-alive" };
        let length = HELLO.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nConnection: {connection}\r\nContent-Length: {length}\r\n\r\n{HELLO}"
        );
        if stream.write_all(answer.as_bytes()).is_err() || closes {
            return;
        }
    }
}
