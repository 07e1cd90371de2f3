// A WebSocket echo: the first message of a connection is the worker's process id.
'use strict';

const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
server.on('connection', (socket) => {
  socket.send(String(process.pid));
  socket.on('message', (message, binary) => socket.send(message, { binary }));
});
// Sockets outlive the HTTP server that they came from; a worker that leaves closes them.
process.on('disconnect', () => server.clients.forEach((socket) => socket.close(1001)));
