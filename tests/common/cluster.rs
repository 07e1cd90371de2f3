//! The cluster under test: starting it, reading its output, signalling it, ending it, and checking
//! what it leaves behind.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::books::{Ended, Summary};
use super::{PATIENCE, eventually, machine};

/// The command under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_clusterlb");

/// Selects the engine of the command; the whole suite can be run with each.
pub(crate) const ENGINE_VARIABLE: &str = "CLUSTERLB_ENGINE";
/// Confines the command and its built-in workers; the suite can be run with it.
const SECCOMP_VARIABLE: &str = "CLUSTERLB_SECCOMP";

/// Whether these tests run on epoll.
pub(crate) fn is_epoll() -> bool {
    std::env::var(ENGINE_VARIABLE).is_ok_and(|engine| engine == "epoll")
}

/// Identifies the run that a process belongs to; workers inherit it.
const RUN_VARIABLE: &str = "CLUSTERLB_TEST_RUN";

/// Disables the skipping of workers that are merely slow, and sets time limits that a busy machine
/// does not exceed. Options given by the test take precedence.
const STEADY: [(&str, &str); 7] = [
    ("--hang-after", "off"),
    ("--take-back-after", "off"),
    ("--overload-factor", "off"),
    ("--grace", "60s"),
    ("--settle", "0s"),
    ("--header-timeout", "60s"),
    ("--idle-timeout", "10m"),
];

static RUNS: AtomicU32 = AtomicU32::new(0);

/// How to start the command.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    program: Vec<String>,
    listen: Vec<String>,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// The workers' program and its arguments.
    workers: Vec<String>,
    /// Number of addresses that this program listens on.
    servers: usize,
    /// Standard input; nothing otherwise.
    input: Option<Arc<OwnedFd>>,
    json: bool,
    steady: bool,
}

impl Launch {
    /// Arguments other than `--json` and `--listen`, separated by spaces.
    pub(crate) fn new(arguments: &str) -> Self {
        Self {
            program: vec![BINARY.to_owned()],
            listen: vec![],
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            variables: vec![],
            workers: vec![],
            servers: 1,
            input: None,
            json: true,
            steady: true,
        }
    }

    /// Uses the defaults for everything that depends on time. Otherwise no worker is skipped and no
    /// connection cut because the machine is busy, and the rotation is strict while no worker runs
    /// out of credits (`--credits` sets them).
    pub(crate) fn with_defaults(mut self) -> Self {
        self.steady = false;
        self
    }

    /// Adds a listener; the default is a free port on the loopback.
    pub(crate) fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen.push(address.into());
        self
    }

    /// Adds an option, whose value may contain any character.
    pub(crate) fn option(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Makes the workers run this program, which listens on one address.
    pub(crate) fn running(mut self, words: &[&str]) -> Self {
        self.workers = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Sets the number of addresses that it listens on.
    pub(crate) fn servers(mut self, servers: usize) -> Self {
        self.servers = servers;
        self
    }

    /// Gives it this descriptor as standard input, and no copy to another program.
    pub(crate) fn input(mut self, descriptor: &OwnedFd) -> Self {
        let copy = descriptor.try_clone().expect("a descriptor to spare");
        self.input = Some(Arc::new(copy));
        self
    }

    /// Starts the command through a program that executes its arguments.
    pub(crate) fn under(mut self, words: &[&str]) -> Self {
        let words = words.iter().map(|word| (*word).to_owned());
        self.program.splice(0..0, words);
        self
    }

    /// Starts another copy of the command.
    pub(crate) fn program(mut self, path: &str) -> Self {
        *self.program.last_mut().expect("there is a program") = path.to_owned();
        self
    }

    /// Sets a variable in its environment.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Selects the human-readable output, on standard error.
    pub(crate) fn in_words(mut self) -> Self {
        self.json = false;
        self
    }

    fn spawn(&self) -> Cluster {
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let run = format!("{}-{number}", std::process::id());
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(&self.arguments);
        if self.json {
            command.arg("--json");
        }
        let given = |option| self.arguments.iter().any(|argument| argument == option);
        for (option, value) in STEADY {
            let of_built_in_worker = option.ends_with("-timeout");
            if self.steady && !given(option) && !(of_built_in_worker && self.is_program()) {
                command.args([option, value]);
            }
        }
        for address in &self.listen {
            command.args(["--listen", address]);
        }
        if self.is_program() {
            command.arg("--").args(&self.workers);
        }
        if self.needs_ring() {
            command.env_remove(ENGINE_VARIABLE);
        }
        if self.is_program() || self.arguments.iter().any(|word| word == "tokio-uring") {
            command.env_remove(SECCOMP_VARIABLE);
        }
        let input = self.input.as_ref().map_or_else(Stdio::null, |input| {
            input.try_clone().expect("a descriptor to spare").into()
        });
        let child = command
            .env_remove("CLUSTERLB_SCHED_POLICY")
            .env(RUN_VARIABLE, &run)
            .envs(self.variables.iter().cloned())
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("start {:?}: {error}", self.program));
        Cluster::attend(child, format!("{RUN_VARIABLE}={run}"))
    }

    /// Whether the test depends on io_uring, which it then uses whatever engine the suite runs
    /// with.
    fn needs_ring(&self) -> bool {
        let ways = ["tokio-uring", "uring", "uring-multishot"];
        self.arguments.iter().any(|argument| ways.contains(&argument.as_str()))
    }

    fn is_program(&self) -> bool {
        !self.workers.is_empty()
    }

    fn listeners(&self) -> usize {
        if self.is_program() { self.servers } else { self.listen.len() }
    }

    /// Starts it and waits until it serves.
    pub(crate) fn start(mut self) -> Cluster {
        if self.listen.is_empty() && !self.is_program() {
            self.listen.push("127.0.0.1:0".into());
        }
        let cluster = self.spawn();
        let (listeners, json) = (self.listeners(), self.json);
        cluster.until("the cluster to serve", |heard| {
            if !json {
                let told = heard.errors.lines();
                let told = told.filter(|line| line.starts_with("listening on "));
                return (told.count() == listeners).then_some(());
            }
            let first = heard.named("listening").next()?;
            let workers = first["workers"].as_u64()?;
            let told = heard.named("listening").count() == listeners;
            (told && heard.named("online").count() as u64 >= workers).then_some(())
        });
        cluster
    }

    /// Starts it without waiting.
    pub(crate) fn start_unready(self) -> Cluster {
        match self.is_program() {
            true => self.spawn(),
            false => self.listen("127.0.0.1:0").spawn(),
        }
    }

    /// Runs it to its end, and expects that it never serves.
    pub(crate) fn refused(self) -> Ended {
        let ended = self.spawn().wait();
        assert!(!ended.events.iter().any(|event| event["event"] == "listening"), "{ended:?}");
        ended
    }
}

/// The output so far.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) events: Vec<Value>,
    /// Standard output other than events.
    pub(crate) output: String,
    /// Standard error.
    pub(crate) errors: String,
    ends: u32,
}

impl Heard {
    /// Events of one name, in order.
    pub(crate) fn named(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |event| event["event"] == name)
    }
}

type Shared = Arc<(Mutex<Heard>, Condvar)>;

/// A running cluster. Dropping it before its end kills it.
#[derive(Debug)]
pub(crate) struct Cluster {
    child: Child,
    mark: String,
    heard: Shared,
}

/// A worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    pub(crate) id: u64,
    pub(crate) pid: u32,
}

impl Cluster {
    fn attend(mut child: Child, mark: String) -> Self {
        let heard = Shared::default();
        let output = child.stdout.take().expect("standard output is a pipe");
        let errors = child.stderr.take().expect("standard error is a pipe");
        listen_to(output, Arc::clone(&heard), |heard, line| match serde_json::from_str(line) {
            Ok(event @ Value::Object(_)) => heard.events.push(event),
            _ => heard.output += &format!("{line}\n"),
        });
        listen_to(errors, Arc::clone(&heard), |heard, line| {
            heard.errors += &format!("{line}\n");
        });
        Self { child, mark, heard }
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.0.lock().expect("no reader has panicked")
    }

    /// Waits until `look` finds something in the output.
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut(&Heard) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = self.heard();
        loop {
            if let Some(found) = look(&heard) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let over = left.is_zero() || heard.ends == 2;
            assert!(!over, "in vain: waited for {what}; heard {heard:#?}");
            heard = self.heard.1.wait_timeout(heard, left).expect("no reader has panicked").0;
        }
    }

    /// Waits for the event with this name that follows `before` earlier ones.
    pub(crate) fn event(&self, name: &str, before: usize) -> Value {
        self.until(&format!("event {name} number {before}"), |heard| {
            heard.named(name).nth(before).cloned()
        })
    }

    /// Number of events with this name.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.heard().named(name).count()
    }

    /// The bound addresses, in the order of the listeners.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let heard = self.heard();
        let told = heard.named("listening").map(|event| event["address"].as_str());
        let addresses: Vec<String> = told.flatten().map(str::to_owned).collect();
        if !addresses.is_empty() {
            return addresses;
        }
        let told = heard.errors.lines().filter_map(|line| line.strip_prefix("listening on "));
        told.map(str::to_owned).collect()
    }

    /// The first bound address.
    pub(crate) fn address(&self) -> String {
        self.addresses().swap_remove(0)
    }

    /// The port of the first address.
    pub(crate) fn port(&self) -> u16 {
        let address = self.address();
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
        port.expect("a TCP address")
    }

    /// Pid of the primary.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The workers that are running according to the events, oldest first.
    pub(crate) fn workers(&self) -> Vec<Worker> {
        let heard = self.heard();
        let number = |event: &Value, key: &str| event[key].as_u64().unwrap_or(0);
        let ended: Vec<u64> = heard.named("exit").map(|event| number(event, "id")).collect();
        let mut workers: Vec<Worker> = heard
            .named("online")
            .map(|event| Worker {
                id: number(event, "id"),
                pid: u32::try_from(number(event, "pid")).expect("process ids are small"),
            })
            .filter(|worker| !ended.contains(&worker.id))
            .collect();
        workers.sort_unstable_by_key(|worker| worker.id);
        workers
    }

    /// Pids of these workers.
    pub(crate) fn worker_pids(&self) -> Vec<u32> {
        self.workers().iter().map(|worker| worker.pid).collect()
    }

    /// Pids of all processes of the run except the primary, whether reported or not.
    pub(crate) fn family(&self) -> Vec<u32> {
        let mut pids = machine::processes_with(&self.mark);
        pids.retain(|pid| *pid != self.pid());
        pids
    }

    /// Signals the primary.
    pub(crate) fn signal(&self, signal: Signal) {
        machine::signal(self.pid(), signal);
    }

    /// The exit status of the primary, if it has ended.
    pub(crate) fn try_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Signals it and waits for its end.
    pub(crate) fn stop(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.wait()
    }

    /// Ends it, and fails unless it ends in order.
    pub(crate) fn end(self) -> Summary {
        let ended = self.stop(Signal::SIGTERM);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.summary()
    }

    /// Waits for its end, and fails if it leaves a process, a socket file or an unbalanced summary,
    /// or if a confined process has made a call that is not listed.
    pub(crate) fn wait(mut self) -> Ended {
        let status = eventually("the primary to end", || self.try_ended());
        if status.signal().is_none() {
            let left = machine::processes_with(&self.mark);
            assert!(left.is_empty(), "left running: {left:?}; heard {:#?}", self.heard());
        } else {
            // No process ends the workers; they have to notice.
            eventually("the workers to notice", || {
                machine::processes_with(&self.mark).is_empty().then_some(())
            });
        }
        self.until("the end of its output", |heard| (heard.ends == 2).then_some(()));
        for address in self.addresses() {
            let path = address.strip_prefix("unix:/").map(|path| format!("/{path}"));
            let left = path.filter(|path| is_socket(path));
            assert!(left.is_none() || status.signal().is_some(), "left behind: {left:?}");
        }
        let mut heard = self.heard();
        let ended = Ended {
            code: status.code(),
            signal: status.signal(),
            events: std::mem::take(&mut heard.events),
            output: std::mem::take(&mut heard.output),
            errors: std::mem::take(&mut heard.errors),
        };
        drop(heard);
        assert!(!ended.errors.contains("--seccomp refuses"), "{ended:?}");
        if ended.events.iter().any(|event| event["event"] == "summary") {
            ended.summary();
        }
        ended
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.try_ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // After a failed test, workers may be stopped or busy; after a passed one there are none.
        for pid in machine::processes_with(&self.mark) {
            machine::signal(pid, Signal::SIGKILL);
        }
    }
}

fn is_socket(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket())
}

fn listen_to(
    pipe: impl Read + Send + 'static,
    shared: Shared,
    mut take: impl FnMut(&mut Heard, &str) + Send + 'static,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { break };
            take(&mut shared.0.lock().expect("no thread has panicked"), &line);
            shared.1.notify_all();
        }
        shared.0.lock().expect("no thread has panicked").ends += 1;
        shared.1.notify_all();
    });
}
