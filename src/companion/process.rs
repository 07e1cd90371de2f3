//! The process of a companion, and the socket to it.
//!
//! Owns how it is started: like a Node worker, except for the channel and the script.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::dialect::node::preload::{self, Preload, Reader};
use crate::sys::error::errno_of;
use crate::sys::guard::Guard;
use crate::sys::process::{Launch, Stream, WorkerProcess, copy_above};
use crate::{Cluster, ClusterSettings, Error, Result};

use super::outbox::Outbox;

/// Variables that would make it a worker, or are for workers.
const NOT_FOR_IT: [&str; 10] = [
    "NODE_UNIQUE_ID",
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_APP_INSTANCE",
    "CLUSTERLB_INSTANCE",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
];
/// Longest line that it may send.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long it may outlive this process.
const ORPHAN: Duration = Duration::from_secs(2);

/// A running companion.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) process: WorkerProcess,
    /// None once it has ended.
    socket: Option<UnixStream>,
    /// An incomplete line.
    incoming: Vec<u8>,
    pub(super) since: Instant,
    /// When to kill it.
    pub(super) kill_at: Option<Instant>,
}

/// How to start the next one.
#[derive(Debug)]
pub(super) struct Starter {
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    preload: Option<Preload>,
    /// Kills a companion that outlives this process because it is stopped or computing.
    guard: Option<Guard>,
}

impl Starter {
    pub(super) fn new(arguments: Vec<OsString>, environment: Vec<(OsString, OsString)>) -> Self {
        Self { arguments, environment, preload: None, guard: None }
    }

    /// Starts it.
    ///
    /// # Errors
    /// Too few descriptors or processes, no folder for the script, or a program that cannot be
    /// executed.
    pub(super) fn start(&mut self, cluster: &Cluster) -> Result<Process> {
        let settings = cluster.settings();
        let failed = |error: io::Error| {
            Error::system("create a socket pair for the companion", errno_of(&error))
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        // Above the standard streams, and blocking: it reads its first line before anything else.
        let theirs = copy_above(2, theirs.as_fd())?;
        let mut arguments = settings.exec_argv.clone();
        if settings.inspect_port.is_some() {
            // Workers have the named ports.
            arguments.push("--inspect-port=0".into());
        }
        arguments.extend(self.arguments.iter().cloned());
        self.prepare(&settings, &arguments)?;
        let link = self.preload.as_ref().and_then(Preload::link);
        let link = link.map(|link| copy_above(2, link)).transpose()?;
        let environment = self.variables(&settings, theirs.as_raw_fd(), link.as_ref());
        let removed = NOT_FOR_IT.iter().map(OsString::from);
        let launch = Launch {
            program: settings.exec.clone(),
            name: settings.exec.clone().into_os_string(),
            arguments,
            environment,
            removed: removed.chain(settings.environment_removed.iter().cloned()).collect(),
            id_variable: None,
            directory: settings.cwd.clone(),
            user: settings.uid,
            group: settings.gid,
            confined: settings.confine,
            streams: [Stream::Nothing, Stream::Inherit, Stream::Inherit],
            own_group: true,
            blocked_signals: None,
            descriptor_limit: settings.descriptor_limit,
            ends_with_parent: false,
            inherited: [Some(theirs.as_fd()), link.as_ref().map(AsFd::as_fd)]
                .into_iter()
                .flatten()
                .collect(),
            placed: Vec::new(),
        };
        let mut process = launch.start()?.process;
        if let Err(error) = self.watch(&process) {
            let _ = process.end();
            return Err(error);
        }
        let (incoming, since) = (Vec::new(), Instant::now());
        Ok(Process { process, socket: Some(ours), incoming, since, kill_at: None })
    }

    fn watch(&mut self, process: &WorkerProcess) -> Result<()> {
        if let Some(guard) = &self.guard
            && guard.watch(&process.remote()).is_ok()
        {
            return Ok(());
        }
        // None has been started, or it was killed.
        let guard = Guard::start(ORPHAN)?;
        guard.watch(&process.remote())?;
        self.guard = Some(guard);
        Ok(())
    }

    /// Ensures that the script is there and may be loaded.
    fn prepare(&mut self, settings: &ClusterSettings, arguments: &[OsString]) -> Result<()> {
        let options = self.options(settings);
        if !preload::is_allowed(arguments, options.as_deref()) {
            return Err(Error::usage(
                "Node may not read the script that makes a companion of it (--permission)",
                "leave the companion out, or the restriction",
            ));
        }
        let reader = Reader::from_ids(settings.uid, settings.gid);
        let is_there = |preload: &mut Preload| preload.is_for(reader) && preload.restore();
        if !self.preload.as_mut().is_some_and(is_there) {
            self.preload = Some(Preload::write(reader)?);
        }
        Ok(())
    }

    /// Its variables, including those of the script.
    fn variables(
        &self,
        settings: &ClusterSettings,
        channel: RawFd,
        link: Option<&OwnedFd>,
    ) -> Vec<(OsString, OsString)> {
        let options = self.options(settings);
        let link = link.map_or(-1, |link| link.as_raw_fd());
        let preload = self.preload.as_ref().expect("it has just been prepared");
        let own = preload.variables_of_companion(channel, link, options.as_deref());
        self.environment.iter().cloned().chain(own).collect()
    }

    fn options(&self, settings: &ClusterSettings) -> Option<Cow<'_, OsStr>> {
        let directory = settings.cwd.as_deref();
        preload::options_of(&self.environment, &settings.exec_argv, directory)
    }
}

impl Process {
    /// Writes queued lines, as much as the socket takes.
    pub(super) fn write(&mut self, outbox: &mut Outbox) {
        let Some(socket) = &mut self.socket else { return };
        while let Some(bytes) = outbox.front() {
            match socket.write(bytes) {
                Ok(written) => outbox.advance(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It has closed the socket, which reading detects.
                Err(_) => return,
            }
        }
    }

    /// Reads once, and appends the complete lines. Returns whether there may be more.
    pub(super) fn read(&mut self, buffer: &mut [u8], lines: &mut Vec<Vec<u8>>) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let length = match socket.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => 0,
        };
        if length == 0 || self.incoming.len() + length > LINE_BYTES_MAX {
            self.socket = None;
            return false;
        }
        for part in buffer[..length].split_inclusive(|byte| *byte == b'\n') {
            self.incoming.extend_from_slice(part);
            if part.ends_with(b"\n") {
                lines.push(std::mem::take(&mut self.incoming));
            }
        }
        true
    }

    /// Whether its socket is open.
    pub(super) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}
