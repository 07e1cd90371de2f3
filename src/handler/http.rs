//! HTTP/1.x, just enough to answer every request with `hello world`. Pure.

use super::{Context, Next, Progress, Waiting};

/// Bounds on a request.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Longest request head, in bytes; a longer one is answered with 431.
    pub head_bytes_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head_bytes_max: 16 * 1024,
        }
    }
}

/// One connection's requests.
#[derive(Debug, Default)]
pub struct HttpSession {}
impl HttpSession {
    pub(super) fn new() -> Self {
        Self::default()
    }
    pub(super) fn on_bytes(&mut self, _: &[u8], _: &mut Vec<u8>, _: &Context<'_>) -> Progress {
        Progress {
            consumed: 0,
            answered: 0,
            next: Next::Close,
        }
    }
    pub(super) fn on_end(&mut self, _: &[u8], _: &mut Vec<u8>, _: &Context<'_>) -> Next {
        Next::Close
    }
    pub(super) fn on_timeout(&mut self, _: &mut Vec<u8>, _: &Context<'_>) -> Next {
        Next::Close
    }
    pub(super) fn waiting(&self) -> Waiting {
        Waiting::FirstRequest
    }
}
