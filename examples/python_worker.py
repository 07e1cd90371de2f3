"""A worker without any library, one request at a time (docs/PROTOCOL.md):
clusterlb --workers 2 -- python3 examples/python_worker.py 127.0.0.1:8000"""
import contextlib, json, mmap, os, socket, struct, sys, time

socket.setdefaulttimeout(10)  # The descriptors stay non-blocking, as the inbox has to.
inbox = os.getenv("CLUSTERLB_INBOX_FD") or sys.exit("start me by clusterlb without --policy none")
inbox = socket.socket(fileno=int(inbox))
control = socket.socket(fileno=int(os.environ["CLUSTERLB_CONTROL_FD"]))
board = memoryview(mmap.mmap(int(os.environ["CLUSTERLB_BOARD_FD"]), 4096)).cast("Q")
BELL, CLAIMED, FINISHED, CLAIMED_AT, PROBES = 2 * 16, 3 * 16, 3 * 16 + 1, 3 * 16 + 2, 3 * 16 + 4

def say(**word):
    body = json.dumps(word).encode()
    control.sendall(struct.pack("<II", len(body), 0) + body)

def count(word, more):
    board[word] += more
    if board[BELL]:  # Once too often does no harm.
        os.write(int(os.environ["CLUSTERLB_BELL_FD"]), struct.pack("=Q", 1))

say(act="online", pid=os.getpid())
say(act="listen", sequence=0, address=sys.argv[1])
words = control.makefile("rb")
word = json.loads(words.read(*struct.unpack("<I4x", words.read(8))))
word["act"] == "listening" or sys.exit(f"not serving {sys.argv[1]}: {word}")
say(act="serving", listener=word["listener"])
while True:
    with contextlib.suppress(TimeoutError):  # No connection for a while.
        payload, connections, _, _ = socket.recv_fds(inbox, 1024, 32)
        payload or sys.exit()  # Nothing more will come.
        board[CLAIMED_AT] = time.monotonic_ns()
        count(CLAIMED if connections else PROBES, len(connections) or 1)
        for one in connections:
            with contextlib.suppress(OSError), socket.socket(fileno=one) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
            count(FINISHED, 1)
