// Asks over TLS one connection after the other, each with the last one's session, and prints who
// answered and whether the session was taken up again.
'use strict';

const https = require('https');

const [address, protocol, requests] = process.argv.slice(2);
const [host, port] = address.split(':');
let session;

function ask(left) {
  if (left === 0) return;
  const options = {
    host, port, session, rejectUnauthorized: false, agent: false, maxVersion: protocol,
  };
  let reused = false;
  const request = https.get(options, (response) => {
    let pid = '';
    response.on('data', (data) => { pid += data; });
    response.on('end', () => {
      console.log(JSON.stringify({ pid, reused }));
    });
  });
  request.on('socket', (socket) => {
    socket.on('session', (ticket) => { session = ticket; });
    socket.on('secureConnect', () => { reused = socket.isSessionReused(); });
    socket.on('close', () => ask(left - 1));
  });
}

ask(Number(requests));
