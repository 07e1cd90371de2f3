// Connections that begin with a header of the PROXY protocol. Owns that servers get them with the
// client's address and without the header, and that one without a header is closed and counted. The
// rules are those of `proxy_protocol.rs`.

const { HEADER_BYTES_MAX, HEADER_LIMIT_MS } = LAYOUT;
const LINE_BYTES_MAX = 107;
const LINE_START = 'PROXY ';
const LINE = /^PROXY (?:UNKNOWN(?: [^]*)?|TCP([46]) ([^ ]+) ([^ ]+) (\d+) (\d+))\r$/;
const TEXT = /^[ -~\r]*$/;
const SIGNATURE = '\r\n\r\n\0\r\nQUIT\n';
const FIXED_BYTES = 16;
const [LOCAL, PROXY] = [0x20, 0x21];
const [TCP4, TCP6, UNIX] = [0x11, 0x21, 0x31];
const [TCP4_BYTES, TCP6_BYTES, UNIX_BYTES] = [12, 36, 216];
const PORT_MAX = 65535;

// The addresses and the length of the header at the start; `undefined` if more bytes are needed,
// `null` if they make no header.
function parseHeader(bytes) {
  const text = bytes.toString('latin1', 0, LINE_BYTES_MAX);
  return text[0] === 'P' ? parseLine(text) : parseBinary(bytes, text);
}

const agree = (text, expected) => expected.startsWith(text.slice(0, expected.length));

function parseLine(text) {
  const end = text.indexOf('\n');
  const line = end < 0 ? text : text.slice(0, end);
  if (!agree(text, LINE_START) || !TEXT.test(line)) return null;
  if (end < 0) return text.length < LINE_BYTES_MAX ? undefined : null;
  const words = LINE.exec(line);
  if (words === null) return null;
  const [, family, peer, local, peerPort, localPort] = words;
  const length = end + 1;
  if (family === undefined) return { length };
  const isPort = (port) => Number(port) <= PORT_MAX && String(Number(port)) === port;
  const { isIPv4, isIPv6 } = require('net');
  const isAddress = family === '4' ? isIPv4 : (word) => isIPv6(word) && !word.includes('%');
  if (![peer, local].every(isAddress) || ![peerPort, localPort].every(isPort)) return null;
  const ends = [endOf(family, peer, Number(peerPort)), endOf(family, local, Number(localPort))];
  return { length, ends };
}

function parseBinary(bytes, text) {
  const command = bytes[SIGNATURE.length];
  if (!agree(text, SIGNATURE) || ![undefined, LOCAL, PROXY].includes(command)) return null;
  if (bytes.length < FIXED_BYTES) return undefined;
  const length = FIXED_BYTES + bytes.readUInt16BE(14);
  if (length > HEADER_BYTES_MAX) return null;
  if (bytes.length < length) return undefined;
  if (command === LOCAL) return { length };
  const ends = endsOf(bytes[13], bytes.subarray(FIXED_BYTES, length));
  return ends && { length, ends: ends.length === 0 ? undefined : ends };
}

function endsOf(family, block) {
  const portAt = (place) => block.readUInt16BE(place);
  const v4At = (place) => block.subarray(place, place + 4).join('.');
  const v6At = (place) => {
    const words = [0, 2, 4, 6, 8, 10, 12, 14].map((word) => portAt(place + word).toString(16));
    return words.join(':');
  };
  if (family === TCP4) {
    if (block.length < TCP4_BYTES) return null;
    return [endOf('4', v4At(0), portAt(8)), endOf('4', v4At(4), portAt(10))];
  }
  if (family === TCP6) {
    if (block.length < TCP6_BYTES) return null;
    return [endOf('6', v6At(0), portAt(32)), endOf('6', v6At(16), portAt(34))];
  }
  // Unix sockets have no address in Node.
  if (family === UNIX) return block.length < UNIX_BYTES ? null : [{}, {}];
  return family >> 4 <= 3 && (family & 15) <= 2 ? [] : null;
}

// As the kernel writes it.
function endOf(family, address, port) {
  const { SocketAddress } = require('net');
  const written = new SocketAddress({ address, family: `ipv${family}` }).address;
  return { address: written, family: `IPv${family}`, port };
}

class Proxied {
  constructor(page) {
    this.page = page;
    this.stream = undefined;
    // Connections whose header has not arrived.
    this.waiting = 0;
  }

  // Stands between a server and the socket at which its connections arrive.
  join(server, socket) {
    const proxied = this;
    const { onconnection } = socket;
    if (typeof onconnection !== 'function') return;
    socket.onconnection = function (failure, handle) {
      if (failure || !handle) return Reflect.apply(onconnection, this, [failure, handle]);
      proxied.read(handle, (rest) => {
        // Every kind of server looks for bytes that its connection has already.
        const feed = (connection) => rest.length > 0 && connection.unshift(rest);
        server.prependListener('connection', feed);
        try {
          Reflect.apply(onconnection, this, [0, handle]);
        } finally {
          server.removeListener('connection', feed);
        }
      });
    };
  }

  // Reads from a connection that has no owner yet.
  read(handle, pass) {
    this.stream ??= bindingOf('stream_wrap');
    const { streamBaseState, kReadBytesOrError, kArrayBufferOffset } = this.stream;
    let bytes = Buffer.alloc(0);
    const stop = () => {
      clearTimeout(timer);
      this.waiting -= 1;
      handle.readStop();
    };
    const refuse = () => {
      stop();
      this.page.countRefused();
      handle.close();
    };
    this.waiting += 1;
    const timer = setTimeout(refuse, HEADER_LIMIT_MS);
    handle.onread = (piece) => {
      const length = streamBaseState[kReadBytesOrError];
      if (length < 0) return refuse();
      if (length === 0) return;
      const more = Buffer.from(piece, streamBaseState[kArrayBufferOffset], length);
      bytes = bytes.length === 0 ? more : Buffer.concat([bytes, more]);
      const header = parseHeader(bytes);
      if (header === undefined) return;
      if (header === null) return refuse();
      stop();
      if (header.ends !== undefined) nameEnds(handle, header.ends);
      pass(bytes.subarray(header.length));
    };
    if (handle.readStart() !== 0) refuse();
  }
}

// Node asks the handle for addresses, for `blockList` and TLS as well.
function nameEnds(handle, [peer, local]) {
  const answer = (end) => (out) => {
    Object.assign(out, end);
    return 0;
  };
  handle.getpeername = answer(peer);
  handle.getsockname = answer(local);
}
