// The program's handlers of the termination signal. Owns when they run, which is once each time the
// worker is told to leave, and what they still wait for.

// Both arguments are passed to listeners.
const SIGNAL_NUMBERS = { SIGTERM: 15, SIGINT: 2 };
// A signal to the whole process group and the primary's message count as one within this time.
const TOGETHER_MS = 1000;
// Time within which a listener's promise may or may not turn out to wait for a timer.
const UNDECIDED_MS = 250;
// Maximum wait for a timer of the program after it has become idle.
const SHORT_WAIT_MS = 1000;

class Handlers {
  constructor() {
    this.ranAt = -Infinity;
    this.promised = 0;
    this.hasPromised = false;
    // Timers that listeners, and the operations they start, wait for.
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
    // Programs for other process managers may handle only the second one.
    const isKnown = (name) => process.listenerCount(name) > 0;
    const signal = ['SIGTERM', 'SIGINT'].find(isKnown);
    if (signal === undefined) return;
    this.note();
    const listeners = process.rawListeners(signal);
    this.observe(() => listeners.forEach((listener) => this.call(listener, signal)));
  }

  // Tracks what the call starts and its consequences, but not what was started before.
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

  // An exception in it belongs to the program, as if Node had called it.
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

  // Active timers that fire once and keep the process alive.
  waits() {
    const isWaiting = (timer) => !timer._destroyed && timer._repeat === null && timer.hasRef();
    for (const timer of this.timers) if (!isWaiting(timer)) this.timers.delete(timer);
    return [...this.timers];
  }

  // Whether the program delays the end of its service.
  isHolding() {
    if (this.hasPromised && this.promised === 0) return false;
    if (this.waits().length > 0) return true;
    return this.promised > 0 && performance.now() - this.ranAt < UNDECIDED_MS;
  }

  // Whether an operation that it started is not finished.
  isBusy() {
    if (this.hasPromised) return this.promised > 0;
    return this.waits().some(({ _idleTimeout }) => _idleTimeout <= SHORT_WAIT_MS);
  }
}
