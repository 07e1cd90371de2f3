//! Safe interfaces to the kernel, one facility per file. The only code with `unsafe`.
//!
//! * [`engine`]: the system calls of an event loop, by io_uring ([`engine::ring`]) or by epoll.
//! * [`fdpass`]: sending descriptors over a unix socket, outside a ring.
//! * [`shared`]: a sealed page of counters that two processes map.
//! * [`error`], [`address`]: the error type, and addresses to listen on.
//! * [`listener`]: listening sockets of every kind: opened, adopted, drained and removed.
//! * `hashing`: the hash of a client's address, for programs of the kernel, too.
//! * `deferral`: connections that wait for their first bytes.
//! * [`backlog`]: length of an accept queue, and the time spent in it.
//! * [`datagram`]: datagram sockets that processes share.
//! * [`peer`]: endpoints and type of a socket.
//! * [`process`]: starting, watching and ending worker processes.
//! * [`guard`]: a process that ends the workers of a killed primary.
//! * [`notify`]: readiness messages in systemd's protocol.
//! * [`inherited`]: resets what a parent left behind, for this process and its children.
//! * [`terminal`]: the controlling terminal, and whether it still exists.
//! * [`account`]: users and groups by name.
//! * [`resolve`]: name lookups that do not block the caller.
//! * [`signal`]: signals as a readable descriptor.
//! * [`limits`]: descriptor limits and what is left of them.
//! * [`cpu`]: CPUs, the CPU quota, and pinning.
//! * [`schedstat`]: how long a process ran, and waited for a CPU.
//! * `seccomp`: a filter over the system calls of this process.
//! * [`probe`]: what this kernel's io_uring supports.
//! * `readiness`: waiting for a descriptor inside a tokio runtime.
//! * [`waker`]: a descriptor that wakes a waiting thread.
//! * [`watch`]: epoll waits shorter than a millisecond.
//! * [`clock`]: monotonic time, comparable between processes.
//!
//! This crate takes no decisions: policies, limits and retries belong to its callers.

pub mod accepting;
pub mod account;
pub mod activity;
pub mod address;
pub mod backlog;
pub mod bpf;
mod cgroup;
pub mod clock;
pub mod cpu;
pub mod datagram;
mod deferral;
pub mod engine;
pub mod error;
pub mod fdpass;
pub mod guard;
mod hashing;
pub mod inherited;
pub mod limits;
pub mod listener;
pub mod listening;
pub mod migration;
#[cfg(test)]
#[path = "../../../tests/common/missing.rs"]
mod missing;
pub mod notify;
pub mod passed;
pub mod peer;
pub mod picking;
pub mod privileges;
pub mod probe;
pub mod process;
#[cfg(feature = "tokio")]
pub mod readiness;
pub mod resolve;
pub mod schedstat;
#[cfg(feature = "seccomp")]
pub mod seccomp;
pub mod shared;
pub mod signal;
mod signal_number;
pub mod steering;
pub mod terminal;
mod unix_socket;
pub mod waker;
pub mod watch;
