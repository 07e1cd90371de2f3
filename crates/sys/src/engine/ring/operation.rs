//! Which operation a completion belongs to, and the way of entries into the queue.

use io_uring::squeue;

use super::Ring;
use crate::engine::Key;

/// The kind of operation that a completion belongs to. Zero is unused, so that missing user data is
/// detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    Accept = 1,
    Receive,
    Send,
    SendMessage,
    ReceiveMessage,
    Poll,
    Cancel,
    Quiet,
    Alarm,
    MoveAlarm,
    LastClose,
}

impl Operation {
    /// All of them, by their numbers.
    const ALL: [Self; 11] = [
        Self::Accept,
        Self::Receive,
        Self::Send,
        Self::SendMessage,
        Self::ReceiveMessage,
        Self::Poll,
        Self::Cancel,
        Self::Quiet,
        Self::Alarm,
        Self::MoveAlarm,
        Self::LastClose,
    ];

    /// Whether the ring's memory must outlive its completion. A successful close has none, and the
    /// kernel has copied the time of an alarm.
    pub(super) fn is_awaited(self) -> bool {
        !matches!(self, Self::Quiet | Self::LastClose | Self::Alarm | Self::MoveAlarm)
    }
}

/// The `user_data` of an operation: its kind and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(pub(super) u64);

impl Token {
    pub(super) fn new(operation: Operation, key: Key) -> Self {
        Self(key.pack(operation as u8))
    }

    pub(super) fn key(self) -> Key {
        Key::unpack(self.0).1
    }

    pub(super) fn operation(self) -> Option<Operation> {
        let number = usize::from(Key::unpack(self.0).0);
        Operation::ALL.get(number.checked_sub(1)?).copied()
    }
}

impl Ring {
    pub(super) fn push(&mut self, operation: Operation, key: Key, entry: squeue::Entry) {
        self.in_kernel += u64::from(operation.is_awaited());
        self.push_chain(&[entry.user_data(Token::new(operation, key).0)]);
    }

    /// Queues linked entries. A chain ends at the boundary of a submission, so it must not be
    /// split.
    pub(super) fn push_chain(&mut self, chain: &[squeue::Entry]) {
        if self.deferred.is_empty() {
            // SAFETY: whatever the entries point to is owned by this ring until their completion,
            // and the ring ends all operations before it frees anything.
            if unsafe { self.uring.0.submission().push_multiple(chain) }.is_ok() {
                return;
            }
        }
        self.deferred.push_back(chain.into());
        self.flush_deferred();
    }
}

/// A key that is an index into one of the ring's tables.
pub(super) fn place_key(place: usize) -> Key {
    let index = u32::try_from(place).expect("operations under way are bounded far below 2^32");
    Key { index, generation: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_found_by_its_number_and_nothing_else_is() {
        for (number, operation) in (1..).zip(Operation::ALL) {
            assert_eq!(operation as u8, number);
            assert_eq!(Token::new(operation, Key::default()).operation(), Some(operation));
        }
        assert_eq!([Token(0).operation(), Token(u64::MAX).operation()], [None, None]);
    }
}
