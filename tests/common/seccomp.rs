//! A seccomp filter like those of container runtimes, for the command under test.
//!
//! Owns a small Python program that installs the filter in its process and then executes the
//! command, whose threads and workers inherit the filter.

use super::{Launch, has_program};

/// The filter's treatment of the three io_uring calls, or of another one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Filter {
    /// Raises SIGSYS for this call.
    Trap(i64),
    /// Fails all of them with this error number.
    Refuse(u16),
    /// Allows creating a ring, and fails its use with EPERM.
    OnlySetup,
    /// Kills a process that creates one.
    Kill,
    /// Fails this call with EINVAL where its first argument is this, as a kernel does that does not
    /// know the command.
    Unknown(i64, u32),
}

/// The first argument is the filter's action, the next two are the first and the last call that it
/// applies to, and the last is what their first argument must be, if not negative. The filter loads
/// the call's number, and allows all others. (425 is io_uring_setup, followed by enter and
/// register.)
const PROGRAM: &str = "\
import ctypes, os, struct, sys
action, first, last, argument = map(int, sys.argv[1:5])
narrow = [(0x20, 0, 0, 16), (0x15, 0, 1, argument)] if argument >= 0 else []
over = len(narrow)
rules = [(0x20, 0, 0, 0), (0x35, 0, 2 + over, first), (0x25, 1 + over, 0, last), *narrow,
         (0x06, 0, 0, action), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('rules', ctypes.c_void_p)]
program = Program(len(rules), ctypes.addressof(code))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0, ctypes.get_errno()
assert prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[5], sys.argv[5:])
";

impl Filter {
    /// The command line to put before the command.
    pub(crate) fn command(self) -> Vec<String> {
        // SECCOMP_RET_TRAP, SECCOMP_RET_ERRNO and SECCOMP_RET_KILL_PROCESS.
        let (action, first, last) = match self {
            Self::Trap(call) => (0x0003_0000, call, call),
            Self::Refuse(errno) => (0x0005_0000 | u32::from(errno), 425, 427),
            Self::OnlySetup => (0x0005_0001, 426, 427),
            Self::Kill => (0x8000_0000, 425, 427),
            Self::Unknown(call, _) => (0x0005_0016, call, call),
        };
        let argument = match self {
            Self::Unknown(_, argument) => argument.into(),
            _ => -1,
        };
        let numbers = [i64::from(action), first, last, argument].map(|number| number.to_string());
        let words = ["python3", "-c", PROGRAM].map(str::to_owned);
        words.into_iter().chain(numbers).collect()
    }

    /// Starts the command under the filter, where that is possible.
    pub(crate) fn before(self, launch: Launch) -> Option<Launch> {
        let command = self.command();
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        has_program("python3").then(|| launch.under(&words))
    }
}
