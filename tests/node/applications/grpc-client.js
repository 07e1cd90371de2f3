// Calls a service of gRPC from several channels until it reads a line, and reports what failed and
// which workers answered. The channels stay open until its input ends.
'use strict';

const { credentials, makeGenericClientConstructor } = require('@grpc/grpc-js');
const { definition } = require('./grpc-definition');

const [, , address, channels] = process.argv;
const Client = makeGenericClientConstructor(definition);
const failures = [];
const pids = new Set();
let isOver = false;

const hello = (client) => new Promise((resolve) => {
  client.hello('you', (error, text) => {
    if (error) failures.push(`hello: ${error.message}`);
    else pids.add(text.split(' ').pop());
    resolve();
  });
});

const count = (client) => new Promise((resolve) => {
  const stream = client.count('up');
  const told = [];
  stream.on('data', (text) => told.push(text));
  stream.on('error', (error) => failures.push(`count: ${error.message}`));
  stream.on('close', resolve);
  stream.on('end', () => {
    if (told.join('') !== '01234') failures.push(`count: ${told}`);
    resolve();
  });
});

async function call() {
  // Otherwise all clients of a process share a connection.
  const options = { 'grpc.use_local_subchannel_pool': 1 };
  const client = new Client(address, credentials.createInsecure(), options);
  await hello(client);
  console.log(JSON.stringify({ ready: true }));
  while (!isOver) {
    await hello(client);
    await count(client);
  }
}

process.stdin.once('data', () => {
  isOver = true;
});
process.stdin.on('end', () => process.exit());
Promise.all(Array.from({ length: Number(channels) }, call)).then(() => {
  console.log(JSON.stringify({ failures, pids: [...pids] }));
});
