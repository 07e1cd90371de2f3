//! Arbitrary bytes from a Node worker with V8's serialiser.

#![no_main]

#[path = "../checks.rs"]
mod checks;

use clusterlb::internals::dialect::node::Serialization;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::node(Serialization::Advanced, bytes));
