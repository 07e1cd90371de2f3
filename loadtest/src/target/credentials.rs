//! The user and password of a URL, as the `Authorization` header carries them (RFC 7617). Pure.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;
use url::Url;

/// A user and a password. Debug output does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(String);

impl Credentials {
    /// Those of a URL, if it names a user.
    pub(super) fn of(url: &Url) -> Option<Self> {
        if url.username().is_empty() && url.password().is_none() {
            return None;
        }
        let mut bytes: Vec<u8> = percent_decode_str(url.username()).collect();
        bytes.push(b':');
        bytes.extend(percent_decode_str(url.password().unwrap_or_default()));
        Some(Self(format!("Basic {}", BASE64_STANDARD.encode(bytes))))
    }

    /// The value of the `Authorization` header.
    pub(crate) fn authorization(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}
