//! Opens the sockets of a key.

use std::sync::Arc;

use nix::errno::Errno;

use super::super::listen_request::{Candidates, Key, Opening};
use super::super::reuseport::OwnSockets;
use super::{Listeners, Socket, datagram_options, open_options};
use crate::address::ListenAddress;
use crate::error::{Error, Result};
use crate::protocol::control::Transport;
use crate::sys::datagram;
use crate::sys::listener::Listener;

impl Listeners {
    pub(super) fn bind_first(
        &mut self,
        key: &Key,
        candidates: Option<&Candidates>,
        opening: Opening,
    ) -> Result<(Socket, String)> {
        let own = [key.address.clone()];
        let candidates = candidates.map_or(&own[..], |candidates| candidates);
        let mut refused = None;
        for address in candidates {
            match self.bind(key, address, opening) {
                Err(error @ Error::Listen { source, .. }) if is_not_ours(source.into()) => {
                    refused.get_or_insert(error);
                }
                result => return result,
            }
        }
        Err(refused.unwrap_or_else(|| Error::Listen {
            address: key.address.to_string(),
            step: "find".into(),
            source: Errno::EADDRNOTAVAIL.into(),
        }))
    }

    pub(super) fn bind(
        &mut self,
        key: &Key,
        address: &ListenAddress,
        opening: Opening,
    ) -> Result<(Socket, String)> {
        if key.options.transport != Transport::Stream {
            let (socket, bound) = datagram::open(address, datagram_options(key.options))?;
            let socket = match key.options.transport {
                Transport::DatagramEach => Socket::DatagramEach(Some(socket)),
                _ => Socket::Datagram(socket),
            };
            return Ok((socket, bound.to_string()));
        }
        if let Some(inherited) = self.inherited.get(address) {
            let bound = inherited.address().to_owned();
            return Ok((Socket::Stream(Arc::clone(inherited)), bound));
        }
        // Only TCP has ports that several sockets share.
        let is_tcp = matches!(address, ListenAddress::Tcp(_));
        let opening = Opening { socket_for_each: opening.socket_for_each && is_tcp, ..opening };
        let listener = Arc::new(Listener::open(address, open_options(key.options, opening))?);
        let bound = listener.address().to_owned();
        if matches!(address, ListenAddress::Inherited(_)) {
            self.inherited.insert(address.clone(), Arc::clone(&listener));
        }
        let socket = match opening.socket_for_each {
            true => Socket::StreamEach(OwnSockets::new(listener)),
            false => Socket::Stream(listener),
        };
        Ok((socket, bound))
    }
}

/// Whether this machine does not have the address.
fn is_not_ours(errno: Errno) -> bool {
    matches!(errno, Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT)
}
