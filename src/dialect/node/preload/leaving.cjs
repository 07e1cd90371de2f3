// How a worker leaves: on the primary's request, on a signal, or after the death of the primary.
// Owns the order: the program is told first, then its servers close, then open connections finish,
// and then the process exits, however many idle connections the program holds.

const SERVING = 0;
// The whole service stops: the program has been told and may delay its end.
const STOPPING = 1;
const LEAVING = 2;
const POLL_MS = 25;
// Time without any change after which the program counts as idle, and the limit of this wait.
const QUIET_MS = 100;
const QUIET_AT_MOST_MS = 1000;
// A signal to the whole process group also reaches the primary, which then sends its own message.
const PRIMARY_MS = 200;
// After the death of the primary, no process ends this one, so it sets a limit.
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
    // The program has closed a server that still gets connections from the primary.
    this.isClosing = false;
    // Servers closed by this script.
    this.closed = new WeakSet();
    this.exit = process.exit;
    // Exit as soon as nothing is open.
    this.endsEarly = false;
    this.byNode = false;
  }

  // The primary asks when it may stop accepting.
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

  // The primary's message, before Node handles it and closes all servers.
  onDisconnect() {
    this.leave();
    this.byNode = true;
    // Servers that the program has closed in a cluster worker are unknown to Node.
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

  // From now on the program's actions are tracked.
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

  // An orderly exit waits for open connections and for those that the primary still hands over. Any
  // other exit code means that the program does not want to wait.
  delaysExit() {
    return this.stage === STOPPING || this.isServing();
  }

  close(server, callback, close) {
    if (this.stage === STOPPING && this.servers.listening.has(server)) {
      // Node closes it with all others, on the primary's message.
      this.isClosing = true;
      if (typeof callback === 'function') server.once('close', callback);
    } else if (this.byNode) {
      this.closed.add(server);
      close();
    } else if (this.closed.delete(server) && !server._handle && typeof callback === 'function') {
      // For the program this is the first close, which is not an error.
      server.once('close', () => callback());
      Reflect.apply(require('net').Server.prototype.close, server, []);
    } else {
      // A program that handles the signal leaves by this close.
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

  // Before Node handles it, which exits at once unless the worker was told to leave.
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
    return this.servers.accepted().length + this.servers.proxied.waiting > 0;
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

  // A summary of what the program has open, for detecting changes; `undefined` while it works.
  state() {
    const requests = process._getActiveRequests();
    if (requests.some((request) => WORK.has(request.constructor.name))) return undefined;
    const bytes = ({ bytesRead, bytesWritten }) => `${bytesRead},${bytesWritten}`;
    return process._getActiveHandles().map(bytes).join(' ');
  }

  // Node emits this when nothing is left to wait for, which idle connections of the program
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
