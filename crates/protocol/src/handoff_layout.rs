//! The payload of a handoff message: for each socket, its listener and the time of its accept.
//!
//! Owns the layout and its encoding. The sockets are attached to the message in the order of the
//! records (`docs/PROTOCOL.md` describes the layout for other languages).

use crate::id::ListenerId;

/// Length of the header: magic, version and number of sockets.
const HEADER_BYTES: usize = 8;
/// Length of a record.
const RECORD_BYTES: usize = 16;
/// First bytes of every message.
const MAGIC: [u8; 4] = *b"CLBH";
/// Version of this layout.
const VERSION: u16 = 1;

/// What the primary knows about a socket that it hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The listener that accepted it.
    pub listener: ListenerId,
    /// Time of the accept, in nanoseconds of CLOCK_MONOTONIC.
    pub accepted_ns: u64,
}

/// Starts a message. Without a record it is a probe: the worker counts it, which shows that it
/// receives messages.
pub fn begin(payload: &mut Vec<u8>) {
    payload.extend_from_slice(&MAGIC);
    payload.extend_from_slice(&VERSION.to_le_bytes());
    payload.extend_from_slice(&0u16.to_le_bytes());
}

/// Whether a message is a probe.
#[must_use]
pub fn is_probe(payload: &[u8]) -> bool {
    records(payload).is_some_and(|records| records.len() == 0) || payload == EVEN_PROBE
}

/// Length of every message to a worker that receives one socket at a time. Node keeps reading while
/// the data fills its buffer, and otherwise mistakes a closed sender for end of file.
const EVEN_BYTES: usize = HEADER_BYTES + RECORD_BYTES;
/// A probe of that length.
const EVEN_PROBE: [u8; EVEN_BYTES] = [b'?'; EVEN_BYTES];

/// Writes a probe for a worker that receives one socket at a time.
pub fn begin_evenly(payload: &mut Vec<u8>) {
    payload.extend_from_slice(&EVEN_PROBE);
}

/// Announces messages with sockets to a worker that receives one at a time and first checks that it
/// has a free descriptor. Losing it does no harm. One that has many needs none for messages that
/// follow closely.
pub const ANNOUNCEMENT: [u8; EVEN_BYTES] = [b'!'; EVEN_BYTES];

/// Constants of these messages, in bytes, for programs in other languages. They are generated into
/// the code that such a program loads.
pub const EVEN_LAYOUT: [(&str, u64); 5] = [
    ("MESSAGE_BYTES", EVEN_BYTES as u64),
    ("ANNOUNCEMENT", ANNOUNCEMENT[0] as u64),
    ("PROBE", EVEN_PROBE[0] as u64),
    ("ACCEPTED_AT", HEADER_BYTES as u64),
    ("MARK_AT", (HEADER_BYTES + size_of::<u64>()) as u64),
];

/// Appends a record, starting the message if it is empty.
pub fn append(payload: &mut Vec<u8>, record: Record) {
    if payload.is_empty() {
        begin(payload);
    }
    payload.extend_from_slice(&record.accepted_ns.to_le_bytes());
    payload.extend_from_slice(&record.listener.get().to_le_bytes());
    payload.extend_from_slice(&[0; 6]);
    let count = (payload.len() - HEADER_BYTES) / RECORD_BYTES;
    let count = u16::try_from(count).expect("a message has few sockets");
    payload[6..8].copy_from_slice(&count.to_le_bytes());
}

/// The records of a message; `None` if it is malformed.
#[must_use]
pub fn records(payload: &[u8]) -> Option<impl ExactSizeIterator<Item = Record> + '_> {
    let (header, rest) = payload.split_at_checked(HEADER_BYTES)?;
    let version = u16::from_le_bytes([header[4], header[5]]);
    let count = usize::from(u16::from_le_bytes([header[6], header[7]]));
    if header[..4] != MAGIC || version != VERSION || rest.len() != count * RECORD_BYTES {
        return None;
    }
    Some(rest.chunks_exact(RECORD_BYTES).map(|record| Record {
        accepted_ns: u64::from_le_bytes(record[..8].try_into().expect("eight bytes")),
        listener: ListenerId::new(u16::from_le_bytes([record[8], record[9]])),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::engine::PAYLOAD_BYTES_MAX;
    use crate::sys::fdpass::DESCRIPTORS_PER_MESSAGE_MAX;

    #[test]
    fn a_full_message_fits() {
        let full = HEADER_BYTES + DESCRIPTORS_PER_MESSAGE_MAX * RECORD_BYTES;
        assert!(full <= PAYLOAD_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            entries in prop::collection::vec((any::<u64>(), any::<u16>()), 1..=32),
        ) {
            let entries: Vec<Record> = entries
                .into_iter()
                .map(|(accepted_ns, id)| Record { accepted_ns, listener: ListenerId::new(id) })
                .collect();
            let mut payload = Vec::new();
            entries.iter().for_each(|record| append(&mut payload, *record));
            let read: Vec<Record> = records(&payload).expect("a message").collect();
            prop_assert_eq!(read, entries);
        }

        #[test]
        fn only_a_message_without_records_is_a_probe(count in 0usize..3) {
            let mut payload = Vec::new();
            begin(&mut payload);
            let record = Record { listener: ListenerId::new(1), accepted_ns: 2 };
            (0..count).for_each(|_| append(&mut payload, record));
            prop_assert_eq!(is_probe(&payload), count == 0);
            prop_assert!(!is_probe(&ANNOUNCEMENT) && records(&ANNOUNCEMENT).is_none());
            let mut even = Vec::new();
            begin_evenly(&mut even);
            prop_assert!(is_probe(&even));
            let mut single = Vec::new();
            append(&mut single, record);
            prop_assert_eq!([even.len(), ANNOUNCEMENT.len()], [single.len(); 2]);
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(bytes.starts_with(&MAGIC) || records(&bytes).is_none());
        }
    }
}
