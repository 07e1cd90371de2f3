// What clusterlb lets its Node workers load before their program (clusterlb --preload).
//
// Tells the primary which of the connections that it has handed over are still open, and that the
// event loop moves, in a page of memory that both have. Takes the connections out of the worker's
// inbox, which the primary fills without a message on Node's channel for each. And lets clients of
// kept connections go in good time when the worker leaves. Anywhere but in a worker's main thread
// it does nothing, it leaves nothing in the environment, and whatever goes wrong in it stays in it.
'use strict';

(() => {
  const { env } = process;
  const told = /^(\d+),(\d+),(\d+),(\d+),(.*)$/s.exec(env.CLUSTERLB_PRELOAD);
  if (told === null) return;
  delete env.CLUSTERLB_PRELOAD;
  const [page, bell, inbox, beatMs] = told.slice(1, 5).map(Number);
  const options = (env.NODE_OPTIONS || '').replace(told[5], '').trim();
  if (options === '') delete env.NODE_OPTIONS;
  else env.NODE_OPTIONS = options;
  const cluster = require('cluster');
  if (!cluster.isWorker || !process.connected) return;

  // As they are now: the program may replace them.
  const { closeSync, openSync, readFileSync, readSync, readdirSync, writeSync } = require('fs');
  const { clearInterval, setImmediate, setInterval, setTimeout } = require('timers');
  const { nextTick, send } = process;
  const { performance } = require('perf_hooks');
  const now = process.hrtime.bigint;

  // The places in the page, which src/board.rs names.
  const REPORT_AT = 5 * 128;
  const WAKE_AT = 2 * 128;
  const WAKE_ALWAYS = 1n;
  const WAKE_PROBE = 2n;
  const REPORTS = 1n;
  const RECEIVES = 2n;
  // So long a kept connection may say nothing before it is closed under a worker that leaves. Who
  // asks without pause is told by an answer instead.
  const LINGER_MS = 2000;

  // What there is of these reports; connections that have ended; when the loop last moved, 0 while
  // nothing happens; connections received from the inbox, and when the last one was; probes
  // answered.
  const report = new BigUint64Array([REPORTS, 0n, 0n, 0n, 0n, 0n]);
  const wake = new BigUint64Array(1);
  const one = new BigUint64Array([1n]);
  const bytesOf = (words) => new Uint8Array(words.buffer);
  const [reportBytes, wakeBytes, oneBytes] = [report, wake, one].map(bytesOf);

  let ended = 0;
  let due = false;
  let probed = false;
  let leaving = false;

  function write() {
    report[1] = BigInt(ended);
    try {
      writeSync(page, reportBytes, 0, reportBytes.length, REPORT_AT);
    } catch {
      // The next time tells the same and more.
    }
  }

  function publish() {
    due = false;
    write();
    try {
      // The primary may hold connections that nobody had room for, or wait for an answer.
      readSync(page, wakeBytes, 0, wakeBytes.length, WAKE_AT);
      if (wake[0] === WAKE_ALWAYS || (wake[0] === WAKE_PROBE && probed)) {
        writeSync(bell, oneBytes, 0, oneBytes.length, null);
      }
      probed = false;
    } catch {
      // As above.
    }
  }

  // Once for everything that happens in one turn of the loop.
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

  // What the answer says that Node is about to hear: what connections to its server are marked
  // with.
  let mark;

  // Before Node itself hears it: a connection that it refuses is closed at once, too.
  process.prependListener('internalMessage', (message, handle) => {
    if (message.cmd !== 'NODE_CLUSTER') return;
    mark = message.clusterlb;
    if (message.act === 'newconn' && handle) {
      handle.close = close;
      handle.reset = reset;
      move();
    } else if (message.act === 'disconnect') leave();
  });

  // The servers by their marks, each with the handle that takes connections for it. The newest of
  // several is the last.
  const servers = new Map();

  // What Node's own modules are made of. Nothing else can receive a descriptor. It is deprecated,
  // which is no news to whoever looks for such uses in the program.
  function bindingOf(name) {
    const { noDeprecation } = process;
    process.noDeprecation = true;
    try {
      return process.binding(name);
    } finally {
      process.noDeprecation = noDeprecation;
    }
  }

  // Reads the inbox while there are servers. Node's own channel takes a message of JSON, two
  // answers and a turn of the loop for each connection; here one turn takes up to 32 of them.
  function openInbox() {
    const MESSAGE_BYTES = 24;
    const ANNOUNCEMENT = '!'.charCodeAt();
    const PROBE = '?'.charCodeAt();
    const ACCEPTED_AT = 8;
    const MARK_AT = 16;
    const OPEN_FILES = /^Max open files +(\d+)/m;
    const DESCRIPTORS_RESERVED = 16;
    const SHORTEST_REST_MS = 5;
    const LONGEST_REST_MS = 250;
    const COUNTING_MS = 10;
    const FEW = 64;
    const zeroIsABound = Number(process.versions.node.split('.')[0]) >= 21;

    const { Pipe, constants } = bindingOf('pipe_wrap');
    const { streamBaseState, kReadBytesOrError } = bindingOf('stream_wrap');
    const [, most] = OPEN_FILES.exec(readFileSync('/proc/self/limits', 'latin1')) ?? [];
    const limit = Number(most ?? Infinity);
    const pipe = new Pipe(constants.IPC);
    // As long as every message, so that Node reads on until there are no more, at most 32 times. It
    // has to be held on to, since Node does not.
    const message = Buffer.allocUnsafeSlow(MESSAGE_BYTES);
    pipe.clusterlbMessage = message;

    let received = 0;
    // So many connections may come before descriptors are counted again, which is after this time
    // in any case.
    let allowance = 0;
    let countAgainAt = 0;
    let restMs = SHORTEST_REST_MS;
    let resting = false;
    let over = false;

    const tell = (words, handle, done = () => {}) => {
      const told = { cmd: 'NODE_CLUSTERLB', received, ...words };
      Reflect.apply(send, process, [told, handle, undefined, done]);
    };

    function read() {
      if (over || resting || servers.size === 0 || !process.connected) pipe.readStop();
      else pipe.readStart();
    }

    // Node loses connections that it has no descriptors for, so what is in the inbox stays there
    // until there are some, or until somebody else has it.
    function rest(lost) {
      tell({ act: 'short', lost });
      resting = true;
      read();
      setTimeout(() => {
        resting = false;
        look();
        read();
      }, restMs).unref();
      restMs = Math.min(restMs * 2, LONGEST_REST_MS);
    }

    // Right before connections are taken, since the program may have used up everything meanwhile.
    function look() {
      try {
        closeSync(openSync('/dev/null', 'r'));
      } catch {
        return rest(false);
      }
      restMs = SHORTEST_REST_MS;
      if (allowance <= 0 || performance.now() >= countAgainAt) count();
    }

    // A quarter of what is left may come until the next count, and the program has the rest. The
    // more there are the longer it takes, so the rarer it is done.
    function count() {
      const begun = performance.now();
      const reserved = Math.min(DESCRIPTORS_RESERVED, limit / 16);
      allowance = Math.max(1, Math.ceil((limit - reserved - descriptorsInUse()) / 4));
      const done = performance.now();
      countAgainAt = done + Math.max(COUNTING_MS, 100 * (done - begun));
    }

    // Where few are left, none is taken without having looked.
    function takeCare() {
      allowance -= 1;
      if (allowance >= FEW || resting) return;
      resting = true;
      setImmediate(() => {
        resting = false;
        look();
        read();
      });
      read();
    }

    function descriptorsInUse() {
      try {
        return readdirSync('/proc/self/fd').length;
      } catch {
        return received - ended;
      }
    }

    // As Node decides it for what comes on its channel.
    function isFull({ maxConnections, _connections, dropMaxConnection }) {
      const bounded = maxConnections != null && (maxConnections !== 0 || zeroIsABound);
      return bounded && _connections >= maxConnections && !dropMaxConnection;
    }

    function sendBack(handle, listener, full) {
      const acceptedNs = String(message.readBigUInt64LE(ACCEPTED_AT));
      const words = { act: 'back', listener, acceptedNs, full };
      tell(words, handle, () => handle.close());
    }

    function take(handle) {
      const listener = message.readUInt16LE(MARK_AT);
      const { server, socket } = servers.get(listener)?.at(-1) ?? {};
      if (server === undefined || isFull(server)) {
        return sendBack(handle, listener, server !== undefined);
      }
      received += 1;
      report[3] = BigInt(received);
      report[4] = now();
      // At once: whatever becomes of this process, this connection was its own.
      write();
      publishSoon();
      handle.close = close;
      handle.reset = reset;
      move();
      takeCare();
      socket.onconnection(0, handle);
    }

    pipe.onread = () => {
      const length = streamBaseState[kReadBytesOrError];
      const handle = pipe.pendingHandle;
      pipe.pendingHandle = null;
      if (length < 0) {
        over = true;
        pipe.close();
        tell({ act: 'end' });
      } else if (length === 0) {
        // There is nothing more for now.
      } else if (message[0] === ANNOUNCEMENT) {
        look();
      } else if (message[0] === PROBE) {
        report[5] += 1n;
        probed = true;
        publish();
      } else if (handle) {
        take(handle);
      } else {
        rest(true);
      }
    };

    process.prependListener('disconnect', read);

    const failure = pipe.open(inbox);
    if (failure) throw new Error(`the inbox cannot be opened (${failure})`);
    pipe.useUserBuffer(message);
    pipe.unref();
    count();
    report[0] |= RECEIVES;

    // From now on connections with this mark go to this server, which takes them by this socket.
    return (server, socket, listener) => {
      const place = { server, socket };
      servers.set(listener, [...(servers.get(listener) ?? []), place]);
      const { close: closeSocket } = socket;
      socket.close = function (...words) {
        const others = (servers.get(listener) ?? []).filter((other) => other !== place);
        if (others.length === 0) servers.delete(listener);
        else servers.set(listener, others);
        read();
        return Reflect.apply(closeSocket, this, words);
      };
      read();
    };
  }

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

  let serve;
  try {
    serve = openInbox();
  } catch {
    // Everything it needs is there in every Node that this was tried with. Where it is not, the
    // connections come on Node's own channel.
  }

  // Every server that listens comes by here, and gets the socket that its connections will come
  // to. Only those of HTTP/2 have settings.
  const { _getServer: getServer } = cluster;
  cluster._getServer = function (server, query, callback) {
    const isHttp2 = typeof server.updateSettings === 'function';
    if (isHttp2) server.off('session', follow).on('session', follow);
    const answered = (error, socket) => {
      if (!error && socket && mark !== undefined) serve(server, socket, mark);
      return callback(error, socket);
    };
    return Reflect.apply(getServer, this, [server, query, answered]);
  };

  publish();
})();
