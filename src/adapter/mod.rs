//! Adapts a worker's connections to async runtimes.
//!
//! An adapter takes a [`Listener`](crate::Listener) and yields streams. Each stream carries its
//! connection's [`Guard`](crate::Guard), so the connection is counted as finished however it ends:
//! dropped, failed, cancelled or in a panicking task. Adapters take no decisions and start no
//! threads.
//!
//! | for | feature | bind with | accept with |
//! | --- | --- | --- | --- |
//! | `std`, blocking | – | [`Worker::bind`] | [`Listener::accept`], [`Connection::into_tcp`] |
//! | tokio-uring | `tokio-uring`, a default one | `adapter::uring::Listener::bind` | its `accept` |
//! | tokio | `tokio` | `adapter::tokio::Listener::bind` | its `accept` |
//! | axum | `axum` | `adapter::tokio::Listener::bind` | `axum::serve`, which takes it |
//!
//! For other runtimes, use [`Worker::bind_async`], [`Listener::try_accept`] with readiness of the
//! listener's descriptor, and [`Connection::into_parts`]. A UDP socket of
//! [`Worker::bind_udp_async`] is non-blocking and has a descriptor too.
//!
//! [`Worker::bind`]: crate::Worker::bind
//! [`Worker::bind_async`]: crate::Worker::bind_async
//! [`Worker::bind_udp_async`]: crate::Worker::bind_udp_async
//! [`Listener::accept`]: crate::Listener::accept
//! [`Listener::try_accept`]: crate::Listener::try_accept
//! [`Connection::into_tcp`]: crate::Connection::into_tcp
//! [`Connection::into_parts`]: crate::Connection::into_parts

#[cfg(any(feature = "tokio", feature = "tokio-uring"))]
mod async_listener;
#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "tokio-uring")]
pub mod uring;
