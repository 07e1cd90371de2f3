//! The present time as an HTTP date, formatted once a second.

use std::time::{SystemTime, UNIX_EPOCH};

/// A date and when it expires.
#[derive(Debug, Default)]
pub(super) struct Date {
    good_until_ns: u64,
}

impl Date {
    /// Writes the date into `text` if the second has changed.
    pub(super) fn refresh(&mut self, now_ns: u64, text: &mut String) {
        if now_ns < self.good_until_ns {
            return;
        }
        let now = SystemTime::now();
        let into_second = now.duration_since(UNIX_EPOCH).map_or(0, |passed| passed.subsec_nanos());
        self.good_until_ns = now_ns + 1_000_000_000 - u64::from(into_second);
        *text = httpdate::fmt_http_date(now);
    }
}
