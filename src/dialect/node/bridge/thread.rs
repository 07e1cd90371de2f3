//! The thread of the bridge to Node workers, as the control plane holds it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use super::{Bridge, BridgeRequest, Endpoints, Notice, Notices};
use crate::data_path::Command;
use crate::error::{Error, Result, errno_of};
use crate::id::WorkerId;
use crate::sync::mailbox::{EndWaker, Ended};
use crate::sys::waker::Waker;

/// The running bridge. Dropping it closes every Node worker's channel.
#[derive(Debug)]
pub(crate) struct BridgeThread {
    requests: Sender<BridgeRequest>,
    request_waker: Arc<Waker>,
    notices: Arc<Notices>,
    notice_waker: Arc<Waker>,
    /// The thread ends, for whatever reason.
    ended: Ended,
    thread: Option<JoinHandle<Result<()>>>,
}

impl BridgeThread {
    /// Starts the thread. `commands` and `command_waker` lead to the data path; without one, what
    /// the bridge asks of it goes nowhere, since nothing was accepted.
    ///
    /// # Errors
    /// Too few descriptors or threads.
    pub(crate) fn start(
        commands: Option<Sender<Command>>,
        command_waker: Arc<Waker>,
    ) -> Result<Self> {
        let (request_waker, notice_waker) = (Arc::new(Waker::new()?), Arc::new(Waker::new()?));
        let (requests, requests_out) = channel();
        let notices = Notices::new(Arc::clone(&notice_waker), Arc::clone(&request_waker));
        let notices = Arc::new(notices);
        let bridge = Bridge::new(Endpoints {
            requests: requests_out,
            request_waker: Arc::clone(&request_waker),
            notices: Arc::clone(&notices),
            commands: commands.unwrap_or_else(|| channel().0),
            command_waker,
        })?;
        let thread = thread::Builder::new().name("node-bridge".into());
        let (end_bell, ended) = EndWaker::new(Arc::clone(&notice_waker));
        let body = move || {
            let _end_bell = end_bell;
            bridge.run()
        };
        let thread = thread.spawn(body).map_err(|error| {
            Error::system("start the thread for Node workers", errno_of(&error))
        })?;
        Ok(Self { requests, request_waker, notices, notice_waker, ended, thread: Some(thread) })
    }

    /// Asks for something.
    pub(crate) fn request(&self, request: BridgeRequest) {
        // A bridge that has ended is found out by its notices.
        let _ = self.requests.send(request);
        self.request_waker.wake();
    }

    /// The oldest notice of certain workers.
    pub(crate) fn notice(&self, of: impl Fn(WorkerId) -> bool) -> Option<Notice> {
        self.notices.take_of(of)
    }

    /// To be called before the notices are taken of which the descriptor has told.
    ///
    /// # Errors
    /// It has ended without being asked to.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.notice_waker.clear();
        if self.ended.is_so() {
            self.join()?;
            return Err(Error::Workers {
                what: "the bridge to Node workers ended unexpectedly".into(),
                hint: "this is a defect of clusterlb; the messages above it say where".into(),
            });
        }
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            // It has said why on standard error.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

impl AsFd for BridgeThread {
    /// Readable when there are notices.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notice_waker.as_fd()
    }
}

impl Drop for BridgeThread {
    fn drop(&mut self) {
        self.request(BridgeRequest::End);
        // Whatever it failed with, it has ended now, which is what was wanted.
        let _ = self.join();
    }
}
