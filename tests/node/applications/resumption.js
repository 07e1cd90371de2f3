// An https server that says which worker has answered.
'use strict';

const read = (name) => require('fs').readFileSync(process.env[name]);
const server = require('https').createServer(
  { key: read('TEST_KEY'), cert: read('TEST_CERTIFICATE') },
  (request, response) => response.end(String(process.pid)),
);
server.listen(0, '127.0.0.1');
