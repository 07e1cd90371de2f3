// How a worker leaves: told by its primary, by a signal, or left alone by a primary that has died.
// Owns the order: the program hears of it first, then its servers close, then what is open is
// finished, and then the process ends, however many idle connections of its own it has.

const SERVING = 0;
// The whole service stops: the program has heard of it and may let some time pass.
const STOPPING = 1;
const LEAVING = 2;
const POLL_MS = 25;
// So long nothing may move in what the program has open before it counts as idle, and so long it
// is waited for.
const QUIET_MS = 100;
const QUIET_AT_MOST_MS = 1000;
// A signal to everyone reaches the primary as well, which then says more.
const PRIMARY_MS = 200;
// What is left when the primary has died has nobody who ends it.
const ORPHAN_MS = 10000;
const WORK = new Set(['FSReqCallback', 'WriteWrap', 'ShutdownWrap']);

class Leaving {
  constructor({ cluster, page, kept, servers, inbox, tell }) {
    Object.assign(this, { cluster, page, kept, servers, inbox, tell });
    this.stage = SERVING;
    this.handlers = new Handlers();
    this.signals = new Signals({
      handlers: this.handlers,
      isNeeded: () => this.servers.connections > 0,
      onSignal: () => this.onSignal(),
      beforeProgram: () => this.prepare(),
    });
    // The program has closed a server that still gets what the primary hands over.
    this.isClosing = false;
    // Servers that were closed without the program.
    this.closed = new WeakSet();
    this.exit = process.exit;
    // The process is to end as soon as nothing is open.
    this.endsEarly = false;
    this.byNode = false;
  }

  // The primary asks from when on it may stop accepting.
  onStop() {
    if (this.stage !== SERVING) return this.tell({ act: 'stopped', closes: true });
    this.stage = STOPPING;
    this.kept.silenceMs = SILENCE_AT_STOP_MS;
    this.prepare();
    this.handlers.run();
    const wait = setInterval(() => this.answerStop(wait), POLL_MS);
    wait.unref();
    this.answerStop(wait);
  }

  answerStop(wait) {
    const closes = this.stage !== STOPPING || this.isClosing || this.endsEarly;
    if (!closes && this.handlers.isHolding()) return;
    clearInterval(wait);
    this.tell({ act: 'stopped', closes });
  }

  // The primary's word, before Node hears it and closes all servers.
  onDisconnect() {
    this.leave();
    this.byNode = true;
    // Node does not know those that the program has closed together with its worker.
    nextTick(() => this.closeAll());
  }

  leave() {
    if (this.stage === LEAVING) return;
    this.stage = STOPPING;
    this.prepare();
    this.handlers.run();
    this.stage = LEAVING;
    this.page.atOnce = true;
    this.kept.letGo();
    this.begin();
  }

  // What the program does from now on is seen.
  prepare() {
    if (this.isPrepared) return;
    this.isPrepared = true;
    this.signals.keep();
    this.kept.hold();
    const leaving = this;
    const { exit } = this;
    process.exit = function (...words) {
      const code = words[0] ?? process.exitCode ?? 0;
      if (Number(code) !== 0 || !leaving.delaysExit()) return Reflect.apply(exit, this, words);
      leaving.endEarly();
    };
    const { prototype } = require('net').Server;
    const { close } = prototype;
    prototype.close = function (...words) {
      leaving.close(this, words[0], () => Reflect.apply(close, this, words));
      return this;
    };
  }

  // An orderly end waits for what is open, and for what the primary still hands over. Any other
  // code means that the program does not want to wait.
  delaysExit() {
    return this.stage === STOPPING || this.isServing();
  }

  close(server, callback, close) {
    if (this.stage === STOPPING && this.servers.listening.has(server)) {
      // Node closes it, with all others, when the primary says so.
      this.isClosing = true;
      if (typeof callback === 'function') server.once('close', callback);
    } else if (this.byNode) {
      this.closed.add(server);
      close();
    } else if (this.closed.delete(server) && !server._handle && typeof callback === 'function') {
      // It is the first time that the program closes it, which is no mistake.
      server.once('close', () => callback());
      Reflect.apply(require('net').Server.prototype.close, server, []);
    } else {
      // A program that was told by a signal leaves with this.
      if (this.stage === SERVING) this.kept.letGo();
      close();
    }
  }

  onSignal() {
    if (this.stage === SERVING && !this.isServing()) return this.signals.die();
    this.endsBySignal = true;
    this.endEarly();
  }

  // As soon as nothing is open.
  endEarly() {
    this.endsEarly = true;
    if (this.stage !== SERVING) return;
    setTimeout(() => {
      if (this.stage !== SERVING) return;
      this.leave();
      this.cluster.worker.disconnect();
    }, PRIMARY_MS);
  }

  // Before Node hears it, which ends the process at once unless it was told to leave.
  onChannelEnd() {
    this.inbox?.read();
    const { worker } = this.cluster;
    if (worker.exitedAfterDisconnect) return;
    const isEmpty = this.inbox === undefined || this.inbox.servers.size === 0;
    if (isEmpty && !this.isServing()) return;
    worker.exitedAfterDisconnect = true;
    this.endsEarly = true;
    setTimeout(() => this.end(), ORPHAN_MS).unref();
    this.leave();
    const closeAll = () => this.closeAll();
    if (this.inbox === undefined) closeAll();
    else this.inbox.empty(closeAll);
  }

  closeAll() {
    this.byNode = true;
    this.servers.listening.forEach((server) => server.close());
    this.byNode = false;
  }

  isServing() {
    return this.servers.accepted().length > 0;
  }

  begin() {
    let quiet = { since: performance.now(), state: undefined };
    let until = Infinity;
    const look = () => {
      if (this.isServing() || this.servers.listening.size > 0) return;
      const at = performance.now();
      until = Math.min(until, at + QUIET_AT_MOST_MS);
      const state = this.state();
      if (state !== quiet.state) quiet = { since: at, state };
      const isQuiet = state !== undefined && at - quiet.since >= QUIET_MS;
      if (this.endsEarly) return this.end();
      if (process.connected || this.handlers.isBusy() || !(isQuiet || at >= until)) return;
      if (!this.emitBeforeExit()) return this.end();
      until = at + QUIET_AT_MOST_MS;
      quiet = { since: at, state: undefined };
    };
    setInterval(() => safely(look), POLL_MS).unref();
  }

  // What the program has open, so that changes can be seen; nothing while it works.
  state() {
    const requests = process._getActiveRequests();
    if (requests.some((request) => WORK.has(request.constructor.name))) return undefined;
    const bytes = ({ bytesRead, bytesWritten }) => `${bytesRead},${bytesWritten}`;
    return process._getActiveHandles().map(bytes).join(' ');
  }

  // Node does that when nothing is left to wait for, which idle connections of the program's
  // prevent.
  emitBeforeExit() {
    if (this.toldBeforeExit || process.listenerCount('beforeExit') === 0) return false;
    this.toldBeforeExit = true;
    this.handlers.observe(() => process.emit('beforeExit', process.exitCode ?? 0));
    return true;
  }

  end() {
    if (this.endsBySignal) this.signals.die();
    else Reflect.apply(this.exit, process, []);
  }
}
