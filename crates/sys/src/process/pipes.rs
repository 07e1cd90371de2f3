//! The standard streams of a new process, and this process's ends of the pipes among them.
//!
//! Owns the ownership of the pipes: a worker that runs as another user must be able to open its own
//! streams by name (`/dev/stdout`), and only a user with write permission can open a pipe.

use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, fchown, pipe2};

use super::Stream;

/// Both ends of the streams.
#[derive(Debug)]
pub(super) struct Pipes {
    /// Standard input, output and error of the new process.
    pub(super) theirs: [Stdio; 3],
    /// Reading ends of standard output and error, if they are pipes.
    pub(super) ours: [Option<OwnedFd>; 2],
}

impl Pipes {
    /// Streams for a process of this user and group.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub(super) fn new(
        streams: [Stream; 3],
        user: Option<u32>,
        group: Option<u32>,
    ) -> Result<Self, Errno> {
        let [input, output, errors] = streams;
        let (output, output_end) = outward(output, user, group)?;
        let (errors, errors_end) = outward(errors, user, group)?;
        let input = match input {
            Stream::Pipe => Stdio::piped(),
            other => plain(other),
        };
        Ok(Self { theirs: [input, output, errors], ours: [output_end, errors_end] })
    }
}

fn outward(
    stream: Stream,
    user: Option<u32>,
    group: Option<u32>,
) -> Result<(Stdio, Option<OwnedFd>), Errno> {
    let Stream::Pipe = stream else { return Ok((plain(stream), None)) };
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    if user.is_some() || group.is_some() {
        // Without the permission for this, the stream still works.
        let _ = fchown(&writer, user.map(Uid::from_raw), group.map(Gid::from_raw));
    }
    Ok((Stdio::from(writer), Some(reader)))
}

fn plain(stream: Stream) -> Stdio {
    match stream {
        Stream::Inherit => Stdio::inherit(),
        Stream::Nothing | Stream::Pipe => Stdio::null(),
        Stream::Descriptor(descriptor) => Stdio::from(descriptor),
    }
}
