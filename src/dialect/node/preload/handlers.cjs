// What the program has registered for the signal to end. Owns when that runs, once each time the
// worker is told to leave, and what it still waits for.

// Both are given to listeners.
const SIGNAL_NUMBERS = { SIGTERM: 15, SIGINT: 2 };
// A signal to everyone and the primary's own word are one.
const TOGETHER_MS = 1000;
// So long it is left open whether what a listener has promised will wait for a time.
const UNDECIDED_MS = 250;
// After the program has been left alone, it waits no longer than this for a time of its own.
const SHORT_WAIT_MS = 1000;

class Handlers {
  constructor() {
    this.ranAt = -Infinity;
    this.promised = 0;
    this.hasPromised = false;
    // Times that listeners, and whatever they have begun, wait for.
    this.timers = new Set();
  }

  // They have run, or are about to.
  note() {
    this.ranAt = performance.now();
  }

  ranJustNow() {
    return performance.now() - this.ranAt < TOGETHER_MS;
  }

  run() {
    if (this.ranJustNow()) return;
    // Programs for other process managers may know only the second.
    const isKnown = (name) => process.listenerCount(name) > 0;
    const signal = ['SIGTERM', 'SIGINT'].find(isKnown);
    if (signal === undefined) return;
    this.note();
    const listeners = process.rawListeners(signal);
    this.observe(() => listeners.forEach((listener) => this.call(listener, signal)));
  }

  // Sees what this begins, and what comes of that; no longer what has been begun before.
  observe(act) {
    this.promised = 0;
    this.hasPromised = false;
    const timers = new Set();
    this.timers = timers;
    const { AsyncLocalStorage, createHook } = require('async_hooks');
    const scope = new AsyncLocalStorage();
    const init = (id, type, trigger, resource) => {
      if (type === 'Timeout' && scope.getStore()) timers.add(resource);
    };
    createHook({ init }).enable();
    scope.run(true, act);
  }

  // Whatever goes wrong in it is the program's, as if Node had called it.
  call(listener, signal) {
    let result;
    try {
      result = Reflect.apply(listener, process, [signal, SIGNAL_NUMBERS[signal]]);
    } catch (error) {
      nextTick(() => {
        throw error;
      });
    }
    if (typeof result?.then !== 'function') return;
    this.hasPromised = true;
    this.promised += 1;
    const settle = () => {
      this.promised -= 1;
    };
    result.then(settle, (error) => {
      settle();
      Promise.reject(error);
    });
  }

  // Times that would keep the process alive and come once.
  waits() {
    const isWaiting = (timer) => !timer._destroyed && timer._repeat === null && timer.hasRef();
    for (const timer of this.timers) if (!isWaiting(timer)) this.timers.delete(timer);
    return [...this.timers];
  }

  // The program lets time pass before it stops serving.
  isHolding() {
    if (this.hasPromised && this.promised === 0) return false;
    if (this.waits().length > 0) return true;
    return this.promised > 0 && performance.now() - this.ranAt < UNDECIDED_MS;
  }

  // Something that it has begun is not done.
  isBusy() {
    if (this.hasPromised) return this.promised > 0;
    return this.waits().some(({ _idleTimeout }) => _idleTimeout <= SHORT_WAIT_MS);
  }
}
