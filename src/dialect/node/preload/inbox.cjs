// The worker's inbox. Node's channel needs a JSON message, two replies and a turn of the loop per
// connection; the inbox delivers up to 32 connections per turn. Owns the rules that a connection is
// taken only if a descriptor is free for it, and in one turn only as many as `Pace` allows.

const { closeSync, openSync, readFileSync, readdirSync } = require('fs');
const { performance } = require('perf_hooks');

const OPEN_FILES = /^Max open files +(\d+)/m;
const DESCRIPTORS_RESERVED = 16;
const SHORTEST_REST_MS = 5;
const LONGEST_REST_MS = 250;
// The program is expected to open at most `FEW` descriptors in this time.
const COUNTING_MS = 10;
const FEW = 64;
// With at least this many descriptors, half of them free, the primary need not announce messages
// that follow closely.
const MANY = 4096;
// How often the number of a received descriptor is compared with the limit: after this many.
const COMPARE_EVERY = 16;
const { ANNOUNCEMENT, PROBE, MARK_AT } = LAYOUT;
const ZERO_IS_A_BOUND = Number(process.versions.node.split('.')[0]) >= 21;

// Internal bindings of Node, which are the only way to receive a descriptor. Their use is
// deprecated; the warning is suppressed, because it does not concern the program.
function bindingOf(name) {
  const { noDeprecation } = process;
  // With `--no-deprecation` it cannot be set, and is.
  if (noDeprecation) return process.binding(name);
  process.noDeprecation = true;
  try {
    return process.binding(name);
  } finally {
    process.noDeprecation = noDeprecation;
  }
}

// The condition that Node applies to connections from its channel.
function isFull({ maxConnections, _connections, dropMaxConnection }) {
  const bounded = maxConnections != null && (maxConnections !== 0 || ZERO_IS_A_BOUND);
  return bounded && _connections >= maxConnections && !dropMaxConnection;
}

class Inbox {
  constructor(inbox, page, tell) {
    Object.assign(this, { page, tell });
    const { Pipe, constants } = bindingOf('pipe_wrap');
    const { streamBaseState, kReadBytesOrError } = bindingOf('stream_wrap');
    Object.assign(this, { streamBaseState, kReadBytesOrError });
    const [, most] = OPEN_FILES.exec(readFileSync('/proc/self/limits', 'latin1')) ?? [];
    this.limit = Number(most ?? Infinity);
    // The servers by mark, each with the handle that takes its connections. The most recent of
    // several is the last.
    this.servers = new Map();
    // The mark of the connection before, and the place it went to.
    this.mark = undefined;
    this.place = undefined;
    // Number of connections that may arrive before descriptors are counted again, which also
    // happens periodically.
    this.allowance = 0;
    this.countAgainAt = 0;
    this.restMs = SHORTEST_REST_MS;
    this.resting = false;
    this.isRoomy = false;
    this.onSkipped = () => {
      this.resting = false;
      this.lookBeforeMore(this.allowance <= FEW);
      this.read();
    };
    this.over = false;
    this.pace = new Pace();
    this.turn = undefined;
    this.left = ALL;
    // Connections since the last announcement, and between that and the one before.
    this.announced = 0;
    this.announcedBefore = 0;
    // Called when no more connections can come, if the primary is gone.
    this.onEnd = undefined;
    this.open(inbox, new Pipe(constants.IPC));
  }

  open(inbox, pipe) {
    this.pipe = pipe;
    // As long as every message, so that Node continues to read until there are none, at most 32
    // times. Kept referenced here, because Node does not.
    this.message = Buffer.allocUnsafeSlow(LAYOUT.MESSAGE_BYTES);
    pipe.clusterlbMessage = this.message;
    pipe.onread = this.onRead.bind(this);
    const failure = pipe.open(inbox);
    if (failure) throw new Error(`the inbox cannot be opened (${failure})`);
    pipe.useUserBuffer(this.message);
    pipe.unref();
    this.count();
    this.page.sayThatItReceives();
  }

  // Registers a server for connections with this mark, which it takes through this socket.
  serve(server, socket, mark) {
    const place = { server, socket, endings: undefined };
    this.servers.set(mark, [...(this.servers.get(mark) ?? []), place]);
    this.mark = undefined;
    const inbox = this;
    const { close } = socket;
    socket.close = function (...words) {
      const others = (inbox.servers.get(mark) ?? []).filter((other) => other !== place);
      if (others.length === 0) inbox.servers.delete(mark);
      else inbox.servers.set(mark, others);
      inbox.mark = undefined;
      inbox.read();
      return Reflect.apply(close, this, words);
    };
    this.read();
  }

  // Reads while there are servers, and either a primary or connections that it has left.
  read() {
    const wanted = this.servers.size > 0 && (process.connected || this.onEnd !== undefined);
    if (this.over || this.resting || !wanted) this.pipe.readStop();
    else this.pipe.readStart();
  }

  // The primary is gone: serves what it has handed over, then ends.
  empty(onEnd) {
    if (this.over || this.servers.size === 0) return onEnd();
    this.onEnd = onEnd;
    this.read();
  }

  onRead() {
    const { pipe, message } = this;
    const handle = pipe.pendingHandle;
    if (handle) {
      pipe.pendingHandle = null;
      return this.take(handle);
    }
    const length = this.streamBaseState[this.kReadBytesOrError];
    if (length < 0) {
      this.over = true;
      pipe.close();
      this.tell({ act: 'end' });
      this.onEnd?.();
    } else if (length === 0) {
      // The inbox is empty for now.
    } else if (message[0] === ANNOUNCEMENT) {
      this.announcedBefore = this.announced;
      this.announced = 0;
      this.look();
    } else if (message[0] === PROBE) {
      this.page.answerProbe();
    } else {
      this.rest(true);
    }
  }

  take(handle) {
    const { message, page } = this;
    const mark = message[MARK_AT] + 256 * message[MARK_AT + 1];
    if (this.mark !== mark) {
      this.place = this.servers.get(mark)?.at(-1);
      this.mark = mark;
    }
    const { place } = this;
    if (place === undefined || (place.server.maxConnections != null && isFull(place.server))) {
      return this.sendBack(handle, mark, place !== undefined);
    }
    const at = now();
    this.keepPace(at);
    if (this.isRoomy && page.received % COMPARE_EVERY === 0) this.compare(handle);
    page.countReceived(at);
    place.endings ??= page.endingsOf(mark);
    page.follow(handle, place.endings);
    this.allowance -= 1;
    // With few descriptors left, each connection is checked.
    if (this.allowance < FEW) this.pause(setImmediate, true);
    place.socket.onconnection(0, handle);
  }

  // The kernel assigns the lowest free number.
  compare(handle) {
    if (handle.fd > this.limit / 2) this.setRoomy(false);
  }

  keepPace(at) {
    const { page } = this;
    if (this.turn !== page.turn) {
      this.turn = page.turn;
      this.left = this.pace.batch(at);
    }
    this.pace.taken += 1;
    this.announced += 1;
    this.left -= 1;
    if (this.left <= 0) this.skipTurn();
  }

  // In the next turn of the loop the work begins, and the one after that may take more.
  skipTurn() {
    if (this.resting) return;
    this.resting = true;
    this.pipe.readStop();
    this.page.publishAfterNext(this.onSkipped);
  }

  // Before the first one of the next batch this is done anyway.
  lookBeforeMore(isCareful) {
    const most = Math.max(this.announced, this.announcedBefore);
    const isUnannounced = this.isRoomy ? this.allowance <= 0 : most > 1;
    if (isCareful || isUnannounced) this.look();
  }

  // Takes nothing until then.
  pause(until, isCareful) {
    if (this.resting) return;
    this.resting = true;
    until(() => {
      this.resting = false;
      this.lookBeforeMore(isCareful);
      this.read();
    });
    this.read();
  }

  sendBack(handle, listener, full) {
    const acceptedNs = String(this.message.readBigUInt64LE(LAYOUT.ACCEPTED_AT));
    this.tell({ act: 'back', listener, acceptedNs, full }, handle, () => handle.close());
  }

  // Node loses connections for which it has no descriptor. They stay in the inbox until some are
  // free, or until another worker gets them.
  rest(lost) {
    this.tell({ act: 'short', lost });
    const { restMs } = this;
    this.resting = false;
    this.pause((go) => setTimeout(go, restMs).unref(), true);
    this.restMs = Math.min(this.restMs * 2, LONGEST_REST_MS);
  }

  // Just before connections are taken, because the program may have used up descriptors.
  look() {
    try {
      closeSync(openSync('/dev/null', 'r'));
    } catch {
      return this.rest(false);
    }
    this.restMs = SHORTEST_REST_MS;
    if (this.allowance <= 0 || performance.now() >= this.countAgainAt) this.count();
  }

  // A quarter of the free descriptors may be used until the next count; the rest is for the
  // program. Counting takes longer the more are open, but is then less frequent.
  count() {
    const begun = performance.now();
    const reserved = Math.min(DESCRIPTORS_RESERVED, this.limit / 16);
    const left = this.limit - reserved - this.descriptorsInUse();
    this.allowance = Math.max(1, Math.ceil(left / 4));
    this.setRoomy(this.limit >= MANY && left > this.limit / 2);
    const done = performance.now();
    const soonMs = COUNTING_MS * Math.max(1, this.allowance / FEW);
    this.countAgainAt = done + Math.max(soonMs, 100 * (done - begun));
  }

  setRoomy(isRoomy) {
    if (this.isRoomy === isRoomy) return;
    this.isRoomy = isRoomy;
    this.page.sayWhetherRoomy(isRoomy);
  }

  descriptorsInUse() {
    try {
      return readdirSync('/proc/self/fd').length;
    } catch {
      const { received, accepted, ended } = this.page;
      return received + accepted - ended;
    }
  }
}
