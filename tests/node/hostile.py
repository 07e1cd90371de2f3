"""A worker that speaks Node's channel, serves for a while like the Node workers beside it, and then
does what no worker should. What that is says its argument."""
import json, os, random, select, signal, socket, sys, time

HOW = sys.argv[1]
channel = socket.socket(fileno=int(os.environ["NODE_CHANNEL_FD"]))
channel.setblocking(True)
# Others at that port are Node's, by the primary.
PLACE = {"index": 0, "data": None, "address": "127.0.0.1", "port": 0, "addressType": 4, "flags": 0}
said = 0
key = None


def lines(*messages):
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def word(**word):
    global said
    said += 1
    return {"cmd": "NODE_CLUSTER", **word, "seq": said}


def say(**what):
    channel.sendall(lines(word(**what)))


def answer(descriptor):
    with socket.socket(fileno=descriptor) as connection:
        connection.settimeout(10)
        connection.recv(65536)
        body = str(os.getpid()).encode()
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)


def hear(message, arrived):
    global key
    if message.get("cmd") == "NODE_HANDLE" and arrived:
        descriptor, inner = arrived.pop(0), message["msg"]
        if HOW == "nack" and time.monotonic() > BEGUN + 3:
            os.close(descriptor)
            return channel.sendall(lines({"cmd": "NODE_HANDLE_NACK"}))
        channel.sendall(lines({"cmd": "NODE_HANDLE_ACK"}, word(ack=inner["seq"], accepted=True)))
        answer(descriptor)
    elif message.get("act") == "disconnect":
        sys.exit(0)
    elif "key" in message and key is None:
        key = message["key"]
        say(act="listening", **{**PLACE, "port": message["sockname"]["port"]})


def serve(until=None):
    rest = b""
    while until is None or time.monotonic() < until:
        if not select.select([channel], [], [], 0.05)[0]:
            continue
        text, arrived, _, _ = socket.recv_fds(channel, 65536, 64)
        text or sys.exit(0)
        *whole, rest = (rest + text).split(b"\n")
        for line in whole:
            hear(json.loads(line), arrived)


def junk():
    """Descriptors that are no connection."""
    listener = socket.create_server(("127.0.0.1", 0)).detach()
    epoll = select.epoll()
    null, file = os.open("/dev/null", os.O_RDWR), os.open(sys.executable, os.O_RDONLY)
    return [listener, os.dup(epoll.fileno()), null, file, channel.fileno()]


def attack():
    if HOW == "bare":  # Descriptors beside bytes that never become a message.
        while True:
            socket.send_fds(channel, [b"x"], [os.dup(0) for _ in range(32)])
    if HOW == "strangers":  # As handles of messages, as connections that it refuses, and as nothing.
        ours = junk()
        handle = {"cmd": "NODE_HANDLE", "type": "net.Socket", "msg": "x", "key": "k"}
        for kind in ("net.Socket", "net.Server", "net.Native", "dgram.Socket", "no.Such"):
            for one in ours:
                socket.send_fds(channel, [lines({**handle, "type": kind})], [one])
        socket.send_fds(channel, [lines(word(ack=1, accepted=False))], ours)
    if HOW == "garbage":
        channel.sendall(random.Random(1).randbytes(65536) + b"\n")
    if HOW == "deep":  # A value that a parser could lose its stack over.
        channel.sendall(b"[" * 1_000_000 + b"\n")
    if HOW == "odd":  # What Node would never say.
        for text in ('{"cmd":"NODE_CLUSTER","act":"listening","cmd":1}', '"\\ud800"',
                     '{"cmd":"NODE_CLUSTER","act":null,"seq":1e308}', '{"cmd":"NODE_HANDLE_NACK"}',
                     '{"cmd":"NODE_CLUSTER","act":"close","key":"' + "k" * 5000 + '","seq":-1}',
                     '{"cmd":"NODE_CLUSTER","ack":0,"accepted":"yes"}', '{"cmd":"NODE_HANDLE"}',
                     '{"cmd":"NODE_","act":"__proto__"}', "{", "\0"):
            channel.sendall(text.encode() + b"\n")
    if HOW == "long":  # A line that does not end.
        while True:
            channel.sendall(b'"' + b"x" * 1_000_000)
    if HOW == "messages":
        while True:
            channel.sendall(b"1\n" * 10_000)
    if HOW == "words":
        many = lines(word(act="online"), word(act="listening", **{**PLACE, "port": 1}))
        while True:
            channel.sendall(many * 1000)
    if HOW == "acks":  # It acknowledges what was never sent.
        many = lines({"cmd": "NODE_HANDLE_ACK"}, word(ack=-1, accepted=True))
        while True:
            channel.sendall(many * 1000)
    if HOW == "queries":  # It asks and asks, and reads nothing.
        while True:
            say(act="queryServer", **{**PLACE, "address": "/nowhere/a", "addressType": -1})
    if HOW == "ports":  # It asks for ports that nobody has, and reads the answers.
        for number in range(3_000):
            say(act="queryServer", **{**PLACE, "index": number + 1})
            channel.recv(65536)
    if HOW == "names":
        for number in range(10_000):
            say(act="queryServer", **{**PLACE, "address": f"n{number}.invalid", "port": 8080})
    if HOW == "closed":  # It closes its channel, and stays.
        channel.shutdown(socket.SHUT_RDWR)
        channel.close()
    if HOW == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if HOW == "spin":
        while True:
            pass
    time.sleep(600)


BEGUN = time.monotonic()
say(act="online")
say(act="queryServer", **PLACE, backlog=0)
if HOW == "nack":
    serve()
serve(BEGUN + 3)
say(act="close", key=key)
serve(time.monotonic() + 0.5)  # What was under way.
attack()
