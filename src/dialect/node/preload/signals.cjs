// SIGTERM that comes from outside. As long as connections are open it does not end the process at
// once. Owns the handle that makes it so, which no program sees among its listeners.

const SIGTERM = 15;
const CHECK_MS = 1000;

// What Node itself hears signals with. It has it made for a moment, since it hands it out nowhere
// (from 24 on).
function signalClass() {
  let found;
  const init = (id, type, trigger, resource) => {
    if (type === 'SIGNALWRAP') found = resource.constructor;
  };
  const hook = require('async_hooks').createHook({ init }).enable();
  const listener = () => {};
  process.on('SIGTERM', listener);
  process.off('SIGTERM', listener);
  hook.disable();
  return found;
}

class Signals {
  // `onSignal` is called when it comes and the program does not listen for it, and `beforeProgram`
  // when it does.
  constructor({ handlers, isNeeded, onSignal, beforeProgram }) {
    Object.assign(this, { handlers, isNeeded, onSignal, beforeProgram });
    this.started = false;
    this.isKept = false;
    // How often Node has told the program more often than this has seen it.
    this.balance = 0;
    safely(() => {
      this.Signal = signalClass();
    });
    const isSigterm = (name) => name === 'SIGTERM';
    // Node binds `emit` to the signal in between.
    process.prependListener('newListener', (name) => isSigterm(name) && this.lendEmit());
    process.on('newListener', (name) => isSigterm(name) && this.restoreEmit());
  }

  lendEmit() {
    const signals = this;
    const own = Object.getOwnPropertyDescriptor(process, 'emit');
    const { emit } = process;
    const lent = function (...words) {
      signals.balance += 1;
      // The primary has said so just now, and the program has heard it.
      if (signals.handlers.ranJustNow()) return true;
      signals.handlers.note();
      signals.beforeProgram();
      return Reflect.apply(emit, this, words);
    };
    process.emit = lent;
    this.restore = () => {
      if (process.emit !== lent) return;
      if (own === undefined) delete process.emit;
      else Object.defineProperty(process, 'emit', own);
    };
  }

  restoreEmit() {
    this.restore?.();
    this.restore = undefined;
  }

  guard() {
    if (this.started || this.Signal === undefined) return;
    this.started = true;
    this.balance = 0;
    this.signal = new this.Signal();
    this.signal.unref();
    this.signal.onsignal = () => this.heed();
    this.signal.start(SIGTERM);
    this.check = setInterval(() => {
      if (!this.isKept && !this.isNeeded()) this.stop();
    }, CHECK_MS);
    this.check.unref();
  }

  // From now on as long as the process lives.
  keep() {
    this.isKept = true;
    this.guard();
  }

  stop() {
    if (!this.started) return;
    this.started = false;
    clearInterval(this.check);
    this.signal.close();
  }

  // Node tells the program before or after this.
  heed() {
    const listens = process.listenerCount('SIGTERM') > 0;
    if (this.balance > 0 || listens) this.balance -= 1;
    else this.onSignal();
  }

  die() {
    this.stop();
    process.kill(process.pid, 'SIGTERM');
  }
}
