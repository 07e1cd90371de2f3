// Clients of socket.io on several workers: the first one says something, and all of them have to
// hear it. Prints what each has heard and from which worker it is served.
'use strict';

const { io } = require('socket.io-client');

const [port, clients] = process.argv.slice(2).map(Number);

async function main() {
  const sockets = Array.from({ length: clients }, () =>
    io(`http://127.0.0.1:${port}`, { transports: ['websocket'], forceNew: true }));
  const pids = await Promise.all(sockets.map((socket) => socket.emitWithAck('who')));
  // The workers' adapters learn of each other by heartbeats.
  let count = 0;
  while (count < clients) {
    count = await sockets[0].emitWithAck('count');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const heard = sockets.map((socket) => new Promise((resolve) => socket.once('said', resolve)));
  sockets[0].emit('say', 'hello');
  const said = await Promise.all(heard);
  said.forEach((one, number) => console.log(JSON.stringify({ ...one, served: pids[number], count })));
  sockets.forEach((socket) => socket.disconnect());
}

main().then(() => process.exit(0));
