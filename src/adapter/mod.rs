//! A worker's connections in the form that a runtime wants.
//!
//! Each adapter takes a [`Listener`](crate::Listener) and gives streams, and each stream carries
//! its connection's [`Guard`](crate::Guard): however it ends, dropped, failed, cancelled or in a
//! task that panics, it is counted as finished. Adapters decide nothing and own no thread.
//!
//! | for | feature | accept with |
//! | --- | --- | --- |
//! | `std`, blocking | – | [`Listener::accept`], [`Connection::into_tcp`] |
//! | tokio-uring | `tokio-uring`, a default one | `adapter::uring` |
//! | tokio | `tokio` | `adapter::tokio` |
//! | axum | `axum` | `adapter::tokio`, given to `axum::serve` |
//!
//! For anything else: [`Listener::try_accept`] with the listener's
//! descriptor to wait for, and [`Connection::into_parts`].
//!
//! [`Listener::accept`]: crate::Listener::accept
//! [`Listener::try_accept`]: crate::Listener::try_accept
//! [`Connection::into_tcp`]: crate::Connection::into_tcp
//! [`Connection::into_parts`]: crate::Connection::into_parts

#[cfg(feature = "axum")]
mod axum;
#[cfg(any(feature = "tokio", feature = "tokio-uring"))]
mod entrance;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "tokio-uring")]
pub mod uring;
