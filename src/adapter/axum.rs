//! Implements `axum::serve::Listener` for the tokio listener, with the peer address as connect
//! information.

use std::io;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::time::sleep;

use super::tokio::{Listener, Stream};
use crate::address::Endpoint;

/// Delay before accepting again after an error, as `axum::serve` uses for other listeners.
const RETRY: Duration = Duration::from_secs(1);

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Endpoint;

    /// Skips clients that have disconnected. After the last connection it never completes: shutdown
    /// comes from [`Listener::ended`], passed to `with_graceful_shutdown`.
    async fn accept(&mut self) -> (Stream, Endpoint) {
        loop {
            match Self::accept(self).await {
                Ok(Some(stream)) => {
                    if let Ok(peer) = stream.peer_addr() {
                        return (stream, peer);
                    }
                }
                Ok(None) => return std::future::pending().await,
                Err(_) => sleep(RETRY).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Endpoint> {
        Ok(Self::local_addr(self).clone())
    }
}

/// The peer address, for handlers that extract `ConnectInfo<PeerAddr>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub Endpoint);

impl Connected<IncomingStream<'_, Listener>> for PeerAddr {
    fn connect_info(incoming: IncomingStream<'_, Listener>) -> Self {
        Self(incoming.remote_addr().clone())
    }
}
