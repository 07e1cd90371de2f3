"""Runs a command in which the kernel refuses one system call: refuse.py NUMBER ERRNO COMMAND..."""

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000

number, errno = int(sys.argv[1]), int(sys.argv[2])
statements = [
    (LOAD_WORD, 0, 0, 0),
    (JUMP_IF_EQUAL, 0, 1, number),
    (RETURN, 0, 0, FAIL | errno),
    (RETURN, 0, 0, ALLOW),
]
code = b"".join(struct.pack("HBBI", *statement) for statement in statements)
buffer = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HP", len(statements), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0
):
    sys.exit("cannot set the filter: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[3], sys.argv[3:])
