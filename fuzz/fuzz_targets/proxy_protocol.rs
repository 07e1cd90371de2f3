//! Arbitrary bytes for the checks of `proxy_protocol.rs`.

#![no_main]

#[path = "../proxy_protocol.rs"]
mod proxy_protocol;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_protocol::proxy_protocol(bytes));
