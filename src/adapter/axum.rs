//! The tokio listener for `axum::serve`, with the client's end as connect information.

use std::io;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::time::sleep;

use super::tokio::{Listener, Stream};
use crate::address::Endpoint;

/// How soon accepting is tried again after an error: as `axum::serve` does it for other listeners.
const RETRY: Duration = Duration::from_secs(1);

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Endpoint;

    /// Clients that have gone again are passed over. After the last connection it waits for ever:
    /// the end is for [`Listener::ended`], given to `with_graceful_shutdown`.
    async fn accept(&mut self) -> (Stream, Endpoint) {
        loop {
            match Self::accept(self).await {
                Ok(Some(stream)) => {
                    if let Some(peer) = stream.peer().cloned() {
                        return (stream, peer);
                    }
                }
                Ok(None) => return std::future::pending().await,
                Err(_) => sleep(RETRY).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Endpoint> {
        let address = self.address();
        Ok(match address.strip_prefix("unix:") {
            Some(path) if path.starts_with('@') => Endpoint::Unix(None),
            Some(path) => Endpoint::Unix(Some(path.into())),
            None => Endpoint::Inet(address.parse().map_err(io::Error::other)?),
        })
    }
}

/// The client's end, for handlers that take `ConnectInfo<PeerAddr>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub Endpoint);

impl Connected<IncomingStream<'_, Listener>> for PeerAddr {
    fn connect_info(incoming: IncomingStream<'_, Listener>) -> Self {
        Self(incoming.remote_addr().clone())
    }
}
