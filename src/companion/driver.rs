//! The thread of a companion: it waits, passes events on, carries out requests, and restarts the
//! process.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::back_off::BackOff;
use super::lines::{
    FromCompanion, NodeAddress, PresentWorkers, ToCompanion, message_line, payload_of, v8_line,
};
use super::outbox::Outbox;
use super::process::{Process, Starter};
use super::{Companion, CompanionEvent, Control, OnEvent};
use crate::{
    Cluster, Event, Message, Result, Serialization, Signal, SupervisorEvent, SupervisorEvents,
    SupervisorHandle, SupervisorStage, WorkerHandle, WorkerId,
};

/// Most events and reads per turn.
const EVENTS_A_TURN_MAX: usize = 256;
const READS_A_TURN_MAX: usize = 16;
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a process may live after closing its channel.
const LOST: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    cluster: Cluster,
    supervisor: SupervisorHandle,
    events: SupervisorEvents,
    /// No more events will arrive.
    events_ended: bool,
    control: Arc<Control>,
    on_event: Option<OnEvent>,
    script: Option<String>,
    starter: Starter,
    process: Option<Process>,
    /// When the next process starts; `None` before a worker runs.
    start_at: Option<Instant>,
    back_off: BackOff,
    outbox: Outbox,
    present: PresentWorkers,
    workers: BTreeMap<WorkerId, WorkerHandle>,
    told_end: bool,
}

impl Driver {
    pub(super) fn new(
        companion: Companion,
        cluster: Cluster,
        supervisor: SupervisorHandle,
        events: SupervisorEvents,
        control: Arc<Control>,
    ) -> Self {
        let Companion { arguments, script, environment, on_event } = companion;
        Self {
            cluster,
            supervisor,
            events,
            events_ended: false,
            control,
            on_event,
            script,
            starter: Starter::new(arguments, environment),
            process: None,
            start_at: None,
            back_off: BackOff::default(),
            outbox: Outbox::default(),
            present: PresentWorkers::default(),
            workers: BTreeMap::new(),
            told_end: false,
        }
    }

    /// Runs until the process has ended after the run.
    pub(super) fn run(mut self) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let is_more = self.take_events();
            self.reap();
            let end = self.control.end();
            match end {
                Some(at) if !is_more => self.end_by(at),
                Some(_) => {}
                None => self.start_if_due(),
            }
            self.write();
            if end.is_some() && self.process.is_none() {
                return self.finish();
            }
            if !is_more {
                self.wait(end);
            }
            self.read(&mut buffer);
        }
    }

    fn emit(&mut self, event: CompanionEvent) {
        if let Some(on_event) = &mut self.on_event {
            on_event(event);
        }
    }

    /// Handles events. Returns whether there may be more.
    fn take_events(&mut self) -> bool {
        self.control.waker.clear();
        for _ in 0..EVENTS_A_TURN_MAX {
            match self.events.try_recv() {
                Ok(SupervisorEvent::Cluster(event)) => self.on_cluster_event(&event),
                Ok(SupervisorEvent::Scaled { to, .. }) => {
                    self.send(&ToCompanion::Slots { count: usize::from(to) });
                }
                Ok(_) => {}
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => {
                    self.events_ended = true;
                    return false;
                }
            }
        }
        true
    }

    fn on_cluster_event(&mut self, event: &Event) {
        let Some(worker) = event.worker() else { return };
        let id = worker.id();
        match event {
            Event::Fork { .. } => {
                self.workers.insert(id, worker.clone());
                self.send(&ToCompanion::Fork { id: id.get(), pid: worker.pid() });
            }
            Event::Online { .. } => {
                self.start_at.get_or_insert_with(Instant::now);
                self.send(&ToCompanion::Online { id: id.get() });
            }
            Event::Listening { address, .. } => {
                self.send(&ToCompanion::Listening { id: id.get(), address: address.into() });
            }
            Event::Closed { address, .. } => {
                self.present.on_closed(id, &NodeAddress::from(address));
            }
            Event::Leaving { .. } => self.send(&ToCompanion::Leaving { id: id.get() }),
            Event::Message { message, .. } => self.pass_on(id, message),
            Event::Disconnect { .. } => {
                let voluntary = left_voluntarily(worker);
                self.send(&ToCompanion::Disconnect { id: id.get(), voluntary });
            }
            Event::Exit { ending, .. } => {
                self.workers.remove(&id);
                self.send(&ToCompanion::exit(id, *ending, left_voluntarily(worker)));
            }
            _ => {}
        }
    }

    fn send(&mut self, message: &ToCompanion) {
        self.present.update(message);
        let is_heard = self.process.as_ref().is_some_and(Process::is_connected);
        if is_heard && self.outbox.push(message.line()).is_err() {
            // The next one starts with the present state.
            self.kill_process();
        }
    }

    fn pass_on(&mut self, id: WorkerId, message: &Message) {
        let line = match (message.v8(), message.serialization()) {
            (Some(payload), _) => v8_line(id, payload),
            (None, Serialization::Json) => message_line(id, message.bytes()),
            _ => {
                let value = message.value().unwrap_or_default();
                message_line(id, value.to_string().as_bytes())
            }
        };
        if self.outbox.push_message(line) {
            self.emit(CompanionEvent::Behind);
        }
    }

    /// Whether the run has been told to end, which takes as long as workers have requests open.
    fn is_stopping(&self) -> bool {
        use SupervisorStage::{Serving, Starting};
        !matches!(self.supervisor.snapshot().stage, Starting | Serving)
    }

    fn start_if_due(&mut self) {
        let is_due = self.start_at.is_some_and(|at| at <= Instant::now());
        if self.process.is_some() || !is_due {
            return;
        }
        if self.is_stopping() {
            self.start_at = None;
            return;
        }
        match self.starter.start(&self.cluster) {
            Ok(process) => {
                let slots = self.supervisor.snapshot().slots.len();
                let advanced = self.cluster.settings().serialization == Serialization::Advanced;
                let script = self.script.as_deref();
                self.outbox.begin_anew(self.present.begin(slots, script, advanced));
                self.emit(CompanionEvent::Started { pid: process.process.pid() });
                self.process = Some(process);
            }
            Err(error) => {
                let retry = self.back_off.after(Duration::ZERO);
                self.start_at = Some(Instant::now() + retry);
                self.emit(CompanionEvent::StartFailed { error, retry });
            }
        }
    }

    /// Checks whether the process has ended, and kills it at its deadline.
    fn reap(&mut self) {
        let Some(process) = &mut self.process else { return };
        let now = Instant::now();
        if !process.is_connected() {
            process.kill_at.get_or_insert(now + LOST);
        }
        let is_over = process.kill_at.is_some_and(|at| at <= now);
        let ending = match process.process.try_wait() {
            Ok(None) if is_over => process.process.end(),
            Ok(None) => return,
            Ok(ending) => ending,
            // It was reaped elsewhere.
            Err(_) => None,
        };
        let ran = now.saturating_duration_since(process.since);
        self.process = None;
        let retry = (!self.is_stopping()).then(|| self.back_off.after(ran));
        self.start_at = retry.map(|retry| now + retry);
        if let (Some(ending), None) = (ending, self.control.end()) {
            self.emit(CompanionEvent::Ended { ending, retry });
        }
    }

    fn kill_process(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill_at = Some(Instant::now());
        }
    }

    /// The run has ended, and the process must end by this time.
    fn end_by(&mut self, at: Instant) {
        let Some(process) = &mut self.process else { return };
        process.kill_at = Some(process.kill_at.map_or(at, |earlier| earlier.min(at)));
        if !std::mem::replace(&mut self.told_end, true) {
            self.send(&ToCompanion::End);
        }
    }

    fn finish(&mut self) {
        let dropped = self.outbox.take_dropped() + self.outbox.messages() as u64;
        if dropped > 0 {
            self.emit(CompanionEvent::CaughtUp { dropped });
        }
    }

    fn write(&mut self) {
        let Some(process) = &mut self.process else { return };
        process.write(&mut self.outbox);
        if self.outbox.is_empty() {
            let dropped = self.outbox.take_dropped();
            if dropped > 0 {
                self.emit(CompanionEvent::CaughtUp { dropped });
            }
        }
    }

    fn wait(&self, end: Option<Instant>) {
        let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut watched = vec![readable(self.control.waker.as_fd())];
        if !self.events_ended {
            watched.push(readable(self.events.as_fd()));
        }
        let mut next = end.or_else(|| self.start_at.filter(|_| self.process.is_none()));
        if let Some(process) = &self.process {
            watched.push(readable(process.process.as_fd()));
            if let Some(socket) = process.socket() {
                let mut flags = PollFlags::POLLIN;
                flags.set(PollFlags::POLLOUT, !self.outbox.is_empty());
                watched.push(PollFd::new(socket, flags));
            }
            next = process.kill_at.or(next);
        }
        let left = next.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up, so that the deadline has passed after the wait.
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        // An interrupted wait is a short one, and a failed one cannot be remedied.
        let _ = poll(&mut watched, left);
    }

    /// Reads the companion's requests and carries them out.
    fn read(&mut self, buffer: &mut [u8]) {
        let mut lines = Vec::new();
        if let Some(process) = &mut self.process {
            let mut reads = 0;
            while reads < READS_A_TURN_MAX && process.read(buffer, &mut lines) {
                reads += 1;
            }
        }
        for line in lines {
            // Other lines come from the program, which has found the descriptor.
            if let Ok(request) = serde_json::from_slice(&line)
                && let Err(error) = self.carry_out(request)
            {
                let reason = error.to_string();
                self.send(&ToCompanion::Refused { reason: reason.clone() });
                self.emit(CompanionEvent::Refused { reason });
            }
        }
    }

    fn carry_out(&mut self, request: FromCompanion) -> Result<()> {
        // The outcome is reported only by events.
        match request {
            FromCompanion::Send { id, message } => match self.workers.get(&WorkerId::new(id)) {
                // One that has just ended is no error, as for Node's primary.
                Some(worker) if worker.is_connected() => worker.send(&message),
                _ => Ok(()),
            },
            FromCompanion::SendV8 { id, payload } => {
                let payload = payload_of(&payload);
                match (self.workers.get(&WorkerId::new(id)), payload) {
                    (Some(worker), Some(payload)) if worker.is_connected() => {
                        worker.send_v8(&payload)
                    }
                    _ => Ok(()),
                }
            }
            FromCompanion::Kill { id, signal } => {
                match (self.workers.get(&WorkerId::new(id)), Signal::from_name(&signal)) {
                    (Some(worker), Some(signal)) => worker.kill(signal),
                    _ => Ok(()),
                }
            }
            FromCompanion::Disconnect { id } => match self.workers.contains_key(&WorkerId::new(id))
            {
                true => self.supervisor.drain(WorkerId::new(id)).map(drop),
                false => Ok(()),
            },
            FromCompanion::Fork => {
                let slots = self.supervisor.snapshot().slots.len() + 1;
                self.supervisor.scale(u16::try_from(slots).unwrap_or(u16::MAX)).map(drop)
            }
            FromCompanion::Stop => self.supervisor.stop(None).map(drop),
        }
    }
}

fn left_voluntarily(worker: &WorkerHandle) -> bool {
    worker.exited_after_disconnect() == Some(true)
}
