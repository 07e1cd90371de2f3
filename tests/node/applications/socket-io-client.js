// Clients of socket.io from different addresses of the loopback, by long polling, with a
// connection for each request. Prints who served each of them, or what went wrong.
'use strict';

const http = require('http');
const { io } = require('socket.io-client');

const [port, clients, questions] = process.argv.slice(2).map(Number);

async function one(number) {
  const localAddress = `127.0.0.${number + 2}`;
  const agent = new http.Agent({ keepAlive: false, localAddress });
  const socket = io(`http://127.0.0.1:${port}`, {
    transports: ['polling'], agent, reconnection: false, forceNew: true,
  });
  const failed = new Promise((resolve) => {
    socket.on('connect_error', (error) => resolve({ failure: String(error) }));
    socket.on('disconnect', (reason) => resolve({ failure: reason }));
  });
  const served = (async () => {
    const pids = new Set();
    for (let question = 0; question < questions; question += 1) {
      const answer = await socket.emitWithAck('who', question);
      if (answer.number !== question) return { failure: 'another answer' };
      pids.add(answer.pid);
    }
    return { pids: [...pids] };
  })();
  const told = await Promise.race([failed, served]);
  socket.disconnect();
  console.log(JSON.stringify(told));
}

Promise.all(Array.from({ length: clients }, (_, number) => one(number)))
  .then(() => process.exit(0));
