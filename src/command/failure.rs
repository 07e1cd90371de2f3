//! Errors at the command line: the exit code, and the option that remedies them.

use clusterlb::{Error, ErrorKind};

/// The exit code of the process: 2 for usage, 3 for the environment, otherwise 1.
pub(super) fn exit_code(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::Usage => 2,
        ErrorKind::Environment => 3,
        _ => 1,
    }
}

/// The remedy, with this command's option for it.
pub(super) fn remedy(error: &Error) -> String {
    let options = match (error, error.kind()) {
        (Error::Listen { .. }, ErrorKind::AddressInUse) => "--listen names another address",
        (Error::Listen { .. }, ErrorKind::PermissionDenied) => {
            "--allow-listen names what workers that run as another user may open"
        }
        (_, ErrorKind::Environment | ErrorKind::System) => {
            "`clusterlb check` shows what this machine allows"
        }
        _ => return error.hint(),
    };
    format!("{}; {options}", error.hint())
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn exit_codes_name_the_kind_of_error() {
        let environment = Error::Environment {
            step: "create an io_uring".into(),
            source: Errno::EPERM.into(),
            hint: "allow it".into(),
        };
        assert_eq!(exit_code(&environment), 3);
        assert_eq!(exit_code(&Error::usage("0 workers", "give 1 or more")), 2);
        assert_eq!(exit_code(&Error::system("fork", Errno::EAGAIN)), 1);
    }

    #[test]
    fn remedies_name_options() {
        let (address, step) = ("127.0.0.1:80".to_owned(), "bind".to_owned());
        let taken = Error::Listen { address, step, source: Errno::EADDRINUSE.into() };
        assert!(remedy(&taken).contains("ss -ltnp") && remedy(&taken).contains("--listen"));
        assert!(remedy(&Error::system("wait", Errno::EIO)).contains("clusterlb check"));
        assert_eq!(remedy(&Error::usage("0 workers", "give 1 or more")), "give 1 or more");
    }
}
