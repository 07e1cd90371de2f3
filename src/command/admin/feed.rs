//! The event lines of a run, for all readers of `/events`.
//!
//! Owns one bounded queue. Emitting never blocks: a reader that is too far behind misses lines and
//! gets their number.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast::{Receiver, Sender, channel};

/// Lines kept for a slow reader.
const LINES_MAX: usize = 1024;

/// Distributes event lines.
#[derive(Clone, Debug)]
pub(in crate::command) struct Feed {
    lines: Arc<Mutex<Option<Sender<Arc<str>>>>>,
}

impl Feed {
    /// A feed without readers.
    pub(in crate::command) fn new() -> Self {
        Self { lines: Arc::new(Mutex::new(Some(channel(LINES_MAX).0))) }
    }

    /// Whether anyone reads.
    pub(in crate::command) fn has_readers(&self) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.as_ref().is_some_and(|lines| lines.receiver_count() > 0)
    }

    /// Passes a line on.
    pub(in crate::command) fn emit(&self, line: &str) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lines) = lines.as_ref() {
            // It fails only without readers.
            let _ = lines.send(line.into());
        }
    }

    /// All lines from now on; `None` after the end.
    pub(super) fn subscribe(&self) -> Option<Receiver<Arc<str>>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.as_ref().map(Sender::subscribe)
    }

    /// Closes the feed: readers get the lines that wait, then the end.
    pub(super) fn close(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
