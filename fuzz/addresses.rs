//! Invariants of what is written on a command line, for arbitrary text: an address that is
//! understood is understood in the same way when it is written down again.

use clusterlb::ListenAddress;
use clusterlb::topology::{Pin, Workers};

/// Checks one input, a text in each line.
pub(crate) fn addresses(bytes: &[u8]) {
    for text in String::from_utf8_lossy(bytes).lines() {
        if let Ok(address) = text.parse::<ListenAddress>() {
            let again = address.to_string().parse::<ListenAddress>();
            assert_eq!(again.ok(), Some(address), "{text:?}");
        }
        let _ = text.parse::<Workers>();
        let _ = text.parse::<Pin>();
    }
}
