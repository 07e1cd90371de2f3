//! The thread of the bridge to Node workers, as the control plane holds it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::EventFd;

use crate::cluster::mailbox::{EndBell, Ended, new_bell, ring, silence};
use crate::data_path::Command;
use crate::dialect::node::bridge::{Bridge, Lines, Notice, Notices, Order};
use crate::error::{Error, Result, errno_of};
use crate::id::WorkerId;

/// The running bridge. Dropping it closes every Node worker's channel.
#[derive(Debug)]
pub(crate) struct BridgeThread {
    orders: Sender<Order>,
    order_bell: Arc<EventFd>,
    notices: Arc<Notices>,
    notice_bell: Arc<EventFd>,
    /// The thread ends, for whatever reason.
    ended: Ended,
    thread: Option<JoinHandle<Result<()>>>,
}

impl BridgeThread {
    /// Starts the thread. `commands` and `command_bell` lead to the data path; without one, what
    /// the bridge asks of it goes nowhere, since nothing was accepted.
    ///
    /// # Errors
    /// Too few descriptors or threads.
    pub(crate) fn start(
        commands: Option<Sender<Command>>,
        command_bell: Arc<EventFd>,
    ) -> Result<Self> {
        let (order_bell, notice_bell) = (new_bell()?, new_bell()?);
        let (orders, orders_out) = channel();
        let notices = Notices::new(Arc::clone(&notice_bell), Arc::clone(&order_bell));
        let notices = Arc::new(notices);
        let bridge = Bridge::new(Lines {
            orders: orders_out,
            order_bell: Arc::clone(&order_bell),
            notices: Arc::clone(&notices),
            commands: commands.unwrap_or_else(|| channel().0),
            command_bell,
        })?;
        let thread = thread::Builder::new().name("node-bridge".into());
        let (end_bell, ended) = EndBell::new(Arc::clone(&notice_bell));
        let body = move || {
            let _end_bell = end_bell;
            bridge.run()
        };
        let thread = thread.spawn(body).map_err(|error| {
            Error::system("start the thread for Node workers", errno_of(&error))
        })?;
        Ok(Self { orders, order_bell, notices, notice_bell, ended, thread: Some(thread) })
    }

    /// Asks for something.
    pub(crate) fn order(&self, order: Order) {
        // A bridge that has ended is found out by its notices.
        let _ = self.orders.send(order);
        ring(&self.order_bell);
    }

    /// The oldest notice, or the oldest one of a worker.
    pub(crate) fn notice(&self, of: Option<WorkerId>) -> Option<Notice> {
        of.map_or_else(|| self.notices.take(), |worker| self.notices.take_of(worker))
    }

    /// To be called before the notices are taken of which the descriptor has told.
    ///
    /// # Errors
    /// It has ended without being asked to.
    pub(crate) fn check(&mut self) -> Result<()> {
        silence(&self.notice_bell);
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
        self.notice_bell.as_fd()
    }
}

impl Drop for BridgeThread {
    fn drop(&mut self) {
        self.order(Order::End);
        // Whatever it failed with, it has ended now, which is what was wanted.
        let _ = self.join();
    }
}
