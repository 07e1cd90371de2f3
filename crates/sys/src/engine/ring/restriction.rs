//! Operations that a ring refuses, for processes under a seccomp filter: the filter sees no
//! operation of a ring, so without this it would not confine anything.
//!
//! Owns the list, and whether new rings get it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

/// What the modules beside this one submit: nothing that opens a file or a socket, or connects one.
const OPERATIONS: [u8; 11] = [
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    opcode::Nop::CODE,
    opcode::PollAdd::CODE,
    opcode::Recv::CODE,
    opcode::RecvMsg::CODE,
    opcode::Send::CODE,
    opcode::SendMsg::CODE,
    opcode::Timeout::CODE,
    opcode::TimeoutRemove::CODE,
];
/// IORING_REGISTER_EVENTFD, PBUF_RING, SYNC_CANCEL: a notifier, buffers, and the end.
const REGISTRATIONS: [u8; 3] = [4, 22, 24];

static RESTRICTS: AtomicBool = AtomicBool::new(false);

/// Restricts each ring created from now on to the operations that [`Ring`](super::Ring) has.
pub fn restrict_operations() {
    RESTRICTS.store(true, Ordering::Relaxed);
}

/// Whether a ring is created disabled, to be restricted.
pub(super) fn restricts() -> bool {
    RESTRICTS.load(Ordering::Relaxed)
}

/// Restricts a disabled ring, and enables it.
pub(super) fn restrict(uring: &IoUring) -> io::Result<()> {
    let flags = squeue::Flags::IO_LINK
        | squeue::Flags::IO_HARDLINK
        | squeue::Flags::SKIP_SUCCESS
        | squeue::Flags::BUFFER_SELECT;
    let operations = OPERATIONS.map(Restriction::sqe_op);
    let registrations = REGISTRATIONS.map(Restriction::register_op);
    let mut rules: Vec<Restriction> = operations.into_iter().chain(registrations).collect();
    rules.push(Restriction::sqe_flags_allowed(flags.bits()));
    uring.submitter().register_restrictions(&mut rules)?;
    uring.submitter().register_enable_rings()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use io_uring::types::Fd;
    use nix::libc;

    use super::*;

    /// The result of one operation on a restricted ring; `None` where there is no io_uring.
    fn result_of(entry: &squeue::Entry) -> Option<i32> {
        let mut uring = match IoUring::builder().setup_r_disabled().build(8) {
            Ok(uring) => uring,
            Err(error) => {
                crate::missing::lacking(&format!("io_uring: {error}"));
                return None;
            }
        };
        restrict(&uring).expect("the kernel restricts rings");
        // SAFETY: the entry's memory is static, or outlives this function.
        unsafe { uring.submission().push(entry) }.expect("the queue is empty");
        uring.submit_and_wait(1).expect("the kernel takes it");
        let result = uring.completion().next().map(|done| done.result());
        Some(result.expect("it is done"))
    }

    #[test]
    fn a_restricted_ring_opens_nothing_and_connects_nothing() {
        let path = c"/dev/null";
        let address = std::mem::MaybeUninit::<libc::sockaddr>::zeroed();
        let size = u32::try_from(size_of::<libc::sockaddr>()).expect("it is small");
        for entry in [
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Connect::new(Fd(0), address.as_ptr(), size).build(),
            opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), c"".as_ptr()).build(),
            opcode::Nop::new().build().flags(squeue::Flags::ASYNC),
        ] {
            let Some(result) = result_of(&entry) else { return };
            assert_eq!(result, -libc::EACCES, "{entry:?}");
        }
        let file = std::fs::File::open("/dev/null").expect("it is there");
        let close = opcode::PollAdd::new(Fd(file.as_raw_fd()), libc::POLLIN as u32).build();
        for entry in [opcode::Nop::new().build(), close] {
            let Some(result) = result_of(&entry) else { return };
            assert!(result >= 0, "{result}");
        }
    }
}
