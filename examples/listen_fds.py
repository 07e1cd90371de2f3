"""A server that takes its listening sockets over, as from systemd (sd_listen_fds(3)):
clusterlb --workers 2 --dialect listen-fds --listen 127.0.0.1:8000 -- python3 examples/listen_fds.py"""
import os, select, signal, socket, sys

if os.environ.get("LISTEN_PID") != str(os.getpid()):
    sys.exit("no sockets are here for this process (LISTEN_PID)")
listening = [socket.socket(fileno=3 + place) for place in range(int(os.environ["LISTEN_FDS"]))]
for one in listening:
    one.setblocking(False)  # Another worker may be faster: accept must not block then.

# A signal makes this end readable, so that no request is interrupted by it.
woken, waker = socket.socketpair()
waker.setblocking(False)
signal.set_wakeup_fd(waker.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)

def serve(connection):
    connection.settimeout(10)
    connection.recv(65536)
    body = str(os.getpid()).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

if name := os.environ.get("NOTIFY_SOCKET"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", name.replace("@", "\0", 1))
while woken not in (ready := select.select([woken, *listening], [], [])[0]):
    for one in ready:
        try:
            with one.accept()[0] as connection:
                serve(connection)
        except OSError:  # Another worker was faster, or the client has gone or is too slow.
            pass
