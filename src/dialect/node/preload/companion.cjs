// A companion: the program's own primary branch, in a process without child workers. Owns `cluster`
// there: its workers are those of clusterlb, with which this process exchanges lines of JSON on a
// socket.

// The lines before the program can handle them wait for its first listener, at most for this time.
const HELD_AT_MOST_MS = 1000;
const HELD_LOOK_MS = 5;
// When the run has ended: how long the program must be idle before it ends, and the limit of that.
const LAST_QUIET_MS = 100;
const LAST_AT_MOST_MS = 2000;
// Messages to a worker that is still to be started.
const WAITING_MAX = 1024;

// The character for the byte 0 of a payload in a line.
const FIRST_CHARACTER = 0x100;

// Messages in V8's format, as Node writes them on the channel of a child process (`serialization:
// 'advanced'`).
class V8Format {
  constructor() {
    const { DefaultSerializer, DefaultDeserializer } = require('v8');
    this.Serializer = class extends DefaultSerializer {
      _writeHostObject(object) {
        const isView = ArrayBuffer.isView(object);
        this.writeUint32(isView ? 0 : 1);
        return isView ? super._writeHostObject(object) : this.writeValue({ ...object });
      }
    };
    this.Deserializer = class extends DefaultDeserializer {
      _readHostObject() {
        return this.readUint32() === 0 ? super._readHostObject() : this.readValue();
      }
    };
  }

  write(message) {
    const serializer = new this.Serializer();
    serializer.writeHeader();
    serializer.writeValue(message);
    const characters = new Uint16Array(serializer.releaseBuffer());
    for (let place = 0; place < characters.length; place += 1) {
      characters[place] += FIRST_CHARACTER;
    }
    return Buffer.from(characters.buffer).toString('utf16le');
  }

  read(payload) {
    const bytes = Buffer.allocUnsafeSlow(payload.length);
    for (let place = 0; place < bytes.length; place += 1) {
      bytes[place] = payload.charCodeAt(place) - FIRST_CHARACTER;
    }
    const deserializer = new this.Deserializer(bytes);
    deserializer.readHeader();
    return deserializer.readValue();
  }
}

// What a program sees as the worker's process. It is the child of another process.
class CompanionsChild extends require('events') {
  constructor(id, pid, tell, write) {
    super();
    const hidden = (name, value) => Object.defineProperty(this, name, { value, writable: true });
    hidden('clusterlbId', id);
    hidden('clusterlbTell', tell);
    // A message as a part of the line.
    hidden('clusterlbWrite', write);
    // Messages that wait for the start of the process.
    hidden('clusterlbWaiting', pid === undefined ? [] : undefined);
    Object.assign(this, { pid, connected: true, killed: false, exitCode: null, signalCode: null });
    Object.assign(this, { stdin: null, stdout: null, stderr: null, stdio: [null, null, null] });
  }

  started(id, pid) {
    Object.assign(this, { pid, clusterlbId: id });
    const { clusterlbTell: tell, clusterlbWaiting: waiting = [] } = this;
    this.clusterlbWaiting = undefined;
    waiting.forEach((line) => tell({ ...line, id }));
  }

  // As Node's: (message[, handle[, options]][, callback]).
  send(message, ...rest) {
    const done = rest.find((word) => typeof word === 'function');
    const [handle] = rest;
    const failure = this.failureToSend(message, typeof handle === 'object' ? handle : undefined);
    if (failure !== undefined) {
      nextTick(() => (done === undefined ? this.emit('error', failure) : done(failure)));
      return false;
    }
    const line = this.clusterlbWrite(message);
    if (this.clusterlbWaiting !== undefined) this.clusterlbWaiting.push(line);
    else this.clusterlbTell({ ...line, id: this.clusterlbId });
    if (done !== undefined) nextTick(() => done(null));
    return true;
  }

  failureToSend(message, handle) {
    const failure = (code, text) => Object.assign(new Error(text), { code });
    if (message === undefined) {
      const error = new TypeError('The "message" argument must be specified');
      throw Object.assign(error, { code: 'ERR_MISSING_ARGS' });
    }
    if (handle) return failure('ERR_INVALID_HANDLE_TYPE', 'A companion has no sockets to send');
    if (!this.connected) return failure('ERR_IPC_CHANNEL_CLOSED', 'Channel closed');
    const isFull = (this.clusterlbWaiting?.length ?? 0) >= WAITING_MAX;
    return isFull ? failure('EAGAIN', 'Too many messages wait for the start') : undefined;
  }

  kill(signal = 'SIGTERM') {
    const { signals } = require('os').constants;
    const name = Object.keys(signals).find((one) => one === signal || signals[one] === signal);
    if (name === undefined && signal !== 0) {
      const error = new TypeError(`Unknown signal: ${signal}`);
      throw Object.assign(error, { code: 'ERR_UNKNOWN_SIGNAL' });
    }
    if (this.exitCode !== null || this.signalCode !== null || this.pid === undefined) return false;
    if (signal === 0) return true;
    this.killed = true;
    this.clusterlbTell({ act: 'kill', id: this.clusterlbId, signal: name });
    return true;
  }

  disconnect() {
    if (this.connected) this.clusterlbTell({ act: 'disconnect', id: this.clusterlbId });
  }

  ref() {}

  unref() {}
}

class Companion {
  constructor(channel, cluster) {
    this.cluster = cluster;
    // Those that were started, by their numbers; `cluster.workers` has the expected ones, too.
    this.workers = new Map();
    this.lastId = 0;
    // Workers that a call of `fork` has returned; and those returned before they were started.
    this.claimed = new Set();
    this.expected = [];
    this.forksTold = new WeakSet();
    this.addresses = new WeakMap();
    this.forked = false;
    this.over = false;
    this.tell = (line) => this.socket.write(`${JSON.stringify(line)}\n`);
    const [begin, rest] = firstLine(channel);
    this.slots = begin.slots;
    this.script = begin.script;
    const v8 = begin.advanced ? new V8Format() : undefined;
    this.write = (message) =>
      v8 === undefined ? { act: 'send', message } : { act: 'sendv8', payload: v8.write(message) };
    this.messageOf = ({ message, v8: payload }) =>
      payload === undefined ? message : v8.read(payload);
    this.isAdvanced = begin.advanced;
    begin.workers.forEach((one) => this.enter(one.id, one.pid));
    this.replaceParts();
    this.onRunSignal();
    const { Socket } = require('net');
    this.socket = new Socket({ fd: channel, readable: true, writable: true });
    this.socket.on('error', () => {});
    this.socket.on('close', () => this.end());
    this.holdBack(() => this.follow(begin.workers, rest));
  }

  // Without an own process for each worker, nothing here starts, ends or hears one.
  replaceParts() {
    const { cluster } = this;
    const companion = this;
    cluster.fork = (variables) => this.fork(variables);
    cluster.disconnect = (callback) => this.disconnectAll(callback);
    const { prototype } = cluster.Worker;
    prototype.disconnect = function () {
      this.exitedAfterDisconnect = true;
      this.process.disconnect();
      companion.remove(this);
      return this;
    };
    prototype.kill = function (signal) {
      this.process.kill(signal);
    };
    prototype.destroy = prototype.kill;
    // For `import { fork } from 'cluster'`.
    require('module').syncBuiltinESMExports();
  }

  // A service manager may signal every process, and the program is told once.
  onRunSignal() {
    const { emit } = process;
    process.emit = (...words) => {
      if (words[0] === 'SIGTERM') this.isTold = true;
      return Reflect.apply(emit, process, words);
    };
  }

  // The program registers its listeners in its first turn or, as a module, in a later one.
  holdBack(go) {
    const { cluster } = this;
    const names = ['fork', 'online', 'listening', 'message', 'disconnect', 'exit', 'setup'];
    const since = performance.now();
    const look = () => {
      const isHeard = this.forked || names.some((name) => cluster.listenerCount(name) > 0);
      if (!isHeard && performance.now() - since < HELD_AT_MOST_MS) return;
      clearInterval(timer);
      go();
    };
    const timer = setInterval(look, HELD_LOOK_MS);
  }

  follow(workers, rest) {
    this.isFollowing = true;
    for (const { id, online, listening } of workers) {
      this.act({ act: 'fork', id });
      if (online) this.act({ act: 'online', id });
      listening.forEach((address) => this.act({ act: 'listening', id, address }));
    }
    const { StringDecoder } = require('string_decoder');
    const decoder = new StringDecoder('utf8');
    let text = '';
    const take = (bytes) => {
      const lines = (text + decoder.write(bytes)).split('\n');
      text = lines.pop();
      lines.forEach((line) => this.act(JSON.parse(line)));
    };
    take(rest);
    this.socket.on('data', take);
  }

  act(line) {
    const { act, id } = line;
    if (act === 'end') this.end();
    else if (act === 'slots') this.slots = line.count;
    else if (act === 'refused') process.emitWarning(`clusterlb: ${line.reason}`);
    else if (act === 'fork') this.onFork(id, line.pid);
    else if (act === 'message') this.onMessage(this.workers.get(id) ?? this.gone(id), line);
    else if (this.workers.has(id)) this[`on_${act}`](this.workers.get(id), line);
  }

  // A worker as Node's primary has it.
  enter(id, pid) {
    const { cluster } = this;
    const child = new CompanionsChild(id, pid, this.tell, this.write);
    const worker = new cluster.Worker({ id, process: child, state: 'none' });
    worker.on('message', function (message, handle) {
      cluster.emit('message', this, message, handle);
    });
    cluster.workers[id] = worker;
    this.lastId = Math.max(this.lastId, id);
    if (pid !== undefined) this.workers.set(id, worker);
    return worker;
  }

  // One that ended while no companion ran, and whose message is still to be read.
  gone(id) {
    const worker = this.enter(id, 0);
    this.workers.delete(id);
    this.remove(worker);
    Object.assign(worker, { state: 'dead', exitedAfterDisconnect: false });
    Object.assign(worker.process, { connected: false, exitCode: 0 });
    return worker;
  }

  onFork(id, pid) {
    const expected = this.workers.has(id) ? undefined : this.expected.shift();
    if (expected !== undefined) this.bind(expected, id, pid);
    const worker = this.workers.get(id) ?? this.enter(id, pid);
    this.emitFork(worker);
  }

  emitFork(worker) {
    if (this.forksTold.has(worker)) return;
    this.forksTold.add(worker);
    this.cluster.emit('fork', worker);
  }

  // It was returned by `fork` under the number that it was likely to get.
  bind(worker, id, pid) {
    const { workers } = this.cluster;
    const { [id]: other } = workers;
    this.remove(worker);
    this.lastId = Math.max(this.lastId, id);
    if (other !== undefined && other !== worker) {
      this.lastId += 1;
      other.id = this.lastId;
      workers[other.id] = other;
    }
    worker.id = id;
    worker.process.started(id, pid);
    this.workers.set(id, worker);
    workers[id] = worker;
  }

  on_online(worker) {
    worker.state = 'online';
    worker.emit('online');
    this.cluster.emit('online', worker);
  }

  on_listening(worker, { address }) {
    worker.state = 'listening';
    this.addresses.set(worker, address);
    worker.emit('listening', address);
    this.cluster.emit('listening', worker, address);
  }

  on_leaving(worker) {
    worker.exitedAfterDisconnect = true;
  }

  onMessage(worker, line) {
    worker.process.emit('message', this.messageOf(line), undefined);
  }

  on_disconnect(worker, { voluntary }) {
    worker.exitedAfterDisconnect = voluntary;
    worker.state = 'disconnected';
    worker.process.connected = false;
    worker.process.emit('disconnect');
    worker.emit('disconnect');
    this.cluster.emit('disconnect', worker);
  }

  on_exit(worker, { id, code, signal, voluntary }) {
    this.workers.delete(id);
    this.claimed.delete(worker);
    this.remove(worker);
    worker.exitedAfterDisconnect = voluntary;
    worker.state = 'dead';
    Object.assign(worker.process, { connected: false, exitCode: code, signalCode: signal });
    worker.process.emit('exit', code, signal);
    worker.emit('exit', code, signal);
    this.cluster.emit('exit', worker, code, signal);
    worker.process.emit('close', code, signal);
    this.lookForLast();
  }

  remove(worker) {
    const { workers } = this.cluster;
    if (workers[worker.id] === worker) delete workers[worker.id];
  }

  // Returns a worker that runs already, or one that is going to; only what is beyond that is
  // another slot. So a program that forks as many as there are, and one more for each that ends,
  // gets these.
  fork(variables) {
    const { cluster } = this;
    cluster.setupPrimary();
    this.forked = true;
    this.warn(variables);
    const isFree = (worker) => worker.process.connected && !this.claimed.has(worker);
    const free = [...this.workers.values()].find(isFree);
    if (free !== undefined) {
      this.quiet(free.process);
      this.claimed.add(free);
      nextTick(() => this.introduce(free));
      return free;
    }
    const stays = ({ process: child, exitedAfterDisconnect }) =>
      child.connected && !exitedAfterDisconnect;
    const count = [...this.claimed].filter(stays).length;
    const worker = this.enter(this.lastId + 1, undefined);
    this.quiet(worker.process);
    this.claimed.add(worker);
    this.expected.push(worker);
    if (count >= this.slots) {
      this.slots += 1;
      this.tell({ act: 'fork' });
    }
    nextTick(() => this.emitFork(worker));
    return worker;
  }

  // What has happened to it before the program had it.
  introduce(worker) {
    this.emitFork(worker);
    if (!this.isFollowing) return;
    if (['online', 'listening'].includes(worker.state)) worker.emit('online');
    if (worker.state === 'listening') worker.emit('listening', this.addresses.get(worker));
  }

  // With `silent` programs read the output of workers from streams.
  quiet(child) {
    if (!this.cluster.settings.silent) return;
    warnOnce('the output of workers is not read here: see --prefix');
    const { Readable, Writable } = require('stream');
    const nothing = () => new Readable({ read() {} });
    const stdin = new Writable({ write: (chunk, encoding, done) => done() });
    const [stdout, stderr] = [nothing(), nothing()];
    Object.assign(child, { stdin, stdout, stderr, stdio: [stdin, stdout, stderr] });
  }

  warn(variables) {
    const { exec, serialization } = this.cluster.settings;
    if (serialization === 'advanced' && !this.isAdvanced) {
      warnOnce('messages are JSON: for those that are not, say --serialization advanced');
    }
    const { resolve } = require('path');
    const isOther = exec !== undefined && exec !== process.argv[1] && this.script !== undefined;
    if (isOther && resolve(exec) !== resolve(this.script)) {
      warnOnce(`the workers run ${this.script} and not ${exec}: name that one behind the --`);
    }
    if (Object.keys(variables ?? {}).length > 0) {
      warnOnce('variables for fork() do not reach the workers: see --env, and NODE_APP_INSTANCE');
    }
  }

  disconnectAll(callback) {
    this.onLast = callback;
    this.tell({ act: 'stop' });
    this.lookForLast();
  }

  lookForLast() {
    if (this.workers.size > 0 || typeof this.onLast !== 'function') return;
    nextTick(this.onLast);
    this.onLast = undefined;
  }

  // The run has ended, or clusterlb has. The program is told as by a service manager, and ends as
  // soon as it does nothing any more.
  end() {
    if (this.over) return;
    this.over = true;
    this.socket.destroy();
    this.expected.forEach((worker) => this.remove(worker));
    const isListening = process.listenerCount('SIGTERM') > 0;
    if (isListening && !this.isTold) process.emit('SIGTERM', 'SIGTERM', 15);
    const until = performance.now() + LAST_AT_MOST_MS;
    let busyAt = performance.now();
    const look = () => {
      const at = performance.now();
      const isWork = (request) => WORK.has(request.constructor.name);
      if (process._getActiveRequests().some(isWork)) busyAt = at;
      if (at - busyAt >= LAST_QUIET_MS || at >= until) process.exit();
    };
    setInterval(look, HELD_LOOK_MS).unref();
  }
}

const warned = new Set();

function warnOnce(text) {
  if (warned.has(text)) return;
  warned.add(text);
  process.emitWarning(`clusterlb: ${text}`);
}

// The first line, which is there when the process starts, and what has come behind it. Node makes
// the socket non-blocking only afterwards.
function firstLine(channel) {
  const chunk = Buffer.alloc(65536);
  let bytes = Buffer.alloc(0);
  for (;;) {
    const end = bytes.indexOf(10);
    if (end >= 0) return [JSON.parse(bytes.toString('utf8', 0, end)), bytes.subarray(end + 1)];
    const length = readSync(channel, chunk, 0, chunk.length, null);
    if (length === 0) throw new Error('clusterlb has ended');
    bytes = Buffer.concat([bytes, chunk.subarray(0, length)]);
  }
}
