//! The control plane's thread: how it begins, and what its end means to whoever waits.
//!
//! Owns the promise that nobody waits for a thread that is no more. Whatever ends it, workers go
//! first, then listeners; then completions are complete, events end, and calls fail. If that was a
//! failure, all of them say so.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::EventFd;

use super::data_path_thread::DataPath;
use super::listeners::Listeners;
use super::{Busy, Line, Plane, REQUESTS, Request};
use crate::cluster::Roll;
use crate::cluster::bus::Bus;
use crate::cluster::mailbox::new_bell;
use crate::data_path::ClusterCounts;
use crate::error::{Error, Result, errno_of};

/// Says that nothing of the thread is left, when it is dropped.
struct LastWord(Line);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Plane {
    /// Starts the thread.
    ///
    /// # Errors
    /// Too few descriptors or threads.
    pub(crate) fn start(
        line: Line,
        requests: Receiver<Request>,
        bell: Arc<EventFd>,
        bus: Arc<Bus>,
        roll: Roll,
    ) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::system("create an epoll set", errno))?;
        let last_word = LastWord(line.clone());
        let plane = Self {
            epoll,
            line,
            requests,
            bell,
            bus,
            roll,
            members: BTreeMap::new(),
            places: Vec::new(),
            listeners: Listeners::default(),
            busy: Busy::default(),
            data: None,
            bridge: None,
            preload: None,
            notify: None,
            data_bell: new_bell()?,
            ground: None,
            next_id: 1,
            retry_ns: None,
            disconnecting: Vec::new(),
            ending: None,
        };
        plane.watch(&plane.bell, REQUESTS)?;
        let body = move || {
            let _last_word = last_word;
            plane.live();
        };
        let thread = thread::Builder::new().name("control-plane".into());
        thread
            .spawn(body)
            .map(drop)
            .map_err(|error| Error::system("start the control plane's thread", errno_of(&error)))
    }

    fn live(mut self) {
        // Whatever a panic has left half done is only taken down from here on.
        let failure = match catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => Some(panicked(&*panic)),
        };
        if let Some(error) = failure {
            self.line.fail(&error);
            self.fail(error);
        }
        self.dismiss();
        let totals = self.data.take().map_or_else(|| Ok(ClusterCounts::default()), DataPath::end);
        let answer = self.ending.take();
        drop(self);
        if let Some(answer) = answer {
            let _ = answer.send(totals);
        }
    }

    /// Ends what is left by force.
    fn dismiss(&mut self) {
        // Before the data path ends, which takes back what Node workers had not taken.
        drop(self.bridge.take());
        for mut member in std::mem::take(&mut self.members).into_values() {
            // Before its channel ends, which would be the worker's own reason to go.
            let ending = member.process.end();
            if let Some(mut outgoing) = member.shared.outgoing() {
                outgoing.close();
            }
            let mut state = member.shared.state();
            state.connected = false;
            state.voluntary = Some(state.voluntary == Some(true));
            state.ending = state.ending.or(ending);
        }
        self.roll.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.listeners.clear();
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.dismiss();
        drop(self.data.take());
        self.disconnecting.clear();
        self.bus.close();
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    Error::Workers {
        what: format!(
            "the cluster's control plane has failed: its thread panicked ({})",
            said.as_deref().unwrap_or("it did not say why")
        ),
        hint: "all workers have been ended; make another cluster, or end. Unless code of the \
             program's own panicked there, such as a waker, this is a defect of clusterlb"
            .into(),
    }
}
