//! The bytes that are sent, laid out once so that every send is one range of them. Pure.

use std::sync::Arc;

use crate::protocol;
use crate::settings::Settings;

/// A full pipeline of requests, one behind the other, and behind them the request that a
/// connection ends with. Sends that end with that one begin so much later.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    pub(super) bytes: Arc<[u8]>,
    request_bytes: usize,
    pipeline: usize,
}

impl Payload {
    pub(super) fn new(settings: &Settings) -> Self {
        let request = protocol::message(settings);
        let pipeline = settings.pipeline as usize;
        let mut bytes = request.repeat(pipeline);
        bytes.extend_from_slice(&protocol::last_message(settings));
        Self { bytes: bytes.into(), request_bytes: request.len(), pipeline }
    }

    /// The range that sends `count` requests, at most a pipeline of them.
    pub(super) fn range(&self, count: usize, ends_with_last: bool) -> (usize, usize) {
        match ends_with_last {
            false => (0, count * self.request_bytes),
            true => ((self.pipeline + 1 - count) * self.request_bytes, self.bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Load;

    #[test]
    fn a_range_has_so_many_requests_and_says_when_they_are_the_last() {
        let target = "127.0.0.1:1/".parse().expect("a target");
        let settings =
            Settings { pipeline: 3, ..Settings::new(target, Load::Closed { connections: 1 }) };
        let payload = Payload::new(&settings);
        for count in 1..=3 {
            for last in [false, true] {
                let (from, to) = payload.range(count, last);
                let text = String::from_utf8_lossy(&payload.bytes[from..to]).into_owned();
                assert_eq!(text.matches("GET / HTTP/1.1").count(), count, "{text}");
                assert_eq!(text.matches("Connection: close").count(), usize::from(last));
                assert!(!last || text.ends_with("Connection: close\r\n\r\n"), "{text}");
            }
        }
    }
}
