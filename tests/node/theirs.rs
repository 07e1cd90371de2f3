//! Node's own primary as a process, with a worker script and a channel to the test.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use serde_json::Value;

use super::nodes::Node;
use super::script::Script;
use crate::common::{PATIENCE, machine};

const PRIMARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/primary.js");

/// A run of two workers.
pub(crate) struct Theirs {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Value>,
    events: Vec<Value>,
}

impl Theirs {
    pub(crate) fn start(node: &Node, policy: &str, script: &Script) -> Self {
        let mut child = Command::new(&node.program)
            .arg(PRIMARY)
            .env("TEST_WORKER", script.path("server.js"))
            .env("TEST_POLICY", policy)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Node starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let events = lines.map_while(Result::ok).filter_map(|line| line.parse().ok());
            // The receiver is gone once the test is over.
            events.for_each(|event| drop(sender.send(event)));
        });
        let input = child.stdin.take();
        Self { child, input, output, events: Vec::new() }
    }

    /// The same, and waits until both workers listen.
    pub(crate) fn serving(node: &Node, script: &Script) -> Self {
        let mut theirs = Self::start(node, "rr", script);
        theirs.event("listening", 1);
        theirs
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the event of this name, after `before` others.
    pub(crate) fn event(&mut self, name: &str, before: usize) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.named(name).nth(before) {
                return event.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(event) => self.events.push(event),
                Err(_) => panic!("in vain: waited for {name}; heard {:#?}", self.events),
            }
        }
    }

    /// Whether such an event has arrived.
    pub(crate) fn has_told(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |event| event["event"] == name)
    }

    pub(crate) fn address(&mut self) -> String {
        self.event("listening", 0)["address"].as_str().expect("an address").to_owned()
    }

    pub(crate) fn worker_pids(&mut self) -> [u32; 2] {
        [0, 1].map(|number| {
            let pid = self.event("online", number)["pid"].as_u64().expect("a process id");
            u32::try_from(pid).expect("process ids are small")
        })
    }

    pub(crate) fn say(&mut self, word: &str) {
        let input = self.input.as_mut().expect("it has not been ended");
        writeln!(input, "{word}").expect("the primary reads");
    }

    pub(crate) fn refusals(&mut self, before: usize) -> u64 {
        self.say("refusals");
        self.event("refusals", before)["count"].as_u64().expect("a count")
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // A stopped worker does not see its primary go.
        for event in self.events.iter().filter(|event| event["event"] == "online") {
            let pid = event["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
            let ended = |exit: &&Value| exit["event"] == "exit" && exit["id"] == event["id"];
            if let (Some(pid), None) = (pid, self.events.iter().find(ended)) {
                machine::signal(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        self.input = None;
        let _ = self.child.wait();
    }
}
