//! Lines queued for a companion. Pure.
//!
//! Owns the bounds. Messages of workers beyond theirs are dropped and counted, so a companion that
//! does not read blocks nothing. Events of workers are never dropped, because the companion would
//! continue with a wrong view: beyond their bound it must be restarted.

use std::collections::VecDeque;

/// Messages that may wait, and their bytes.
const MESSAGES_MAX: usize = 16 * 1024;
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Further lines that may wait.
const OTHERS_MAX: usize = 4096;

/// Lines, oldest first.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    lines: VecDeque<Line>,
    /// Bytes of the first one already written.
    gone: usize,
    messages: usize,
    message_bytes: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    is_message: bool,
}

/// There are more lines than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Outbox {
    /// Adds a worker's message. Returns whether it is the first one dropped.
    pub(super) fn push_message(&mut self, bytes: Vec<u8>) -> bool {
        let has_room =
            self.messages < MESSAGES_MAX && self.message_bytes + bytes.len() <= BYTES_MAX;
        if !has_room {
            self.dropped += 1;
            return self.dropped == 1;
        }
        self.messages += 1;
        self.message_bytes += bytes.len();
        self.lines.push_back(Line { bytes, is_message: true });
        false
    }

    /// Adds any other line.
    ///
    /// # Errors
    /// Too many lines wait.
    pub(super) fn push(&mut self, bytes: Vec<u8>) -> Result<(), Full> {
        if self.lines.len() - self.messages >= OTHERS_MAX {
            return Err(Full);
        }
        self.lines.push_back(Line { bytes, is_message: false });
        Ok(())
    }

    /// The next bytes to write.
    pub(super) fn front(&self) -> Option<&[u8]> {
        self.lines.front().map(|line| &line.bytes[self.gone..])
    }

    /// This many bytes of it were written.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.gone += bytes;
        if self.lines.front().is_some_and(|line| line.bytes.len() <= self.gone) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        self.gone = 0;
        if let Some(line) = self.lines.pop_front()
            && line.is_message
        {
            self.messages -= 1;
            self.message_bytes -= line.bytes.len();
        }
    }

    /// For the next companion: this line first, then the waiting messages. A partly written line is
    /// lost with the last companion, which may have read it.
    pub(super) fn begin_anew(&mut self, first: Vec<u8>) {
        if self.gone > 0 {
            self.pop();
        }
        self.lines.retain(|line| line.is_message);
        self.lines.push_front(Line { bytes: first, is_message: false });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The number of waiting messages.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// The number of messages dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(outbox: &mut Outbox) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(front) = outbox.front() {
            let part = front.len().min(3);
            all.extend_from_slice(&front[..part]);
            outbox.advance(part);
        }
        all
    }

    #[test]
    fn lines_come_out_in_their_order_in_parts() {
        let mut outbox = Outbox::default();
        outbox.push(b"one\n".to_vec()).expect("room");
        outbox.push_message(b"a message\n".to_vec());
        outbox.push(b"two\n".to_vec()).expect("room");
        assert_eq!(drain(&mut outbox), b"one\na message\ntwo\n");
        assert!(outbox.is_empty());
        assert_eq!((outbox.messages, outbox.message_bytes), (0, 0));
    }

    #[test]
    fn messages_beyond_the_bounds_are_dropped_and_counted() {
        let mut outbox = Outbox::default();
        let told = (0..MESSAGES_MAX + 5).filter(|_| outbox.push_message(vec![b'\n']));
        assert_eq!(told.count(), 1);
        assert_eq!(outbox.take_dropped(), 5);
        outbox.push(b"what happens\n".to_vec()).expect("that has its own room");
        outbox.advance(1);
        assert!(!outbox.push_message(vec![b'\n']), "there is room again");
        let mut outbox = Outbox::default();
        outbox.push_message(vec![b' '; BYTES_MAX]);
        assert!(outbox.push_message(vec![b'\n']) && !outbox.push_message(vec![b'\n']));
        assert_eq!((outbox.take_dropped(), outbox.take_dropped()), (2, 0));
    }

    #[test]
    fn too_many_other_lines_are_refused() {
        let mut outbox = Outbox::default();
        (0..OTHERS_MAX).for_each(|_| outbox.push(vec![b'\n']).expect("room"));
        assert_eq!(outbox.push(vec![b'\n']), Err(Full));
    }

    #[test]
    fn the_next_companion_gets_the_messages_and_not_what_happened_before() {
        let mut outbox = Outbox::default();
        for begun in [false, true] {
            outbox.push_message(b"one\n".to_vec());
            outbox.push(b"news\n".to_vec()).expect("room");
            outbox.push_message(b"two\n".to_vec());
            outbox.advance(usize::from(begun));
            outbox.begin_anew(b"begin\n".to_vec());
            let expected: &[u8] = if begun { b"begin\ntwo\n" } else { b"begin\none\ntwo\n" };
            assert_eq!(drain(&mut outbox), expected);
        }
    }
}
