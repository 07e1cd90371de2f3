//! Orders that few tests need.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use clusterlb::{BindFuture, ListenOptions, Listener, Transport, Worker};
use serde::{Deserialize, Serialize};

use crate::puppet::Reply;
use crate::stage::ON_PURPOSE;

/// Such an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Trick {
    /// Request an address on a single-threaded runtime, and report five ticks of its clock before
    /// the reply, if it takes that long.
    Await { address: String },
    /// Request an address, and cancel the request at once or after this time.
    AskInVain { address: String, options: ListenOptions, patience_ms: u64 },
    /// Request an address in a thread that panics when it is refused.
    Panic { address: String },
    /// Request an address, and leave if it is refused.
    LeaveIfRefused { address: String },
    /// Connect to this address, and exit when the connection ends.
    StayFor { address: String },
    /// Send one connection to this address twice.
    SendTwice { address: String },
    /// Send this back.
    Echo(Exotic),
    /// Compute for ever.
    Spin,
    /// Write garbage to the channel.
    Garble,
    /// Make the thread that reads from the primary panic at the next message.
    LoseHearing,
    /// Panic when the primary is lost, and write to this socket when leaving nevertheless.
    PanicWhenLost { address: String },
}

/// A value that JSON cannot represent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exotic {
    pub(crate) infinite: f64,
    pub(crate) by_place: BTreeMap<(i8, i8), String>,
}

/// What a puppet does between leaving and exiting.
pub(crate) type Last = Box<dyn FnOnce()>;

/// Follows the order and returns the reply, if there is one.
pub(crate) fn perform(worker: &Worker, trick: Trick, last: &mut Vec<Last>) -> Option<Reply> {
    match trick {
        Trick::Await { address } => return Some(await_address(worker, &address)),
        Trick::AskInVain { address, options, patience_ms } => {
            ask_in_vain(worker, &address, options, Duration::from_millis(patience_ms));
        }
        Trick::Panic { address } => {
            let worker = worker.clone();
            let thread = std::thread::spawn(move || {
                worker.bind(&address).expect(ON_PURPOSE);
            });
            thread.join().expect_err("it is refused");
        }
        Trick::LeaveIfRefused { address } => {
            worker.bind(&address).expect_err("another worker has it");
            drop(worker.disconnect());
            return None;
        }
        Trick::StayFor { address } => {
            let mut stream = TcpStream::connect(address).expect("a server listens");
            last.push(Box::new(move || {
                std::io::copy(&mut stream, &mut std::io::sink()).expect("an orderly end");
            }));
        }
        Trick::SendTwice { address } => {
            let stream = TcpStream::connect(address).expect("a server listens");
            for _ in 0..2 {
                worker.send_shared(&Reply::Connected, &stream).expect("the primary reads");
            }
            return None;
        }
        Trick::Echo(exotic) => return Some(Reply::Exotic(exotic)),
        Trick::Spin => loop {
            std::hint::spin_loop();
        },
        Trick::Garble => {
            let number = std::env::var("CLUSTERLB_CONTROL_FD").expect("every worker has one");
            let number = number.parse().expect("a number");
            let channel = clusterlb_sys::process::copy_of(number).expect("it is open");
            let garbage = b"\x03\0\0\0\0\0\0\0{]}";
            File::from(channel).write_all(garbage).expect("the primary reads");
            return None;
        }
        Trick::LoseHearing => {
            let mut messages = worker.messages();
            let polled = messages.poll_recv(&mut Context::from_waker(&bomb()));
            assert!(polled.is_pending(), "no reply has come");
        }
        Trick::PanicWhenLost { address } => {
            worker.on_disconnect(|| panic!("{ON_PURPOSE}"));
            let mut stream = TcpStream::connect(address).expect("a server listens");
            last.push(Box::new(move || stream.write_all(b"alone").expect("the peer reads")));
        }
    }
    Some(Reply::Done)
}

fn await_address(worker: &Worker, address: &str) -> Reply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let opened: clusterlb::Result<Listener> = runtime.expect("a runtime").block_on(async {
        let mut opening = worker.bind_async(address, ListenOptions::default());
        let mut ticks = 0;
        loop {
            tokio::select! {
                opened = &mut opening => return opened,
                () = tokio::time::sleep(Duration::from_millis(1)) => ticks += 1,
            }
            if ticks == 5 {
                worker.send(&Reply::Number(ticks)).expect("the primary reads");
            }
        }
    });
    match opened {
        Ok(listener) => Reply::Serving { address: listener.local_addr().to_string() },
        Err(error) => Reply::refused(&error),
    }
}

fn ask_in_vain(worker: &Worker, address: &str, options: ListenOptions, patience: Duration) {
    fn begin<T>(mut opening: BindFuture<T>, patience: Duration) {
        if !patience.is_zero() {
            // A waker is registered for a reply that does not come.
            let mut context = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut opening).poll(&mut context);
            std::thread::sleep(patience);
        }
    }
    match options.transport {
        Transport::Stream => begin(worker.bind_async(address, options), patience),
        _ => begin(worker.bind_udp_async(address, options), patience),
    }
}

/// A waker that panics.
pub(crate) fn bomb() -> Waker {
    struct Bomb;

    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a waker panics {ON_PURPOSE}");
        }
    }

    Waker::from(Arc::new(Bomb))
}
