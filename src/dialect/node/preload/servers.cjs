// The program's servers and their accepted connections. Owns the list of servers; connections are
// queried from Node when needed.

class Servers {
  constructor(proxied) {
    // Servers that listen through the primary.
    this.listening = new Set();
    this.proxied = proxied;
  }

  // `socket` receives the server's connections; closing it ends the server.
  add(server, socket) {
    this.listening.add(server);
    const { listening } = this;
    const { close } = socket;
    socket.close = function (...words) {
      listening.delete(server);
      return Reflect.apply(close, this, words);
    };
  }

  // Number of connections, as the servers count them.
  get connections() {
    let count = this.proxied.waiting;
    for (const server of this.listening) count += server._connections ?? 0;
    return count;
  }

  // Every open connection accepted in this process; of TLS connections, the underlying ones.
  accepted() {
    return process._getActiveHandles().filter((handle) => handle.server);
  }
}

const symbolOf = (object, description) =>
  Object.getOwnPropertySymbols(object).find((symbol) => symbol.description === description);

// The connections of an HTTP/1 server that were not upgraded; of TLS connections, the underlying
// ones.
function httpConnections(server) {
  const list = server[symbolOf(server, 'http.server.connections')];
  return typeof list?.all === 'function' ? list.all().map(({ socket }) => socket) : [];
}

// How long a connection has been idle, as far as Node has a timer for it.
function silentMs(socket) {
  const start = socket[symbolOf(socket, 'timeout')]?._idleStart;
  if (typeof start !== 'number') return 0;
  const clock = setTimeout(() => {}, 1);
  clearTimeout(clock);
  return Math.max(0, clock._idleStart - start);
}
