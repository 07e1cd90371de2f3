//! A good guest: the command under whatever it is started with.

mod common;
#[path = "command/guest/mod.rs"]
mod guest;
