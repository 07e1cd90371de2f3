//! The kernel, one facility a file, behind safe functions. The only place with `unsafe`.
//!
//! The contract, for everything above:
//!
//! * [`engine`]: what the loops ask of the kernel, by io_uring or by epoll.
//! * [`ring`]: an io_uring whose operations own their buffers until the kernel is done with them.
//! * [`fdpass`]: descriptors across a unix socket, blocking-free, outside a ring.
//! * [`shared`]: a sealed page of counters that two processes map.
//! * [`error`], [`address`]: what can fail, and what can be listened on.
//! * [`listener`]: listening sockets of every kind, opened, adopted, drained and unlinked.
//! * [`backlog`]: what waits in a listening socket, and for how long.
//! * [`datagram`]: datagram sockets that processes share.
//! * [`peer`]: who is at the ends of a socket, and what kind of socket it is.
//! * [`process`]: starting, watching and ending worker processes.
//! * [`guard`]: a process that ends workers which a killed primary leaves behind.
//! * [`notify`]: words of programs that say in systemd's way that they are ready.
//! * [`inherited`]: what a parent leaves behind, put right for this process and its children.
//! * [`terminal`]: the controlling terminal, and whether it is still there.
//! * [`account`]: users and groups by name.
//! * [`resolve`]: names in addresses, looked up without holding anything up.
//! * [`signal`]: signals as a readable descriptor.
//! * [`limits`]: descriptor limits and what is left of them.
//! * [`cpu`]: which CPUs there are, how much of them, and running on one of them.
//! * [`probe`]: what this kernel's io_uring can do.
//! * `readiness`: waiting for a descriptor inside a tokio runtime.
//! * [`waker`]: a descriptor that wakes a waiting thread.
//! * [`watch`]: waiting at an epoll set for less than a millisecond.
//! * [`clock`]: monotonic time as a number that two processes can compare.
//!
//! Nothing here decides anything: policies, limits and retries live above.

pub mod account;
pub mod activity;
pub mod address;
pub mod backlog;
mod cgroup;
pub mod clock;
pub mod cpu;
pub mod datagram;
pub mod engine;
pub mod error;
pub mod fdpass;
pub mod guard;
pub mod inherited;
pub mod limits;
pub mod listener;
pub mod listening;
pub mod migration;
#[cfg(test)]
#[path = "../../../tests/common/missing.rs"]
mod missing;
pub mod notify;
pub mod peer;
pub mod probe;
pub mod process;
#[cfg(feature = "tokio")]
pub mod readiness;
pub mod resolve;
pub mod ring;
pub mod shared;
pub mod signal;
pub mod terminal;
mod unix_socket;
pub mod waker;
pub mod watch;
