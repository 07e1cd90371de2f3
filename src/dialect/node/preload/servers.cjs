// The servers of the program and the connections that they have accepted. Owns the list of
// servers; the connections are Node's own, and asked for when they are needed.

class Servers {
  constructor() {
    // Those that listen through the primary.
    this.listening = new Set();
  }

  // `socket` is what its connections come to; the server has ended when that is closed.
  add(server, socket) {
    this.listening.add(server);
    const { listening } = this;
    const { close } = socket;
    socket.close = function (...words) {
      listening.delete(server);
      return Reflect.apply(close, this, words);
    };
  }

  // Connections that they have, as they count them.
  get connections() {
    let count = 0;
    for (const server of this.listening) count += server._connections ?? 0;
    return count;
  }

  // Every connection that was accepted in this process and is open; those of TLS as they are
  // without it.
  accepted() {
    return process._getActiveHandles().filter((handle) => handle.server);
  }
}

const symbolOf = (object, description) =>
  Object.getOwnPropertySymbols(object).find((symbol) => symbol.description === description);

// The connections of a server of HTTP/1 that have not become something else, with TLS taken off.
function httpConnections(server) {
  const list = server[symbolOf(server, 'http.server.connections')];
  return typeof list?.all === 'function' ? list.all().map(({ socket }) => socket) : [];
}

// How long a connection has said and heard nothing, as far as Node has a timer for that.
function silentMs(socket) {
  const start = socket[symbolOf(socket, 'timeout')]?._idleStart;
  if (typeof start !== 'number') return 0;
  const clock = setTimeout(() => {}, 1);
  clearTimeout(clock);
  return Math.max(0, clock._idleStart - start);
}
