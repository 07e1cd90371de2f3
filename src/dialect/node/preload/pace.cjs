// How many connections the worker takes in one turn of its loop. Owns the estimate of what one
// costs it. Where they are short, as many as there are, which is cheapest. Where they are long, the
// rest stays in the inbox, from which other workers can still get it.

const { nodeTiming } = performance;

// Below this, a whole batch is no longer than what a client would notice.
const SHORT_MS = 0.25;
// Work that may be taken in one turn.
const TURN_MS = 1;
// Waiting for a CPU is no work. The kernel counts it in nanoseconds, if it counts it.
const WAITED = /^\d+ (\d+)/;

class Pace {
  constructor() {
    this.at = performance.now();
    this.idle = nodeTiming.idleTime;
    this.waited = undefined;
    // Nothing is known before the first ones.
    this.taken = undefined;
    this.file = undefined;
  }

  // At the first connection of a turn: how many may be taken in it.
  batch() {
    const at = performance.now();
    const idle = nodeTiming.idleTime;
    const busyMs = at - this.at - (idle - this.idle);
    const { taken } = this;
    Object.assign(this, { at, idle, taken: 0 });
    if (taken === undefined) return Infinity;
    const count = Math.max(1, taken);
    const isShort = busyMs / count < SHORT_MS;
    if (isShort || count === 1) {
      this.waited = undefined;
      return isShort ? Infinity : Math.max(1, Math.floor(TURN_MS / busyMs));
    }
    const costMs = (busyMs - this.waitedMs()) / count;
    return costMs < SHORT_MS ? Infinity : Math.max(1, Math.floor(TURN_MS / costMs));
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
