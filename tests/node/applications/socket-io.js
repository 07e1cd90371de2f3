// A socket.io server whose answers name the worker. A session by long polling takes several
// connections, which all have to reach the same worker.
'use strict';

const { Server } = require('socket.io');

const server = require('http').createServer();
const sockets = new Server(server, { transports: ['polling'], pingInterval: 2000 });
sockets.on('connection', (socket) => {
  socket.on('who', (number, answer) => answer({ pid: process.pid, number }));
});
server.listen(0);
// A poll that waits would hold the server open.
process.on('disconnect', () => sockets.close());
