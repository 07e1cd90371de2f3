// A socket.io server with the adapter for node:cluster: what one worker emits reaches the clients of
// all, by way of the primary.
'use strict';

const cluster = require('cluster');
const { createAdapter, setupPrimary } = require('@socket.io/cluster-adapter');

if (cluster.isPrimary) {
  setupPrimary();
} else {
  const { Server } = require('socket.io');
  const server = require('http').createServer();
  const sockets = new Server(server, { transports: ['websocket'], adapter: createAdapter() });
  sockets.on('connection', (socket) => {
    socket.on('who', (answer) => answer(process.pid));
    socket.on('say', (text) => sockets.emit('said', { text, pid: process.pid }));
    socket.on('count', async (answer) => answer((await sockets.fetchSockets()).length));
  });
  server.listen(0);
  process.on('disconnect', () => sockets.close());
}
