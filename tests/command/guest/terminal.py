"""Runs the command on a terminal of its own: terminal.py background|close|nohup COMMAND...

background: in the background of a terminal that stops those who print there (stty tostop).
close: in the foreground; then the terminal is closed.
nohup: the same with SIGHUP ignored.

Ends with 0 and what was printed, if the command served and ended in order."""

import os
import pty
import select
import signal
import sys
import termios
import time

how, command = sys.argv[1], sys.argv[2:]
DEADLINE = time.monotonic() + 100
session, master = pty.fork()
if session == 0:
    # Whatever the tests themselves were started with.
    signal.signal(signal.SIGHUP, signal.SIG_IGN if how == "nohup" else signal.SIG_DFL)
    if how != "background":
        os.execvp(command[0], command)
    attributes = termios.tcgetattr(0)
    attributes[3] |= termios.TOSTOP
    termios.tcsetattr(0, termios.TCSANOW, attributes)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(job, signal.SIGTERM))
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.execvp(command[0], command)
    while True:
        _, status = os.waitpid(job, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(job, signal.SIGKILL)
            os._exit(99)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)

said = b""


def read(seconds):
    """Adds what is printed within this time."""
    global said
    if select.select([master], [], [], seconds)[0]:
        try:
            said += os.read(master, 65536)
        except OSError:
            time.sleep(seconds)


def has_ended():
    pid, status = os.waitpid(session, os.WNOHANG)
    return None if pid == 0 else os.waitstatus_to_exitcode(status)


wanted = b"a worker prints" if "--" in command else b"listening on"
code = None
while code is None and not (wanted in said and b"listening on" in said):
    if time.monotonic() > DEADLINE:
        os.kill(session, signal.SIGKILL)
        sys.exit("in vain: " + said.decode())
    read(0.05)
    code = has_ended()
if code is not None:
    sys.exit(f"ended with {code}: " + said.decode())
if how == "background":
    os.kill(session, signal.SIGTERM)
else:
    os.close(master)
    if how == "nohup":
        time.sleep(1)
        if has_ended() is not None:
            sys.exit("it has not outlived its terminal")
        os.kill(session, signal.SIGTERM)
while code is None and time.monotonic() < DEADLINE:
    read(0.05) if how == "background" else time.sleep(0.05)
    code = has_ended()
if code is None:
    os.kill(session, signal.SIGKILL)
print(said.decode())
sys.exit(0 if code == 0 else f"ended with {code}")
