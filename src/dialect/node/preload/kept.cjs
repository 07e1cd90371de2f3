// Connections that clients keep while their worker leaves: who asks once more is answered and
// told to go, and who says nothing is let go in good time. Owns when a connection counts as
// silent; refuses to cut an answer that is on its way.

const { nextTick } = process;

// So long a kept connection may say nothing before it is closed under a worker that leaves: long
// enough for a client that asks again and again to hear it from an answer instead.
const SILENCE_MS = 2000;
// One on which nothing was ever asked is worth less: its client begins anew without a loss.
const SILENCE_OF_UNUSED_MS = 500;
// When the whole service stops, whatever comes later is refused anyway.
const SILENCE_AT_STOP_MS = 300;
const LOOK_MS = 50;
const KEEP_ALIVE = /\r\nconnection: *keep-alive\r\n/i;
// Node 18 spoils an answer that is written behind the word that it is the last one.
const BEFORE_ANSWER = process.version.startsWith('v18.') ? setImmediate : (act) => act();

class Kept {
  constructor(servers) {
    this.servers = servers;
    this.silenceMs = SILENCE_MS;
    this.holds = false;
    this.leaving = false;
    // What each connection had said at a time, while the worker leaves.
    this.silent = new WeakMap();
    // The open sessions of HTTP/2 servers. Node itself ends them at once (from 24 on), even if a
    // request is on its way, or never.
    this.sessions = new Set();
    this.follow = (session) => this.followSession(session);
  }

  followSession(session) {
    this.sessions.add(session);
    session.once('close', () => this.sessions.delete(session));
    if (this.leaving) this.sayWhenAsked(session);
    else if (this.holds) session.close = () => {};
  }

  // From now on servers that close leave their connections to this. Node would close what waits
  // for a next request at once, even if that is on its way, and what the program has answered, even
  // if the client has not got all of it.
  hold() {
    if (this.holds) return;
    this.holds = true;
    const http = require('http');
    const isLoaded = process.moduleLoadList.includes('NativeModule https');
    for (const { Server } of isLoaded ? [http, require('https')] : [http]) {
      Server.prototype.closeIdleConnections = () => {};
    }
    for (const session of this.sessions) session.close = () => {};
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

  // Whoever asks once more is answered, and told to go.
  endWithAnswers(prototype) {
    const { _storeHeader: storeHeader } = prototype;
    prototype._storeHeader = function (...words) {
      this.shouldKeepAlive = false;
      Reflect.apply(storeHeader, this, words);
      if (this._last) return;
      // The program has said itself that the connection is kept.
      const header = this._header.replace(KEEP_ALIVE, '\r\nConnection: close\r\n');
      this._last = header !== this._header;
      this._header = header;
    };
  }

  // Before the answer comes the word that it is the last one, so that whoever asks for one thing
  // after the other asks for nothing in vain. What crosses that word is refused, which means that
  // it can be asked for again.
  sayWhenAsked(session) {
    session.once('stream', () => BEFORE_ANSWER(() => session.goaway()));
  }

  // Closes what has been silent for long enough.
  look() {
    const accepted = this.servers.accepted();
    const isUnused = ({ bytesRead, bytesWritten }) => bytesRead === 0 && bytesWritten === 0;
    accepted.filter(isUnused).forEach((socket) => this.closeIfSilent(socket));
    for (const server of new Set(accepted.map((socket) => socket.server))) {
      // An answer that has not been passed on whole still belongs to its connection.
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
    if (at - seen.since >= Math.min(this.silenceMs, unused)) socket.destroy();
  }
}
