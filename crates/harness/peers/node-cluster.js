// Node's own cluster as a server to compare with: workers that answer HTTP with `hello world`.
//
// Started as `node node-cluster.js '{"workers":8,"policy":"rr","port":0,"backlog":4096,
// "work":null}'`. Prints JSON lines on standard output: `listening` with the address and the
// workers' process ids once all of them listen, and after SIGTERM or SIGINT `summary` with the
// connections that each worker has accepted. Under a primary that is not Node's the same script is
// a worker, which sends its count when it leaves. `work` makes every request cost something:
// {"kind":"cpu"|"block","parts":[[weight, nanoseconds], …]}.
'use strict';

const cluster = require('cluster');
const http = require('http');

// How long a worker may take to send its count at the end; a stopped one never does.
const PATIENCE_MS = 1000;

const options = JSON.parse(process.argv[2] || process.env.CLUSTERLB_PEER_OPTIONS || '{}');

function emit(event) {
  process.stdout.write(JSON.stringify(event) + '\n');
}

function primary() {
  cluster.schedulingPolicy = options.policy === 'none' ? cluster.SCHED_NONE : cluster.SCHED_RR;
  const workers = [];
  const counts = new Map();
  let restarted = 0;
  let listening = 0;
  let ending = false;

  cluster.on('listening', (worker, address) => {
    listening += 1;
    if (listening === options.workers) {
      emit({
        event: 'listening',
        address: `${address.address}:${address.port}`,
        policy: options.policy,
        version: process.version,
        pid: process.pid,
        workers: workers.map((one) => one.process.pid),
      });
    }
  });
  cluster.on('message', (worker, message) => {
    counts.set(worker.id, message);
    finish(false);
  });
  cluster.on('exit', () => {
    if (!ending) restarted += 1;
  });

  function finish(late) {
    if (!ending || (counts.size < workers.length && !late)) return;
    ending = false;
    emit({
      event: 'summary',
      restarted,
      workers: workers.map((worker) => ({
        id: worker.id,
        pid: worker.process.pid,
        connections: counts.has(worker.id) ? counts.get(worker.id).connections : null,
        requests: counts.has(worker.id) ? counts.get(worker.id).requests : null,
      })),
    });
    for (const worker of workers) worker.process.kill('SIGKILL');
    setImmediate(() => process.exit(0));
  }

  function end() {
    if (ending) return;
    ending = true;
    for (const worker of workers) {
      if (worker.isConnected()) worker.send('report');
    }
    setTimeout(() => finish(true), PATIENCE_MS);
  }
  process.on('SIGTERM', end);
  process.on('SIGINT', end);

  for (let number = 0; number < options.workers; number += 1) {
    workers.push(cluster.fork({ CLUSTERLB_PEER_OPTIONS: JSON.stringify(options) }));
  }
}

// A time drawn from the parts by their weights.
function drawNs(parts) {
  const total = parts.reduce((sum, part) => sum + part[0], 0);
  let left = Math.random() * total;
  for (const [weight, ns] of parts) {
    left -= weight;
    if (left < 0) return ns;
  }
  return parts[parts.length - 1][1];
}

function worked(work) {
  if (!work) return () => undefined;
  if (work.kind === 'block') {
    const never = new Int32Array(new SharedArrayBuffer(4));
    return () => Atomics.wait(never, 0, 0, drawNs(work.parts) / 1e6);
  }
  return () => {
    const end = process.hrtime.bigint() + BigInt(drawNs(work.parts));
    while (process.hrtime.bigint() < end);
  };
}

function worker() {
  const work = worked(options.work);
  let connections = 0;
  let requests = 0;
  const server = http.createServer((request, response) => {
    requests += 1;
    work();
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': 12 });
    response.end('hello world\n');
  });
  server.keepAliveTimeout = 75000;
  server.on('connection', () => {
    connections += 1;
  });
  server.listen({ host: '127.0.0.1', port: options.port || 0, backlog: options.backlog || 4096 });
  const report = () => process.send({ connections, requests });
  process.on('message', (message) => {
    if (message === 'report') report();
  });
  // Another primary than the one above does not ask, but lets its workers end in order.
  server.on('close', report);
  // The primary ends its workers; a terminal's Ctrl-C must not take their counts along.
  process.on('SIGINT', () => undefined);
}

if (cluster.isPrimary || cluster.isMaster) primary();
else worker();
