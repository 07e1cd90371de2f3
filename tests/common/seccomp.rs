//! A seccomp filter like those of container runtimes, for the command under test.
//!
//! Owns a small Python program that installs the filter in its process and then executes the
//! command, whose threads and workers inherit the filter.

use super::{Launch, has_program};

/// The filter's treatment of the three io_uring calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Filter {
    /// Fails all of them with this error number.
    Refuse(u16),
    /// Allows creating a ring, and fails its use with EPERM.
    OnlySetup,
    /// Kills a process that creates one.
    Kill,
}

/// The first argument is the filter's action, the second the first call it applies to. The filter
/// loads the call's number and applies the action from there up to 427 (425 is io_uring_setup,
/// followed by enter and register); otherwise it allows the call.
const PROGRAM: &str = "\
import ctypes, os, struct, sys
action, first = int(sys.argv[1]), int(sys.argv[2])
rules = [(0x20, 0, 0, 0), (0x35, 0, 2, first), (0x25, 1, 0, 427), (0x06, 0, 0, action),
         (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('rules', ctypes.c_void_p)]
program = Program(len(rules), ctypes.addressof(code))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0, ctypes.get_errno()
assert prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[3], sys.argv[3:])
";

impl Filter {
    /// The command line to put before the command.
    pub(crate) fn command(self) -> Vec<String> {
        // SECCOMP_RET_ERRNO and SECCOMP_RET_KILL_PROCESS.
        let (action, first) = match self {
            Self::Refuse(errno) => (0x0005_0000 | u32::from(errno), 425),
            Self::OnlySetup => (0x0005_0001, 426),
            Self::Kill => (0x8000_0000, 425),
        };
        let words = ["python3", "-c", PROGRAM, &action.to_string(), &first.to_string()];
        words.map(str::to_owned).to_vec()
    }

    /// Starts the command under the filter, where that is possible.
    pub(crate) fn before(self, launch: Launch) -> Option<Launch> {
        let command = self.command();
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        has_program("python3").then(|| launch.under(&words))
    }
}
