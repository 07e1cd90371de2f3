//! The kernel's facilities, one file each, and the only place where `unsafe` is allowed.
//!
//! What the rest may rely on: no function here can break memory safety; [`ring::Ring`] keeps a
//! slot's socket, buffers and operations together and refuses to reuse or close what the kernel
//! still works on. Nothing here decides anything about a run.

#![allow(unsafe_code, reason = "the ring shares memory with the kernel")]

mod arena;
pub(crate) mod process;
pub(crate) mod ring;
mod setup;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod tag;
