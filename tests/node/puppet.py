"""A worker that speaks Node's channel by itself, with nothing but the standard library.

It looks at every message as it comes off the socket, so that it sees what Node would stumble over,
and says things in ways in which Node never does. Its argument is the way. What it finds wrong it
complains of, in a message of its program.
"""
import fcntl, json, os, socket, sys

way = sys.argv[1]
channel = socket.socket(fileno=int(os.environ["NODE_CHANNEL_FD"]))
channel.setblocking(True)
me = int(os.environ["NODE_UNIQUE_ID"])
said = 0
keys = set()
heard = []
PLACE = {"index": 0, "data": None, "address": "127.0.0.1", "port": 0, "addressType": 4, "flags": 0}


def write(*messages, descriptors=()):
    text = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
    if way == "byte-by-byte":
        for place in range(len(text)):
            channel.sendall(text[place : place + 1])
    elif descriptors:
        socket.send_fds(channel, [text], descriptors)
    else:
        channel.sendall(text)


def say(**word):
    global said
    write({"cmd": "NODE_CLUSTER", **word, "seq": said})
    said += 1


def complain(of):
    write({"complaint": of})


def serve(descriptor):
    if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_NONBLOCK:
        complain("a connection that blocks")
    with socket.socket(fileno=descriptor) as connection:
        connection.settimeout(60)
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536) or b"\r\n\r\n"
        body = str(os.getpid()).encode()
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)
    return request


def take(message, descriptor):
    global way
    inner = message["msg"]
    if message["type"] != "net.Native" or inner.get("act") != "newconn" or inner["key"] not in keys:
        complain(f"a descriptor with {message}")
    if way == "lost":
        # As if there had been no room for the descriptor.
        way = "plain"
        os.close(descriptor)
        return write({"cmd": "NODE_HANDLE_NACK"})
    if way == "strange":
        say(act="close", key="a key that was never given")
        say(act="suicide")
        say(ack=1000000, accepted=True)
        say(ack=-7)
        write({"cmd": "NODE_UNHEARD_OF"}, {"cmd": "NODE_"}, {"cmd": 7}, {"text": "NODE_HANDLE"})
    write({"cmd": "NODE_HANDLE_ACK"})
    say(ack=inner["seq"], accepted=True)
    request = serve(descriptor)
    if way in GARBAGE and request.startswith(b"GET /harm"):
        GARBAGE[way]()


def strangers():
    descriptors = [os.dup(0) for _ in range(17)]
    socket.send_fds(channel, [b'{"text":"with far too many"}\n'], descriptors)


GARBAGE = {
    "no-json": lambda: channel.sendall(b"not json\n"),
    "no-key": lambda: say(act="close"),
    "no-number": lambda: write({"cmd": "NODE_CLUSTER", "act": "queryServer", **PLACE}),
    "no-port": lambda: say(act="queryServer", **{**PLACE, "port": 70000}),
    "arrival-of-nothing": lambda: write({"cmd": "NODE_HANDLE_ACK"}),
    "strangers": strangers,
}


def send_handles():
    """Sockets to the primary, in every way in which they can lie in a stream."""
    ours = [socket.socketpair()[0].detach() for _ in range(5)]
    message = lambda text: {"cmd": "NODE_HANDLE", "type": "net.Socket", "msg": text, "key": "k"}
    write(message("whole"), descriptors=ours[:1])
    for text, place in ("with the first half", 1), ("with the second half", 2):
        line = json.dumps(message(text)).encode() + b"\n"
        halves = line[:20], line[20:]
        for number, half in enumerate(halves, 1):
            socket.send_fds(channel, [half], ours[place : place + 1] if number == place else [])
    write(message("first of two"), message("second of two"), descriptors=ours[3:5])
    write(message("without any"))
    write({"cmd": "NODE_SOCKET_GET_COUNT", "key": "k"})
    write({"cmd": "NODE_SOCKET_NOTIFY_CLOSE", "key": "k"})


def hear(message, arrived):
    command = message.get("cmd")
    if command == "NODE_HANDLE":
        if arrived:
            return take(message, arrived.pop(0))
        complain("a message without its descriptor")
        write({"cmd": "NODE_HANDLE_NACK"})
    elif command != "NODE_CLUSTER":
        heard.append(command)
        if command == "NODE_SOCKET_ALL_CLOSED":
            write({"heard": heard})
    elif message.get("act") == "newconn":
        complain("a connection that is not wrapped")
    elif message.get("act") == "disconnect":
        for key in [*keys, *keys]:
            say(act="close", key=key)
        channel.close()
        sys.exit(0)
    elif "key" in message:
        keys.add(message["key"])
        say(act="listening", **{**PLACE, "port": message["sockname"]["port"]})
        if way == "handles":
            send_handles()


say(act="online")
say(act="queryServer", **PLACE, backlog=0)
rest = b""
while True:
    text, arrived, flags, _ = socket.recv_fds(channel, 65536, 64)
    if not text:
        sys.exit(0)
    if len(arrived) > 1 or flags & socket.MSG_CTRUNC:
        complain(f"{len(arrived)} descriptors at once")
    *lines, rest = (rest + text).split(b"\n")
    for line in lines:
        hear(json.loads(line), arrived)
    if arrived and not rest:
        complain("a descriptor that no message names")
