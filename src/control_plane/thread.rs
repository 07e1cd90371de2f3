//! The control plane's thread: its start, and what its end means to waiting callers.
//!
//! Owns the promise that no call waits for a thread that has ended. However it ends, workers end
//! first, then listeners close; then completions resolve, events end, and calls fail. After a
//! failure all of them report it.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};

use crate::sys::inherited::collect_children;
use crate::sys::waker::Waker;
use nix::sys::epoll::{Epoll, EpollCreateFlags};

use super::data_path_thread::DataPathThread;
use super::listeners::Listeners;
use super::looks::Looks;
use super::lookup::Lookups;
use super::{BindRetry, ControlPlane, REQUESTS};
use crate::data_path::{ClusterCounts, LiveCounts};
use crate::error::{Error, Result};
use crate::handle::{Bus, ControlHandle, Registry, Request};
use crate::sys::signal::spawn_without_signals;

/// When dropped, reports that nothing of the thread is left.
struct LastWord(ControlHandle);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl ControlPlane {
    /// Starts the thread.
    ///
    /// # Errors
    /// Too few descriptors or threads.
    pub(crate) fn start(
        control: ControlHandle,
        requests: Receiver<Request>,
        waker: Arc<Waker>,
        bus: Arc<Bus>,
        registry: Registry,
        live_counts: Arc<LiveCounts>,
    ) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::system("create an epoll set", errno))?;
        // The parent may have ignored SIGCHLD, with which the kernel keeps no exit status.
        collect_children()?;
        let lookups = Lookups::new(Arc::clone(&waker));
        let looks = Looks::new(Arc::clone(&waker));
        let last_word = LastWord(control.clone());
        let plane = Self {
            epoll,
            control,
            requests,
            waker,
            bus,
            registry,
            workers: BTreeMap::new(),
            places: Vec::new(),
            listeners: Listeners::default(),
            bind_retry: BindRetry::default(),
            lookups,
            looks,
            data_path: None,
            bridge: None,
            preload: None,
            lacks_preload: false,
            notify: None,
            data_path_waker: Arc::new(Waker::new()?),
            cluster_settings: None,
            engine: None,
            next_id: 1,
            unread: BTreeSet::new(),
            retry_ns: None,
            stopping: None,
            disconnecting: Vec::new(),
            ending: None,
            guard: None,
            live_counts,
        };
        plane.watch(&plane.waker, REQUESTS)?;
        let body = move || {
            let _last_word = last_word;
            plane.live();
        };
        // Threads it starts inherit that: signals are for the program's threads.
        spawn_without_signals("control-plane", body).map(drop)
    }

    fn live(mut self) {
        // After a panic the state is only torn down, so half-done changes do no harm.
        let failure = match catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => Some(panicked(&*panic)),
        };
        if let Some(error) = failure {
            self.control.fail(&error);
            self.fail(error);
        }
        self.dismiss();
        let totals =
            self.data_path.take().map_or_else(|| Ok(ClusterCounts::default()), DataPathThread::end);
        let answer = self.ending.take();
        drop(self);
        if let Some(answer) = answer {
            let _ = answer.send(totals);
        }
    }

    /// Kills remaining workers.
    fn dismiss(&mut self) {
        // Before the data path ends, which takes back unacknowledged connections of Node workers.
        drop(self.bridge.take());
        for mut worker_entry in std::mem::take(&mut self.workers).into_values() {
            // Before its channel ends, on which the worker would exit.
            let ending = worker_entry.process.end();
            worker_entry.dialect.close();
            let mut life = worker_entry.state().life();
            life.connected = false;
            life.voluntary = Some(life.voluntary == Some(true));
            life.ending = life.ending.or(ending);
        }
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).workers.clear();
        self.listeners.clear();
        // No worker is left to watch.
        drop(self.guard.take());
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.dismiss();
        drop(self.data_path.take());
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
