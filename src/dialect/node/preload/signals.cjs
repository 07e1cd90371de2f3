// SIGTERM from outside: while connections are open it does not end the process at once. Owns the
// signal handle for this, which the program does not see among its listeners.

const SIGTERM = 15;
const CHECK_MS = 1000;

// Node's internal class for signals, obtained from a temporary listener, because Node does not
// export it (from 24 on).
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
  // `onSignal` is called if the program does not listen for the signal, `beforeProgram` if it does.
  constructor({ handlers, isNeeded, onSignal, beforeProgram }) {
    Object.assign(this, { handlers, isNeeded, onSignal, beforeProgram });
    this.started = false;
    this.isKept = false;
    // How many more times Node has told the program than this handle has fired.
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
      // The primary has just sent the same message, and the program has been told.
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
    this.signal.onsignal = () => this.onDelivery();
    this.signal.start(SIGTERM);
    this.check = setInterval(() => {
      if (!this.isKept && !this.isNeeded()) this.stop();
    }, CHECK_MS);
    this.check.unref();
  }

  // From now on until the process ends.
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
  onDelivery() {
    const listens = process.listenerCount('SIGTERM') > 0;
    if (this.balance > 0 || listens) this.balance -= 1;
    else this.onSignal();
  }

  die() {
    this.stop();
    process.kill(process.pid, 'SIGTERM');
  }
}
