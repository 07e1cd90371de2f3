// Node's own primary with the worker script that TEST_WORKER names. Tells events as JSON lines;
// `disconnect` on standard input calls cluster.disconnect(), its end ends everything.
'use strict';

const cluster = require('cluster');

const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const policy = { rr: cluster.SCHED_RR, none: cluster.SCHED_NONE }[process.env.TEST_POLICY];
cluster.schedulingPolicy = policy;
cluster.setupPrimary({ exec: process.env.TEST_WORKER });

let refusals = 0;
cluster.on('online', (worker) => {
  tell({ event: 'online', id: worker.id, pid: worker.process.pid });
  // The answers to connections that were handed over; nobody else counts them.
  worker.process.on('internalMessage', (message) => {
    if (message.accepted === false) refusals += 1;
  });
});
cluster.on('listening', (worker, { address, port }) => {
  tell({ event: 'listening', id: worker.id, address: `${address}:${port}` });
});
cluster.on('message', (worker, message) => tell({ event: 'message', id: worker.id, message }));
cluster.on('exit', (worker, code, signal) => tell({ event: 'exit', id: worker.id, code, signal }));

process.stdin.on('data', (data) => {
  for (const word of String(data).trim().split('\n')) {
    if (word === 'refusals') tell({ event: 'refusals', count: refusals });
    if (word === 'disconnect') {
      cluster.disconnect(() => {
        tell({ event: 'disconnected', left: Object.keys(cluster.workers).length });
      });
    }
  }
});
process.stdin.on('end', () => {
  for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGKILL');
  process.exit(0);
});

for (let number = 0; number < 2; number += 1) cluster.fork();
