"""A worker without any library, one request at a time (docs/PROTOCOL.md):
clusterlb --workers 2 -- python3 examples/python_worker.py 127.0.0.1:8000"""
import json, mmap, os, select, socket, struct, sys, time

control, inbox = (socket.socket(fileno=int(os.environ[f"CLUSTERLB_{name}_FD"])) for name in ("CONTROL", "INBOX"))
board = memoryview(mmap.mmap(int(os.environ["CLUSTERLB_BOARD_FD"]), 4096)).cast("Q")
BELL, CLAIMED, FINISHED, CLAIMED_AT, PROBES = 2 * 16, 3 * 16, 3 * 16 + 1, 3 * 16 + 2, 3 * 16 + 4

def say(**word):
    body = json.dumps(word).encode()
    control.sendall(struct.pack("<IBBxx", len(body), 0, 0) + body)

def count(word, more):
    board[word] += more
    if board[BELL] == 1 or (board[BELL] == 2 and word == PROBES):
        os.write(int(os.environ["CLUSTERLB_BELL_FD"]), struct.pack("=Q", 1))

def serve(connection):
    connection.settimeout(10)
    connection.recv(65536)
    body = str(os.getpid()).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

say(act="online", pid=os.getpid())
say(act="listen", sequence=0, address=sys.argv[1])
heard = b""
while True:
    ready, _, _ = select.select([control, inbox], [], [])
    if control in ready:
        heard += (part := control.recv(65536))
        while len(heard) >= 8 and len(heard) >= 8 + (length := struct.unpack_from("<I", heard)[0]):
            word, heard = json.loads(heard[8:8 + length]), heard[8 + length:]
            if word["act"] == "listening":
                say(act="serving", listener=word["listener"])
            elif word["act"] == "listen-failed":
                sys.exit(f"cannot {word['step']} {sys.argv[1]}: {os.strerror(word['errno'])}")
        if not part:  # The primary is gone.
            sys.exit(0)
    if inbox in ready:
        payload, sockets, _, _ = socket.recv_fds(inbox, 1024, 32)
        if not payload:  # Nothing more will come.
            sys.exit(0)
        board[CLAIMED_AT] = time.monotonic_ns()
        count(CLAIMED, len(sockets))
        count(PROBES, 0 if sockets else 1)
        for connection in sockets:
            try:
                with socket.socket(fileno=connection) as connection:
                    serve(connection)
            except OSError:  # The client is gone, or too slow.
                pass
            count(FINISHED, 1)
