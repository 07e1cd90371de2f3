//! Invariants of the header in front of a client's bytes, for arbitrary input: the verdict does not
//! depend on how the bytes are split, never changes, and comes within the bound.

use clusterlb_protocol::proxy_protocol::{HEADER_BYTES_MAX, parse};

/// Checks one input.
pub(crate) fn proxy_protocol(bytes: &[u8]) {
    let mut verdict = Ok(None);
    for end in 0..=bytes.len() {
        let next = parse(&bytes[..end]);
        assert!(verdict == Ok(None) || next == verdict, "{verdict:?} became {next:?} at {end}");
        if let Ok(Some((_, length))) = &next {
            assert!(*length <= end.min(HEADER_BYTES_MAX), "{length} bytes of {end}");
        }
        assert!(next != Ok(None) || end < HEADER_BYTES_MAX, "{end} bytes are no header");
        verdict = next;
    }
}
