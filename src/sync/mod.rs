//! Waiting for another thread, in a thread or in a task: mailboxes and completions.

pub(crate) mod completion;
pub(crate) mod mailbox;
