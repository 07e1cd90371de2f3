// What clusterlb lets its Node workers load before their program (clusterlb --preload).
//
// Tells the primary which of the connections that it has handed over are still open, and that the
// event loop moves, in a page of memory that both have. And lets clients of kept connections go in
// good time when the worker leaves. Anywhere but in a worker's main thread it does nothing, it
// leaves nothing in the environment, and whatever goes wrong in it stays in it.
'use strict';

(() => {
  const { env } = process;
  const told = /^(\d+),(\d+),(\d+),(.*)$/s.exec(env.CLUSTERLB_PRELOAD);
  if (told === null) return;
  delete env.CLUSTERLB_PRELOAD;
  const [page, bell, beatMs] = told.slice(1, 4).map(Number);
  const options = (env.NODE_OPTIONS || '').replace(told[4], '').trim();
  if (options === '') delete env.NODE_OPTIONS;
  else env.NODE_OPTIONS = options;
  const cluster = require('cluster');
  if (!cluster.isWorker || !process.connected) return;

  // As they are now: the program may replace them.
  const { readSync, writeSync } = require('fs');
  const { clearInterval, setImmediate, setInterval } = require('timers');
  const { nextTick } = process;
  const now = process.hrtime.bigint;

  // The places in the page, which src/board.rs names.
  const REPORT_AT = 5 * 128;
  const WAKE_AT = 2 * 128;
  const WAKE_ALWAYS = 1n;
  // So long a kept connection may say nothing before it is closed under a worker that leaves. Who
  // asks without pause is told by an answer instead.
  const LINGER_MS = 2000;

  // That there are reports; connections that have ended; when the loop last moved, 0 while nothing
  // happens.
  const report = new BigUint64Array([1n, 0n, 0n]);
  const wake = new BigUint64Array(1);
  const one = new BigUint64Array([1n]);
  const bytesOf = (words) => new Uint8Array(words.buffer);
  const [reportBytes, wakeBytes, oneBytes] = [report, wake, one].map(bytesOf);

  let ended = 0;
  let due = false;
  let leaving = false;

  function publish() {
    due = false;
    report[1] = BigInt(ended);
    try {
      writeSync(page, reportBytes, 0, reportBytes.length, REPORT_AT);
      // The primary may hold connections that nobody had room for.
      readSync(page, wakeBytes, 0, wakeBytes.length, WAKE_AT);
      if (wake[0] === WAKE_ALWAYS) writeSync(bell, oneBytes, 0, oneBytes.length, null);
    } catch {
      // The next time tells the same and more.
    }
  }

  // Once for everything that ends in one turn of the loop.
  function publishSoon() {
    if (leaving) publish();
    else if (!due) {
      due = true;
      setImmediate(publish);
    }
  }

  let beat;
  let moved = false;

  // Something happens: until it is quiet again, the primary can see whether the loop moves.
  function move() {
    moved = true;
    if (beat !== undefined || beatMs === 0) return;
    report[2] = now();
    publish();
    beat = setInterval(() => {
      report[2] = moved ? now() : 0n;
      if (!moved) {
        clearInterval(beat);
        beat = undefined;
      }
      moved = false;
      publish();
    }, beatMs);
    beat.unref();
  }

  // In the place of methods of a connection's handle, until one of them ends it.
  function ending(method) {
    return function (...words) {
      delete this.close;
      delete this.reset;
      ended += 1;
      publishSoon();
      move();
      return this[method](...words);
    };
  }
  const close = ending('close');
  const reset = ending('reset');

  // A request on a kept connection moves nothing but the loop.
  require('diagnostics_channel').channel('http.server.request.start').subscribe(() => move());

  // Before Node itself hears it: a connection that it refuses is closed at once, too.
  process.prependListener('internalMessage', (message, handle) => {
    if (message.cmd !== 'NODE_CLUSTER') return;
    if (message.act === 'newconn' && handle) {
      handle.close = close;
      handle.reset = reset;
      move();
    } else if (message.act === 'disconnect') leave();
  });

  // The worker has been told to leave: whoever asks once more is answered, and told to go.
  function leave() {
    leaving = true;
    const http = require('http');
    const { ServerResponse } = http;
    const { _storeHeader: storeHeader } = ServerResponse.prototype;
    ServerResponse.prototype._storeHeader = function (...words) {
      this.shouldKeepAlive = false;
      Reflect.apply(storeHeader, this, words);
      if (this._last) return;
      // The program has said itself that the connection is kept.
      const header = this._header.replace(/\r\nconnection: *keep-alive\r\n/i, '\r\nConnection: close\r\n');
      this._last = header !== this._header;
      this._header = header;
    };
    letGo(http);
    letSessionsGo();
  }

  // Node is about to close every server, and with it the connections that wait for a next request,
  // even one that is on its way. They are left a little longer.
  function letGo(http) {
    const servers = new Set();
    const isLoaded = process.moduleLoadList.includes('NativeModule https');
    const kinds = isLoaded ? [http, require('https')] : [http];
    const prototypes = kinds.map(({ Server }) => Server.prototype);
    const methods = prototypes.map(({ closeIdleConnections }) => closeIdleConnections);
    const { prototype } = require('net').Server;
    const { close: closeServer } = prototype;
    for (const each of prototypes) each.closeIdleConnections = () => {};
    prototype.close = function (...words) {
      if (typeof this.closeIdleConnections === 'function') servers.add(this);
      return Reflect.apply(closeServer, this, words);
    };
    nextTick(() => {
      prototype.close = closeServer;
      prototypes.forEach((each, place) => {
        each.closeIdleConnections = methods[place];
      });
    });
    const closeIdle = () => servers.forEach((server) => server.closeIdleConnections());
    setInterval(closeIdle, LINGER_MS).unref();
  }

  // The open sessions of HTTP/2 servers. Node itself ends them at once (from 24 on), even if a
  // request is on its way, or never.
  const sessions = new Set();
  const { _getServer: getServer } = cluster;

  // Every server that listens comes by here, and only those of HTTP/2 have settings.
  cluster._getServer = function (server, ...words) {
    const isHttp2 = typeof server.updateSettings === 'function';
    if (isHttp2) server.off('session', follow).on('session', follow);
    return Reflect.apply(getServer, this, [server, ...words]);
  };

  function follow(session) {
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
    if (leaving) sayWhenAsked(session);
  }

  // Before the answer comes the word that it is the last one, so that whoever asks for one thing
  // after the other asks for nothing in vain. What crosses that word is refused, which means that
  // it can be asked for again. Node 18 spoils an answer that is written behind that word.
  const last = process.version.startsWith('v18.') ? setImmediate : (act) => act();
  const sayWhenAsked = (session) => session.once('stream', () => last(() => session.goaway()));

  function letSessionsGo() {
    for (const session of sessions) {
      sayWhenAsked(session);
      session.close = () => {};
    }
    nextTick(() => sessions.forEach((session) => delete session.close));
    setInterval(() => sessions.forEach((session) => session.close()), LINGER_MS).unref();
  }

  publish();
})();
