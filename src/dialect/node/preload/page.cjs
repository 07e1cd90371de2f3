// The memory page that a worker shares with its primary. Owns the words that the worker writes:
// which connections have ended, which were received, and whether the event loop turns.

const { readSync, writeSync } = require('fs');
const { clearInterval, clearTimeout, setImmediate, setInterval, setTimeout } = require('timers');
const now = process.hrtime.bigint;

// Errors in this script do not reach the program. If a step fails, the primary's grace period
// bounds the consequences.
function safely(act) {
  try {
    act();
  } catch {
    // As said.
  }
}

// The generated text before this defines the offsets (LAYOUT).
const { DOES_WORD, ENDED_WORD, MOVED_WORD } = LAYOUT;
const { RECEIVED_WORD, RECEIVED_AT_WORD, ANSWERED_WORD, BEATS_WORD, LATE_WORD } = LAYOUT;
const { ENDED_OF_WORD, ACCEPTED_OF_WORD, LISTENERS_MAX } = LAYOUT;
const { ACCEPTED_WORD, HELD_OPEN_WORD, REPORT_AT, WAKE_AT } = LAYOUT;
const { WAKE_ALWAYS, WAKE_PROBE, WAKE_CHANGE } = LAYOUT;
const WORD_BYTES = 8;
// Which half of a word is the lower one.
const LOW = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1 ? 0 : 1;
const HIGH = 1 - LOW;

class Page {
  constructor({ page, bell, beatMs }) {
    Object.assign(this, { page, bell, beatMs });
    this.report = new BigUint64Array(ACCEPTED_OF_WORD + LISTENERS_MAX);
    this.report[DOES_WORD] = BigInt(LAYOUT.REPORTS);
    // What counts each connection adds to halves of words, which takes no big integers.
    this.halves = new Uint32Array(this.report.buffer);
    this.wake = new Uint32Array(WORD_BYTES / 4);
    const bytesOf = (words) => new Uint8Array(words.buffer);
    this.reportBytes = bytesOf(this.report);
    // The words behind these are written once the worker accepts connections itself.
    this.length = ACCEPTED_WORD * WORD_BYTES;
    this.wakeBytes = bytesOf(this.wake);
    this.refused = new BigUint64Array(1);
    this.refusedBytes = bytesOf(this.refused);
    this.oneBytes = bytesOf(new BigUint64Array([1n]));
    this.received = 0;
    this.ended = 0;
    this.accepted = 0;
    // For how long connections have been open, summed over them, until `openAt`.
    this.openMs = 0;
    this.openAt = 0;
    this.isAccepting = false;
    // Listeners with a count of ended connections.
    this.marks = 0;
    // Since the last time that the words were written.
    this.changed = true;
    this.due = false;
    this.probed = false;
    // Connections have come or ended.
    this.hasTurnover = false;
    // Publish at once, because later may be too late.
    this.atOnce = false;
    this.beat = undefined;
    this.beatNs = BigInt(beatMs) * 1000000n;
    this.dueAt = 0n;
    // When the loop was last seen to turn, other than by a beat.
    this.turnedAt = 0n;
    this.moved = false;
    // Called on activity.
    this.onMove = undefined;
    // Turns of the loop in which something was published.
    this.turn = 0;
    this.onTurn = () => {
      this.turn += 1;
      this.publish();
    };
    // By the mark of a listener: what counts the ends of its connections.
    this.endings = new Map();
    this.onNextTurn = () => setImmediate(this.onTurnAfter);
    this.onTurnAfter = () => {
      this.onTurn();
      this.afterPublished();
    };
  }

  // One more.
  add(word) {
    const { halves } = this;
    const low = 2 * word + LOW;
    halves[low] += 1;
    if (halves[low] === 0) halves[2 * word + HIGH] += 1;
  }

  write() {
    if (this.isAccepting) this.report[HELD_OPEN_WORD] = BigInt(Math.round(this.openMs * 1000));
    this.changed = false;
    try {
      writeSync(this.page, this.reportBytes, 0, this.length, REPORT_AT);
    } catch {
      // The next publication includes this one.
    }
  }

  publish() {
    this.due = false;
    if (this.changed) this.write();
    try {
      // The primary may hold connections that no worker had room for, or wait for an answer.
      readSync(this.page, this.wakeBytes, 0, WORD_BYTES, WAKE_AT);
      const wake = this.wake[LOW];
      const isAsked =
        wake === WAKE_ALWAYS ||
        (wake === WAKE_PROBE && this.probed) ||
        (wake === WAKE_CHANGE && this.hasTurnover);
      if (isAsked) {
        writeSync(this.bell, this.oneBytes, 0, WORD_BYTES, null);
      }
      this.probed = false;
      this.hasTurnover = false;
    } catch {
      // As above.
    }
  }

  // Once for all changes of one turn of the loop.
  publishSoon() {
    if (this.atOnce) this.publish();
    else if (!this.due) {
      this.due = true;
      setImmediate(this.onTurn);
    }
  }

  // As `publishSoon`, for the changes of this turn and the next one together, and calls `then`.
  publishAfterNext(then) {
    this.due = true;
    this.afterPublished = then;
    setImmediate(this.onNextTurn);
  }

  // Records activity: until it stops, the primary can see whether the loop turns.
  move() {
    this.moved = true;
    if (this.onMove !== undefined) this.onMove();
    if (this.beat !== undefined || this.beatMs === 0) return;
    const at = now();
    this.report[MOVED_WORD] = at;
    this.changed = true;
    this.publish();
    this.dueAt = at + this.beatNs;
    this.beat = setInterval(() => this.onBeat(), this.beatMs);
    this.beat.unref();
  }

  onBeat() {
    const at = now();
    // How late a beat is shows what the loop was busy with.
    const late = at - this.dueAt;
    this.add(BEATS_WORD);
    if (late > 0n) this.report[LATE_WORD] += late;
    this.dueAt = at + this.beatNs;
    this.changed = true;
    if (this.moved) {
      this.moved = false;
      // What has been written since shows that the loop turns.
      if (2n * (at - this.turnedAt) < this.beatNs) return;
      this.report[MOVED_WORD] = at;
    } else {
      this.report[MOVED_WORD] = 0n;
      clearInterval(this.beat);
      this.beat = undefined;
    }
    // The primary may hold connections because the loop had not turned for too long.
    this.publish();
  }

  // What counts the ends of a listener's connections; in the sum alone without a mark, or room.
  endingsOf(mark) {
    const known = this.endings.get(mark);
    if (known !== undefined) return known;
    if (mark !== undefined && this.marks === LISTENERS_MAX) return this.endingsOf();
    let ended;
    let accepted;
    if (mark !== undefined) {
      ended = ENDED_OF_WORD + this.marks;
      accepted = ACCEPTED_OF_WORD + this.marks;
      this.report[ended] = BigInt(mark + 1) << 48n;
      this.report[accepted] = BigInt(mark + 1) << 48n;
      this.marks += 1;
    }
    const { close, reset } = this.endingsIn(ended);
    const endings = { close, reset, accepted };
    this.endings.set(mark, endings);
    return endings;
  }

  // Replace methods of a connection's handle until one of them ends the connection. Then they are
  // replaced again and not deleted, because an object loses its fast layout with a property.
  endingsIn(word) {
    const page = this;
    function countEnd(handle) {
      const { close, reset } = Object.getPrototypeOf(handle);
      handle.close = close;
      handle.reset = reset;
      page.passTime();
      page.ended += 1;
      page.add(ENDED_WORD);
      if (word !== undefined) page.add(word);
      page.changed = true;
      page.publishSoon();
      page.move();
    }
    return {
      close(callback) {
        countEnd(this);
        return this.close(callback);
      },
      reset(callback) {
        countEnd(this);
        return this.reset(callback);
      },
    };
  }

  // Counts the end of a connection.
  follow(handle, endings) {
    handle.close = endings.close;
    handle.reset = endings.reset;
    this.move();
  }

  // Before the number of open connections changes: sums up how long they have been open.
  passTime() {
    this.hasTurnover = true;
    if (!this.isAccepting) return;
    const at = performance.now();
    this.openMs += (this.accepted + this.received - this.ended) * (at - this.openAt);
    this.openAt = at;
  }

  // Counts what arrives at a socket that the worker accepts from itself. What others hand over
  // arrives there, too, and is followed already.
  countAccepted(socket, mark) {
    const page = this;
    const { onconnection } = socket;
    let endings;
    if (typeof onconnection !== 'function') return;
    if (!this.isAccepting) {
      this.isAccepting = true;
      this.openAt = performance.now();
      this.length = this.reportBytes.length;
    }
    socket.onconnection = function (failure, handle) {
      if (!failure && handle && !Object.hasOwn(handle, 'close')) {
        page.passTime();
        page.accepted += 1;
        page.add(ACCEPTED_WORD);
        endings ??= page.endingsOf(mark);
        if (endings.accepted !== undefined) page.add(endings.accepted);
        page.changed = true;
        page.publishSoon();
        page.follow(handle, endings);
      }
      return onconnection.call(this, failure, handle);
    };
  }

  // At once: even if this process dies, the connection has been its own.
  countReceived(at) {
    this.passTime();
    this.received += 1;
    this.add(RECEIVED_WORD);
    this.report[RECEIVED_AT_WORD] = at;
    if (this.beat !== undefined) {
      this.report[MOVED_WORD] = at;
      this.turnedAt = at;
    }
    this.write();
    this.publishSoon();
  }

  // A connection without a header of the PROXY protocol.
  countRefused() {
    this.refused[0] += 1n;
    try {
      writeSync(this.page, this.refusedBytes, 0, this.refusedBytes.length, LAYOUT.REFUSED_AT);
    } catch {
      // The next one tells of it.
    }
  }

  answerProbe() {
    this.report[ANSWERED_WORD] += 1n;
    if (this.beat !== undefined) {
      // Otherwise the primary, woken by the answer, sees a turn that has lasted too long.
      this.turnedAt = now();
      this.report[MOVED_WORD] = this.turnedAt;
    }
    this.changed = true;
    this.probed = true;
    this.publish();
  }

  sayThatItReceives() {
    this.report[DOES_WORD] |= BigInt(LAYOUT.RECEIVES);
    this.changed = true;
  }

  // Written with the next change.
  sayWhetherRoomy(isRoomy) {
    const others = this.report[DOES_WORD] & ~BigInt(LAYOUT.ROOMY);
    this.report[DOES_WORD] = others | (isRoomy ? BigInt(LAYOUT.ROOMY) : 0n);
  }
}
