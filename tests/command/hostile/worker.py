"""A worker that serves, and one that does what no worker should: the first of a run, once it has
seen the others answer. What it does is in HOSTILE; where it listens is its argument. With the word
unequal nobody is hostile, and the worker in the first place serves a further address alone."""
import array, contextlib, ctypes, json, mmap, os, random, select, signal, socket, struct
import sys, time

HOW = os.environ.get("HOSTILE", "")
FIRST = os.environ["CLUSTERLB_WORKER_ID"] == "1"
# The first one closes what it gets, and the others take their time.
DROPS = FIRST and HOW == "drop"
RETURNS = FIRST and HOW == "returns"
DELAY = 0.004 if HOW == "drop" or HOW == "fast" and not FIRST else 0
CONTROL, INBOX, BOARD, BELL = (
    int(os.environ[f"CLUSTERLB_{name}_FD"]) for name in ("CONTROL", "INBOX", "BOARD", "BELL")
)
control = socket.socket(fileno=CONTROL)
inbox = socket.socket(fileno=INBOX)
board = memoryview(mmap.mmap(BOARD, 4096)).cast("Q")
WAKE, CLAIMED, FINISHED, CLAIMED_AT, PROBES = 32, 48, 49, 50, 52


def put(data, descriptors=()):
    """Sends all of it, the descriptors with the first byte."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    while data:
        select.select([], [control], [])
        with contextlib.suppress(BlockingIOError):
            data = data[control.sendmsg([data], rights if descriptors else []):]
            descriptors = ()


def frame(body, kind=0, promised=0):
    return struct.pack("<IBBH", len(body), promised, kind, 0) + body


def say(descriptors=(), **word):
    put(frame(json.dumps(word).encode(), 0, len(descriptors)), descriptors)


def tell(value):
    put(frame(json.dumps(value).encode(), 1))


def hear():
    """The next word of the primary's."""
    need = lambda count: b"".join(iter_exactly(count))
    length, _ = struct.unpack("<II", need(8))
    return json.loads(need(length))


def iter_exactly(count):
    while count:
        select.select([control], [], [])
        with contextlib.suppress(BlockingIOError):
            part = control.recv(count) or sys.exit()
            count -= len(part)
            yield part


def give_back(listener, connection):
    """Returns a connection with another flag, which all who hold it have in common."""
    os.set_blocking(connection, True)
    say([connection], act="return", listener=listener, accepted_ns=time.monotonic_ns())
    os.close(connection)
    returned.append(connection)
    tell({"returned": len(returned)})


returned = []


def count(word, more):
    board[word] += more
    if board[WAKE]:
        os.write(BELL, struct.pack("=Q", 1))


def serve(until=None):
    """Answers until that moment, if there is one."""
    poller = select.poll()
    poller.register(inbox, select.POLLIN)
    poller.register(control, select.POLLIN)
    while until is None or time.monotonic() < until:
        ready = dict(poller.poll(None if until is None else 50))
        if CONTROL in ready:
            poller.unregister(control)  # It has been told to leave, or the primary is gone.
        if INBOX not in ready:
            continue
        try:
            payload, connections, _, _ = socket.recv_fds(inbox, 1024, 32)
        except BlockingIOError:
            continue  # The primary has taken the message back.
        payload or sys.exit()
        if RETURNS and connections and len(returned) < 3:
            give_back(answer["listener"], connections.pop())
        board[CLAIMED_AT] = time.monotonic_ns()
        count(CLAIMED if connections else PROBES, len(connections) or not returned)
        for one in connections:
            with contextlib.suppress(OSError), socket.socket(fileno=one) as connection:
                if DROPS:
                    raise ConnectionAbortedError
                time.sleep(DELAY)
                connection.settimeout(5)
                connection.recv(65536)
                body = b"hello world\n"
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                connection.sendall(head % len(body) + body)
            count(FINISHED, 1)


def junk():
    """Descriptors that are no connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    epoll = select.epoll()
    null = os.open("/dev/null", os.O_RDWR)
    file = os.open(sys.executable, os.O_RDONLY)
    return {"listener": listener.detach(), "epoll": epoll, "null": null, "file": file}


def attack(listener):
    name, _, which = HOW.partition(":")
    if name == "bare":  # Descriptors beside bytes that never become a frame.
        descriptors = [os.dup(0) for _ in range(32)]
        put(struct.pack("<IBBH", 60000, 0, 0, 0))
        while True:
            put(b"x", descriptors)
    if name == "excess":
        put(frame(b'{"act":"leaving"}', 0, 1), [os.dup(0) for _ in range(3)])
    if name == "return":
        found = junk()[which]
        say([found if isinstance(found, int) else found.fileno()],
            act="return", listener=listener, accepted_ns=1)
    if name == "stranger":  # A connection of a listener that it never had.
        ours, _theirs = socket.socketpair()
        say([ours.fileno()], act="return", listener=listener + 7, accepted_ns=1)
    if name == "garbage":
        put(bytes(random.Random(1).randbytes(4096)))
    if name == "large":  # Messages of 16 MiB.
        body = b'"' + b"x" * (16 * 1024 * 1024 - 2) + b'"'
        while True:
            put(frame(body, 1))
    if name == "small":
        many = frame(b"1", 1) * 1000
        while True:
            put(many)
    if name == "listens":  # It asks and asks, and reads the answers.
        for number in range(1, 100_000):
            say(act="listen", sequence=number, address="127.0.0.1:1", options={})
            hear()
    if name == "ports":  # It asks for ports that nobody has, and reads the answers.
        for number in range(1, 10_000):
            say(act="listen", sequence=number, address="127.0.0.1:0", options={})
            hear()
    if name == "deaf":  # It asks and asks, and reads nothing.
        many = frame(json.dumps({"act": "listen", "sequence": 1, "address": "unix:/nowhere/a",
                                 "options": {}}).encode())
        while True:
            put(many)
    if name == "names":
        for number in range(1, 10_000):
            say(act="listen", sequence=number, address=f"n{number}.invalid:8080", options={})
    if name == "words":  # It says that it serves, and that it runs, again and again.
        many = frame(json.dumps({"act": "serving", "listener": listener}).encode())
        many += frame(json.dumps({"act": "online", "pid": 1}).encode())
        while True:
            put(many)
    if name == "bell":  # Reads of the eventfd shall wait, and writes as well.
        os.set_blocking(BELL, True)
        os.write(BELL, struct.pack("=Q", 2**64 - 2))
        time.sleep(600)
    if name == "scribble":  # Everything that it can write is different all the time.
        numbers = random.Random(2)
        while True:
            board[numbers.randrange(512)] = numbers.getrandbits(64)
    if name == "mixture":
        mixture(listener)
    if name == "nested":  # A value that a parser could lose its stack over.
        put(frame(b"[" * 60_000))
    if name == "farewell":
        say(act="farewell", handoff={"count": -1})
    if name == "peers":  # The others have the same parent, and the same user.
        for other in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                parent = open(f"/proc/{other}/stat").read().rsplit(")", 1)[1].split()[1]
                if parent == str(os.getppid()) and other != str(os.getpid()):
                    os.kill(int(other), signal.SIGKILL)
        serve()
    if name == "escapes":
        address = "unix:/nowhere/\x1b[2J\nworker 9: fine\x7f\u009b1m"
        say(act="listen", sequence=1, address=address, options={})
    time.sleep(600)


def mixture(listener):
    """All that neither helps it nor ends it."""
    for attempt in (lambda: os.ftruncate(BOARD, 0), lambda: os.ftruncate(BOARD, 8192),
                    lambda: os.posix_fallocate(BOARD, 0, 65536)):
        with contextlib.suppress(OSError):
            attempt()
    with contextlib.suppress(OSError):  # Into the inbox, until it is full.
        while True:
            socket.send_fds(inbox, [b"x" * 100], [0] * 32)
    ours, _theirs = socket.socketpair()
    for _ in range(1000):  # More than it was given.
        say([ours.fileno()], act="return", listener=listener, accepted_ns=2**64 - 1)
    for address in ("unix:" + "a" * 50_000, "[" * 1000, "fd:-1", "fd:99999999999", "unix:", "\0",
                    "127.0.0.1:65536", "unix:@" + "x" * 200, "127.0.0.1:0%lo"):
        say(act="listen", sequence=7, address=address, options={"mode": 2**31})
    for number in (0, 63, 64, 65535):  # What it never had.
        say(act="serving", listener=number)
        say(act="close", listener=number)
    for _ in range(300):  # More claims than connections, and none.
        count(CLAIMED, 1000)
        count(FINISHED, 1000)
        board[CLAIMED] = board[FINISHED] = 0
        time.sleep(0.001)
    # The kernel drops every message before it arrives; then there are none, in either direction.
    rules = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(rules))
    inbox.setsockopt(socket.SOL_SOCKET, 26, program)
    serve(time.monotonic() + 1)
    inbox.shutdown(socket.SHUT_RDWR)


def places():
    """What it gets of the places that it asks for, as a message."""
    found = {}
    for number, (place, options) in enumerate(json.loads(os.environ["PLACES"])):
        say(act="listen", sequence=100 + number, address=place, options=options)
        word = hear()
        found[place] = word.get("errno", word["act"])
    tell({"places": found})


def surroundings():
    """What it has been born with, as a message."""
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    # Where they lead: the interpreter has copies of some, and the folder itself.
    led = lambda number: os.readlink(f"/proc/self/fd/{number}")
    own = {led(number) for number in (0, 1, 2, CONTROL, INBOX, BOARD, BELL)}
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(led(number))
    wanted = ("HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "NOTIFY_SOCKET", "LISTEN_FDS", "KEPT")
    tell({
        "environment": {name: os.environ[name] for name in wanted if name in os.environ},
        "groups": os.getgroups(),
        "ids": [os.getuid(), os.getgid()],
        "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")],
        "no_new_privs": int(status["NoNewPrivs"]),
        "unknown": sorted(one for one in found - own if not one.startswith("/proc/")),
    })


if FIRST and HOW == "surroundings":
    surroundings()
say(act="online", pid=os.getpid())
say(act="listen", sequence=0, address=sys.argv[1], options={})
answer = hear()
answer["act"] == "listening" or sys.exit(f"not serving {sys.argv[1]}: {answer}")
if FIRST and HOW == "places":
    places()
say(act="serving", listener=answer["listener"])
if HOW == "unequal" and os.environ.get("CLUSTERLB_INSTANCE") == "0":
    say(act="listen", sequence=1, address=sys.argv[2], options={})
    say(act="serving", listener=hear()["listener"])
if FIRST and HOW not in ("", "places", "surroundings", "unequal", "drop", "fast", "returns"):
    serve(time.monotonic() + 3)  # Until the others do so as well.
    say(act="close", listener=answer["listener"])
    serve(time.monotonic() + 0.5)  # What was under way.
    while hear()["act"] != "closed":
        pass
    attack(answer["listener"])
serve()
