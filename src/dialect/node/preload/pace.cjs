// How many connections the worker takes in one turn of its loop. Owns the estimate of what one
// costs it. Where they are short, as many as there are, which is cheapest. Where they are long, the
// rest stays in the inbox, from which other workers can still get it.

const { nodeTiming } = performance;

// Below this, a whole batch is no longer than what a client would notice.
const SHORT_MS = 0.25;
// Work that may be taken in one turn.
const TURN_MS = 1;
// More than there ever are.
const ALL = 1 << 20;
// How many turns with connections an estimate holds for, while few are taken in a turn.
const TURNS = 4;
// Waiting for a CPU is no work. The kernel counts it in nanoseconds, if it counts it.
const WAITED = /^\d+ (\d+)/;

class Pace {
  constructor() {
    this.at = now();
    this.idle = nodeTiming.idleTime;
    this.waited = undefined;
    // Connections since the estimate; nothing is known before the first ones.
    this.taken = 0;
    this.isKnown = false;
    // Turns with connections since then, and what they were allowed.
    this.turns = 0;
    this.allowed = ALL;
    this.file = undefined;
  }

  // At the first connection of a turn: how many may be taken in it.
  batch(at) {
    this.turns += 1;
    if (this.allowed === ALL || this.turns > TURNS) this.estimate(at);
    return this.allowed;
  }

  estimate(at) {
    const idle = nodeTiming.idleTime;
    const busyMs = Number(at - this.at) / 1e6 - (idle - this.idle);
    const { taken, isKnown } = this;
    // This turn is the first one of the next estimate.
    const turns = Math.max(1, this.turns - 1);
    this.at = at;
    this.idle = idle;
    this.taken = 0;
    this.turns = 1;
    this.isKnown = true;
    this.allowed = isKnown ? this.allow(busyMs, Math.max(1, taken), turns) : ALL;
  }

  allow(busyMs, count, turns) {
    const isShort = busyMs / count < SHORT_MS;
    if (isShort || count <= turns) {
      this.waited = undefined;
      return isShort ? ALL : Math.max(1, Math.floor((TURN_MS * count) / busyMs));
    }
    const costMs = (busyMs - this.waitedMs()) / count;
    return costMs < SHORT_MS ? ALL : Math.max(1, Math.floor(TURN_MS / costMs));
  }

  // How long the thread has waited for a CPU since the last turn with connections; nothing if that
  // was not asked then, which makes the estimate too high once. It matters for full batches only.
  waitedMs() {
    const bytes = Buffer.allocUnsafe(64);
    try {
      this.file ??= openSync('/proc/self/schedstat', 'r');
      const text = bytes.latin1Slice(0, readSync(this.file, bytes, 0, bytes.length, 0));
      const { waited } = this;
      this.waited = Number(WAITED.exec(text)[1]);
      return waited === undefined ? 0 : (this.waited - waited) / 1e6;
    } catch {
      return 0;
    }
  }
}
