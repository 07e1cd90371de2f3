// Idle connections of a leaving worker: a client that sends another request gets its answer with
// the notice to close, and a silent connection is closed after a time. Owns when a connection
// counts as silent; never cuts an answer in progress.

const { nextTick } = process;

// How long a kept connection may be silent before a leaving worker closes it: long enough for an
// active client to learn of it from an answer instead.
const SILENCE_MS = 2000;
// A connection without any request so far is closed earlier: its client reconnects without a loss.
const SILENCE_OF_UNUSED_MS = 500;
// When the whole service stops, later requests are refused anyway.
const SILENCE_AT_STOP_MS = 300;
const LOOK_MS = 50;
const KEEP_ALIVE = /\r\nconnection: *keep-alive\r\n/i;
// Node 18 corrupts an answer that is written after the notice that it is the last one.
const BEFORE_ANSWER = process.version.startsWith('v18.') ? setImmediate : (act) => act();

class Kept {
  constructor(servers) {
    this.servers = servers;
    this.silenceMs = SILENCE_MS;
    this.holds = false;
    this.leaving = false;
    // The state of each connection at an earlier time, while the worker leaves.
    this.silent = new WeakMap();
    // The open sessions of HTTP/2 servers. Node ends them either at once (from 24 on), even with a
    // request in transit, or never.
    this.sessions = new Set();
    this.follow = (session) => this.followSession(session);
    this.destroy = (socket) => socket.destroy();
  }

  followSession(session) {
    this.sessions.add(session);
    session.once('close', () => this.sessions.delete(session));
    if (this.leaving) this.sayWhenAsked(session);
    else if (this.holds) session.close = () => {};
  }

  // From now on, servers that close leave their connections to this class. Node would close idle
  // ones at once, even with a request in transit, and answered ones, even before the client has
  // read the whole answer.
  hold() {
    if (this.holds) return;
    this.holds = true;
    const http = require('http');
    const isLoaded = process.moduleLoadList.includes('NativeModule https');
    for (const { Server } of isLoaded ? [http, require('https')] : [http]) {
      Server.prototype.closeIdleConnections = () => {};
    }
    for (const session of this.sessions) session.close = () => {};
    this.spareIdle(require('net').Socket.prototype);
  }

  // Programs close idle connections themselves, too (those with hapi, stoppable, http-terminator),
  // even with a request in transit. Calls with arguments are for other reasons.
  spareIdle(prototype) {
    const { end, destroy, destroySoon } = prototype;
    let byNode = false;
    const isIdle = ({ server, parser, _httpMessage: answer, writable, readableEnded }) =>
      server && parser && !answer && writable && !readableEnded;
    const sparing = (close) => function (...words) {
      const isSpared = words.length === 0 && !byNode && isIdle(this);
      return isSpared ? this : Reflect.apply(close, this, words);
    };
    prototype.end = sparing(end);
    prototype.destroy = sparing(destroy);
    // After the last answer.
    prototype.destroySoon = function (...words) {
      const before = byNode;
      byNode = true;
      try {
        Reflect.apply(destroySoon, this, words);
      } finally {
        byNode = before;
      }
    };
    this.destroy = (socket) => Reflect.apply(destroy, socket, []);
  }

  // The worker leaves.
  letGo() {
    if (this.leaving) return;
    this.hold();
    this.leaving = true;
    this.endWithAnswers(require('http').ServerResponse.prototype);
    this.sessions.forEach((session) => this.sayWhenAsked(session));
    nextTick(() => this.sessions.forEach((session) => delete session.close));
    this.since = performance.now();
    setInterval(() => safely(() => this.look()), LOOK_MS).unref();
    safely(() => this.look());
  }

  // Answers further requests, with the notice to close.
  endWithAnswers(prototype) {
    const { _storeHeader: storeHeader } = prototype;
    prototype._storeHeader = function (...words) {
      this.shouldKeepAlive = false;
      Reflect.apply(storeHeader, this, words);
      if (this._last) return;
      // The program has set the header that keeps the connection.
      const header = this._header.replace(KEEP_ALIVE, '\r\nConnection: close\r\n');
      this._last = header !== this._header;
      this._header = header;
    };
  }

  // Sends the notice before the answer, so that a client with sequential requests does not send
  // another in vain. A request that crosses the notice is refused, which tells the client that it
  // can be repeated.
  sayWhenAsked(session) {
    session.once('stream', () => BEFORE_ANSWER(() => session.goaway()));
  }

  // Closes connections that have been silent for long enough.
  look() {
    const accepted = this.servers.accepted();
    const isUnused = ({ bytesRead, bytesWritten }) => bytesRead === 0 && bytesWritten === 0;
    accepted.filter(isUnused).forEach((socket) => this.closeIfSilent(socket));
    for (const server of new Set(accepted.map((socket) => socket.server))) {
      // An answer that is not completely sent still belongs to its connection.
      const isWaiting = (socket) => !socket._httpMessage && socket.writableLength === 0;
      const waiting = httpConnections(server).filter(isWaiting);
      waiting.forEach((socket) => this.closeIfSilent(socket));
    }
    if (performance.now() - this.since < this.silenceMs) return;
    this.sessions.forEach((session) => session.close());
  }

  closeIfSilent(socket) {
    const at = performance.now();
    const { bytesRead } = socket;
    let seen = this.silent.get(socket);
    if (seen?.bytesRead !== bytesRead) {
      seen = { bytesRead, since: at - (seen === undefined ? silentMs(socket) : 0) };
      this.silent.set(socket, seen);
    }
    const unused = bytesRead === 0 ? SILENCE_OF_UNUSED_MS : Infinity;
    if (at - seen.since >= Math.min(this.silenceMs, unused)) this.destroy(socket);
  }
}
